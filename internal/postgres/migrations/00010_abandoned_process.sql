-- Connections of a dead process to Dagster's database are found by their name.

-- +goose Up

-- Which process had run the task that the session has abandoned.
ALTER TABLE stepfleet.held
    ADD COLUMN process integer NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE stepfleet.held DROP COLUMN process;
