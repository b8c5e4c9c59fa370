// Package chaos runs a whole deployment, with real Dagster runs, under faults, and collects what four
// independent witnesses say of it: the client's history, the effect log that user code writes, the
// ledger's audit trail, and Dagster's event log.
//
// Where to read: schedule/ plans the faults from a seed; proxy/ is what stands between two processes;
// stack.go and edges.go are the deployment, load.go the runs, nemesis.go, signals.go and queues.go
// carry the plan out, witness.go collects, verdict.go judges, report.go says so.
//
// Everything that is started dies with this process, however it ends: the kernel kills the children,
// a warden what those have started.
package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
	"github.com/stepfleet/stepfleet/internal/supervise"
)

// Config says what to run.
type Config struct {
	Executable string // of stepfleet, built with the tag chaos
	Python     string
	Code       string // file of the load's jobs
	Dir        string
	Duration   time.Duration
	Seed       uint64
	FIFO       bool
	// Partition, when set, is how long one worker is cut from PostgreSQL, in place of the schedule's
	// faults: at default deadlines nothing may be lost.
	Partition time.Duration
	// Act, when set, is a scene in place of load and schedule: one of Acts.
	Act string
	// Least is how many faults of each kind must land, PerMinute how many in all.
	Least, PerMinute int
	// LeastTasks and LeastRuns are what must have been run, or the chaos proves nothing.
	LeastTasks, LeastRuns int
	// LeastRefusals of old owners' writes and LeastRecoveries of tasks whose owners were gone must be seen.
	LeastRefusals, LeastRecoveries int
	Lifetimes                      stepfleet.Lifetimes
	Drain                          time.Duration // of a worker
	Out                            io.Writer
	Log                            *slog.Logger
}

// Lifetimes are short, so that a run of minutes sees every deadline pass.
var Lifetimes = stepfleet.Lifetimes{
	Renew: 600 * time.Millisecond, SessionTTL: 3 * time.Second, RunLease: 12 * time.Second,
	Margin: time.Second, StartWithin: 10 * time.Second,
}

// Whole is the duration from which on a run of chaos must show all that it is for.
const Whole = 5 * time.Minute

func (c *Config) whole() bool { return c.Partition == 0 && c.Duration >= Whole }

// Bounds of the phases around the faults.
const (
	startTimeout   = 4 * time.Minute
	drainTimeout   = 3 * time.Minute
	collectTimeout = time.Minute
)

// Run runs the chaos. An error means that it could not be carried out; one that was ends with a report,
// which may be FAIL.
func Run(ctx context.Context, c Config) (*Report, error) {
	if err := os.MkdirAll(c.Dir, 0o711); err != nil {
		return nil, err
	}
	faults := schedule.New(c.plan())
	r := &Report{Config: reported(c), Began: time.Now()}
	s, err := phase(r, c, "start the stack", func() (*stack, error) {
		starting, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		return startStack(starting, c)
	})
	if err != nil {
		return nil, err
	}
	stop := sync.OnceValue(s.stop)
	defer func() { _ = stop() }()
	sessions := s.watchSessions(ctx)
	defer sessions.end()
	load := newLoad(s)
	n := newNemesis(s, load)
	o := outcome{}
	name := fmt.Sprintf("%d faults in %s", len(faults), c.Duration)
	switch {
	case c.Partition > 0:
		name = partitionPhase(c.Partition)
	case c.Act != "":
		name = "act: " + c.Act
	}
	_, o.played = phase(r, c, name, func() (_ any, err error) {
		began := time.Now()
		switch {
		case c.Partition > 0:
			n.partition(ctx, c.Partition)
		case c.Act != "":
			err = acts[c.Act].play(ctx, n)
		default:
			torment(ctx, n, load, faults)
		}
		o.span, o.healed = time.Since(began), time.Now()
		return nil, err
	})
	_, o.drained = phase(r, c, "heal and drain", func() (any, error) {
		n.heal(ctx)
		draining, cancel := context.WithTimeout(ctx, drainTimeout)
		defer cancel()
		return nil, errors.Join(load.settle(draining), s.rest(draining))
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if o.witnesses, err = phase(r, c, "collect the witnesses", func() (*witnesses, error) {
		collecting, cancel := context.WithTimeout(ctx, collectTimeout)
		defer cancel()
		return s.collect(collecting, load, sessions)
	}); err != nil {
		return nil, err
	}
	if _, err := phase(r, c, "stop the stack", func() (any, error) { return nil, stop() }); err != nil {
		return nil, err
	}
	o.runs, o.faults, o.left = load.records(o.dagster), n.results(), len(supervise.Marked(s.state.ID))
	_, err = phase(r, c, "judge", func() (any, error) { return nil, r.judge(ctx, c, o) })
	return r, err
}

// plan is what the schedule is made from.
func (c *Config) plan() schedule.Plan {
	return schedule.Plan{
		Seed: c.Seed, Duration: c.Duration, TTL: c.Lifetimes.SessionTTL, RunLease: c.Lifetimes.RunLease,
		PerMinute: c.PerMinute, Least: c.Least, Without: c.without(),
	}
}

// without are kinds that cannot hit: a FIFO queue delivers once.
func (c *Config) without() []schedule.Kind {
	if c.FIFO {
		return []schedule.Kind{schedule.SQSDuplicate}
	}
	return nil
}

// torment has load and faults go on together until the faults are over.
func torment(ctx context.Context, n *nemesis, l *load, faults []schedule.Fault) {
	loading, enough := context.WithCancel(ctx)
	var both sync.WaitGroup
	both.Go(func() { l.run(loading) })
	n.run(ctx, faults, n.Least)
	enough()
	both.Wait()
}

// phase does one part, says so, and keeps how long it took.
func phase[T any](r *Report, c Config, name string, do func() (T, error)) (T, error) {
	fmt.Fprintf(c.Out, "== %s\n", name)
	began := time.Now()
	result, err := do()
	r.Phases = append(r.Phases, Phase{Name: name, Seconds: time.Since(began).Seconds()})
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
		fmt.Fprintf(c.Out, "   %v\n", err)
	}
	return result, err
}
