-- The ledger's tables. The state machine is state.go of the root package; the statements that
-- change these tables, with the invariants they keep, are the Go files beside this directory.
--
-- Locks are taken in this order, rows of one table in id order: session, run, ready, held, task.
-- There are no foreign keys on the hot path: each would cost a lock and a lookup per row, and the
-- statements keep the references true by themselves.

-- +goose Up

-- A run. Submissions of one run take turns on its row; a closed run never reopens.
CREATE TABLE stepfleet.run (
    run_id       text PRIMARY KEY,
    identity     text,                      -- what the run executes; the first submit fixes it
    state        text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'closed')),
    epoch        bigint NOT NULL DEFAULT 0, -- who speaks for the run
    last_turn    bigint NOT NULL DEFAULT 0,
    notify_url   text NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at    timestamptz,
    close_reason text
) WITH (fillfactor = 70);
-- The few runs that are not over, for the comparison with Dagster.
CREATE INDEX run_open ON stepfleet.run (run_id) WHERE state = 'open';

-- A worker's life. Dead is for ever. No index covers renewed_at, so a renewal is a HOT update;
-- the two that exist cover columns that a renewal leaves alone.
CREATE TABLE stepfleet.session (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    worker     text NOT NULL,
    instance   text NOT NULL,
    host       text NOT NULL,
    pid        integer NOT NULL,
    version    text NOT NULL,
    slots      jsonb NOT NULL,
    state      text NOT NULL DEFAULT 'alive' CHECK (state IN ('alive', 'suspect', 'dead')),
    draining   boolean NOT NULL DEFAULT false,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    renewed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at   timestamptz,
    end_reason text NOT NULL DEFAULT '',
    CHECK ((state = 'dead') = (ended_at IS NOT NULL))
) WITH (fillfactor = 50);
CREATE INDEX session_open ON stepfleet.session (id) WHERE state <> 'dead';
CREATE INDEX session_instance ON stepfleet.session (instance);

