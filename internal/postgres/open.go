package postgres

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// openRuns lists what is not over. Open runs have an index of their own; closed ones with open
// tasks are found from the rows of waiting and held tasks, which are few beside all tasks.
const openRuns = `
SELECT run_id, false AS closed, 0::bigint AS closed_by FROM stepfleet.run WHERE state = 'open' AND run_id > $1
UNION
SELECT r.run_id, true, r.closed_by FROM (SELECT task_id FROM stepfleet.ready UNION ALL SELECT task_id FROM stepfleet.held) open
JOIN stepfleet.task t ON t.id = open.task_id AND t.state IN ('queued', 'leased', 'running')
JOIN stepfleet.run r ON r.run_id = t.run_id
WHERE r.state = 'closed' AND (r.closed_by = 0 OR t.kind = 'step') AND r.run_id > $1
ORDER BY run_id LIMIT $2`

// carriedRuns counts what is open of runs that have had a run worker. The key's index finds the run
// workers by their step key, and the tasks of only those runs that have one.
const carriedRuns = `
SELECT r.run_id, w.open, w.untold, s.open
FROM (SELECT DISTINCT run_id FROM unnest($1::text[]) run_id) r
CROSS JOIN LATERAL (
    SELECT count(*) AS known, count(*) FILTER (WHERE t.ended_at IS NULL) AS open,
        coalesce(array_agg(t.attempt ORDER BY t.attempt) FILTER (WHERE t.ended_at IS NULL AND NOT t.cancel_requested), '{}') AS untold
    FROM stepfleet.task t WHERE t.run_id = r.run_id AND t.step_hash = $2 AND t.kind = 'run'
) w
CROSS JOIN LATERAL (
    SELECT count(*) AS open FROM stepfleet.task t
    WHERE w.known > 0 AND t.run_id = r.run_id AND t.kind = 'step' AND t.ended_at IS NULL
) s
WHERE w.known > 0 ORDER BY r.run_id COLLATE "C"`

// OpenRuns implements stepfleet.Keeper.
func (l *Ledger) OpenRuns(ctx context.Context, after string, max int) ([]stepfleet.OpenRun, error) {
	var runs []stepfleet.OpenRun
	err := l.run(ctx, "list open runs", idempotent, func(q *pgx.Batch) {
		q.Queue(openRuns, after, max).Query(func(rows pgx.Rows) (err error) {
			runs, err = pgx.CollectRows(rows, pgx.RowToStructByPos[stepfleet.OpenRun])
			return err
		})
	})
	return runs, err
}

// CarriedRuns implements stepfleet.Keeper.
func (l *Ledger) CarriedRuns(ctx context.Context, runIDs []string) ([]stepfleet.CarriedRun, error) {
	var runs []stepfleet.CarriedRun
	err := l.run(ctx, "look at run workers", idempotent, func(q *pgx.Batch) {
		q.Queue(carriedRuns, runIDs, stepHash(stepfleet.RunStepKey)).Query(func(rows pgx.Rows) (err error) {
			runs = nil
			var run stepfleet.CarriedRun
			_, err = pgx.ForEachRow(rows, []any{&run.RunID, &run.RunWorkers, &run.Untold, &run.Steps}, func() error {
				next := run
				next.Untold = slices.Clone(run.Untold)
				runs = append(runs, next)
				return nil
			})
			return err
		})
	})
	return runs, err
}
