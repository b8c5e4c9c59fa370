package postgres

import (
	"context"
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// views reads tasks as people see them. All of it follows from the task's own row; the session
// gives the worker's name and the outcome how it ended.
const views = `
SELECT t.id, t.kind, t.run_id, t.step_key, t.attempt, t.op, t.job, t.queue, t.priority, t.code_location, t.payload,
    t.policy_retries, t.lost_retries, t.timeout_seconds, t.state, t.fence, t.cancel_requested, coalesce(t.session_id, 0),
    coalesce(s.worker, ''), t.submitted_at, t.claimed_at, t.started_at, t.ended_at, coalesce(o.reason, ''), o.result
FROM stepfleet.task t
LEFT JOIN stepfleet.session s ON s.id = t.session_id
LEFT JOIN stepfleet.outcome o ON o.task_id = t.id `

const (
	viewsOfRun = views + `WHERE t.run_id = $1 AND (cardinality($2::text[]) = 0 OR t.kind = ANY ($2::text[])) ORDER BY t.id`
	viewsOfIDs = views + `WHERE t.id = ANY ($1::bigint[]) ORDER BY t.id`
)

const auditOfRun = `
SELECT id, at, task_id, run_id, verb, actor, from_state, to_state, fence, refused, detail
FROM stepfleet.audit WHERE run_id = $1 AND run_id <> '' ORDER BY id`

// lanes counts what waits, what is held and what there is room for, queue by queue.
const lanes = `
WITH waiting AS (
    SELECT lane AS queue, count(*) AS ready, min(since) AS oldest FROM stepfleet.ready GROUP BY lane
), owned AS (
    SELECT t.queue, count(*) FILTER (WHERE t.state = 'leased') AS leased, count(*) FILTER (WHERE t.state = 'running') AS running
    FROM stepfleet.held h JOIN stepfleet.task t ON t.id = h.task_id
    WHERE t.state IN ('leased', 'running') GROUP BY t.queue
), room AS (
    SELECT e.key AS queue, sum(e.value::integer) AS slots FROM stepfleet.session s, jsonb_each_text(s.slots) e
    WHERE s.state = 'alive' AND NOT s.draining AND e.value::integer > 0
    GROUP BY e.key
)
SELECT queue, coalesce(ready, 0), greatest(coalesce(extract(epoch FROM clock_timestamp() - oldest), 0), 0)::float8,
    coalesce(leased, 0), coalesce(running, 0), coalesce(slots, 0)
FROM waiting FULL JOIN owned USING (queue) FULL JOIN room USING (queue) ORDER BY queue`

// RunTasks implements stepfleet.Records.
func (l *Ledger) RunTasks(ctx context.Context, runID string, kinds ...stepfleet.Kind) ([]stepfleet.View, error) {
	raw := make([]string, len(kinds)) // never nil: an array without elements stands for all kinds
	for i, kind := range kinds {
		raw[i] = string(kind)
	}
	return read(ctx, l, "read tasks of run "+runID, scanView, viewsOfRun, clean(runID), raw)
}

// Tasks implements stepfleet.Records.
func (l *Ledger) Tasks(ctx context.Context, ids []stepfleet.TaskID) ([]stepfleet.View, error) {
	raw := make([]int64, len(ids))
	for i, id := range ids {
		raw[i] = int64(id)
	}
	return read(ctx, l, "read tasks", scanView, viewsOfIDs, raw)
}

// read runs one reading statement.
func read[T any](ctx context.Context, l *Ledger, op string, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	var out []T
	err := l.run(ctx, op, idempotent, func(q *pgx.Batch) {
		q.Queue(sql, args...).Query(func(rows pgx.Rows) (err error) {
			out, err = pgx.CollectRows(rows, scan)
			return err
		})
	})
	return out, err
}

func scanView(row pgx.CollectableRow) (stepfleet.View, error) {
	var v stepfleet.View
	var payload, result []byte
	var claimed, started, ended *time.Time
	err := row.Scan(&v.ID, &v.Kind, &v.RunID, &v.StepKey, &v.Attempt, &v.Op, &v.Job, &v.Queue, &v.Priority, &v.CodeLocation,
		&payload, &v.RetryBudget.PolicyRetries, &v.RetryBudget.LostStepRetries, &v.TimeoutSeconds, &v.State, &v.Fence, &v.CancelRequested,
		&v.Session, &v.Worker, &v.SubmittedAt, &claimed, &started, &ended, &v.Reason, &result)
	if err != nil {
		return v, err
	}
	complete(&v.Task, payload)
	v.ClaimedAt, v.StartedAt, v.EndedAt = orZero(claimed), orZero(started), orZero(ended)
	if result != nil {
		v.Result = new(stepfleet.Result)
		err = json.Unmarshal(result, v.Result)
	}
	return v, err
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// Audit implements stepfleet.Records.
func (l *Ledger) Audit(ctx context.Context, runID string) ([]stepfleet.AuditRow, error) {
	return read(ctx, l, "read audit of run "+runID, scanAudit, auditOfRun, clean(runID))
}

func scanAudit(row pgx.CollectableRow) (stepfleet.AuditRow, error) {
	var a stepfleet.AuditRow
	err := row.Scan(&a.ID, &a.At, &a.TaskID, &a.RunID, &a.Verb, &a.Actor, &a.From, &a.To, &a.Fence, &a.Refused, &a.Detail)
	return a, err
}

// Lanes implements stepfleet.Records.
func (l *Ledger) Lanes(ctx context.Context) ([]stepfleet.Lane, error) {
	scan := func(row pgx.CollectableRow) (stepfleet.Lane, error) {
		var lane stepfleet.Lane
		var oldest float64
		err := row.Scan(&lane.Queue, &lane.Ready, &oldest, &lane.Leased, &lane.Running, &lane.Slots)
		lane.OldestAge = time.Duration(oldest * float64(time.Second))
		return lane, err
	}
	return read(ctx, l, "read lanes", scan, lanes)
}
