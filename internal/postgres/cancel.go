package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/failpoint"
	"github.com/stepfleet/stepfleet/internal/mutant"
)

// openTasks picks a run's open tasks: all, or those of the named keys; of an executor, its steps.
const openTasks = `t.run_id = $1 AND t.state IN ('queued', 'leased', 'running') AND ($5::bigint = 0 OR t.kind = 'step')
    AND ($2 OR (t.step_hash, t.attempt) IN (SELECT * FROM unnest($3::bytea[], $4::integer[])))`

const lockOpen = `
SELECT 1 FROM stepfleet.task t WHERE ` + openTasks + ` ORDER BY t.id FOR NO KEY UPDATE`

// speaks is the verdict on the epoch in a statement's parameter, of the run in its first: nobody's
// executor may speak, and the run's current one. The run is locked where it is an executor that
// asks, so an older one's call ends before a new epoch is taken or finds it. An epoch that the
// ledger has not given yet is of another ledger, or of commits that this one has lost: its executor
// must not believe that another has taken over.
func speaks(epoch string) string {
	return `CASE ` + epoch + `::bigint WHEN 0 THEN '' ELSE coalesce((
        SELECT CASE WHEN r.epoch = ` + epoch + ` THEN '' WHEN r.epoch > ` + epoch + ` THEN 'superseded' ELSE 'not_found' END
        FROM stepfleet.run r WHERE r.run_id = $1), 'not_found') END`
}

// cancel ends queued and leased tasks and flags running ones. The tasks are locked, and its
// snapshot is younger than the locks, so it sees the held row of every claim. A task submitted
// since the locks is cancelled as well, unless it has moved on meanwhile: hence the comparison of
// states in the updates, which is read again after a wait. A ready row that a
// claim has locked is left to that claim, which waits for our task, finds it ended and removes
// the row; waiting for it here would be a deadlock.
var cancel = `
WITH verdict AS MATERIALIZED (
    SELECT ` + speaks("$5") + ` AS code
), open AS MATERIALIZED (
    SELECT t.id, t.run_id, t.step_key, t.attempt, t.queue, t.priority, t.turn, t.state, t.session_id
    FROM stepfleet.task t, verdict v WHERE v.code = '' AND ` + openTasks + `
), ended AS (
    UPDATE stepfleet.task t SET state = 'cancelled', fence = t.fence + 1, cancel_requested = true,
        ended_at = clock_timestamp()
    FROM open o WHERE t.id = o.id AND t.state = o.state AND o.state IN ('queued', 'leased') RETURNING t.id, t.fence
), flagged AS (
    UPDATE stepfleet.task t SET cancel_requested = true
    FROM open o WHERE t.id = o.id AND t.state = 'running' AND o.state = 'running' AND NOT t.cancel_requested RETURNING t.id, t.fence
), kept AS (
    INSERT INTO stepfleet.outcome (task_id, reason) SELECT id, $6 FROM ended
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
    INSERT INTO stepfleet.audit (task_id, run_id, verb, actor, from_state, to_state, fence, refused, detail)
    SELECT * FROM (
        SELECT id, run_id, $7, $8, state, to_state, fence, '', $6::text FROM changed
        UNION ALL
        SELECT 0, $1, $7, $8, '', '', 0, code, $6 FROM verdict WHERE code <> ''
    ) a (id) ORDER BY id
)
SELECT v.code, c.id, c.run_id, c.step_key, c.attempt, c.queue, c.state, c.to_state
FROM verdict v LEFT JOIN changed c ON true ORDER BY c.id`

// closeRun closes a run for good, in a commit of its own: what is submitted or started after it
// is refused, and the cancel that follows sees what was submitted or started before. A run that
// nobody knows becomes known as closed, so that a submission still on its way is refused. What an
// executor closed for steps, others may close for run workers too.
var closeRun = `
WITH verdict AS MATERIALIZED (
    SELECT ` + speaks("$5") + ` AS code
), closed AS (
    INSERT INTO stepfleet.run AS r (run_id, state, closed_at, close_reason, closed_by)
    SELECT $1, 'closed', clock_timestamp(), $2::text, $5 FROM verdict WHERE code = ''
    ON CONFLICT (run_id) DO UPDATE SET state = 'closed', closed_at = clock_timestamp(), close_reason = $2, closed_by = $5
        WHERE r.state = 'open' OR r.closed_by <> 0 AND $5 = 0
    RETURNING 1
), aud AS (
    INSERT INTO stepfleet.audit (run_id, verb, actor, refused, detail)
    SELECT $1, $3::text, $4::text, '', $2 FROM closed
    UNION ALL
    SELECT $1, $3, $4, code, $2 FROM verdict WHERE code <> ''
)
SELECT code FROM verdict`

