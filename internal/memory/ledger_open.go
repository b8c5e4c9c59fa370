package memory

import (
	"cmp"
	"context"
	"slices"

	"github.com/stepfleet/stepfleet"
)

// OpenRuns implements stepfleet.Keeper.
func (l *Ledger) OpenRuns(ctx context.Context, after string, max int) (out []stepfleet.OpenRun, err error) {
	leave, err := l.enter(ctx, "open runs")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	busy := map[string]bool{}
	for _, t := range l.tasks {
		if !t.State.Terminal() && l.run(t.RunID).over(t.Kind) {
			busy[t.RunID] = true
		}
	}
	for id, r := range l.runs {
		if id > after && (!r.closed || busy[id]) {
			out = append(out, stepfleet.OpenRun{RunID: id, Closed: r.closed, ClosedBy: r.closedBy})
		}
	}
	slices.SortFunc(out, func(a, b stepfleet.OpenRun) int { return cmp.Compare(a.RunID, b.RunID) })
	return out[:min(max, len(out))], nil
}

// CarriedRuns implements stepfleet.Keeper.
func (l *Ledger) CarriedRuns(ctx context.Context, runIDs []string) (out []stepfleet.CarriedRun, err error) {
	leave, err := l.enter(ctx, "carried runs")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	runs := slices.Clone(runIDs)
	slices.Sort(runs)
	for _, id := range slices.Compact(runs) {
		run, carried := stepfleet.CarriedRun{RunID: id}, false
		for _, t := range l.tasks {
			switch {
			case t.RunID != id:
			case t.Kind == stepfleet.KindStep && !t.State.Terminal():
				run.Steps++
			case t.Kind == stepfleet.KindRun:
				carried = true
				if !t.State.Terminal() {
					run.RunWorkers++
				}
				if !t.State.Terminal() && !t.CancelRequested {
					run.Untold = append(run.Untold, t.Attempt)
				}
			}
		}
		if carried {
			slices.Sort(run.Untold)
			out = append(out, run)
		}
	}
	return out, nil
}
