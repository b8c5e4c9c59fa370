package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// release gives leased tasks back with their old turn. The tasks are locked.
//
// Guard: leased, the fence, the session the owner. released_fence tells a repeated call that its
// release was made, also when another worker has the task by now.
const release = `
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($2::bigint[], $3::bigint[]) WITH ORDINALITY g (task_id, fence, ord)
), judged AS MATERIALIZED (
    SELECT g.ord, g.task_id, g.fence, t.run_id, CASE
        WHEN t.state = 'leased' AND t.fence = g.fence AND t.session_id = $1 THEN ''
        WHEN t.released_fence = g.fence THEN ''
        ELSE 'fenced' END AS verdict
    FROM given g LEFT JOIN stepfleet.task t ON t.id = g.task_id
), won AS (
    UPDATE stepfleet.task t SET state = 'queued', fence = t.fence + 1, released_fence = t.fence,
        session_id = NULL, claimed_at = NULL
    FROM judged j WHERE t.id = j.task_id AND j.verdict = '' AND t.state = 'leased' AND t.fence = j.fence
    RETURNING t.id, t.run_id, t.fence, t.queue, t.priority, t.turn, t.code_location, t.submitted_at
), rdy AS (
    INSERT INTO stepfleet.ready (lane, priority, turn, task_id, code_location, since)
    SELECT queue, priority, turn, id, code_location, submitted_at FROM won
), freed AS (
    DELETE FROM stepfleet.held WHERE session_id = $1 AND task_id = ANY (ARRAY(SELECT id FROM won))
), aud AS (
    INSERT INTO stepfleet.audit (task_id, run_id, verb, actor, from_state, to_state, fence, refused, detail)
    SELECT id, run_id, 'release', 'session ' || $1::bigint, 'leased', 'queued', fence, '', $4::text FROM won
    UNION ALL
    SELECT task_id, coalesce(run_id, ''), 'release', 'session ' || $1::bigint, '', '', fence, verdict, $4::text
    FROM judged WHERE verdict <> ''
)
SELECT verdict FROM judged ORDER BY ord`

// Release implements stepfleet.Claims.
func (l *Ledger) Release(ctx context.Context, session stepfleet.SessionID, refs []stepfleet.Ref, reason string) ([]error, error) {
	return l.giveUp(ctx, "release", release, session, refs, clean(reason))
}

// giveUp runs a statement by which a session lets go of tasks, once they are locked.
func (l *Ledger) giveUp(ctx context.Context, verb, statement string, session stepfleet.SessionID, refs []stepfleet.Ref, more ...any) ([]error, error) {
	ids, fences := split(refs)
	var verdicts []string
	err := l.run(ctx, fmt.Sprintf("%s %d tasks of session %d", verb, len(refs), session), idempotent, func(q *pgx.Batch) {
		q.Queue(lockTasks, ids)
		q.Queue(statement, append([]any{session, ids, fences}, more...)...).Query(scanVerdicts(&verdicts))
	})
	if err != nil {
		return nil, err
	}
	return perTask(verb, refs, verdicts), nil
}

