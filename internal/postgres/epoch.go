package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// takeEpoch makes an executor the one that speaks for the run. The run's row is there and locked.
// The executor that has the epoch already gets it again: its first request may have been delayed
// until after its second, and must not take the run from it. Nor may one of an earlier resume, whose
// request was delayed until after that of the executor that followed it.
//
// Guard: the resume not before the run's, the run open.
const takeEpoch = `
WITH was AS MATERIALIZED (
    SELECT epoch, executor, CASE WHEN resume > $5 THEN 'superseded' WHEN state = 'closed' THEN 'run_closed' ELSE '' END AS code
    FROM stepfleet.run WHERE run_id = $1
), taken AS (
    UPDATE stepfleet.run r SET epoch = w.epoch + CASE WHEN w.executor = $2 THEN 0 ELSE 1 END, executor = $2,
        resume = $5, notify_url = $3
    FROM was w WHERE r.run_id = $1 AND w.code = '' RETURNING r.epoch
), aud AS (
    INSERT INTO stepfleet.audit (run_id, verb, actor, refused, detail)
    SELECT $1, $4::text, 'executor ' || CASE w.code WHEN 'superseded' THEN 0 ELSE w.epoch + 1 END, w.code, $6::text FROM was w WHERE w.code <> '' OR w.executor <> $2
)
SELECT code, coalesce((SELECT epoch FROM taken), 0) FROM was`

// rejoin records where the run's stream is. The run's row, if there is one, is locked.
//
// Guard: the epoch the run's.
var rejoin = `
WITH verdict AS MATERIALIZED (
    SELECT ` + speaks("$2") + ` AS code
), held AS (
    UPDATE stepfleet.run r SET notify_url = $3 FROM verdict v
    WHERE r.run_id = $1 AND v.code = '' AND r.notify_url <> $3
), aud AS (
    INSERT INTO stepfleet.audit (run_id, verb, actor, refused) SELECT $1, $4::text, $5::text, code FROM verdict WHERE code <> ''
)
SELECT code FROM verdict`

// adjudicate notes who was granted to say how attempts ended. The run's row is locked, which
// keeps two executors apart; ended tasks change no more.
//
// Guard: the epoch the run's, the task ended or not there.
var adjudicate = `
WITH verdict AS MATERIALIZED (
    SELECT ` + speaks("$2") + ` AS code
), judged AS MATERIALIZED (
    SELECT v.code, g.*, t.id, t.state, t.fence, coalesce(a.epoch, 0) AS was, coalesce(a.earlier, 0) AS earlier,
        v.code = '' AND (t.state IS NULL OR t.state NOT IN ('queued', 'leased', 'running')) AS granted
    FROM unnest($3::text[], $4::bytea[], $5::integer[]) WITH ORDINALITY g (step_key, step_hash, attempt, ord)
    CROSS JOIN verdict v
    LEFT JOIN stepfleet.task t ON t.run_id = $1 AND t.step_hash = g.step_hash AND t.attempt = g.attempt
    LEFT JOIN stepfleet.adjudication a ON a.run_id = $1 AND a.step_hash = g.step_hash AND a.attempt = g.attempt
), kept AS (
    INSERT INTO stepfleet.adjudication AS a (run_id, step_hash, attempt, epoch)
    SELECT $1, step_hash, attempt, $2 FROM judged WHERE granted AND was <> $2
    ON CONFLICT (run_id, step_hash, attempt) DO UPDATE SET earlier = a.epoch, epoch = $2, at = clock_timestamp()
), aud AS (
    INSERT INTO stepfleet.audit (task_id, run_id, verb, actor, from_state, to_state, fence, refused, detail)
    SELECT coalesce(id, 0), $1, $6::text, $7::text, coalesce(state, ''), coalesce(state, ''), coalesce(fence, 0), '',
        step_key || ' attempt ' || attempt FROM judged WHERE granted AND was <> $2
    UNION ALL
    SELECT id, $1, $6, $7, '', '', fence, 'task_invalid', 'the task has not ended' FROM judged WHERE code = '' AND NOT granted
    UNION ALL
    SELECT 0, $1, $6, $7, '', '', 0, code, '' FROM verdict WHERE code <> ''
)
SELECT code, ord, coalesce(state, ''), granted, CASE WHEN was = $2 THEN earlier ELSE was END FROM judged ORDER BY ord`

const epochs = `
SELECT run_id, epoch FROM stepfleet.run WHERE run_id = ANY ($1::text[])`

