package chaos

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/stepfleet/stepfleet/internal/audit"
)

// cancelling is a run's cancel that the nemesis has asked for.
type cancelling struct {
	at    time.Time
	heard bool // Dagster's webserver has said so
}

// cancel terminates a run that goes on.
func (n *nemesis) cancel(ctx context.Context, i *Injected) error {
	run, ok := n.load.toCancel(i.Victim)
	if !ok {
		return errNoVictim
	}
	ctx, stop := context.WithTimeout(ctx, callTimeout)
	defer stop()
	i.Target, i.Run = "run "+run, run
	if err := n.dagster.TerminateRun(ctx, run); err != nil {
		return fmt.Errorf("%w: %w", errNoVictim, err)
	}
	i.Landed = time.Now()
	n.load.cancelHeard(run)
	return nil
}

// toCancel picks a run that goes on and whose cancel was not asked for. From here on it may have been.
func (l *load) toCancel(victim int) (run string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var going []string
	for _, r := range l.runs {
		if _, asked := l.cancels[r.ID]; r.Status == "STARTED" && !asked {
			going = append(going, r.ID)
		}
	}
	if len(going) == 0 {
		return "", false
	}
	slices.Sort(going)
	run = going[victim%len(going)]
	l.cancels[run] = cancelling{at: time.Now()}
	return run, true
}

func (l *load) cancelHeard(run string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.cancels[run]
	c.heard = true
	l.cancels[run] = c
}

// cancelEvents are what Dagster writes when a run is to be cancelled, and when it is.
var cancelEvents = []string{"PIPELINE_CANCELING", "PIPELINE_CANCELED"}

// cancelled returns when the runs were cancelled whose cancel has come through: the webserver has said
// so, or Dagster's log does. All others must end as if nobody had asked. The load is locked.
func (l *load) cancelled(log []audit.DagsterEvent) map[string]time.Time {
	at := map[string]time.Time{}
	for run, c := range l.cancels {
		if c.heard {
			at[run] = c.at
		}
	}
	for _, e := range log {
		if c, asked := l.cancels[e.RunID]; asked && slices.Contains(cancelEvents, e.Type) {
			at[e.RunID] = c.at
		}
	}
	return at
}
