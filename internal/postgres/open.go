package postgres

import (
	"context"

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