// TakeEpoch implements stepfleet.Intake.
func (l *Ledger) TakeEpoch(ctx context.Context, runID string, executor stepfleet.Executor, notifyURL string) (stepfleet.Epoch, error) {
	op := "take the epoch of run " + runID
	if err := validRunID(runID); err != nil {
		return 0, fmt.Errorf("%s: %w", op, err)
	}
	if err := executor.Validate(); err != nil {
		return 0, fmt.Errorf("%s: %w", op, err)
	}
	executor.Name = clean(executor.Name)
	var verdict string
	var epoch stepfleet.Epoch
	err := l.run(ctx, op, idempotent, func(q *pgx.Batch) {
		q.Queue(insertRun, runID)
		q.Queue(lockRun, runID)
		q.Queue(takeEpoch, runID, executor.Name, clean(notifyURL), string(stepfleet.VerbTakeover), executor.Resume, executor.String()).
			QueryRow(func(row pgx.Row) error { return row.Scan(&verdict, &epoch) })
	})
	if err != nil {
		return 0, err
	}
	return epoch, refusal(verdict, "%s", op)
}

// Rejoin implements stepfleet.Intake.
func (l *Ledger) Rejoin(ctx context.Context, runID string, epoch stepfleet.Epoch, notifyURL string) error {
	op := fmt.Sprintf("rejoin run %s with epoch %d", runID, epoch)
	if err := validRunID(runID); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if epoch == stepfleet.NoExecutor {
		return fmt.Errorf("%s: %w: only an executor rejoins", op, stepfleet.ErrTaskInvalid)
	}
	var verdict string
	err := l.run(ctx, op, idempotent, func(q *pgx.Batch) {
		q.Queue(lockRun, runID)
		q.Queue(rejoin, runID, epoch, clean(notifyURL), string(stepfleet.VerbRejoin), actor(epoch)).
			QueryRow(func(row pgx.Row) error { return row.Scan(&verdict) })
	})
	if err != nil {
		return err
	}
	return refusal(verdict, "%s", op)
}

// Adjudicate implements stepfleet.Intake.
func (l *Ledger) Adjudicate(ctx context.Context, runID string, epoch stepfleet.Epoch, keys []stepfleet.Key) ([]stepfleet.Ruling, error) {
	op := fmt.Sprintf("adjudicate %d tasks of run %s", len(keys), runID)
	if err := validKeys(runID, epoch, keys); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	var distinct []stepfleet.Ruling
	var steps []string
	var hashes [][]byte
	var attempts []int32
	place := map[stepfleet.Key]int{}
	for _, k := range keys {
		if _, ok := place[k]; !ok {
			place[k] = len(distinct)
			distinct = append(distinct, stepfleet.Ruling{Key: k})
			steps, hashes, attempts = append(steps, k.StepKey), append(hashes, stepHash(k.StepKey)), append(attempts, int32(k.Attempt))
		}
	}
	var verdict string
	err := l.run(ctx, op, idempotent, func(q *pgx.Batch) {
		q.Queue(lockRun, runID)
		q.Queue(adjudicate, runID, epoch, steps, hashes, attempts, string(stepfleet.VerbAdjudicate), actor(epoch)).
			Query(func(rows pgx.Rows) error {
				var ord int64
				var r stepfleet.Ruling
				_, err := pgx.ForEachRow(rows, []any{&verdict, &ord, &r.State, &r.Granted, &r.Earlier}, func() error {
					r.Key = distinct[ord-1].Key
					distinct[ord-1] = r
					return nil
				})
				return err
			})
	})
	if err == nil {
		err = refusal(verdict, "%s", op)
	}
	if err != nil {
		return nil, err
	}
	out := make([]stepfleet.Ruling, len(keys))
	for i, k := range keys {
		out[i] = distinct[place[k]]
	}
	return out, nil
}

func validKeys(runID string, epoch stepfleet.Epoch, keys []stepfleet.Key) error {
	switch {
	case epoch == stepfleet.NoExecutor:
		return fmt.Errorf("%w: only an executor adjudicates", stepfleet.ErrTaskInvalid)
	case len(keys) == 0 || len(keys) > stepfleet.MaxBatchTasks:
		return fmt.Errorf("%w: %d keys, allowed are 1 to %d", stepfleet.ErrTaskInvalid, len(keys), stepfleet.MaxBatchTasks)
	}
	for _, k := range keys {
		if k.RunID != runID || k.StepKey == "" || clean(k.StepKey) != k.StepKey || k.Attempt != int(int32(k.Attempt)) {
			return fmt.Errorf("%w: task %s", stepfleet.ErrTaskInvalid, k)
		}
	}
	return validRunID(runID)
}

// Epochs implements stepfleet.Records.
func (l *Ledger) Epochs(ctx context.Context, runIDs []string) (map[string]stepfleet.Epoch, error) {
	out := map[string]stepfleet.Epoch{}
	err := l.run(ctx, "read the epochs of runs", idempotent, func(q *pgx.Batch) {
		q.Queue(epochs, runIDs).Query(func(rows pgx.Rows) error {
			var id string
			var epoch stepfleet.Epoch
			_, err := pgx.ForEachRow(rows, []any{&id, &epoch}, func() error {
				out[id] = epoch
				return nil
			})
			return err
		})
	})
	return out, err
}
