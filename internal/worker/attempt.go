package worker

import (
	"errors"
	"fmt"
	"maps"
	"syscall"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/mutant"
)

// Attempt is what a worker knows of a task that it has leased, and what it decides by that. It has
// no clock, no lock and makes no call: the worker's task is its shell, and the simulator another one.
type Attempt struct {
	job       stepfleet.Job
	phases    map[stepfleet.Phase]float64
	killed    bool  // the process must not live
	revoked   error // why the process is refused everything from now on
	cancelled bool
	ending    bool      // an ending event was granted: Dagster's log may have it
	late      bool      // it ran over its timeout
	leaving   bool      // a run worker that was asked to leave, since another will resume its run
	startedAt time.Time // zero until the start is recorded
	refused   error     // why the start was refused
	unbegun   bool      // the process was gone before it could be told of its start
	spoken    bool      // an event was granted: others may know that the process has been there
	unsure    bool      // the fence was to be raised, and no answer came: it may be
	left      bool      // nothing is left to tell the ledger
}

// NewAttempt is an attempt that has just been claimed.
func NewAttempt(job stepfleet.Job) Attempt {
	return Attempt{job: job, phases: map[stepfleet.Phase]float64{}}
}

// Ref is the task with the fence that its owner has by now.
func (a *Attempt) Ref() stepfleet.Ref { return a.job.Ref }

// Raised says what became of raising the fence.
func (a *Attempt) Raised(fence stepfleet.Fence, err error) {
	if a.unsure = err != nil; err == nil {
		a.job.Fence = fence
	}
}

// Started says that the start is recorded.
func (a *Attempt) Started(at time.Time) { a.startedAt = at }

// IsStarted says whether the start is recorded.
func (a *Attempt) IsStarted() bool { return !a.startedAt.IsZero() }

// IsEnding says whether the process was granted its ending event.
func (a *Attempt) IsEnding() bool { return a.ending }

// Begin tells the process whether user code may begin, once recording its start has ended with err.
func (a *Attempt) Begin(err error) error {
	if err == nil {
		err = a.revoked
	}
	if err != nil {
		a.refused = err
	}
	return err
}

// Grant tells the process whether it may write the event, while the session's gates are open.
func (a *Attempt) Grant(event string) error {
	if a.revoked == nil {
		a.spoken = true
		a.ending = a.ending || a.job.Kind == stepfleet.KindStep && endingEvents[event]
	}
	return a.revoked
}

// Cancel takes a cancel flag, and says whether it is news.
func (a *Attempt) Cancel() bool {
	news := !a.cancelled
	a.cancelled = true
	return news
}

// Kill refuses the process everything. It must not live.
func (a *Attempt) Kill() {
	a.killed = true
	if a.revoked == nil {
		a.revoked = stepfleet.ErrFenced
	}
}

// Revoke refuses the process everything from now on, and says whether the fence has to be raised
// before the process is killed.
func (a *Attempt) Revoke(reason string) (raise bool) {
	a.revoked = fmt.Errorf("%w: %s", stepfleet.ErrFenced, reason)
	return a.IsStarted()
}

// RefuseLate closes the gates to an attempt that is over its timeout, and says whether it was still
// running. One that was granted its ending event has ended in time.
func (a *Attempt) RefuseLate() bool {
	if a.ending || a.cancelled || a.revoked != nil {
		return false
	}
	a.late = true
	a.revoked = fmt.Errorf("%w: %s", stepfleet.ErrFenced, a.timeoutText())
	return true
}

func (a *Attempt) timeout() time.Duration { return time.Duration(a.job.TimeoutSeconds) * time.Second }

func (a *Attempt) timeoutText() string {
	return fmt.Sprintf("the attempt ran over its timeout of %s (stepfleet/timeout) and was ended", a.timeout())
}

// mustStartOver says that the process of a launch was struck down after its start and before it was
// granted an event. Its run is STARTING: Dagster resumes only runs that have said RUN_START, and
// would fail this one in minutes. Nothing of the run has happened, so that starting over repeats
// nothing. A process that ends by itself would do so again.
func (a *Attempt) mustStartOver(exit stepfleet.Exit) bool {
	launch := a.job.Kind == stepfleet.KindRun && a.job.Attempt == 0
	struck := exit.Result == nil && exit.Status < 0 && a.IsStarted()
	wanted := !a.killed && !a.cancelled && !a.leaving && a.revoked == nil && a.refused == nil
	return launch && struck && wanted && !a.spoken
}

// Move is what a worker tells the ledger of an attempt whose process is gone.
type Move int

