package dagsterapi

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/stepfleet/stepfleet"
)

// settled is how long what a process sent before it was gone may take to be in the log.
const settled = 3 * time.Second

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

// endingsOfRun returns the ending events of each step, oldest first.
func (c *Client) endingsOfRun(ctx context.Context, runID string) (map[string][]string, error) {
	ends := map[string][]string{}
	err := c.eachEvent(ctx, runID, func(e loggedEvent) error {
		if slices.Contains(stepfleet.Endings, e.EventType) {
			ends[e.StepKey] = append(ends[e.StepKey], e.EventType)
		}
		return nil
	})
	return ends, err
}
