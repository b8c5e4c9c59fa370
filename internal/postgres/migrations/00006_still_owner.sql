-- Whether a task is still its owner's, for the events that a step writes to Dagster's log where that
-- is in the ledger's database.

-- +goose Up

-- The lock is held to the end of the transaction that asks: a task is not taken from an owner that is
-- writing an event, and one that was taken has no event after that. A session that is dead has none
-- either: the server may have looked into the log already, and takes the task by what it saw there.
-- Dagster's role needs USAGE of the schema and nothing else of it.
-- +goose StatementBegin
CREATE FUNCTION stepfleet.still_owner(task_id bigint, fence bigint) RETURNS boolean
    LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    PERFORM FROM stepfleet.task t JOIN stepfleet.session s ON s.id = t.session_id AND s.state <> 'dead'
        WHERE t.id = $1 AND t.fence = $2 AND t.state = 'running' FOR SHARE OF t;
    RETURN found;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION stepfleet.still_owner(bigint, bigint);
