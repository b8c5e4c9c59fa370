-- Who speaks for a run, and what executors were granted to say of attempts that ended silently.

-- +goose Up

ALTER TABLE stepfleet.run
    ADD COLUMN executor  text NOT NULL DEFAULT '', -- the name of the executor that has the epoch
    ADD COLUMN closed_by bigint NOT NULL DEFAULT 0; -- the epoch that closed it, for steps; 0: for run workers too

-- An attempt whose process did not say how it ended, and the last executor that was granted to.
-- Keyed like a task, which need not exist: it may have been refused at submit.
CREATE TABLE stepfleet.adjudication (
    run_id    text NOT NULL,
    step_hash bytea NOT NULL,
    attempt   integer NOT NULL,
    epoch     bigint NOT NULL,
    earlier   bigint NOT NULL DEFAULT 0, -- the epoch that was granted it before
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (run_id, step_hash, attempt)
);

-- +goose Down
DROP TABLE stepfleet.adjudication;
ALTER TABLE stepfleet.run DROP COLUMN executor, DROP COLUMN closed_by;