// The moves.
const (
	Leave       Move = iota // nothing: the ledger has ended it, or given it to somebody, or knows
	GiveBack                // release the lease: nothing has happened
	RecordStart             // record the start, to settle the attempt then
	Raise                   // raise the fence again, to learn which one it has
	Abandon                 // have the server decide how it ended
	Settle                  // say how it ended
)

// Next is the next move for an attempt whose process is gone. Of a task of whose start nothing is
// known: a process that was refused, killed or struck by a signal has consumed nothing, and its
// lease goes back. One that gave up by itself would do so again, so its attempt is started and settled as
// failed.
func (a *Attempt) Next(exit stepfleet.Exit) Move {
	struck := exit.Result == nil && exit.Status < 0 && a.job.Fence <= maxStruckFence
	switch {
	case a.left:
		return Leave
	case a.IsStarted() && a.unsure:
		return Raise
	case (a.IsStarted() || a.unbegun) && a.isUndecided(exit):
		return Abandon
	case a.IsStarted() || a.unbegun:
		return Settle
	case a.refused != nil && a.revoked == nil && isFinal(a.refused):
		return Leave
	case a.refused != nil, a.killed, struck:
		return GiveBack
	}
	return RecordStart
}

// Answered says how a move went. A lease that is fenced when it is given back may be one whose start was
// recorded while its process died: nobody else would ever end that task, so it is settled next, which is
// refused where the task has another owner.
func (a *Attempt) Answered(move Move, err error) {
	switch {
	case move == GiveBack && errors.Is(err, stepfleet.ErrFenced):
		a.unbegun = true
	case (move == RecordStart || move == Raise) && err == nil:
	default:
		a.left = true
	}
}

// isUndecided says that the process was granted its ending event and has not told that it is stored:
// only Dagster's log says whether it is.
func (a *Attempt) isUndecided(exit stepfleet.Exit) bool {
	return !mutant.AbandonedIsFailed && a.ending && (exit.Result == nil || exit.Result.Event == "")
}

// maxStruckFence bounds how often a task whose process was ended by a signal before its start is
// given back without a word: the first three owners may, each raising the fence by two.
const maxStruckFence = 5

// isFinal says that a refused start leaves nothing to give back.
func isFinal(err error) bool {
	return errors.Is(err, stepfleet.ErrFenced) || errors.Is(err, stepfleet.ErrCancelled) ||
		errors.Is(err, stepfleet.ErrRunClosed) || errors.Is(err, stepfleet.ErrSessionDead)
}

// Result is what the ledger is told: the process's own word, or what its end says.
func (a *Attempt) Result(exit stepfleet.Exit, worker string, now time.Time) stepfleet.Result {
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
	r.V, r.Worker, r.ExitCode = stepfleet.TaskVersion, worker, exit.Status
	if exit.Result != nil {
		r.ExitCode = 0 // its last word; it is killed then
	}
	maps.Copy(a.phases, r.Phases)
	r.Phases = a.phases
	if r.Outputs == nil {
		r.Outputs = []string{}
	}
	if r.ExecutionSeconds == 0 && a.IsStarted() {
		r.ExecutionSeconds = now.Sub(a.startedAt).Seconds()
	}
	a.correct(&r, exit)
	r.Success = r.Outcome == stepfleet.StateSucceeded
	if r.Error != nil && len(r.Error.Message) > stepfleet.MaxErrorBytes {
		r.Error = &stepfleet.Failure{Code: r.Error.Code, Message: r.Error.Message[:stepfleet.MaxErrorBytes]}
	}
	return r
}

// correct changes the outcome to what the worker knows better than the process.
func (a *Attempt) correct(r *stepfleet.Result, exit stepfleet.Exit) {
	become := func(outcome stepfleet.State, code, message string) {
		r.Outcome, r.Error = outcome, &stepfleet.Failure{Code: code, Message: message}
	}
	switch {
	case r.Outcome == stepfleet.StateSucceeded:
		// Dagster's log says STEP_SUCCESS: no flag or drain that came later changes that.
	case a.cancelled:
		r.Outcome = stepfleet.StateCancelled
	case a.late && r.Event == "":
		become(stepfleet.StateFailed, "timeout", a.timeoutText())
	case a.leaving:
		become(stepfleet.StateLost, "drained", "its worker was asked to stop; another one can resume the run")
	case a.revoked != nil && r.Event == "":
		become(stepfleet.StateLost, "drained", a.revoked.Error())
	case exit.HostDied && r.Event == "":
		become(stepfleet.StateLost, stepfleet.HostDied, "the template process that had forked the step's process died; the worker goes on")
	case a.unbegun:
		r.Outcome = stepfleet.StateLost // user code has not run: a new attempt repeats nothing
	}
}

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