// Cancel implements stepfleet.Intake.
func (l *Ledger) Cancel(
	ctx context.Context, runID string, epoch stepfleet.Epoch, keys []stepfleet.Key, reason string,
) ([]stepfleet.Change, error) {
	return l.cancel(ctx, stepfleet.VerbCancel, runID, epoch, keys, reason)
}

// cancel is issued again on a lost answer; it then returns only what the last try changed, which
// costs the caller a push to the worker and nothing else.
func (l *Ledger) cancel(
	ctx context.Context, verb stepfleet.Verb, runID string, epoch stepfleet.Epoch, keys []stepfleet.Key, reason string,
) ([]stepfleet.Change, error) {
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
	op := fmt.Sprintf("%s tasks of run %s", verb, runID)
	var verdict string
	var changes []stepfleet.Change
	err := l.run(ctx, op, idempotent, func(q *pgx.Batch) {
		lockSpeaker(q, runID, epoch)
		q.Queue(lockOpen, clean(runID), all, hashes, attempts, epoch)
		q.Queue(cancel, clean(runID), all, hashes, attempts, epoch, clean(reason), string(verb), actor(epoch)).
			Query(scanJudged(&verdict, &changes))
	})
	if err != nil {
		return nil, err
	}
	return changes, refusal(verdict, "%s", op)
}

// lockSpeaker locks the run for what an executor asks of it.
func lockSpeaker(q *pgx.Batch, runID string, epoch stepfleet.Epoch) {
	if epoch != stepfleet.NoExecutor {
		q.Queue(lockRun, clean(runID))
	}
}

// actor is how the audit calls who asked.
func actor(epoch stepfleet.Epoch) string {
	if epoch == stepfleet.NoExecutor {
		return "server"
	}
	return fmt.Sprintf("executor %d", epoch)
}

// scanJudged reads a verdict that stands before each change, or alone.
func scanJudged(verdict *string, to *[]stepfleet.Change) func(pgx.Rows) error {
	return func(rows pgx.Rows) (err error) {
		*to = nil
		var id *stepfleet.TaskID
		var run, step, queue *string
		var attempt *int
		var from, into *stepfleet.State
		_, err = pgx.ForEachRow(rows, []any{verdict, &id, &run, &step, &attempt, &queue, &from, &into}, func() error {
			if id != nil {
				*to = append(*to, stepfleet.Change{
					TaskID: *id, Key: stepfleet.Key{RunID: *run, StepKey: *step, Attempt: *attempt}, Queue: *queue, From: *from, To: *into,
				})
			}
			return nil
		})
		return err
	}
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
func (l *Ledger) CloseRun(ctx context.Context, runID string, epoch stepfleet.Epoch, reason string) ([]stepfleet.Change, error) {
	if err := validRunID(runID); err != nil {
		return nil, fmt.Errorf("close run: %w", err)
	}
	if mutant.CloseAfterCancel {
		changes, err := l.cancel(ctx, stepfleet.VerbClose, runID, epoch, nil, reason)
		if err != nil {
			return nil, err
		}
		return changes, l.closeRun(ctx, runID, epoch, reason)
	}
	if err := l.closeRun(ctx, runID, epoch, reason); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("close_tasks.before"); err != nil {
		return nil, err
	}
	changes, err := l.cancel(ctx, stepfleet.VerbClose, runID, epoch, nil, reason)
	if err != nil {
		return nil, err
	}
	return changes, failpoint.Hit("close_tasks.after")
}

func (l *Ledger) closeRun(ctx context.Context, runID string, epoch stepfleet.Epoch, reason string) error {
	var verdict string
	err := l.run(ctx, "close run "+runID, idempotent, func(q *pgx.Batch) {
		lockSpeaker(q, runID, epoch)
		q.Queue(closeRun, runID, clean(reason), string(stepfleet.VerbClose), actor(epoch), epoch).
			QueryRow(func(row pgx.Row) error { return row.Scan(&verdict) })
	})
	if err == nil {
		err = refusal(verdict, "close run %s", runID)
	}
	return err
}
