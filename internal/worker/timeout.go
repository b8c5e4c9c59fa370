package worker

import (
	"context"
	"time"

	"github.com/stepfleet/stepfleet"
)

// timeoutLook is how long a pause may be before the clock that counts suspend is read again: Go's
// own timers stand still while the machine sleeps.
const timeoutLook = time.Second

// endingEvents are Dagster's events that end an attempt.
var endingEvents = map[string]bool{
	"STEP_SUCCESS": true, "STEP_FAILURE": true, "STEP_UP_FOR_RETRY": true, "RESOURCE_INIT_FAILURE": true,
}

// watchTimeout ends the attempt when it runs over its timeout, counted from when its start was
// recorded. It is called with mu held, by whichever comes second: the start, or the process that
// asked for it coming into our hands.
func (t *task) watchTimeout() {
	if t.job.TimeoutSeconds == 0 || t.proc == nil || t.began.IsZero() {
		return
	}
	proc, now := t.proc, t.l.w.cfg.Now
	deadline := t.began.Add(t.timeout())
	t.l.side.Go(func() {
		for left := deadline.Sub(now()); left > 0; left = deadline.Sub(now()) {
			select {
			case <-proc.Reported():
				return
			case <-proc.Done():
				return
			case <-t.l.over.Done():
				return
			case <-time.After(min(left, timeoutLook)):
			}
		}
		if !t.timeOut() {
			t.endLingering(proc)
		}
	})
}

// endLingering ends the process of an attempt that came to its end in time, once nothing is left of
// it but threads. Its hooks and resources are waited for.
func (t *task) endLingering(proc stepfleet.Process) {
	select {
	case <-proc.Lingers():
		t.log.Warn("threads of the step are left and its timeout is over: ending its process", "timeout", t.timeout())
		proc.Kill()
	case <-proc.Reported():
	case <-proc.Done():
	case <-t.l.over.Done():
	}
}

// timeOut refuses the process everything, takes the task from it, and only then ends it: Dagster
// would turn the SIGTERM into an ending event of its own. The task's own goroutine then settles it
// as failed. An attempt that has been granted its ending event has ended in time, whatever its
// process still does: then timeOut returns false.
func (t *task) timeOut() bool {
	t.owner.Lock()
	defer t.owner.Unlock()
	if !t.refuseLate() {
		return false
	}
	t.log.Warn("ran over its timeout: ending its process", "timeout", t.timeout())
	t.raiseFence(t.timeoutText())
	t.mu.Lock()
	defer t.mu.Unlock()
	t.terminate()
	return true
}

// refuseLate closes the gates to an attempt that is over its timeout, and says whether it was still
// running.
func (t *task) refuseLate() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.proc.Reported():
		return false
	case <-t.proc.Done():
		return false
	default:
	}
	return t.RefuseLate()
}

// raiseFence revokes the task in the ledger. It is called with owner held. Where the ledger does
// not answer, the gates of this worker refuse the process all the same, and the settlement begins with
// the question which fence the task has.
func (t *task) raiseFence(reason string) {
	ctx, cancel := context.WithTimeout(t.l.over, callTimeout)
	defer cancel()
	if err := t.raise(ctx, reason); err != nil {
		t.log.Warn("revoke", "err", err)
	}
}

func (t *task) raise(ctx context.Context, reason string) error {
	t.mu.Lock()
	ref := t.Ref()
	t.mu.Unlock()
	fence, err := t.l.w.ports.Claims.Revoke(ctx, t.l.session, ref, reason)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Raised(fence, err)
	return err
}
