package dagsterapi

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// Event is a row of a run's event log. Type is empty for a log message.
type Event struct {
	StepKey string
	Type    string
	At      time.Time
}

const eventsQuery = `query($run: ID!, $cursor: String) { logsForRun(runId: $run, afterCursor: $cursor, limit: 1000) { __typename
  ... on RunNotFoundError { message }
  ... on PythonError { message }
  ... on EventConnection { cursor hasMore events { __typename ... on MessageEvent { eventType stepKey timestamp } } } } }`

// Events returns the run's event log, oldest first; nothing of a run that Dagster does not know.
func (c *Client) Events(ctx context.Context, runID string) ([]Event, error) {
	var events []Event
	err := c.eachEvent(ctx, runID, func(e loggedEvent) error {
		millis, err := strconv.ParseFloat(e.Timestamp, 64)
		if err != nil {
			return fmt.Errorf("timestamp %q: %w", e.Timestamp, err)
		}
		events = append(events, Event{e.StepKey, e.EventType, time.UnixMicro(int64(millis * 1000))})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the event log of run %s: %w", runID, err)
	}
	return events, nil
}

// loggedEvent is a row as Dagster's API has it; the timestamp is in milliseconds.
type loggedEvent struct{ EventType, StepKey, Timestamp string }

// eachEvent reads the run's event log page by page, oldest first, and hands each row on; none of a run
// that Dagster does not know: it was deleted.
func (c *Client) eachEvent(ctx context.Context, runID string, take func(loggedEvent) error) error {
	variables := map[string]any{"run": runID}
	for {
		var data struct {
			Logs struct {
				typed
				Cursor  string
				HasMore bool
				Events  []loggedEvent
			} `json:"logsForRun"`
		}
		if err := c.call(ctx, eventsQuery, variables, &data); err != nil {
			return err
		}
		if data.Logs.Typename == "RunNotFoundError" {
			return nil
		}
		if err := data.Logs.want("EventConnection"); err != nil {
			return err
		}
		for _, e := range data.Logs.Events {
			if err := take(e); err != nil {
				return err
			}
		}
		if !data.Logs.HasMore {
			return nil
		}
		variables["cursor"] = data.Logs.Cursor
	}
}
