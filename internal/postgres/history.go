package postgres

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// History is the ledger at one moment. All that is read of it is of one snapshot, so that its audit
// and its tasks agree to the row while the ledger goes on: rows of a task that become visible between
// two pages would look as if one were missing. The snapshot keeps the database from cleaning up
// behind it, so it is not for keeps.
type History struct {
	tx pgx.Tx
	// At is the moment.
	At time.Time
}

// historyMemory lets the sort of a window stay in memory; a larger one goes to the database's disk.
const historyMemory = `SET LOCAL work_mem = '64MB'`

// The window is read in one statement and one sort: there is no index on a time or an id of the audit,
// which its writers would pay for. The days that the window does not touch are not read.
const (
	historyWindow = `
SELECT id, at, task_id, run_id, verb, actor, from_state, to_state, fence, refused, detail
FROM stepfleet.audit WHERE at >= $1 AND at < $2 ORDER BY id`
	historyRuns = `
SELECT id, at, task_id, run_id, verb, actor, from_state, to_state, fence, refused, detail
FROM stepfleet.audit WHERE run_id = ANY ($1::text[]) AND run_id <> '' ORDER BY id`
)

const (
	// historyTasks reads those that were submitted in the window, and those named. Ids grow with time.
	historyTasks = views + `WHERE t.id >= $1 AND t.submitted_at < $2 OR t.id = ANY ($3::bigint[]) ORDER BY t.id`
	historyOf    = views + `WHERE t.run_id = ANY ($1::text[]) ORDER BY t.id`
	taskOfKey    = views + `WHERE t.run_id = $1 AND t.step_hash = $2 AND t.attempt = $3`
)

// History takes a snapshot. The caller closes it.
func (l *Ledger) History(ctx context.Context) (*History, error) {
	const op = "read the ledger's history"
	tx, err := l.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, wrap(op, err)
	}
	h := &History{tx: tx}
	if _, err = tx.Exec(ctx, historyMemory); err == nil {
		err = tx.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&h.At)
	}
	if err != nil {
		h.Close()
		return nil, wrap(op, err)
	}
	return h, nil
}

// Close gives the snapshot back.
func (h *History) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = h.tx.Rollback(ctx) // it has written nothing
}

const closeTimeout = 5 * time.Second

// Window returns the audit rows of a time, by id.
func (h *History) Window(ctx context.Context, from, until time.Time) iter.Seq2[stepfleet.AuditRow, error] {
	return stream(ctx, h, "read the audit", scanAudit, historyWindow, from, until)
}

// Begins reports whether the audit has no row from before a time.
func (h *History) Begins(ctx context.Context, at time.Time) (begins bool, err error) {
	err = h.tx.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM stepfleet.audit WHERE at < $1)`, at).Scan(&begins)
	return begins, wrap("read the begin of the audit", err)
}

// Runs returns the audit rows of runs, by id.
func (h *History) Runs(ctx context.Context, runIDs []string) iter.Seq2[stepfleet.AuditRow, error] {
	return stream(ctx, h, "read the audit", scanAudit, historyRuns, runIDs)
}

// Tasks returns, by id, the tasks with ids from first on that were submitted before until, and the
// named ones.
func (h *History) Tasks(ctx context.Context, first stepfleet.TaskID, until time.Time, named []stepfleet.TaskID) iter.Seq2[stepfleet.View, error] {
	ids := make([]int64, len(named))
	for i, id := range named {
		ids[i] = int64(id)
	}
	return stream(ctx, h, "read tasks", scanView, historyTasks, int64(first), until, ids)
}

// TasksOf returns the tasks of runs, by id.
func (h *History) TasksOf(ctx context.Context, runIDs []string) iter.Seq2[stepfleet.View, error] {
	return stream(ctx, h, "read tasks", scanView, historyOf, runIDs)
}

// Task returns the task of a key, or ErrNotFound.
func (h *History) Task(ctx context.Context, key stepfleet.Key) (stepfleet.View, error) {
	for v, err := range stream(ctx, h, "read task "+key.String(), scanView, taskOfKey, clean(key.RunID), stepHash(key.StepKey), key.Attempt) {
		return v, err
	}
	return stepfleet.View{}, fmt.Errorf("task %s: %w", key, stepfleet.ErrNotFound)
}

// Sessions returns all sessions that were alive at some time since.
func (h *History) Sessions(ctx context.Context, since time.Time) iter.Seq2[stepfleet.Session, error] {
	const sql = `SELECT ` + sessionColumns + ` FROM stepfleet.session s WHERE s.state <> 'dead' OR s.ended_at >= $1 ORDER BY s.id`
	scan := func(row pgx.CollectableRow) (stepfleet.Session, error) { return scanSession(row) }
	return stream(ctx, h, "read sessions", scan, sql, since)
}

// historyHolds leaves out rows that have outlived their task's being held, as orphans does.
const historyHolds = `
SELECT t.id, t.run_id, t.step_key, t.attempt, t.state, h.session_id, h.abandoned_at IS NOT NULL,
    extract(epoch FROM $1::timestamptz - coalesce(h.abandoned_at, greatest(s.renewed_at, s.ended_at)))::float8,
    extract(epoch FROM s.run_lease)::float8
FROM stepfleet.held h
JOIN stepfleet.session s ON s.id = h.session_id
JOIN stepfleet.task t ON t.id = h.task_id AND t.state IN ('leased', 'running')
    AND t.session_id IS NOT DISTINCT FROM CASE WHEN h.abandoned_at IS NULL THEN h.session_id END
WHERE cardinality($2::text[]) = 0 OR t.run_id = ANY ($2)
ORDER BY t.id`

// Holds returns, by id, what sessions hold at the moment of the snapshot; of these runs, or without any of
// all.
func (h *History) Holds(ctx context.Context, runIDs []string) iter.Seq2[stepfleet.Hold, error] {
	scan := func(row pgx.CollectableRow) (stepfleet.Hold, error) {
		var one stepfleet.Hold
		var silent, lease float64
		err := row.Scan(&one.ID, &one.RunID, &one.StepKey, &one.Attempt, &one.State, &one.Session, &one.Abandoned, &silent, &lease)
		one.Silent, one.RunLease = seconds(silent), seconds(lease)
		return one, err
	}
	if runIDs == nil {
		runIDs = []string{}
	}
	return stream(ctx, h, "read what sessions hold", scan, historyHolds, h.At, runIDs)
}

// stream reads rows one by one, as they come.
func stream[T any](ctx context.Context, h *History, op string, scan pgx.RowToFunc[T], sql string, args ...any) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		rows, err := h.tx.Query(ctx, sql, args...)
		if err == nil {
			defer rows.Close()
			for rows.Next() {
				v, err := scan(rows)
				if !yield(v, wrap(op, err)) || err != nil {
					return
				}
			}
			err = rows.Err()
		}
		if err != nil {
			var zero T
			yield(zero, wrap(op, err))
		}
	}
}
