package worker

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet"
)

// task is one leased task in this worker. It is the gate of its own process.
type task struct {
	l   *life
	log *slog.Logger

	missing int // renewals in a row that did not list it; guarded by life.mu

	owner   sync.Mutex // held while the fence changes (revoke) or is used for the last time (settle)
	settled bool       // whatever was to be said of its end has been said; guarded by owner

	mu sync.Mutex
	Attempt
	proc  stepfleet.Process
	began time.Time // when the process was granted its start, on the clock that counts suspend
}

// newTask is a task that has just been claimed, for which the worker asked at that time.
func newTask(l *life, job stepfleet.Job, asked time.Time) *task {
	a := NewAttempt(job)
	a.phases[stepfleet.PhaseBell], a.phases[stepfleet.PhaseClaimed] = unixSeconds(asked), unixSeconds(time.Now())
	return &task{l: l, Attempt: a, log: l.log.With(
		"task_id", job.TaskID, "run_id", job.RunID, "step_key", job.StepKey, "attempt", job.Attempt, "fence", job.Fence)}
}

// run takes the task from lease to settlement. It returns when the process is gone and the ledger
// knows, or when the life is over.
func (t *task) run(ctx context.Context) {
	proc, err := t.l.w.ports.Host.Launch(ctx, t.job, t)
	if err != nil {
		if ctx.Err() == nil {
			t.log.Error("no process for the task: giving it back", "err", err)
		}
		t.l.remove(t)
		t.l.release([]stepfleet.Ref{t.job.Ref}, "no process: "+err.Error())
		pause(ctx, retryMax) // the slot rests: the next task would fare no better
		return
	}
	t.follow(proc)
	for launches := 1; launches < maxLaunches && t.startsOver(proc.Exit()); launches++ {
		t.log.Warn("the run worker died before it said anything: starting it anew", "status", proc.Exit().Status)
		pause(ctx, launchPause<<(launches-1))
		another, err := t.l.w.ports.Host.Launch(ctx, t.job, t)
		if err != nil {
			t.log.Error("no process for the run worker", "err", err)
			break // it ends as its last process did
		}
		proc = another
		t.follow(proc)
	}
	t.settle(proc.Exit())
	t.l.remove(t) // the ledger no longer lists it
	<-proc.Done() // its slot is free when its memory is
}

// follow returns when the process has reported or is gone.
func (t *task) follow(proc stepfleet.Process) {
	t.adopt(proc)
	select {
	case <-proc.Reported():
		// What it has started and left behind must not outlive the attempt, and its own end takes
		// longer than the settlement: whoever waits for the outcome need not wait for both.
		proc.Kill()
	case <-proc.Done():
	}
}

// maxLaunches bounds how often a run worker is started that dies before it says anything. What
// kills one process here may be killing others, such as the idle ones: each launch waits twice as
// long as the one before, so that together they outlast it.
const (
	maxLaunches = 5
	launchPause = 100 * time.Millisecond
)

// startsOver says whether a launch is repeated whose process died before it said anything.
func (t *task) startsOver(exit stepfleet.Exit) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mustStartOver(exit) && t.l.over.Err() == nil
}

func (t *task) adopt(proc stepfleet.Process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.proc = proc
	t.phases[stepfleet.PhaseProcess] = unixSeconds(time.Now())
	t.watchTimeout()
	if t.killed {
		proc.Kill()
	}
	if t.cancelled {
		t.terminate()
	}
}

// Start implements Gate.
func (t *task) Start(ctx context.Context) error {
	err := t.recordStart(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.Begin(err); err != nil {
		return err
	}
	t.began = t.l.w.cfg.Now()
	t.watchTimeout()
	return nil
}

func (t *task) recordStart(ctx context.Context) error {
	ctx, cancel := joined(ctx, t.l.over)
	defer cancel()
	return retry(ctx, t.log, "start", func(call context.Context) error {
		if err := t.l.waitOpen(ctx, t.l.w.cfg.StartsFor()); err != nil {
			return err
		}
		err := t.l.starts.do(call, t.job.Ref)
		if err == nil {
			t.mu.Lock()
			t.Started(time.Now())
			t.mu.Unlock()
		}
		return err
	})
}

// Event implements Gate: the event may be written while the task is ours and what is left of the run
// lease is more than the write may take.
func (t *task) Event(ctx context.Context, name string) error {
	ctx, cancel := joined(ctx, t.l.over)
	defer cancel()
	if err := t.l.waitOpen(ctx, t.l.w.cfg.GrantsFor()); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.Grant(name)
}

// requestCancel stops the process as Dagster's own executors do: SIGTERM, SIGINT after a grace, and
// SIGKILL. A task that has not started is refused its start by the ledger.
func (t *task) requestCancel() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.Cancel() {
		return
	}
	t.log.Info("cancel requested")
	if t.proc != nil {
		t.terminate()
	}
}

// terminate is called with mu held.
func (t *task) terminate() {
	proc := t.proc
	proc.Terminate()
	t.l.side.Go(func() {
		if gone(proc, t.grace()) {
			return
		}
		proc.Interrupt()
		if !gone(proc, interruptGrace) {
			t.awaitEnd()
			proc.Kill()
		}
	})
}

// gone waits for the end of the process, and says whether it came within the time.
func gone(proc stepfleet.Process, within time.Duration) bool {
	select {
	case <-proc.Done():
		return true
	case <-time.After(within):
		return false
	}
}

