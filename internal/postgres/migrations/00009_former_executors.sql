-- Who has been superseded stays so: a request of such an executor that was held up on its way must not
-- take the run from the one that has it.

-- +goose Up
ALTER TABLE stepfleet.run
    ADD COLUMN former_executors text[] NOT NULL DEFAULT '{}'; -- by epoch, from 1 on

-- +goose Down
ALTER TABLE stepfleet.run DROP COLUMN former_executors;
