package dagsterlog

import (
	"context"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// Event is a row of the log.
type Event struct {
	ID      int64
	RunID   string
	StepKey string
	Type    string
	At      time.Time
	// Ours says that it is the end of a step that a process of stepfleet has written.
	Ours bool
}

// pageRuns is how many runs one statement asks for.
const pageRuns = 200

// Ours is, in SQL, whether a row is the end of a step that a process of stepfleet has written: it has the mark
// of its attempt (attempts.py). In a text of the user's the quotes would be escaped.
var Ours = `(dagster_event_type IN ('` + strings.Join(stepfleet.Endings, "', '") + `') AND event LIKE '%"stepfleet/attempt":%')`

// events reads events of these types of some runs, which Dagster's index by run and id leads to.
// Dagster keeps times in UTC without saying so.
var events = `
SELECT id, run_id, coalesce(step_key, ''), dagster_event_type, coalesce(timestamp, 'epoch') AT TIME ZONE 'UTC', ` + Ours + `
FROM event_logs WHERE run_id = ANY ($1::text[]) AND dagster_event_type = ANY ($2::text[])
ORDER BY id`

// ended reads ends of steps of one type back from an id, by Dagster's index on both. The text of those outside
// the window is not looked at: that is what takes time.
var ended = `
SELECT id, run_id, coalesce(timestamp, 'epoch') AT TIME ZONE 'UTC',
    CASE WHEN timestamp AT TIME ZONE 'UTC' >= $4::timestamptz AND timestamp AT TIME ZONE 'UTC' < $5::timestamptz THEN ` + Ours + ` ELSE false END
FROM event_logs WHERE dagster_event_type = $1 AND id < $2::bigint ORDER BY id DESC LIMIT $3`

// pageEnds is how many ends one statement asks for. They are in the order of time but for the clocks of
// their writers: when all of a page are before the window, so is what is older.
const pageEnds = 2000

// RunsOf returns the runs of which stepfleet's processes have written the end of a step in a window.
func (l *Log) RunsOf(ctx context.Context, from, until time.Time) (map[string]bool, error) {
	runs := map[string]bool{}
	for _, kind := range stepfleet.Endings {
		for below := int64(math.MaxInt64); below > 0; {
			rows, err := l.pool.Query(ctx, ended, kind, below, pageEnds, from, until)
			if err != nil {
				return nil, fmt.Errorf("read ends of steps: %w", wrap(err))
			}
			var e Event
			n, last := 0, time.Time{}
			_, err = pgx.ForEachRow(rows, []any{&e.ID, &e.RunID, &e.At, &e.Ours}, func() error {
				if e.Ours {
					runs[e.RunID] = true
				}
				n++
				below = e.ID
				if e.At.After(last) {
					last = e.At
				}
				return nil
			})
			if err != nil {
				return nil, fmt.Errorf("read ends of steps: %w", wrap(err))
			}
			if n < pageEnds || last.Before(from) {
				break
			}
		}
	}
	return runs, nil
}

// Events returns the events of these types of the runs, those of one run by id.
func (l *Log) Events(ctx context.Context, runIDs, types []string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for page := range slices.Chunk(runIDs, pageRuns) {
			if !l.page(ctx, page, types, yield) {
				return
			}
		}
	}
}

// page reads the events of some runs, and says whether to go on.
func (l *Log) page(ctx context.Context, runIDs, types []string, yield func(Event, error) bool) bool {
	rows, err := l.pool.Query(ctx, events, runIDs, types)
	if err == nil {
		defer rows.Close()
		for rows.Next() {
			var e Event
			if err = rows.Scan(&e.ID, &e.RunID, &e.StepKey, &e.Type, &e.At, &e.Ours); err != nil {
				break
			}
			if !yield(e, nil) {
				return false
			}
		}
		if err == nil {
			err = rows.Err()
		}
	}
	if err != nil {
		yield(Event{}, fmt.Errorf("read events: %w", wrap(err)))
		return false
	}
	return true
}
