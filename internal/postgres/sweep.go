package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// beat is proof that a server could write.
const beat = `
INSERT INTO stepfleet.beat (server, at) VALUES ($1, clock_timestamp())
ON CONFLICT (server) DO UPDATE SET at = excluded.at RETURNING at`

// sweep takes leased tasks from owners that are gone.
//
// It reads sessions that were committed as suspect or dead before its snapshot, and it locks and
// acts in one statement: the lock on the task reads the task again, and the join demands that the
// same session still owns it. A suspect session may renew meanwhile; its lease is taken all the
// same, its start is fenced. A task that another sweep or its owner has locked is passed over and
// found again at the next tick.
//
// The held row that the snapshot showed is still the task's: it could have been replaced only by a
// release and a new claim of the same session, which a suspect or dead session may not make and
// which makes a late lease fresh.
const sweep = `
WITH lapsed AS MATERIALIZED (
    SELECT t.id, t.session_id, d.died, t.deaths + d.died >= $3 AS poisonous,
        'session ' || s.id || CASE
            WHEN s.state = 'dead' THEN ' is dead: ' || s.end_reason
            WHEN s.state = 'suspect' THEN ' is suspect'
            ELSE ' did not start it in time' END AS reason
    FROM stepfleet.held h
    JOIN stepfleet.session s ON s.id = h.session_id
    JOIN stepfleet.task t ON t.id = h.task_id AND t.session_id = h.session_id
    CROSS JOIN LATERAL (SELECT (s.state = 'dead' AND NOT s.draining)::integer AS died) d
    WHERE t.state = 'leased' AND (s.state IN ('suspect', 'dead') OR t.claimed_at <= clock_timestamp() - make_interval(secs => $1))
    ORDER BY t.id LIMIT $2 FOR NO KEY UPDATE OF t SKIP LOCKED
), moved AS (
    UPDATE stepfleet.task t SET fence = t.fence + 1, deaths = t.deaths + l.died,
        state = CASE WHEN l.poisonous THEN 'dead' ELSE 'queued' END,
        session_id = CASE WHEN l.poisonous THEN t.session_id END,
        claimed_at = CASE WHEN l.poisonous THEN t.claimed_at END,
        ended_at = CASE WHEN l.poisonous THEN clock_timestamp() END
    FROM lapsed l WHERE t.id = l.id
    RETURNING t.id, t.run_id, t.step_key, t.attempt, t.queue, t.priority, t.turn, t.code_location, t.submitted_at, t.fence,
        l.session_id, t.state AS to_state, CASE WHEN l.poisonous
            THEN 'its lease was held by ' || t.deaths || ' sessions that died, the last one: ' || l.reason ELSE l.reason END AS reason
), rdy AS (
    INSERT INTO stepfleet.ready (lane, priority, turn, task_id, code_location, since)
    SELECT queue, priority, turn, id, code_location, submitted_at FROM moved WHERE to_state = 'queued'
), kept AS (
    INSERT INTO stepfleet.outcome (task_id, reason) SELECT id, reason FROM moved WHERE to_state <> 'queued'
), freed AS (
    DELETE FROM stepfleet.held h USING moved m WHERE h.session_id = m.session_id AND h.task_id = m.id
), aud AS (
    INSERT INTO stepfleet.audit (task_id, run_id, verb, actor, from_state, to_state, fence, detail)
    SELECT id, run_id, CASE to_state WHEN 'dead' THEN 'poison' ELSE 'sweep' END, 'server', 'leased', to_state, fence, reason
    FROM moved ORDER BY id
)
SELECT id, run_id, step_key, attempt, queue, 'leased', to_state FROM moved ORDER BY id`

// partitionDaysAhead is how many days the audit can be written into partitions of its own when no
// server runs; partitionInterval how often a running one looks.
const (
	partitionDaysAhead = 7
	partitionInterval  = time.Hour
)

// Beat implements stepfleet.Keeper. Once an hour it also makes the audit's partitions of the next
// days; that this fails is no reason to stop sweeping, rows go to the rest partition meanwhile.
func (l *Ledger) Beat(ctx context.Context, server string) (at time.Time, err error) {
	err = l.run(ctx, "beat of "+server, idempotent, func(q *pgx.Batch) {
		q.Queue(beat, clean(server)).QueryRow(func(row pgx.Row) error { return row.Scan(&at) })
	})
	if err != nil {
		return at, err
	}
	now, due := time.Now().Unix(), l.partitionsDue.Load()
	if now < due || !l.partitionsDue.CompareAndSwap(due, now+int64(partitionInterval/time.Second)) {
		return at, nil
	}
	if _, err := l.pool.Exec(ctx, "SELECT stepfleet.audit_ahead($1)", partitionDaysAhead); err != nil {
		l.log.Warn("audit partitions of the next days were not made", "error", err)
	}
	return at, nil
}

// Sweep implements stepfleet.Keeper.
func (l *Ledger) Sweep(ctx context.Context, startWithin time.Duration, max int) ([]stepfleet.Change, error) {
	var changes []stepfleet.Change
	err := l.run(ctx, fmt.Sprintf("sweep up to %d tasks", max), onceOnly, func(q *pgx.Batch) {
		q.Queue(sweep, startWithin.Seconds(), max, stepfleet.PoisonDeaths).Query(scanChanges(&changes))
	})
	return changes, err
}

func sortSessions(s []stepfleet.Session) {
	slices.SortFunc(s, func(a, b stepfleet.Session) int { return cmp.Compare(a.ID, b.ID) })
}
