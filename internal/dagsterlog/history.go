// Package dagsterlog reads Dagster's event log where it lies: in Dagster's own PostgreSQL. It only
// reads.
package dagsterlog

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
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

// History is the event log in a database.
type History struct{ conn *pgx.Conn }

// Open connects to the database of Dagster's storage.
func Open(ctx context.Context, dsn string) (*History, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("open Dagster's event log: %w", err) // pgx keeps the password out of it
	}
	cfg.RuntimeParams["application_name"] = "stepfleet verify"
	cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open Dagster's event log: %w", err)
	}
	return &History{conn}, nil
}

// Close ends the connection.
func (h *History) Close(ctx context.Context) error { return h.conn.Close(ctx) }

// Events returns the events of these types of the runs, those of one run by id.
func (h *History) Events(ctx context.Context, runIDs, types []string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for page := range slices.Chunk(runIDs, pageRuns) {
			if !h.page(ctx, page, types, yield) {
				return
			}
		}
	}
}

func (h *History) page(ctx context.Context, runIDs, types []string, yield func(Event, error) bool) bool {
	rows, err := h.conn.Query(ctx, events, runIDs, types)
	if err == nil {
		defer rows.Close()
		var e Event
		for rows.Next() {
			if err := rows.Scan(&e.ID, &e.RunID, &e.StepKey, &e.Type, &e.At); err != nil {
				yield(Event{}, fmt.Errorf("read Dagster's event log: %w", err))
				return false
			}
			if !yield(e, nil) {
				return false
			}
		}
		err = rows.Err()
	}
	if err != nil {
		yield(Event{}, fmt.Errorf("read Dagster's event log: %w", err))
		return false
	}
	return true
}
