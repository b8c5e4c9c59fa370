-- An order among the executors of a run: the request of one that was followed by another, and that
-- comes late, must not take the run from it.

-- +goose Up
ALTER TABLE stepfleet.run
    ADD COLUMN resume integer NOT NULL DEFAULT 0; -- which resume of the run its executor is of; 0: the first start

-- +goose Down
ALTER TABLE stepfleet.run DROP COLUMN resume;
