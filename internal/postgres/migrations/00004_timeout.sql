-- How long an attempt may run before its worker ends it.

-- +goose Up

-- It never changes, as all of the task that stands after submitted_at.
ALTER TABLE stepfleet.task
    ADD COLUMN timeout_seconds integer NOT NULL DEFAULT 0; -- 0: as long as it takes

-- +goose Down
ALTER TABLE stepfleet.task DROP COLUMN timeout_seconds;
