package postgres

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// shareSession is the first lock of every claim and start. KEY SHARE lets renewals and other
// claims pass and keeps out the marking of the session (barSession): a claim commits before the
// marking, and the sweep after it sees the task, or it finds the session marked and is refused.
const shareSession = `
SELECT state FROM stepfleet.session WHERE id = $1 FOR KEY SHARE`

// shareOwnSession is shareSession for a claim, which nobody makes for another worker (see lockSession).
// What is not claimed is not started.
const shareOwnSession = `
SELECT state FROM stepfleet.session WHERE id = $1 AND instance = $2 FOR KEY SHARE`

// claim takes the best rows of the lane that no other claim has locked, and raises the fence of
// their tasks.
//
// It locks and acts in one statement. Nobody but a claim locks a ready row and waits, so SKIP
// LOCKED skips only what another claim is taking. A task behind a ready row is queued, or somebody
// has just ended it and skipped the row: then the lock on the task waits for that commit, reads
// the task again, finds it not queued, and the row is removed all the same. Tasks are locked in
// id order as everywhere.
//
// The lane's turn is raised with SKIP LOCKED too: claims of one lane must not wait for each other's
// commits, and a value that lags by a claim in flight only lets the next run begin a moment earlier.
const claim = `
WITH picked AS MATERIALIZED (
    SELECT r.ctid AS place, r.task_id, r.priority, r.turn FROM stepfleet.ready r
    WHERE r.lane = $2 AND r.code_location <> ALL ($5::text[]) AND EXISTS (SELECT FROM stepfleet.session s
        WHERE s.id = $1 AND s.instance = $6 AND s.state = 'alive' AND NOT s.draining)
    ORDER BY r.priority DESC, r.turn, r.task_id LIMIT $3 FOR UPDATE OF r SKIP LOCKED
), removed AS (
    DELETE FROM stepfleet.ready WHERE ctid = ANY (ARRAY(SELECT place FROM picked))
), mine AS MATERIALIZED (
    SELECT id FROM stepfleet.task
    WHERE id = ANY (ARRAY(SELECT task_id FROM picked)) AND state = 'queued'
    ORDER BY id FOR NO KEY UPDATE
), taken AS (
    UPDATE stepfleet.task t SET state = 'leased', fence = t.fence + 1, session_id = $1, claimed_at = clock_timestamp()
    WHERE t.id = ANY (ARRAY(SELECT id FROM mine)) RETURNING t.*
), own AS (
    INSERT INTO stepfleet.held (session_id, task_id, claim) SELECT $1, id, $4 FROM taken
), lanes AS (
    SELECT l.priority, p.top FROM stepfleet.lane_turn l
    JOIN (SELECT priority, max(turn) AS top FROM taken GROUP BY priority) p USING (priority)
    WHERE l.lane = $2 AND l.turn < p.top FOR UPDATE OF l SKIP LOCKED
), raised AS (
    UPDATE stepfleet.lane_turn l SET turn = lanes.top FROM lanes
    WHERE l.lane = $2 AND l.priority = lanes.priority AND l.turn < lanes.top
), aud AS (
    INSERT INTO stepfleet.audit (task_id, run_id, verb, actor, from_state, to_state, fence, detail)
    SELECT id, run_id, 'claim', 'session ' || $1::bigint, 'queued', 'leased', fence, $4::text FROM taken ORDER BY id
)
SELECT t.id, t.fence, t.kind, t.run_id, t.step_key, t.attempt, t.op, t.job, t.queue, t.priority, t.code_location,
    t.payload, t.policy_retries, t.lost_retries, t.timeout_seconds, r.notify_url
FROM taken t JOIN stepfleet.run r USING (run_id)
ORDER BY t.priority DESC, t.turn, t.id`

// claimMore reports, before the claim, whether the lane has more rows than the claim may take; the claim
// compares it with what it took. A count that stops at the limit stays cheap in a long lane. Rows of
// locations that the session cannot run do not count: it would look for them again and again.
const claimMore = `
SELECT count(*) FROM (SELECT FROM stepfleet.ready WHERE lane = $1 AND code_location <> ALL ($3::text[]) ORDER BY priority DESC, turn, task_id LIMIT $2 + 1) r`

