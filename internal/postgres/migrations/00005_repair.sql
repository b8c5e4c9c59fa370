-- Running tasks that lose their owner, tasks that kill their owners, and duties of one server.

-- +goose Up

-- A session expires by the deadlines of the worker that registered it.
ALTER TABLE stepfleet.session
    ADD COLUMN session_ttl interval NOT NULL DEFAULT '30 s',
    ADD COLUMN run_lease   interval NOT NULL DEFAULT '180 s';

-- How many sessions died holding the task's lease. It changes seldom, so it may stand last.
-- A running task without a session is one that its owner has abandoned.
ALTER TABLE stepfleet.task
    ADD COLUMN deaths smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT task_check1,
    ADD CONSTRAINT task_leased_by CHECK (state <> 'leased' OR session_id IS NOT NULL);

-- When the session has abandoned the task. Its row stays, so that the sweep finds the task.
ALTER TABLE stepfleet.held
    ADD COLUMN abandoned_at timestamptz;

-- What one server does for all. Whoever has a duty keeps prolonging it.
CREATE TABLE stepfleet.duty (
    name   text PRIMARY KEY,
    server text NOT NULL,
    until  timestamptz NOT NULL
) WITH (fillfactor = 10);

-- Leads to a place in the audit. It costs a few bytes for a thousand rows, which come in this order.
CREATE INDEX audit_order ON stepfleet.audit USING brin (id, at) WITH (pages_per_range = 32);

-- +goose Down
DROP INDEX stepfleet.audit_order;
DROP TABLE stepfleet.duty;
ALTER TABLE stepfleet.held DROP COLUMN abandoned_at;
ALTER TABLE stepfleet.task
    DROP COLUMN deaths,
    DROP CONSTRAINT task_leased_by,
    ADD CONSTRAINT task_check1 CHECK (state NOT IN ('leased', 'running') OR session_id IS NOT NULL);
ALTER TABLE stepfleet.session DROP COLUMN session_ttl, DROP COLUMN run_lease;