-- Arguments, stored once by content and never changed.
CREATE TABLE stepfleet.payload (
    digest     bytea PRIMARY KEY CHECK (length(digest) = 32),
    data       bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One attempt of one step, or one run worker. No index covers a column that changes, so every
-- update is HOT; the columns that change stand first, so that the log carries little more than
-- them. The result lies in outcome, to keep the row narrow. A claim may update every row of a page
-- in one commit, and only half a page left free takes that: with fillfactor 70 and claims of
-- twenty, 9 % of the updates were not HOT.
CREATE TABLE stepfleet.task (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fence            bigint NOT NULL DEFAULT 0,
    released_fence   bigint NOT NULL DEFAULT -1, -- the fence of the last release: makes Release idempotent
    session_id       bigint,                     -- the owner, or of an ended task the last one
    claimed_at       timestamptz,
    started_at       timestamptz,
    ended_at         timestamptz,
    state            text NOT NULL DEFAULT 'queued' CHECK (state IN
        ('queued', 'leased', 'running', 'succeeded', 'failed', 'cancelled', 'lost', 'dead')),
    cancel_requested boolean NOT NULL DEFAULT false,
    -- From here on nothing changes.
    submitted_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    turn             bigint NOT NULL,
    priority         integer NOT NULL,
    attempt          integer NOT NULL,
    policy_retries   integer NOT NULL,
    lost_retries     integer NOT NULL,
    payload          bytea NOT NULL,
    step_hash        bytea NOT NULL,             -- of step_key, which may be too long for an index
    run_id           text NOT NULL,
    step_key         text NOT NULL,
    queue            text NOT NULL,
    kind             text NOT NULL,
    op               text NOT NULL,
    job              text NOT NULL,
    code_location    text NOT NULL,
    CHECK ((state IN ('queued', 'leased', 'running')) = (ended_at IS NULL)),
    CHECK (state NOT IN ('leased', 'running') OR session_id IS NOT NULL)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
-- The key of a task. It also finds the tasks of a run.
CREATE UNIQUE INDEX task_key ON stepfleet.task (run_id, step_hash, attempt);

-- How a task ended: written once, in the commit that ends it.
CREATE TABLE stepfleet.outcome (
    task_id bigint PRIMARY KEY,
    reason  text NOT NULL DEFAULT '',
    result  json -- json, not jsonb: it keeps what the worker said byte for byte, \u0000 too
);

-- A row for each queued task. Only claims lock these rows; others delete them with SKIP LOCKED
-- after they have locked the task, so a row may for a moment outlive its task's being queued,
-- and the claim that meets such a row removes it.
CREATE TABLE stepfleet.ready (
    lane          text NOT NULL,
    priority      integer NOT NULL,
    turn          bigint NOT NULL,
    task_id       bigint NOT NULL,
    code_location text NOT NULL,
    since         timestamptz NOT NULL -- when it was submitted
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500);
CREATE UNIQUE INDEX ready_order ON stepfleet.ready (lane, priority DESC, turn, task_id);

-- A row for each leased or running task, written and deleted by whoever has the task locked.
-- Sweeps and renewals start here.
CREATE TABLE stepfleet.held (
    session_id bigint NOT NULL,
    task_id    bigint NOT NULL,
    claim      text NOT NULL,
    PRIMARY KEY (session_id, task_id)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500);

-- The largest turn claimed so far, per lane and priority.
CREATE TABLE stepfleet.lane_turn (
    lane     text NOT NULL,
    priority integer NOT NULL,
    turn     bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (lane, priority)
) WITH (fillfactor = 10);

-- Heartbeats of servers: proof that the sweeper itself could write.
CREATE TABLE stepfleet.beat (
    server text PRIMARY KEY,
    at     timestamptz NOT NULL
) WITH (fillfactor = 10);

-- Every transition and every refused write. Append-only. The ids are given while the task is
-- locked, so of one task they are in the order of its life.
CREATE SEQUENCE stepfleet.audit_id;
CREATE TABLE stepfleet.audit (
    id         bigint NOT NULL DEFAULT nextval('stepfleet.audit_id'),
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    task_id    bigint NOT NULL DEFAULT 0,
    fence      bigint NOT NULL DEFAULT 0,
    run_id     text NOT NULL DEFAULT '',
    verb       text NOT NULL,
    actor      text NOT NULL,
    from_state text NOT NULL DEFAULT '',
    to_state   text NOT NULL DEFAULT '',
    refused    text NOT NULL DEFAULT '',
    detail     text NOT NULL DEFAULT ''
) PARTITION BY RANGE (at);
CREATE INDEX audit_run ON stepfleet.audit (run_id) WHERE run_id <> '';
-- A write never fails for want of a partition.
CREATE TABLE stepfleet.audit_rest PARTITION OF stepfleet.audit DEFAULT;

-- audit_ahead makes the partitions of today and the next days (UTC). It attaches instead of
-- creating in place, which blocks no writer. A day whose rows already went to audit_rest cannot
-- have a partition any more and is passed over. It runs as its owner, since the server's role
-- creates no tables.
-- +goose StatementBegin
CREATE FUNCTION stepfleet.audit_ahead(days integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = stepfleet, pg_temp AS $$
DECLARE
    first date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
    day   date;
    name  text;
    made  integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(731086752211702);
    FOR i IN 0..days LOOP
        day  := first + i;
        name := 'audit_' || to_char(day, 'YYYYMMDD');
        IF to_regclass('stepfleet.' || name) IS NULL THEN
            BEGIN
                EXECUTE format('CREATE TABLE %I (LIKE audit INCLUDING ALL)', name);
                EXECUTE format('ALTER TABLE audit ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                    name, day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
                made := made + 1;
            EXCEPTION WHEN check_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
    RETURN made;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION stepfleet.audit_ahead(integer);
DROP TABLE stepfleet.audit, stepfleet.beat, stepfleet.lane_turn, stepfleet.held, stepfleet.ready,
    stepfleet.outcome, stepfleet.task, stepfleet.payload, stepfleet.session, stepfleet.run;
DROP SEQUENCE stepfleet.audit_id;
