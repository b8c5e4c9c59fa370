// Package dispatch is the server's role: it takes submissions into the ledger, rings bells for
// what waits, tells executors what ended, and sweeps what dead workers left behind.
//
// Nothing in this package is authoritative. The ledger is; a replica may die at any line and
// another one, or the next tick, makes good for it. What is only a hint here (bells, notifies,
// the counts that bound the ringing) may be lost, doubled or stale.
package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stepfleet/stepfleet"
)

// Config is what a Server needs to know.
type Config struct {
	// Name tells replicas apart in the ledger's beats.
	Name string
	// URL is where workers reach this replica with a notify.
	URL string
	// Queues are the queues that tasks may name.
	Queues    []string
	Lifetimes stepfleet.Lifetimes
	// MaxPayloadBytes bounds one payload; 0 means stepfleet.MaxPayloadBytes, which is the most.
	MaxPayloadBytes int
	// EventLog is asked how attempts ended whose worker cannot say; without one they are lost.
	EventLog stepfleet.EventLog
	// EventLogPatience is how long a verdict waits for a log that cannot be asked; 0: until it can.
	EventLogPatience time.Duration
	// Dagster is asked which open runs have ended, and told the end of cancelled runs that nobody
	// else is left to end; nil leaves both to executors, launchers and Dagster's own monitoring.
	Dagster stepfleet.Orchestrator
	// Now is the server's clock; nil means time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Intervals of the server's loops. They bound how late something lost is made good, and what an
// idle server costs.
const (
	sweepEvery  = time.Second     // beat, expiry, sweep
	reringEvery = 2 * time.Second // bells again for what still waits while slots are free
	lookEvery   = 5 * time.Second // the slow look that covers a lost notify
	sweepMax    = 500             // tasks one sweep statement takes
)

// Server is one replica of the server role.
type Server struct {
	cfg    Config
	ledger stepfleet.Ledger
	bells  *ringer
	hub    *Hub
	log    *slog.Logger
	// sightings is the reconciliation's own.
	sightings sightings
	// canceled is sent to when a run worker was cancelled.
	canceled chan struct{}
	// orphaned is sent to when a session with running tasks may have been declared dead.
	orphaned chan struct{}
}

// New returns a server that has not begun to run.
func New(cfg Config, ledger stepfleet.Ledger, bells stepfleet.Ringer) (*Server, error) {
	if err := cfg.Lifetimes.Validate(); err != nil {
		return nil, err
	}
	if len(cfg.Queues) == 0 {
		return nil, errors.New("dispatch: no queues: name at least one with --queue")
	}
	for _, q := range cfg.Queues {
		if err := stepfleet.ValidateQueue(q); err != nil {
			return nil, err
		}
	}
	switch {
	case cfg.MaxPayloadBytes == 0:
		cfg.MaxPayloadBytes = stepfleet.MaxPayloadBytes
	case cfg.MaxPayloadBytes < 0 || cfg.MaxPayloadBytes > stepfleet.MaxPayloadBytes:
		return nil, fmt.Errorf("--max-payload %d: use at most %d, which the ledger takes", cfg.MaxPayloadBytes, stepfleet.MaxPayloadBytes)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Server{
		cfg:       cfg,
		ledger:    ledger,
		bells:     newRinger(bells, cfg.Queues, cfg.Logger),
		hub:       newHub(),
		log:       cfg.Logger,
		sightings: sightings{since: map[string]time.Time{}},
		canceled:  make(chan struct{}, 1),
		orphaned:  make(chan struct{}, 1),
	}, nil
}

// Run works until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.bells.run(ctx) })
	g.Go(func() error { return s.rering(ctx) })
	g.Go(func() error { return s.sweep(ctx) })
	g.Go(func() error { return s.repair(ctx) })
	g.Go(func() error { return s.look(ctx) })
	g.Go(func() error { return s.reconcile(ctx) })
	g.Go(func() error { return s.concludeCancels(ctx) })
	err := g.Wait()
	s.hub.close()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Ledger gives readers access to the records.
func (s *Server) Ledger() stepfleet.Records { return s.ledger }

// Answer is a receipt, or the reason why one task of a batch was refused.
type Answer struct {
	stepfleet.Receipt
	Err error
}

// Submit takes a batch of one run into the ledger, in one commit, and rings. Tasks that cannot be
// taken (unknown queue, payload over the limit, malformed) are answered with their error and the
// rest is recorded. Errors of the whole batch are those of Intake.Submit. From its return on,
// nothing of the batch is lost: ringing comes after and may fail.
func (s *Server) Submit(ctx context.Context, b stepfleet.Batch) ([]Answer, error) {
	if len(b.Tasks) > stepfleet.MaxBatchTasks {
		return nil, fmt.Errorf("%w: a batch of %d tasks: send at most %d", stepfleet.ErrTaskInvalid, len(b.Tasks), stepfleet.MaxBatchTasks)
	}
	answers := make([]Answer, len(b.Tasks))
	good, index := b, make([]int, 0, len(b.Tasks))
	good.Tasks = nil
	good.NotifyURL = s.cfg.URL
	good.Payloads = map[stepfleet.Digest][]byte{}
	flaws := s.flaws(b)
	for i, t := range b.Tasks {
		answers[i].Key = t.Key
		if err := s.admit(b, t, flaws); err != nil {
			answers[i].Err = err
			continue
		}
		good.Tasks = append(good.Tasks, t)
		if p, ok := b.Payloads[t.Payload]; ok {
			good.Payloads[t.Payload] = p
		}
		index = append(index, i)
	}
	if len(good.Tasks) == 0 {
		return answers, nil
	}
	receipts, err := s.ledger.Submit(ctx, good)
	if err != nil {
		return nil, fmt.Errorf("submit %d tasks of run %s: %w", len(good.Tasks), b.RunID, err)
	}
	waiting := map[string]int{}
	for i, r := range receipts {
		answers[index[i]].Receipt = r
		if r.State == stepfleet.StateQueued {
			waiting[good.Tasks[i].Queue]++
		}
	}
	for queue, n := range waiting {
		s.bells.want(queue, n)
	}
	return answers, nil
}

// admit says why a task cannot be taken, or nil.
func (s *Server) admit(b stepfleet.Batch, t stepfleet.Task, flaws map[stepfleet.Digest]error) error {
	if err := t.Validate(); err != nil {
		return err
	}
	if t.RunID != b.RunID {
		return fmt.Errorf("%w: task of run %s in a batch of run %s", stepfleet.ErrTaskInvalid, t.RunID, b.RunID)
	}
	if err := stepfleet.ValidateQueue(t.Queue); err != nil {
		return err
	}
	if err := admitKind(t); err != nil {
		return err
	}
	if !s.bells.knows(t.Queue) {
		return fmt.Errorf("%w %q: this server has %v; start it with --queue %s, or change the step's stepfleet/queue tag",
			stepfleet.ErrUnknownQueue, t.Queue, s.cfg.Queues, t.Queue)
	}
	// The ledger may have a payload already that is not in the batch, and refuses the batch if not.
	if err := flaws[t.Payload]; err != nil {
		return fmt.Errorf("task %s: %w", t.Key, err)
	}
	return nil
}

// admitKind keeps run workers and steps apart, by queue and by key.
func admitKind(t stepfleet.Task) error {
	run := t.Kind == stepfleet.KindRun
	if run != (t.StepKey == stepfleet.RunStepKey) {
		return fmt.Errorf("%w: task %s of kind %s: the step key %s is that of run workers, and theirs alone",
			stepfleet.ErrTaskInvalid, t.Key, t.Kind, stepfleet.RunStepKey)
	}
	if run != stepfleet.CarriesRuns(t.Queue) {
		return fmt.Errorf("%w: task %s of kind %s in queue %s: run workers go to %s or %s-..., steps to any other queue, or one would wait for the other's slot",
			stepfleet.ErrTaskInvalid, t.Key, t.Kind, t.Queue, stepfleet.RunsQueue, stepfleet.RunsQueue)
	}
	return nil
}

// Cancel stops the run's named tasks, or all of them when keys is nil; of an executor, its steps.
func (s *Server) Cancel(
	ctx context.Context, runID string, epoch stepfleet.Epoch, keys []stepfleet.Key, reason string,
) ([]stepfleet.Change, error) {
	changes, err := s.ledger.Cancel(ctx, runID, epoch, keys, reason)
	if err != nil {
		return nil, fmt.Errorf("cancel tasks of run %s: %w", runID, err)
	}
	if slices.ContainsFunc(changes, func(c stepfleet.Change) bool { return c.StepKey == stepfleet.RunStepKey }) {
		nudge(s.canceled)
	}
	s.publish(ctx, changes)
	return changes, nil
}

// nudge asks a loop for a look; one that is due already will do.
func nudge(loop chan struct{}) {
	select {
	case loop <- struct{}{}:
	default:
	}
}

// CloseRun closes the run for good and cancels what it still has open; of an executor, its steps.
func (s *Server) CloseRun(ctx context.Context, runID string, epoch stepfleet.Epoch, reason string) ([]stepfleet.Change, error) {
	changes, err := s.ledger.CloseRun(ctx, runID, epoch, reason)
	if err != nil {
		return nil, fmt.Errorf("close run %s: %w", runID, err)
	}
	s.publish(ctx, changes)
	return changes, nil
}

// TakeEpoch makes the caller the run's executor. The streams of the one before end here at once,
// and at other replicas with their next look.
func (s *Server) TakeEpoch(ctx context.Context, runID string, executor stepfleet.Executor) (stepfleet.Epoch, error) {
	epoch, err := s.ledger.TakeEpoch(ctx, runID, executor, s.cfg.URL)
	if err != nil {
		return 0, fmt.Errorf("executor %s of run %s: %w", executor, runID, err)
	}
	s.hub.supersede(map[string]stepfleet.Epoch{runID: epoch})
	return epoch, nil
}

// Confirm says whether the epoch is still the run's.
func (s *Server) Confirm(ctx context.Context, runID string, epoch stepfleet.Epoch) error {
	return s.ledger.Rejoin(ctx, runID, epoch, s.cfg.URL)
}

// Adjudicate asks for an executor whether it may say how attempts ended.
func (s *Server) Adjudicate(ctx context.Context, runID string, epoch stepfleet.Epoch, keys []stepfleet.Key) ([]stepfleet.Ruling, error) {
	return s.ledger.Adjudicate(ctx, runID, epoch, keys)
}

// InstanceDead records proof that a worker process is gone, and takes over what it held at once.
func (s *Server) InstanceDead(ctx context.Context, instance, reason string) ([]stepfleet.Session, error) {
	dead, err := s.ledger.DeclareDead(ctx, instance, reason)
	if err != nil {
		return nil, fmt.Errorf("declare instance %s dead: %w", instance, err)
	}
	for _, d := range dead {
		s.log.Warn("session dead", KeySession, d.ID, "worker", d.Worker, "reason", reason)
	}
	if len(dead) > 0 {
		nudge(s.orphaned)
		if err := s.sweepOnce(ctx); err != nil {
			// The sessions are dead; the next tick sweeps them.
			s.log.Warn("sweep after proof of death", "err", err)
		}
	}
	return dead, nil
}

// Notified takes a worker's hint that tasks ended, and tells their runs' streams.
func (s *Server) Notified(ctx context.Context, ids []stepfleet.TaskID) error {
	views, err := s.ledger.Tasks(ctx, ids)
	if err != nil {
		return fmt.Errorf("read %d notified tasks: %w", len(ids), err)
	}
	s.hub.publish(views)
	return nil
}

// publish tells the streams of tasks that the server itself ended, and rings for those it
// queued again.
func (s *Server) publish(ctx context.Context, changes []stepfleet.Change) {
	var ended []stepfleet.TaskID
	waiting := map[string]int{}
	for _, c := range changes {
		switch {
		case c.To.Terminal():
			ended = append(ended, c.TaskID)
		case c.To == stepfleet.StateQueued:
			waiting[c.Queue]++
		}
	}
	for queue, n := range waiting {
		s.bells.want(queue, n)
	}
	if len(ended) == 0 {
		return
	}
	if err := s.Notified(ctx, ended); err != nil {
		s.log.Warn("tell streams of ended tasks; the slow look will", "err", err)
	}
}

// Keys of log attributes.
const (
	KeySession = "session_id"
	KeyTask    = "task_id"
	KeyRun     = "run_id"
	KeyQueue   = "queue"
)
