-- How a statement takes back all that its transaction has done.

-- +goose Up

-- The code of the refusal is the error's message. It is for what is refused to a run that nobody knows:
-- its row and all else go again. The audit row is written after that.
-- +goose StatementBegin
CREATE FUNCTION stepfleet.refuse(code text) RETURNS text LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'SF001', MESSAGE = code;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION stepfleet.refuse(text);
