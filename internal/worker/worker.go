// Package worker is the worker's role: it claims tasks up to its free slots, has each start
// recorded before user code begins, and records how each ended.
//
// The ledger is authoritative; a worker only holds leases. It may run a task while its session
// lives, and it acts on two deadlines, measured from when the last renewal that came back was
// sent, on a clock that counts suspend. A margin before the session's TTL it closes its gates:
// nothing new starts and children that ask to write events wait. A margin before the run lease
// it kills its children and begins a new life, because from then on the server may call them
// lost. A write with an old fence is refused by the ledger, so a worker that is late does no harm
// there; the gates and the kill keep it from doing harm in Dagster's event log.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/mutant"
)

// Notifier tells a server that tasks have ended.
type Notifier interface {
	Notify(ctx context.Context, url string, ended []stepfleet.Lease) error
}

// Config is what a worker is told.
type Config struct {
	Spec      stepfleet.SessionSpec
	Lifetimes stepfleet.Lifetimes
	// StatementTimeout is after how long Dagster's database breaks off what a step's process writes; 0
	// when it does not. A write that was granted is over with the run lease, then, whatever becomes of
	// the worker.
	StatementTimeout time.Duration
	// DrainTimeout is how long running steps may go on after the worker is asked to stop.
	DrainTimeout time.Duration
	// KillGrace is how long a cancelled step has between SIGTERM and SIGINT, which SIGKILL follows.
	KillGrace time.Duration
	// RunKillGrace is the same for a run worker, which cancels its steps and writes how the run ended.
	RunKillGrace time.Duration
	// RunEnv is set in the processes of run workers, beyond what every task gets: they speak to the
	// server, and step processes must not be able to.
	RunEnv map[string]string
	// Abort, when it is closed, ends the drain: the worker kills what runs, ends its session within a
	// second, and Run returns ErrAborted. Nil is never closed.
	Abort <-chan struct{}
	// Now is a clock that counts suspend; nil means time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Ports are what a worker works with.
type Ports struct {
	Claims stepfleet.Claims
	// Renewals is the same ledger on a connection of its own, so that a busy pool cannot make a
	// session look dead.
	Renewals stepfleet.Claims
	Bells    stepfleet.Listener
	Host     stepfleet.Host
	Notifier Notifier
}

// Intervals of a worker's loops.
const (
	lookBusy     = 2 * time.Second  // between looks while they find work, or the bells are out
	lookIdleMax  = 15 * time.Second // between looks of an idle worker
	watchEvery   = time.Second      // between looks for cancel flags while something runs
	callTimeout  = 10 * time.Second // one call of the ledger
	abortTimeout = time.Second      // the call that ends the session of a worker that must stop at once
	retryMax     = 5 * time.Second  // rest of a slot for which no process was to be had
	bellWaitMax  = 20 * time.Second // what SQS allows
	bellSlack    = 2 * time.Second  // what a receive may take beyond its wait
	bellBatchMax = 10               // what SQS gives at once
	handOverMax  = 10 * time.Second // of a drain, that run workers whose run will be resumed get to leave

	interruptGrace = time.Second // between SIGINT and SIGKILL, for Dagster to write how the step ended
)

// ErrAborted says that the worker was told to stop at once.
var ErrAborted = errors.New("stopped at once: what ran was killed, its tasks are lost")

// Worker runs one life after another.
type Worker struct {
	cfg    Config
	ports  Ports
	log    *slog.Logger
	status status
}

// New returns a worker that has not begun to run.
func New(cfg Config, ports Ports) (*Worker, error) {
	if err := cfg.Lifetimes.Validate(); err != nil {
		return nil, err
	}
	if len(cfg.Spec.Slots) == 0 {
		return nil, errors.New("worker: no queues: name at least one as --queue default:4")
	}
	for queue, n := range cfg.Spec.Slots {
		if err := stepfleet.ValidateQueue(queue); err != nil {
			return nil, err
		}
		if n < 1 {
			return nil, fmt.Errorf("worker: queue %s has %d slots: give it at least 1", queue, n)
		}
	}
	if grants := cfg.GrantsFor(); grants <= cfg.Lifetimes.Renew {
		return nil, fmt.Errorf("worker: a statement timeout of %s leaves no time of the run lease of %s: give a shorter one or a longer lease", cfg.StatementTimeout, cfg.Lifetimes.RunLease)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if mutant.WallClockLease {
		cfg.Now = mutant.AwakeClock()
	}
	cfg.Spec.SessionTTL, cfg.Spec.RunLease = cfg.Lifetimes.SessionTTL, cfg.Lifetimes.RunLease
	return &Worker{cfg: cfg, ports: ports, log: cfg.Logger}, nil
}

// StartsFor is how long after a renewal something may start.
func (c Config) StartsFor() time.Duration { return c.Lifetimes.SessionTTL - c.Lifetimes.Margin }

// GrantsFor is how long after a renewal the write of an event may be granted: the run lease lasts longer
// than the write by a margin.
func (c Config) GrantsFor() time.Duration {
	if mutant.GrantWithoutLease {
		return math.MaxInt64
	}
	return min(c.StartsFor(), c.Lifetimes.RunLease-c.Lifetimes.Margin-c.StatementTimeout)
}

// LeaseOver says whether what runs must not go on, age after the last renewal.
func (c Config) LeaseOver(age time.Duration) bool {
	return age >= c.Lifetimes.RunLease-c.Lifetimes.Margin
}

// Run works until ctx ends, then drains: it claims no more, gives back what has not started,
// lets what runs go on for DrainTimeout, and ends what is left as lost. Run workers whose run will
// be resumed are asked to leave shortly before: their steps go on. A worker whose session dies kills
// its steps and begins a new life.
func (w *Worker) Run(ctx context.Context) error {
	notes := newNotes(w.ports.Notifier, w.log)
	defer notes.close()
	for ctx.Err() == nil && !w.aborted() {
		session, sent, err := w.register(ctx)
		if err != nil && ctx.Err() != nil {
			break
		}
		if err != nil {
			return fmt.Errorf("register session: %w", err)
		}
		w.log.Info("session begins", "session_id", session.ID, "worker", w.cfg.Spec.Worker)
		l := newLife(w, session.ID, sent, notes)
		w.status.begin(l)
		l.run(ctx)
		w.status.end()
	}
	if w.aborted() {
		return ErrAborted
	}
	return nil
}

func (w *Worker) aborted() bool {
	select {
	case <-w.cfg.Abort:
		return true
	default:
		return false
	}
}

// register tries until it has a session or ctx ends.
func (w *Worker) register(ctx context.Context) (stepfleet.Session, time.Time, error) {
	var session stepfleet.Session
	var sent time.Time
	err := retry(ctx, w.log, "register session", func(ctx context.Context) error {
		var err error
		sent = w.cfg.Now()
		session, err = w.ports.Renewals.Register(ctx, w.cfg.Spec)
		w.status.registering(err)
		return err
	})
	return session, sent, err
}

// Ready says why this worker does no work; nothing when it does.
func (w *Worker) Ready(context.Context) []string { return w.status.reasons() }

// HoldsLeases says whether what runs here is still this worker's: not once the run lease is over,
// also when the worker itself was stopped meanwhile and has not yet killed what it has to. Between
// two sessions nothing runs.
func (w *Worker) HoldsLeases() bool { return w.status.holdsLeases() }

// Taken returns how many slots of each queue are taken: by a task, by its process until that is gone,
// or because no process was to be had. Between two sessions there are no slots.
func (w *Worker) Taken() map[string]int { return w.status.taken() }

// retry calls f until it succeeds, is refused for good, or ctx ends, whose error it then
// returns. It logs the first failure and the recovery.
func retry(ctx context.Context, log *slog.Logger, what string, f func(context.Context) error) error {
	for n := 0; ; n++ {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		err := f(call)
		cancel()
		if refusal := stepfleet.RefusalOf(err); err == nil || (refusal != nil && !refusal.Retry) {
			if n > 0 {
				log.Info(what+": works again", "tries", n+1, "err", err)
			}
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if n == 0 {
			log.Warn(what+": trying again", "err", err)
		}
		if !stepfleet.Rest(ctx, err, n) {
			return ctx.Err()
		}
	}
}

// jitter spreads d by a quarter to both sides, so that workers do not look in step.
func jitter(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2) }

// pause waits for d and reports whether ctx is still on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
