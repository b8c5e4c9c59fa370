package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// openTasks picks a run's open tasks: all, or those of the named keys.
const openTasks = `t.run_id = $1 AND t.state IN ('queued', 'leased', 'running')
    AND ($2 OR (t.step_hash, t.attempt) IN (SELECT * FROM unnest($3::bytea[], $4::integer[])))`

const lockOpen = `
SELECT 1 FROM stepfleet.task t WHERE ` + openTasks + ` ORDER BY t.id FOR NO KEY UPDATE`

// cancel ends queued and leased tasks and flags running ones. The tasks are locked, and its
// snapshot is younger than the locks, so it sees the held row of every claim. A task submitted
// since the locks is cancelled as well, unless it has moved on meanwhile: hence the comparison of
// states in the updates, which is read again after a wait. A ready row that a
// claim has locked is left to that claim, which waits for our task, finds it ended and removes
// the row; waiting for it here would be a deadlock.
const cancel = `
WITH open AS MATERIALIZED (
    SELECT t.id, t.run_id, t.step_key, t.attempt, t.queue, t.priority, t.turn, t.state, t.session_id
    FROM stepfleet.task t WHERE ` + openTasks + `
), ended AS (
    UPDATE stepfleet.task t SET state = 'cancelled', fence = t.fence + 1, cancel_requested = true,
        ended_at = clock_timestamp()
    FROM open o WHERE t.id = o.id AND t.state = o.state AND o.state IN ('queued', 'leased') RETURNING t.id, t.fence
), flagged AS (
    UPDATE stepfleet.task t SET cancel_requested = true
    FROM open o WHERE t.id = o.id AND t.state = 'running' AND o.state = 'running' AND NOT t.cancel_requested RETURNING t.id, t.fence
), kept AS (
    INSERT INTO stepfleet.outcome (task_id, reason) SELECT id, $5 FROM ended
), unready AS (
    DELETE FROM stepfleet.ready WHERE ctid = ANY (ARRAY(
        SELECT r.ctid FROM ended JOIN open o USING (id) JOIN stepfleet.ready r
            ON r.lane = o.queue AND r.priority = o.priority AND r.turn = o.turn AND r.task_id = o.id
        WHERE o.state = 'queued' FOR UPDATE OF r SKIP LOCKED))
), freed AS (
    DELETE FROM stepfleet.held h USING ended JOIN open o USING (id)
    WHERE h.session_id = o.session_id AND h.task_id = o.id AND o.state = 'leased'
), changed AS (
    SELECT o.*, e.fence, 'cancelled' AS to_state FROM ended e JOIN open o USING (id)
    UNION ALL
    SELECT o.*, f.fence, 'running' FROM flagged f JOIN open o USING (id)
), aud AS (
    INSERT INTO stepfleet.audit (task_id, run_id, verb, actor, from_state, to_state, fence, detail)
    SELECT id, run_id, $6, 'executor', state, to_state, fence, $5 FROM changed ORDER BY id
)
SELECT id, run_id, step_key, attempt, queue, state, to_state FROM changed ORDER BY id`

// closeRun closes a run for good, in a commit of its own: what is submitted or started after it
// is refused, and the cancel that follows sees what was submitted or started before. A run that
// nobody knows becomes known as closed, so that a submission still on its way is refused.
const closeRun = `
WITH closed AS (
    INSERT INTO stepfleet.run AS r (run_id, state, closed_at, close_reason)
    VALUES ($1, 'closed', clock_timestamp(), $2)
    ON CONFLICT (run_id) DO UPDATE SET state = 'closed', closed_at = clock_timestamp(), close_reason = $2
        WHERE r.state = 'open'
    RETURNING 1
)
INSERT INTO stepfleet.audit (run_id, verb, actor, detail) SELECT $1, 'close', 'executor', $2 FROM closed`

const setNotifyURL = `
INSERT INTO stepfleet.run AS r (run_id, notify_url) VALUES ($1, $2)
ON CONFLICT (run_id) DO UPDATE SET notify_url = $2 WHERE r.notify_url <> $2`

// Cancel implements stepfleet.Intake.
func (l *Ledger) Cancel(ctx context.Context, runID string, keys []stepfleet.Key, reason string) ([]stepfleet.Change, error) {
	return l.cancel(ctx, stepfleet.VerbCancel, runID, keys, reason)
}

// cancel is issued again on a lost answer; it then returns only what the last try changed, which
// costs the caller a push to the worker and nothing else.
func (l *Ledger) cancel(ctx context.Context, verb stepfleet.Verb, runID string, keys []stepfleet.Key, reason string) ([]stepfleet.Change, error) {
	var hashes [][]byte
	var attempts []int32
	for _, k := range keys {
		if k.RunID == runID {
			hashes, attempts = append(hashes, stepHash(k.StepKey)), append(attempts, int32(k.Attempt))
		}
	}
	all := keys == nil
	if !all && len(hashes) == 0 {
		return nil, nil
	}
	var changes []stepfleet.Change
	err := l.run(ctx, fmt.Sprintf("%s tasks of run %s", verb, runID), idempotent, func(q *pgx.Batch) {
		q.Queue(lockOpen, clean(runID), all, hashes, attempts)
		q.Queue(cancel, clean(runID), all, hashes, attempts, clean(reason), string(verb)).Query(scanChanges(&changes))
	})
	return changes, err
}

func scanChanges(to *[]stepfleet.Change) func(pgx.Rows) error {
	return func(rows pgx.Rows) (err error) {
		*to = nil
		var c stepfleet.Change
		_, err = pgx.ForEachRow(rows, []any{&c.TaskID, &c.RunID, &c.StepKey, &c.Attempt, &c.Queue, &c.From, &c.To}, func() error {
			*to = append(*to, c)
			return nil
		})
		return err
	}
}

// CloseRun implements stepfleet.Intake.
func (l *Ledger) CloseRun(ctx context.Context, runID, reason string) ([]stepfleet.Change, error) {
	if err := validRunID(runID); err != nil {
		return nil, fmt.Errorf("close run: %w", err)
	}
	err := l.run(ctx, "close run "+runID, idempotent, func(q *pgx.Batch) {
		q.Queue(closeRun, runID, clean(reason))
	})
	if err != nil {
		return nil, err
	}
	return l.cancel(ctx, stepfleet.VerbClose, runID, nil, reason)
}

// SetNotifyURL implements stepfleet.Intake.
func (l *Ledger) SetNotifyURL(ctx context.Context, runID, url string) error {
	if err := validRunID(runID); err != nil {
		return fmt.Errorf("set notify url: %w", err)
	}
	return l.run(ctx, "set notify url of run "+runID, idempotent, func(q *pgx.Batch) {
		q.Queue(setNotifyURL, runID, clean(url))
	})
}
