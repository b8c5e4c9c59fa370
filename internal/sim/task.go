package sim

import (
	"context"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/worker"
)

// task is one leased task in a worker: the shell around the product's Attempt.
type task struct {
	worker.Attempt
	l       *life
	job     stepfleet.Job // as it was claimed
	child   *child
	missing int
	owned   bool // somebody changes its fence, or uses it for the last time
	disowns signal
	settled bool
}

func (t *task) run() {
	w := t.l.w
	found := w.between(5*time.Millisecond, 300*time.Millisecond)
	if !t.l.x.s.healed && w.chance(0.2) {
		found = w.between(0, 2*lifetimes.StartWithin) // a template loads
	}
	w.sleep(found)
	if !t.l.x.s.healed && w.chance(0.01) {
		_ = t.l.x.retry(t.l, func() error {
			return t.l.x.led.release(context.Background(), t.l.id, t.Ref(), "no process")
		})
		return
	}
	if t.l.over {
		return // the host launches nothing for a life that has ended
	}
	t.child = newChild(t)
	w.until(forever, func() bool { return t.child.reported || t.child.p.dead }, &t.child.news, &t.child.p.gone)
	t.child.p.kill()
	t.settle(t.child.exit())
}

// own is a mutex.
func (t *task) own() {
	t.l.w.until(forever, func() bool { return !t.owned }, &t.disowns)
	t.owned = true
}

func (t *task) disown() {
	t.owned = false
	t.disowns.send()
}

// start is the gate before user code.
func (t *task) start() error { return t.Begin(t.recordStart()) }

func (t *task) recordStart() error {
	return t.l.x.retry(t.l, func() error {
		if err := t.l.waitOpen(t.l.x.cfg.StartsFor()); err != nil {
			return err
		}
		err := t.l.x.led.start(context.Background(), t.l.id, t.Ref())
		if err == nil {
			t.Started(t.l.w.time())
		}
		return err
	})
}

// event is the gate before an ending event.
func (t *task) event(name string) error {
	if err := t.l.waitOpen(t.l.x.cfg.GrantsFor()); err != nil {
		return err
	}
	return t.Grant(name)
}

func (t *task) kill() {
	t.Kill()
	if t.child != nil {
		t.child.p.kill()
	}
}

func (t *task) requestCancel() {
	if !t.Cancel() {
		return
	}
	t.l.w.say(t.l.p, "task %d is to be cancelled", t.job.TaskID)
	t.l.p.spawn(t.terminate)
}

// terminate asks the process to stop, and kills it after a grace.
func (t *task) terminate() {
	w := t.l.w
	if c := t.child; c != nil && !w.until(killGrace, func() bool { return c.p.dead }, &c.p.gone) {
		t.awaitEnd()
		c.p.kill()
	}
}

// awaitEnd lets a process that was granted its ending event say that it is stored.
func (t *task) awaitEnd() {
	if c := t.child; c != nil && t.IsEnding() {
		t.l.w.until(2*time.Second, func() bool { return c.ended || c.p.dead || t.l.over }, &c.news, &c.p.gone, &t.l.ends)
	}
}

// revoke takes the task from its process before it kills it.
func (t *task) revoke(reason string) {
	t.awaitEnd()
	t.own()
	defer t.disown()
	if t.settled {
		return
	}
	if t.Revoke(reason) {
		_ = t.raiseFence(reason)
	}
	t.kill()
}

// timeOut ends an attempt that is over its timeout.
func (t *task) timeOut() {
	t.own()
	defer t.disown()
	if t.child.reported || t.child.p.dead || !t.RefuseLate() {
		return
	}
	_ = t.raiseFence("timeout")
	t.l.p.spawn(t.terminate)
}

func (t *task) raiseFence(reason string) error {
	fence, err := t.l.x.led.Revoke(context.Background(), t.l.id, t.Ref(), reason)
	if err != nil && t.l.x.s.cfg.Mutant == OldFence {
		return err
	}
	t.Raised(fence, err)
	return err
}

// settle makes the moves that the product's Attempt asks for.
func (t *task) settle(exit stepfleet.Exit) {
	t.own()
	defer t.disown()
	t.settled = true
	ctx, x, id := context.Background(), t.l.x, t.l.id
	for {
		move, ref := t.Next(exit), t.Ref()
		var err error
		switch move {
		case worker.Leave:
			return
		case worker.GiveBack:
			err = x.retry(t.l, func() error { return x.led.release(ctx, id, ref, "ended before its start") })
		case worker.RecordStart:
			err = t.recordStart()
		case worker.Raise:
			err = x.retry(t.l, func() error { return t.raiseFence("its process is gone") })
		case worker.Abandon:
			err = x.retry(t.l, func() error { return x.led.abandon(ctx, id, ref, "granted its ending event") })
		case worker.Settle:
			result := t.Result(exit, x.name, t.l.w.time())
			err = x.retry(t.l, func() error {
				return x.led.settle(ctx, id, stepfleet.Settlement{Ref: ref, Result: result})
			})
		}
		t.Answered(move, err)
	}
}