// abandon leaves running tasks to the server. The tasks are locked. The session's held rows stay,
// marked, and lead the sweep to them.
//
// Guard: running, the fence, the session the owner. A started task that nobody owns, or that the
// server has decided, has the next fence or the one after it: an earlier try of this call made it so.
const abandon = `
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($2::bigint[], $3::bigint[]) WITH ORDINALITY g (task_id, fence, ord)
), judged AS MATERIALIZED (
    SELECT g.ord, g.task_id, g.fence, t.run_id, CASE
        WHEN t.state = 'running' AND t.fence = g.fence AND t.session_id = $1 THEN ''
        WHEN t.state = 'running' AND t.fence = g.fence + 1 AND t.session_id IS NULL THEN ''
        WHEN t.state NOT IN ('queued', 'leased', 'running') AND t.fence = g.fence + 2 AND t.session_id = $1
            AND t.started_at IS NOT NULL THEN ''
        ELSE 'fenced' END AS verdict
    FROM given g LEFT JOIN stepfleet.task t ON t.id = g.task_id
), won AS (
    UPDATE stepfleet.task t SET fence = t.fence + 1, session_id = NULL
    FROM judged j WHERE t.id = j.task_id AND j.verdict = '' AND t.state = 'running' AND t.fence = j.fence
    RETURNING t.id, t.run_id, t.fence
), marked AS (
    UPDATE stepfleet.held SET abandoned_at = clock_timestamp(), process = $5
    WHERE session_id = $1 AND task_id = ANY (ARRAY(SELECT id FROM won))
), aud AS (
    INSERT INTO stepfleet.audit (task_id, run_id, verb, actor, from_state, to_state, fence, refused, detail)
    SELECT id, run_id, 'abandon', 'session ' || $1::bigint, 'running', 'running', fence, '', $4::text FROM won
    UNION ALL
    SELECT task_id, coalesce(run_id, ''), 'abandon', 'session ' || $1::bigint, '', '', fence, verdict, $4::text
    FROM judged WHERE verdict <> ''
)
SELECT verdict FROM judged ORDER BY ord`

// Abandon implements stepfleet.Claims.
func (l *Ledger) Abandon(ctx context.Context, session stepfleet.SessionID, refs []stepfleet.Ref, process int, reason string) ([]error, error) {
	return l.giveUp(ctx, "abandon", abandon, session, refs, clean(reason), process)
}

// revoke raises the fence under the owner's own process. The task is locked.
//
// Guard: running, the fence, the session the owner. Running with the next fence and the same
// session was revoked by an earlier try of this call (nothing else raises a running task's fence
// and leaves it running): done.
const revoke = `
WITH judged AS MATERIALIZED (
    SELECT t.id, coalesce(t.run_id, '') AS run_id, CASE
        WHEN t.state = 'running' AND t.session_id = $1 AND t.fence = $3::bigint THEN 'now'
        WHEN t.state = 'running' AND t.session_id = $1 AND t.fence = $3::bigint + 1 THEN 'before'
        ELSE 'fenced' END AS verdict
    FROM (SELECT) one LEFT JOIN stepfleet.task t ON t.id = $2::bigint
), won AS (
    UPDATE stepfleet.task t SET fence = t.fence + 1 FROM judged j WHERE t.id = j.id AND j.verdict = 'now'
), aud AS (
    INSERT INTO stepfleet.audit (task_id, run_id, verb, actor, from_state, to_state, fence, refused, detail)
    SELECT $2, run_id, 'revoke', 'session ' || $1::bigint,
        CASE verdict WHEN 'now' THEN 'running' ELSE '' END, CASE verdict WHEN 'now' THEN 'running' ELSE '' END,
        CASE verdict WHEN 'now' THEN $3 + 1 ELSE $3 END, CASE verdict WHEN 'now' THEN '' ELSE verdict END, $4::text
    FROM judged WHERE verdict <> 'before'
)
SELECT verdict FROM judged`

// Revoke implements stepfleet.Claims.
func (l *Ledger) Revoke(ctx context.Context, session stepfleet.SessionID, ref stepfleet.Ref, reason string) (stepfleet.Fence, error) {
	op := fmt.Sprintf("revoke task %d with fence %d", ref.TaskID, ref.Fence)
	var verdict string
	err := l.run(ctx, op, idempotent, func(q *pgx.Batch) {
		q.Queue(lockTasks, []int64{int64(ref.TaskID)})
		q.Queue(revoke, session, int64(ref.TaskID), int64(ref.Fence), clean(reason)).
			QueryRow(func(row pgx.Row) error { return row.Scan(&verdict) })
	})
	if err != nil {
		return 0, err
	}
	if verdict == stepfleet.ErrFenced.Code {
		return 0, fmt.Errorf("%s: %w", op, stepfleet.ErrFenced)
	}
	return ref.Fence + 1, nil
}
