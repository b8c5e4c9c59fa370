package sim

import (
	"context"
	"fmt"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
)

// dagster is Dagster's event log, on a database of its own that may be away, and what Dagster shows of
// its runs.
type dagster struct {
	s        *simulation
	events   []audit.DagsterEvent
	underway map[stepfleet.Key]int // writes that the database has and has not committed
	back     time.Duration
}

// settled is how long what a process sent before it was gone may take to be seen as under way.
const settled = 400 * time.Millisecond

func (d *dagster) away() bool { return d.back > d.s.world.now }

func (d *dagster) append(key stepfleet.Key, kind string) {
	d.events = append(d.events, audit.DagsterEvent{
		ID: int64(len(d.events) + 1), RunID: key.RunID, StepKey: key.StepKey, Type: kind, At: d.s.world.time(),
	})
	d.s.world.say(nil, "Dagster's log has %s of %s", kind, key)
}

// endings are the step's ending events, oldest first.
func (d *dagster) endings(run, step string) (found []string) {
	for _, e := range d.events {
		if e.RunID == run && e.StepKey == step && e.Type != stepStart && e.Type != stepRestarted {
			found = append(found, e.Type)
		}
	}
	return found
}

// ending is the attempt's own; attempts begin at 0 here.
func (d *dagster) ending(key stepfleet.Key) string {
	return stepfleet.Orphan{Key: key}.EndingOf(d.endings(key.RunID, key.StepKey))
}

// verdict writes how an attempt ended whose process did not, unless its end is there: look and write are
// one transaction.
func (d *dagster) verdict(key stepfleet.Key, event string) {
	if d.ending(key) == "" {
		d.append(key, event)
	}
}

// logPort is the log as a server asks it.
type logPort struct {
	d *dagster
	p *process
}

// Endings implements stepfleet.EventLog.
func (o logPort) Endings(_ context.Context, orphans []stepfleet.Orphan) ([]stepfleet.Ending, error) {
	w := o.d.s.world
	w.sleep(w.between(time.Millisecond, 20*time.Millisecond))
	if o.d.away() || !o.d.s.healed && w.chance(0.05) {
		return nil, fmt.Errorf("endings: %w", stepfleet.ErrUnavailable)
	}
	out := make([]stepfleet.Ending, len(orphans))
	for i, one := range orphans {
		out[i].Event = one.EndingOf(o.d.endings(one.RunID, one.StepKey))
		out[i].Final = one.Gone >= settled && o.d.underway[one.Key] == 0
		if o.d.s.cfg.Mutant == RepairBlind {
			out[i] = stepfleet.Ending{Final: true}
		}
	}
	w.sleep(w.between(time.Millisecond, 20*time.Millisecond))
	return out, nil
}

// KnownRuns implements stepfleet.Orchestrator.
func (o logPort) KnownRuns(_ context.Context, ids []string) (map[string]bool, error) {
	o.d.s.world.sleep(time.Millisecond)
	if o.d.away() {
		return nil, fmt.Errorf("known runs: %w", stepfleet.ErrUnavailable)
	}
	ended := map[string]bool{}
	for _, r := range o.d.s.runs {
		for _, id := range ids {
			if r.id == id {
				ended[id] = r.ended
			}
		}
	}
	return ended, nil
}

// CancelingRuns implements stepfleet.Orchestrator: no run has its run worker here.
func (o logPort) CancelingRuns(context.Context) ([]string, error) { return nil, nil }

// MarkCanceled implements stepfleet.Orchestrator.
func (o logPort) MarkCanceled(context.Context, string) error { return nil }