// grace is what the process has between SIGTERM and SIGINT.
func (t *task) grace() time.Duration {
	if t.job.Kind == stepfleet.KindRun {
		return t.l.w.cfg.RunKillGrace
	}
	return t.l.w.cfg.KillGrace
}

// handOver asks a run worker to leave when Dagster will resume its run with another: on SIGTERM it
// then lets its steps go on. Any other task goes on as it is.
func (t *task) handOver() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.job.Kind != stepfleet.KindRun || t.job.RetryBudget.LostStepRetries == 0 || t.proc == nil {
		return
	}
	t.log.Info("drained: the run will be resumed elsewhere")
	t.leaving = true
	t.proc.Terminate()
}

// endWait is how long a process that was granted its ending event has to say that the event is in
// Dagster's log, before it is killed.
const endWait = 2 * time.Second

// awaitEnd lets a process that is at its end come to it: once that is in Dagster's log the worker must
// know, or it could not say how the attempt ended.
func (t *task) awaitEnd() {
	t.mu.Lock()
	proc, ending := t.proc, t.ending
	t.mu.Unlock()
	if proc == nil || !ending {
		return
	}
	select {
	case <-proc.Ended():
	case <-proc.Reported():
	case <-proc.Done():
	case <-t.l.over.Done():
	case <-time.After(endWait):
	}
}

// kill ends the process, now or as soon as there is one, and refuses it everything. It waits for
// nothing: it is for a process whose time is over, or whose task is another's, and of whose end the
// server reads in Dagster's log.
func (t *task) kill() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Kill()
	if t.proc != nil {
		t.proc.Kill()
	}
}

// revoke takes a running task from its process before it kills it, so that whatever the process
// still says is refused, and the worker can say what became of the task.
func (t *task) revoke(reason string) {
	t.awaitEnd()
	t.owner.Lock()
	defer t.owner.Unlock()
	if t.settled {
		return
	}
	t.mu.Lock()
	raise := t.Revoke(reason)
	t.mu.Unlock()
	if raise {
		t.raiseFence(reason)
	}
	t.kill()
}

// settle records how the attempt ended, or leaves it to the server to find out.
func (t *task) settle(exit stepfleet.Exit) {
	t.owner.Lock()
	defer t.owner.Unlock()
	t.mu.Lock()
	started := t.IsStarted()
	t.mu.Unlock()
	t.settled = true
	for first := true; ; first = false {
		move, ref := t.next(exit)
		var err error
		switch move {
		case Leave:
			if first {
				t.log.Info("start refused", "err", t.refused)
			}
			return
		case GiveBack:
			err = t.giveBack(ref)
		case RecordStart:
			if err = t.recordStart(t.l.over); err != nil {
				t.log.Info("start refused", "err", err)
			}
		case Raise:
			err = retry(t.l.over, t.log, "revoke", func(ctx context.Context) error { return t.raise(ctx, "its process is gone") })
		case Abandon:
			err = t.abandon(ref, exit)
		case Settle:
			err = t.report(ref, exit, started)
		}
		t.mu.Lock()
		t.Answered(move, err)
		t.mu.Unlock()
	}
}

func (t *task) next(exit stepfleet.Exit) (Move, stepfleet.Ref) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.Next(exit), t.Ref()
}

// report says how the attempt ended.
func (t *task) report(ref stepfleet.Ref, exit stepfleet.Exit, started bool) error {
	t.mu.Lock()
	result := t.Result(exit, t.l.w.cfg.Spec.Worker, time.Now())
	t.mu.Unlock()
	err := retry(t.l.over, t.log, "settle", func(ctx context.Context) error {
		return t.l.settles.do(ctx, stepfleet.Settlement{Ref: ref, Result: result})
	})
	switch {
	case err == nil:
		t.log.Info("settled", "outcome", result.Outcome, "event", result.Event, "seconds", result.ExecutionSeconds)
		t.l.notes.ended(t.job.Lease)
	case t.l.over.Err() != nil:
		t.log.Warn("not settled: the session is over; the sweep will", "outcome", result.Outcome)
	case !started:
		t.log.Info("not settled: the task has another owner, or has ended", "err", err)
	default:
		t.log.Error("settle refused", "outcome", result.Outcome, "err", err)
	}
	return err
}

// abandon has the server decide how the attempt ended.
func (t *task) abandon(ref stepfleet.Ref, exit stepfleet.Exit) error {
	reason := "it was granted its ending event; " + describeExit(exit.Status)
	err := retry(t.l.over, t.log, "abandon", func(ctx context.Context) error {
		errs, err := t.l.w.ports.Claims.Abandon(ctx, t.l.session, []stepfleet.Ref{ref}, exit.PID, reason)
		if err != nil {
			return err
		}
		return errs[0]
	})
	switch {
	case err == nil:
		t.log.Warn("abandoned: Dagster's log will say how it ended", "status", exit.Status)
	case t.l.over.Err() != nil:
		t.log.Warn("not abandoned: the session is over, and the server decides all the same")
	default:
		t.log.Error("abandon refused", "err", err)
	}
	return err
}

// giveBack releases the lease.
func (t *task) giveBack(ref stepfleet.Ref) error {
	err := retry(t.l.over, t.log, "release", func(ctx context.Context) error {
		errs, err := t.l.w.ports.Claims.Release(ctx, t.l.session, []stepfleet.Ref{ref}, "ended before its start")
		if err != nil {
			return err
		}
		return errs[0]
	})
	if err == nil {
		t.log.Info("given back: its process ended before its start")
	}
	return err
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

// joined is ctx, ended also by other.
func joined(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(other, cancel)
	return ctx, func() { stop(); cancel() }
}
