package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"syscall"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/mutant"
)

// task is one leased task in this worker. It is the gate of its own process.
type task struct {
	l   *life
	job stepfleet.Job
	log *slog.Logger

	missing int // renewals in a row that did not list it; guarded by life.mu

	owner   sync.Mutex // held while the fence changes (revoke) or is used for the last time (settle)
	settled bool       // whatever was to be said of its end has been said; guarded by owner

	mu        sync.Mutex
	phases    map[stepfleet.Phase]float64
	proc      stepfleet.Process
	killed    bool  // the process must not live
	revoked   error // why the process is refused everything from now on
	cancelled bool
	began     time.Time // when the process was granted its start, on the clock that counts suspend
	ending    bool      // an ending event was granted: Dagster's log may have it
	late      bool      // it ran over its timeout
	leaving   bool      // a run worker that was asked to leave, since another will resume its run
	startedAt time.Time // zero until the start is recorded
	refused   error     // why the start was refused
	unbegun   bool      // the process was gone before it could be told of its start
	spoken    bool      // an event was granted: others may know that the process has been there
}

// newTask is a task that has just been claimed, for which the worker asked at that time.
func newTask(l *life, job stepfleet.Job, asked time.Time) *task {
	phases := map[stepfleet.Phase]float64{
		stepfleet.PhaseBell: unixSeconds(asked), stepfleet.PhaseClaimed: unixSeconds(time.Now()),
	}
	return &task{l: l, job: job, phases: phases, log: l.log.With(
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
	for launches := 1; launches < maxLaunches && t.mustStartOver(proc.Exit()); launches++ {
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

// mustStartOver says that the process of a launch was struck down after its start and before it was
// granted an event. Its run is STARTING: Dagster resumes only runs that have said RUN_START, and
// would fail this one in minutes. Nothing of the run has happened, so that starting over repeats
// nothing. A process that ends by itself would do so again.
func (t *task) mustStartOver(exit stepfleet.Exit) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	launch := t.job.Kind == stepfleet.KindRun && t.job.Attempt == 0
	struck := exit.Result == nil && exit.Status < 0 && !t.startedAt.IsZero()
	wanted := !t.killed && !t.cancelled && !t.leaving && t.revoked == nil && t.refused == nil
	return launch && struck && wanted && !t.spoken && t.l.over.Err() == nil
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
	if err == nil && t.revoked != nil {
		err = t.revoked
	}
	if err != nil {
		t.refused = err
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
		if err := t.l.waitOpen(ctx, t.l.w.cfg.startsFor()); err != nil {
			return err
		}
		err := t.l.starts.do(call, t.job.Ref)
		if err == nil {
			t.mu.Lock()
			t.startedAt = time.Now()
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
	if err := t.l.waitOpen(ctx, t.l.w.cfg.grantsFor()); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.revoked == nil {
		t.spoken = true
		t.ending = t.ending || t.job.Kind == stepfleet.KindStep && endingEvents[name]
	}
	return t.revoked
}

// requestCancel stops the process as Dagster's own executors do: SIGTERM, SIGINT after a grace, and
// SIGKILL. A task that has not started is refused its start by the ledger.
func (t *task) requestCancel() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cancelled {
		return
	}
	t.cancelled = true
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
	t.killed = true
	if t.revoked == nil {
		t.revoked = stepfleet.ErrFenced
	}
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
	t.revoked = fmt.Errorf("%w: %s", stepfleet.ErrFenced, reason)
	running := !t.startedAt.IsZero()
	t.mu.Unlock()
	if running {
		t.raiseFence(reason)
	}
	t.kill()
}

// settle records how the attempt ended, or leaves it to the server to find out.
func (t *task) settle(exit stepfleet.Exit) {
	t.owner.Lock()
	defer t.owner.Unlock()
	t.mu.Lock()
	started, ref := !t.startedAt.IsZero(), t.job.Ref
	t.mu.Unlock()
	t.settled = true
	if !started && !t.resolveStart(ref, exit) {
		return
	}
	if t.isUndecided(exit) {
		t.abandon(ref, exit)
		return
	}
	result := t.result(exit)
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
}

// isUndecided says that the process was granted its ending event and has not told that it is stored:
// only Dagster's log says whether it is.
func (t *task) isUndecided(exit stepfleet.Exit) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !mutant.AbandonedIsFailed && t.ending && (exit.Result == nil || exit.Result.Event == "")
}

// abandon has the server decide how the attempt ended.
func (t *task) abandon(ref stepfleet.Ref, exit stepfleet.Exit) {
	reason := "it was granted its ending event; " + describeExit(exit.Status)
	err := retry(t.l.over, t.log, "abandon", func(ctx context.Context) error {
		errs, err := t.l.w.ports.Claims.Abandon(ctx, t.l.session, []stepfleet.Ref{ref}, reason)
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
}

// resolveStart sees to a task whose process is gone and of whose start nothing is known, and says
// whether there is something to settle. A process that was refused, killed or struck by a signal
// has consumed nothing: its lease goes back. One that gave up by itself would do so again, so its
// attempt is started and settled as failed.
func (t *task) resolveStart(ref stepfleet.Ref, exit stepfleet.Exit) (settle bool) {
	t.mu.Lock()
	refused, killed, revoked := t.refused, t.killed, t.revoked
	t.mu.Unlock()
	struck := exit.Result == nil && exit.Status < 0 && ref.Fence <= maxStruckFence
	switch {
	case refused != nil && revoked == nil && isFinal(refused):
		t.log.Info("start refused", "err", refused)
		return false // the ledger has ended it or given it to somebody
	case refused != nil, killed, struck:
		return t.giveBack(ref)
	}
	if err := t.recordStart(t.l.over); err != nil {
		t.log.Info("start refused", "err", err)
		return false
	}
	return true
}

// maxStruckFence bounds how often a task whose process was ended by a signal before its start is
// given back without a word: the first three owners may, each raising the fence by two.
const maxStruckFence = 5

// giveBack releases the lease. A lease that is fenced may be one whose start was recorded while its
// process died: nobody else would ever end that task, so giveBack asks for its settlement, which
// is refused where the task has another owner.
func (t *task) giveBack(ref stepfleet.Ref) (settle bool) {
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
	if !errors.Is(err, stepfleet.ErrFenced) {
		return false
	}
	t.mu.Lock()
	t.unbegun = true
	t.mu.Unlock()
	return true
}

// isFinal says that a refused start leaves nothing to give back.
func isFinal(err error) bool {
	return errors.Is(err, stepfleet.ErrFenced) || errors.Is(err, stepfleet.ErrCancelled) ||
		errors.Is(err, stepfleet.ErrRunClosed) || errors.Is(err, stepfleet.ErrSessionDead)
}

// result is what the ledger is told: the process's own word, or what its end says.
func (t *task) result(exit stepfleet.Exit) stepfleet.Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	var r stepfleet.Result
	if exit.Result != nil {
		r = *exit.Result
	} else {
		r.Outcome = stepfleet.StateFailed
		r.Error = &stepfleet.Failure{Code: "process_died", Message: describeExit(exit.Status)}
	}
	if !r.Outcome.SettlesRunning() {
		r.Error = &stepfleet.Failure{Code: stepfleet.ErrTaskInvalid.Code, Message: fmt.Sprintf("the step's process reported the outcome %q", r.Outcome)}
		r.Outcome = stepfleet.StateFailed
	}
	r.V, r.Worker, r.ExitCode = stepfleet.TaskVersion, t.l.w.cfg.Spec.Worker, exit.Status
	if exit.Result != nil {
		r.ExitCode = 0 // its last word; it is killed then
	}
	maps.Copy(t.phases, r.Phases)
	r.Phases = t.phases
	if r.Outputs == nil {
		r.Outputs = []string{}
	}
	if r.ExecutionSeconds == 0 && !t.startedAt.IsZero() {
		r.ExecutionSeconds = time.Since(t.startedAt).Seconds()
	}
	switch {
	case r.Outcome == stepfleet.StateSucceeded:
		// Dagster's log says STEP_SUCCESS: no flag or drain that came later changes that.
	case t.cancelled:
		r.Outcome = stepfleet.StateCancelled
	case t.late && r.Event == "":
		r.Outcome = stepfleet.StateFailed
		r.Error = &stepfleet.Failure{Code: "timeout", Message: t.timeoutText()}
	case t.leaving:
		r.Outcome = stepfleet.StateLost
		r.Error = &stepfleet.Failure{Code: "drained", Message: "its worker was asked to stop; another one can resume the run"}
	case t.revoked != nil && r.Event == "":
		r.Outcome = stepfleet.StateLost
		r.Error = &stepfleet.Failure{Code: "drained", Message: t.revoked.Error()}
	case exit.HostDied && r.Event == "":
		r.Outcome = stepfleet.StateLost
		r.Error = &stepfleet.Failure{Code: "host_died", Message: "the template process that had forked the step's process died; the worker goes on"}
	case t.unbegun:
		r.Outcome = stepfleet.StateLost // user code has not run: a new attempt repeats nothing
	}
	r.Success = r.Outcome == stepfleet.StateSucceeded
	if r.Error != nil && len(r.Error.Message) > stepfleet.MaxErrorBytes {
		r.Error = &stepfleet.Failure{Code: r.Error.Code, Message: r.Error.Message[:stepfleet.MaxErrorBytes]}
	}
	return r
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

func describeExit(status int) string {
	if status < 0 {
		sig := syscall.Signal(-status)
		text := fmt.Sprintf("the step's process was ended by signal %d (%s) and reported nothing", -status, sig)
		if sig == syscall.SIGKILL {
			text += "; the kernel does this when memory runs out"
		}
		return text
	}
	return fmt.Sprintf("the step's process exited with status %d and reported nothing", status)
}

// joined is ctx, ended also by other.
func joined(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(other, cancel)
	return ctx, func() { stop(); cancel() }
}
