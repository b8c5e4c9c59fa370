package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// lockTasks locks the tasks that the next statement decides on, in id order, so that batches that
// overlap wait for each other instead of for ever.
const lockTasks = `
SELECT 1 FROM stepfleet.task WHERE id = ANY ($1::bigint[]) ORDER BY id FOR NO KEY UPDATE`

// start is the gate before user code. The session is locked KEY SHARE and the tasks are locked, so
// what it reads of them stands until it commits. The run is not locked: a run that closes after
// this statement's snapshot cancels its tasks in a later statement, which waits for our locks and
// then finds the task running and flags it.
//
// Guard: leased, the fence, the session alive and the owner, the run open for its kind. A task that is already
// running with this fence and session was started by an earlier try of this call: done.
const start = `
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($2::bigint[], $3::bigint[]) WITH ORDINALITY g (task_id, fence, ord)
), judged AS MATERIALIZED (
    SELECT g.ord, g.task_id, g.fence, t.run_id, t.state, CASE
        WHEN s.state = 'suspect' THEN 'session_suspect'
        WHEN s.state IS DISTINCT FROM 'alive' THEN 'session_dead'
        WHEN t.state = 'cancelled' AND t.fence = g.fence + 1 AND t.session_id = $1
            THEN CASE WHEN r.state = 'closed' AND (r.closed_by = 0 OR t.kind = 'step') THEN 'run_closed' ELSE 'cancelled' END
        WHEN t.state = 'running' AND t.fence = g.fence AND t.session_id = $1 THEN ''
        WHEN t.state = 'leased' AND t.fence = g.fence AND t.session_id = $1
            THEN CASE WHEN r.state = 'closed' AND (r.closed_by = 0 OR t.kind = 'step') THEN 'run_closed' ELSE '' END
        ELSE 'fenced' END AS verdict
    FROM given g
    LEFT JOIN stepfleet.session s ON s.id = $1
    LEFT JOIN stepfleet.task t ON t.id = g.task_id
    LEFT JOIN stepfleet.run r ON r.run_id = t.run_id
), won AS (
    UPDATE stepfleet.task t SET state = 'running', started_at = clock_timestamp()
    FROM judged j WHERE t.id = j.task_id AND j.verdict = '' AND t.state = 'leased'
    RETURNING t.id, t.run_id, t.fence
), aud AS (
    INSERT INTO stepfleet.audit (task_id, run_id, verb, actor, from_state, to_state, fence, refused)
    SELECT id, run_id, 'start', 'session ' || $1::bigint, 'leased', 'running', fence, '' FROM won
    UNION ALL
    SELECT task_id, coalesce(run_id, ''), 'start', 'session ' || $1::bigint, '', '', fence, verdict
    FROM judged WHERE verdict <> ''
)
SELECT verdict FROM judged ORDER BY ord`

// Start implements stepfleet.Claims.
func (l *Ledger) Start(ctx context.Context, session stepfleet.SessionID, refs []stepfleet.Ref) ([]error, error) {
	ids, fences := split(refs)
	var verdicts []string
	err := l.run(ctx, fmt.Sprintf("start %d tasks of session %d", len(refs), session), idempotent, func(q *pgx.Batch) {
		q.Queue(shareSession, session)
		q.Queue(lockTasks, ids)
		q.Queue(start, session, ids, fences).Query(scanVerdicts(&verdicts))
	})
	if err != nil {
		return nil, err
	}
	return perTask("start", refs, verdicts), nil
}

func split(refs []stepfleet.Ref) (ids, fences []int64) {
	for _, r := range refs {
		ids, fences = append(ids, int64(r.TaskID)), append(fences, int64(r.Fence))
	}
	return ids, fences
}

func scanVerdicts(to *[]string) func(pgx.Rows) error {
	return func(rows pgx.Rows) (err error) {
		*to, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	}
}

func perTask(verb string, refs []stepfleet.Ref, verdicts []string) []error {
	errs := make([]error, len(refs))
	for i, r := range refs {
		errs[i] = refusal(verdicts[i], "%s task %d with fence %d", verb, r.TaskID, r.Fence)
	}
	return errs
}
