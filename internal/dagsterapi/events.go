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
	variables := map[string]any{"run": runID}
	for {
		var data struct {
			Logs struct {
				typed
				Cursor  string
				HasMore bool
				Events  []struct{ EventType, StepKey, Timestamp string }
			} `json:"logsForRun"`
		}
		if err := c.call(ctx, eventsQuery, variables, &data); err != nil {
			return nil, fmt.Errorf("read the event log of run %s: %w", runID, err)
		}
		if data.Logs.Typename == "RunNotFoundError" {
			return nil, nil
		}
		if err := data.Logs.want("EventConnection"); err != nil {
			return nil, fmt.Errorf("read the event log of run %s: %w", runID, err)
		}
		for _, e := range data.Logs.Events {
			millis, err := strconv.ParseFloat(e.Timestamp, 64)
			if err != nil {
				return nil, fmt.Errorf("event log of run %s: timestamp %q: %w", runID, e.Timestamp, err)
			}
			events = append(events, Event{e.StepKey, e.EventType, time.UnixMicro(int64(millis * 1000))})
		}
		if !data.Logs.HasMore {
			return events, nil
		}
		variables["cursor"] = data.Logs.Cursor
	}
}
