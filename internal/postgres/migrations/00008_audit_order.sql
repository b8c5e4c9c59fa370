-- The audit is read by run, or in one sort of a window's days: nothing looks for a place in it.

-- +goose Up
DROP INDEX stepfleet.audit_order;

-- +goose Down
CREATE INDEX audit_order ON stepfleet.audit USING brin (id, at) WITH (pages_per_range = 32);
