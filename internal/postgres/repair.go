package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// orphans lists running tasks without an owner. Only of those does it read the task: of everything
// that is held, the session's state and the mark of an abandoned task say enough. The OFFSET keeps the
// planner to that order: it takes a state that is rare for a reason to read the whole table.
//
// Connections are told apart by the worker's instance, and of a dead session's only while no later one
// of that instance can have any.
const orphans = `
SELECT t.id, t.fence, t.run_id, t.step_key, t.attempt, t.kind, t.cancel_requested,
    (SELECT min(o.attempt) FROM stepfleet.task o WHERE o.run_id = t.run_id AND o.step_hash = t.step_hash),
    extract(epoch FROM clock_timestamp() - coalesce(h.abandoned_at, s.ended_at))::float8,
    extract(epoch FROM s.run_lease)::float8,
    CASE WHEN h.process > 0 OR h.abandoned_at IS NULL
        AND NOT EXISTS (SELECT FROM stepfleet.session l WHERE l.instance = s.instance AND l.id > s.id) THEN s.instance ELSE '' END,
    h.process,
    'session ' || s.id || CASE WHEN h.abandoned_at IS NULL THEN ' is dead: ' || s.end_reason ELSE ' has abandoned it' END, s.worker
FROM stepfleet.held h
JOIN stepfleet.session s ON s.id = h.session_id AND (s.state = 'dead' OR h.abandoned_at IS NOT NULL)
CROSS JOIN LATERAL (
    SELECT * FROM stepfleet.task t WHERE t.id = h.task_id AND t.state = 'running'
        AND t.session_id IS NOT DISTINCT FROM CASE WHEN h.abandoned_at IS NULL THEN h.session_id END
    OFFSET 0
) t
WHERE h.task_id > $1
ORDER BY h.task_id LIMIT $2`

// decide ends orphans.
//
// Guard: running, the fence, the cancel flag as it was when the decision was made, and no owner: no
// session, or one that was committed as dead before the snapshot, which is for ever. The lock on the
// task reads it again; one that another has locked, such as a settle that came at the last moment, is
// passed over and listed again. The held row is the owner's that the task has lost.
const decide = `
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::boolean[], $4::text[], $5::text[], $6::text[], $7::json[])
        g (task_id, fence, flagged, verb, outcome, reason, result)
), due AS MATERIALIZED (
    SELECT t.id, h.session_id, g.verb, g.outcome, g.reason, g.result
    FROM given g
    JOIN stepfleet.task t ON t.id = g.task_id AND t.state = 'running' AND t.fence = g.fence AND t.cancel_requested = g.flagged
    JOIN stepfleet.held h ON h.task_id = t.id AND (t.session_id IS NULL OR t.session_id = h.session_id)
    JOIN stepfleet.session s ON s.id = h.session_id
    WHERE t.session_id IS NULL OR s.state = 'dead'
    ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED
), moved AS (
    UPDATE stepfleet.task t SET state = d.outcome, fence = t.fence + 1, session_id = d.session_id, ended_at = clock_timestamp()
    FROM due d WHERE t.id = d.id
    RETURNING t.id, t.run_id, t.step_key, t.attempt, t.queue, t.fence, d.session_id, d.verb, d.outcome, d.reason, d.result
), kept AS (
    INSERT INTO stepfleet.outcome (task_id, reason, result) SELECT id, reason, result FROM moved
), freed AS (
    DELETE FROM stepfleet.held h USING moved m WHERE h.session_id = m.session_id AND h.task_id = m.id
), aud AS (
    INSERT INTO stepfleet.audit (task_id, run_id, verb, actor, from_state, to_state, fence, detail)
    SELECT id, run_id, verb, 'server', 'running', outcome, fence, reason FROM moved ORDER BY id
)
SELECT id, run_id, step_key, attempt, queue, 'running', outcome FROM moved ORDER BY id`

// takeDuty gives a duty to one server at a time.
const takeDuty = `
INSERT INTO stepfleet.duty AS d (name, server, until) VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (name) DO UPDATE SET server = excluded.server, until = excluded.until
WHERE d.server = excluded.server OR d.until <= clock_timestamp()
RETURNING true`

// Orphans implements stepfleet.Keeper.
func (l *Ledger) Orphans(ctx context.Context, after stepfleet.TaskID, max int) ([]stepfleet.Orphan, error) {
	scan := func(row pgx.CollectableRow) (stepfleet.Orphan, error) {
		var o stepfleet.Orphan
		var gone, inFlight float64
		var instance string
		var process int
		err := row.Scan(&o.TaskID, &o.Fence, &o.RunID, &o.StepKey, &o.Attempt, &o.Kind, &o.CancelRequested,
			&o.FirstAttempt, &gone, &inFlight, &instance, &process, &o.Reason, &o.Worker)
		o.Gone, o.InFlight = seconds(gone), seconds(inFlight)
		if instance != "" {
			o.Connections = stepfleet.ConnectionNameOf(instance, process)
		}
		return o, err
	}
	return read(ctx, l, "list tasks that nobody owns", scan, orphans, int64(after), max)
}

// Decide implements stepfleet.Keeper. It is not issued again on a lost answer: what the first try
// changed would not be told. It is in the ledger, though.
func (l *Ledger) Decide(ctx context.Context, decisions []stepfleet.Decision) ([]stepfleet.Change, error) {
	n := len(decisions)
	ids, fences, flags := make([]int64, n), make([]int64, n), make([]bool, n)
	verbs, outcomes, reasons, results := make([]string, n), make([]string, n), make([]string, n), make([]*string, n)
	for i, d := range decisions {
		ids[i], fences[i], flags[i] = int64(d.TaskID), int64(d.Fence), d.CancelRequested
		verbs[i], outcomes[i], reasons[i] = string(d.Verb()), string(d.Outcome()), clean(d.Reason)
		if r := d.Result(); r != nil {
			raw, err := json.Marshal(r)
			if err != nil {
				return nil, fmt.Errorf("decide task %d: %w", d.TaskID, err)
			}
			text := string(raw)
			results[i] = &text
		}
	}
	var changes []stepfleet.Change
	err := l.run(ctx, fmt.Sprintf("decide %d tasks that nobody owns", n), onceOnly, func(q *pgx.Batch) {
		q.Queue(decide, ids, fences, flags, verbs, outcomes, reasons, results).Query(scanChanges(&changes))
	})
	return changes, err
}

// TakeDuty implements stepfleet.Keeper.
func (l *Ledger) TakeDuty(ctx context.Context, duty, server string, hold time.Duration) (taken bool, err error) {
	err = l.run(ctx, "take duty "+duty, idempotent, func(q *pgx.Batch) {
		taken = false
		q.Queue(takeDuty, clean(duty), clean(server), hold.Seconds()).Query(scanOptional(&taken))
	})
	return taken, err
}
