package dagsterlog

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"time"
)

// Event is a row of the log.
type Event struct {
	ID      int64
	RunID   string
	StepKey string
	Type    string
	At      time.Time
}

// pageRuns is how many runs one statement asks for.
const pageRuns = 200

// events reads events of these types of some runs, which Dagster's index by run and id leads to.
// Dagster keeps times in UTC without saying so.
const events = `
SELECT id, run_id, coalesce(step_key, ''), dagster_event_type, coalesce(timestamp, 'epoch') AT TIME ZONE 'UTC'
FROM event_logs WHERE run_id = ANY ($1::text[]) AND dagster_event_type = ANY ($2::text[])
ORDER BY id`

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
			if err = rows.Scan(&e.ID, &e.RunID, &e.StepKey, &e.Type, &e.At); err != nil {
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
