package postgres

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// settle records outcomes. The tasks are locked, so what it reads of them stands.
//
// Guard: running, the fence, the session the owner; the session's state does not matter, since
// until the sweep has raised the fence the task is its own. A task that has ended with this fence
// was settled by this owner before (sweep and cancel raise it): done, and the first result stays.
const settle = `
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::json[], $7::text[])
        WITH ORDINALITY g (task_id, fence, invalid, outcome, result, reason, ord)
), judged AS MATERIALIZED (
    SELECT g.*, t.state, t.run_id, CASE
        WHEN g.invalid <> '' THEN g.invalid
        WHEN t.fence = g.fence AND t.session_id = $1 AND t.state NOT IN ('queued', 'leased') THEN ''
        ELSE 'fenced' END AS verdict
    FROM given g LEFT JOIN stepfleet.task t ON t.id = g.task_id
), first AS (
    SELECT DISTINCT ON (task_id) task_id, outcome, result, reason FROM judged
    WHERE verdict = '' AND state = 'running' ORDER BY task_id, ord
), won AS (
    UPDATE stepfleet.task t SET state = f.outcome, ended_at = clock_timestamp()
    FROM first f WHERE t.id = f.task_id RETURNING t.id, t.run_id, t.fence, f.outcome, f.result, f.reason
), kept AS (
    INSERT INTO stepfleet.outcome (task_id, reason, result) SELECT id, reason, result FROM won
), freed AS (
    DELETE FROM stepfleet.held WHERE session_id = $1 AND task_id = ANY (ARRAY(SELECT task_id FROM first))
), aud AS (
    INSERT INTO stepfleet.audit (task_id, run_id, verb, actor, from_state, to_state, fence, refused, detail)
    SELECT id, run_id, 'settle', 'session ' || $1::bigint, 'running', outcome, fence, '', '' FROM won
    UNION ALL
    SELECT task_id, coalesce(run_id, ''), 'settle', 'session ' || $1::bigint, '', '', fence, verdict, outcome
    FROM judged WHERE verdict <> ''
)
SELECT verdict FROM judged ORDER BY ord`

// Settle implements stepfleet.Claims.
func (l *Ledger) Settle(ctx context.Context, session stepfleet.SessionID, ends []stepfleet.Settlement) ([]error, error) {
	refs := make([]stepfleet.Ref, len(ends))
	invalid := make([]string, len(ends))
	outcomes := make([]string, len(ends))
	results := make([]*string, len(ends))
	reasons := make([]string, len(ends))
	why := make([]error, len(ends))
	for i, e := range ends {
		refs[i], outcomes[i] = e.Ref, clean(string(e.Result.Outcome))
		text, err := encodeResult(e.Result)
		if err != nil {
			invalid[i], why[i] = stepfleet.ErrTaskInvalid.Code, err
			continue
		}
		results[i], reasons[i] = &text, clean(e.Result.LostWith())
	}
	ids, fences := split(refs)
	var verdicts []string
	err := l.run(ctx, fmt.Sprintf("settle %d tasks of session %d", len(ends), session), idempotent, func(q *pgx.Batch) {
		q.Queue(lockTasks, ids)
		q.Queue(settle, session, ids, fences, invalid, outcomes, results, reasons).Query(scanVerdicts(&verdicts))
	})
	if err != nil {
		return nil, err
	}
	errs := perTask("settle", refs, verdicts)
	for i := range errs {
		if why[i] != nil {
			errs[i] = fmt.Errorf("settle task %d: %w", refs[i].TaskID, why[i])
		}
	}
	return errs, nil
}

// encodeResult checks a result and writes it as it is kept, its message cut to the limit.
func encodeResult(r stepfleet.Result) (string, error) {
	if err := r.Validate(); err != nil {
		return "", err
	}
	if r.Error != nil && len(r.Error.Message) > stepfleet.MaxErrorBytes {
		short := *r.Error
		short.Message = clean(short.Message[:stepfleet.MaxErrorBytes])
		r.Error = &short
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("%w: result: %w", stepfleet.ErrTaskInvalid, err) // a NaN, for one
	}
	return string(raw), nil
}
