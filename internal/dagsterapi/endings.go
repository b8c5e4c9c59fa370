package dagsterapi

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/stepfleet/stepfleet"
)

// Bounds of reading a run's log.
const (
	logPage = 1000
	// settled is how long what a process sent before it was gone may take to be in the log.
	settled = 3 * time.Second
)

const logQuery = `query($run: ID!, $after: String, $limit: Int!) { logsForRun(runId: $run, afterCursor: $after, limit: $limit) { __typename
  ... on PythonError { message }
  ... on RunNotFoundError { message }
  ... on EventConnection { cursor hasMore events { ... on MessageEvent { stepKey eventType } } } } }`

// Endings implements stepfleet.EventLog. It reads the whole logs of the orphans' runs: Dagster's API
// has no narrower question that tells one attempt of a step from another.
func (c *Client) Endings(ctx context.Context, orphans []stepfleet.Orphan) ([]stepfleet.Ending, error) {
	logs := map[string]map[string][]string{} // run, step
	out := make([]stepfleet.Ending, len(orphans))
	for i, o := range orphans {
		if _, known := logs[o.RunID]; !known {
			ends, err := c.endingsOfRun(ctx, o.RunID)
			if err != nil {
				return nil, fmt.Errorf("%w: log of run %s: %w", stepfleet.ErrUnavailable, o.RunID, err)
			}
			logs[o.RunID] = ends
		}
		out[i] = stepfleet.Ending{Event: o.EndingOf(logs[o.RunID][o.StepKey]), Final: o.Gone >= settled}
	}
	return out, nil
}

// endingsOfRun returns the ending events of each step, oldest first; none of a run that Dagster does
// not know: it was deleted.
func (c *Client) endingsOfRun(ctx context.Context, runID string) (map[string][]string, error) {
	ends := map[string][]string{}
	for after := any(nil); ; {
		var data struct {
			Logs struct {
				typed
				Cursor  string `json:"cursor"`
				HasMore bool   `json:"hasMore"`
				Events  []struct {
					StepKey   string `json:"stepKey"`
					EventType string `json:"eventType"`
				} `json:"events"`
			} `json:"logsForRun"`
		}
		if err := c.call(ctx, logQuery, map[string]any{"run": runID, "after": after, "limit": logPage}, &data); err != nil {
			return nil, err
		}
		if data.Logs.Typename == "RunNotFoundError" {
			return nil, nil
		}
		if err := data.Logs.want("EventConnection"); err != nil {
			return nil, err
		}
		for _, e := range data.Logs.Events {
			if slices.Contains(stepfleet.Endings, e.EventType) {
				ends[e.StepKey] = append(ends[e.StepKey], e.EventType)
			}
		}
		if !data.Logs.HasMore {
			return ends, nil
		}
		after = data.Logs.Cursor
	}
}