// claimRefused audits a claim of a session that may not claim, or is not the caller's.
const claimRefused = `
INSERT INTO stepfleet.audit (verb, actor, refused, detail)
SELECT 'claim', 'session ' || $1::bigint, CASE WHEN s.state = 'suspect' THEN 'session_suspect' ELSE 'session_dead' END, $2
FROM (SELECT) one LEFT JOIN stepfleet.session s ON s.id = $1 AND s.instance = $3
WHERE s.state IS DISTINCT FROM 'alive'`

// claimPayloads reads the arguments of the rows that this claim took, each once.
const claimPayloads = `
SELECT digest, data FROM stepfleet.payload WHERE digest IN (
    SELECT t.payload FROM stepfleet.held h JOIN stepfleet.task t ON t.id = h.task_id
    WHERE h.session_id = $1 AND h.claim = $2 AND t.state = 'leased')`

// Claim implements stepfleet.Claims. It is not issued again when its answer is lost: it might take
// other tasks. The worker finds the first ones at its next renewal and releases them.
func (l *Ledger) Claim(ctx context.Context, req stepfleet.ClaimRequest) (stepfleet.Claimed, error) {
	op := fmt.Sprintf("claim queue %s for session %d of instance %s", req.Queue, req.Session, req.Instance)
	limit, instance, except := max(req.Max, 0), clean(req.Instance), cleanAll(req.Except)
	var out stepfleet.Claimed
	var state stepfleet.SessionState
	err := l.run(ctx, op, onceOnly, func(q *pgx.Batch) {
		out, state = stepfleet.Claimed{Payloads: map[stepfleet.Digest][]byte{}}, ""
		var waiting int
		q.Queue(shareOwnSession, req.Session, instance).Query(scanOptional(&state))
		q.Queue(claimMore, req.Queue, limit, except).QueryRow(func(row pgx.Row) error { return row.Scan(&waiting) })
		q.Queue(claim, req.Session, req.Queue, limit, clean(req.ID), except, instance).Query(func(rows pgx.Rows) (err error) {
			out.Leases, err = pgx.CollectRows(rows, scanLease)
			out.More = waiting > len(out.Leases)
			return err
		})
		q.Queue(claimPayloads, req.Session, clean(req.ID)).Query(scanPayloads(out.Payloads))
		q.Queue(claimRefused, req.Session, clean(req.ID), instance)
	})
	if err != nil {
		return stepfleet.Claimed{}, err
	}
	switch state {
	case stepfleet.SessionAlive:
		keepNamed(&out)
		return out, nil
	case stepfleet.SessionSuspect:
		return stepfleet.Claimed{}, fmt.Errorf("%s: %w", op, stepfleet.ErrSessionSuspect)
	}
	return stepfleet.Claimed{}, fmt.Errorf("%s: %w", op, stepfleet.ErrSessionDead)
}

// keepNamed drops arguments of an earlier claim, where the caller used one claim id twice.
func keepNamed(c *stepfleet.Claimed) {
	named := make(map[stepfleet.Digest]bool, len(c.Payloads))
	for _, l := range c.Leases {
		named[l.Payload] = true
	}
	maps.DeleteFunc(c.Payloads, func(d stepfleet.Digest, _ []byte) bool { return !named[d] })
}

func scanLease(row pgx.CollectableRow) (stepfleet.Lease, error) {
	var s stepfleet.Lease
	var payload []byte
	err := row.Scan(&s.TaskID, &s.Fence, &s.Kind, &s.RunID, &s.StepKey, &s.Attempt, &s.Op, &s.Job, &s.Queue, &s.Priority,
		&s.CodeLocation, &payload, &s.RetryBudget.PolicyRetries, &s.RetryBudget.LostStepRetries, &s.TimeoutSeconds,
		&s.NotifyURL)
	complete(&s.Task, payload)
	return s, err
}

// complete fills in what follows from a task's other columns.
func complete(t *stepfleet.Task, payload []byte) {
	t.V = stepfleet.TaskVersion
	t.IdempotencyKey = t.Key.IdempotencyKey()
	t.Payload = stepfleet.Digest(hex.EncodeToString(payload))
}

func scanPayloads(to map[stepfleet.Digest][]byte) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		var digest, data []byte
		_, err := pgx.ForEachRow(rows, []any{&digest, &data}, func() error {
			to[stepfleet.Digest(hex.EncodeToString(digest))] = data
			data = nil // the next row must not write into it
			return nil
		})
		return err
	}
}
