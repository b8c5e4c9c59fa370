package dispatch_test

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet"
)

// dagster knows which runs have ended, and which were cancelled and have not.
type dagster struct {
	mu        sync.Mutex
	ended     []string
	canceling []string
	marked    []string // as canceled, as often as asked
	markedAt  time.Time
	asked     int  // for runs that are being cancelled
	away      bool // it cannot be asked
	lacking   []string
	other     bool
}

func (d *dagster) end(run string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = append(d.ended, run)
	d.canceling = slices.DeleteFunc(d.canceling, func(r string) bool { return r == run })
}

// cancel shows the run as CANCELING.
func (d *dagster) cancel(run string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.canceling = append(d.canceling, run)
}

func (d *dagster) leave(away bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.away = away
}

func (d *dagster) marks() ([]string, time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.marked), d.markedAt
}

func (d *dagster) questions() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

func (d *dagster) KnownRuns(_ context.Context, ids []string) (map[string]bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away {
		return nil, stepfleet.ErrUnavailable
	}
	out := map[string]bool{}
	for _, id := range ids {
		if !d.other && !slices.Contains(d.lacking, id) {
			out[id] = slices.Contains(d.ended, id)
		}
	}
	return out, nil
}

// lack leaves Dagster without the runs from now on.
func (d *dagster) lack(runs ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lacking = runs
}

// swap has another installation answer, which has none of the runs, or this one again.
func (d *dagster) swap(other bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.other = other
}

func (d *dagster) CancelingRuns(context.Context) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.asked++; d.away {
		return nil, stepfleet.ErrUnavailable
	}
	return slices.Clone(d.canceling), nil
}

func (d *dagster) MarkCanceled(_ context.Context, run string) error {
	d.mu.Lock()
	if d.away {
		defer d.mu.Unlock()
		return stepfleet.ErrUnavailable
	}
	d.marked, d.markedAt = append(d.marked, run), time.Now()
	d.mu.Unlock()
	d.end(run)
	return nil
}

// eventLog is Dagster's event log: what it shows of which attempt, and whether more may come.
type eventLog struct {
	mu       sync.Mutex
	shows    map[stepfleet.Key]string
	away     bool
	settling time.Duration // how long after its end an attempt's writes may be under way
	asked    int
}

func (l *eventLog) show(key stepfleet.Key, event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shows == nil {
		l.shows = map[stepfleet.Key]string{}
	}
	l.shows[key] = event
}

func (l *eventLog) set(away bool, settling time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.away, l.settling = away, settling
}

func (l *eventLog) Endings(_ context.Context, orphans []stepfleet.Orphan) ([]stepfleet.Ending, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked++; l.away {
		return nil, stepfleet.ErrUnavailable
	}
	out := make([]stepfleet.Ending, len(orphans))
	for i, o := range orphans {
		out[i] = stepfleet.Ending{Event: l.shows[o.Key], Final: o.Gone >= l.settling}
	}
	return out, nil
}
