-- What each role may do, by the statements in the Go files beside this one. Every migration runs it
-- after the schema is current: it takes everything from the three roles and gives them this.
--
-- Nobody but the owner changes an audit row, a payload or a submission, and a worker can neither
-- submit nor cancel nor end what another role must end. A lock on a row (FOR UPDATE and the like) takes
-- the right to update one column of it; where a role only locks, that column is one that nobody changes.

REVOKE ALL ON ALL TABLES IN SCHEMA stepfleet FROM stepfleet_worker, stepfleet_server, stepfleet_reader;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA stepfleet FROM stepfleet_worker, stepfleet_server, stepfleet_reader;
REVOKE ALL ON FUNCTION stepfleet.audit_ahead(integer) FROM PUBLIC, stepfleet_worker, stepfleet_server, stepfleet_reader;
GRANT USAGE ON SCHEMA stepfleet TO stepfleet_worker, stepfleet_server, stepfleet_reader;
GRANT SELECT ON stepfleet.goose_db_version TO stepfleet_worker, stepfleet_server, stepfleet_reader;

-- Worker: sessions, claims and the ends of what it runs.
GRANT SELECT ON stepfleet.run, stepfleet.payload TO stepfleet_worker;
GRANT SELECT, INSERT (worker, instance, host, pid, version, slots, session_ttl, run_lease),
    UPDATE (state, draining, renewed_at, ended_at, end_reason) ON stepfleet.session TO stepfleet_worker;
GRANT SELECT, UPDATE (fence, released_fence, session_id, claimed_at, started_at, ended_at, state) ON stepfleet.task TO stepfleet_worker;
GRANT SELECT, INSERT, DELETE, UPDATE (since) ON stepfleet.ready TO stepfleet_worker; -- claims lock what they take
GRANT SELECT, INSERT, DELETE, UPDATE (abandoned_at, process) ON stepfleet.held TO stepfleet_worker;
GRANT SELECT, UPDATE (turn) ON stepfleet.lane_turn TO stepfleet_worker;
GRANT INSERT ON stepfleet.outcome, stepfleet.audit TO stepfleet_worker;
GRANT USAGE ON SEQUENCE stepfleet.audit_id TO stepfleet_worker;

-- Server: intake, cancel, close, sweep, and all reading.
GRANT SELECT, INSERT, UPDATE (identity, state, epoch, last_turn, notify_url, closed_at, close_reason, executor, resume, closed_by)
    ON stepfleet.run TO stepfleet_server;
GRANT SELECT, UPDATE (state, ended_at, end_reason) ON stepfleet.session TO stepfleet_server;
GRANT SELECT, INSERT ON stepfleet.payload, stepfleet.lane_turn, stepfleet.outcome, stepfleet.audit TO stepfleet_server;
GRANT SELECT, INSERT, UPDATE (fence, session_id, claimed_at, ended_at, state, cancel_requested, deaths) ON stepfleet.task TO stepfleet_server;
GRANT SELECT, INSERT, DELETE, UPDATE (since) ON stepfleet.ready TO stepfleet_server; -- a cancel locks what it deletes
GRANT SELECT, DELETE ON stepfleet.held TO stepfleet_server;
GRANT SELECT, INSERT, UPDATE (epoch, earlier, at) ON stepfleet.adjudication TO stepfleet_server;
GRANT SELECT, INSERT, UPDATE (at) ON stepfleet.beat TO stepfleet_server;
GRANT SELECT, INSERT, UPDATE (server, until) ON stepfleet.duty TO stepfleet_server;
GRANT USAGE ON SEQUENCE stepfleet.audit_id TO stepfleet_server;
GRANT EXECUTE ON FUNCTION stepfleet.audit_ahead(integer) TO stepfleet_server;

-- Reader: what people and their tools look at. Arguments may hold what run config holds, so not them.
GRANT SELECT ON stepfleet.run, stepfleet.session, stepfleet.task, stepfleet.outcome, stepfleet.ready, stepfleet.held,
    stepfleet.lane_turn, stepfleet.adjudication, stepfleet.beat, stepfleet.duty, stepfleet.audit TO stepfleet_reader;
