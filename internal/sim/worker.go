package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/worker"
)

// fleetWorker is a worker, one process after another. What it decides is the product's (Attempt,
// Holdings, Look, the deadlines of Config); this is its shell, as internal/worker's goroutines are another.
type fleetWorker struct {
	s        *simulation
	name     string
	p        *process
	led      *port
	cfg      worker.Config
	children []*child
	leaving  bool
	leave    signal
	now      *life // its session, if it has one
	harms    int   // what has happened to it
	starts   int
}

// boot starts the worker's next process.
func (x *fleetWorker) boot() {
	w := x.s.world
	x.starts++
	x.p = w.process(x.name)
	x.p.fragile = true
	x.p.offset, x.p.drift = w.between(-time.Hour, time.Hour), (w.rng.Float64()-0.5)*0.06
	x.led = &port{Ledger: x.s.ledger, s: x.s, p: x.p}
	x.leaving = false
	instance := fmt.Sprintf("%s/%d", x.name, x.starts)
	x.cfg = worker.Config{
		Spec: stepfleet.SessionSpec{
			Worker: x.name, Instance: instance, Slots: map[string]int{queue: 2},
			SessionTTL: lifetimes.SessionTTL, RunLease: lifetimes.RunLease,
		},
		Lifetimes: lifetimes, StatementTimeout: statementTimeout, DrainTimeout: drainTimeout,
	}
	x.p.onDeath = func() { x.died(instance) }
	x.p.spawn(x.run)
}

// died takes the children along, maybe proves the death, and starts anew.
func (x *fleetWorker) died(instance string) {
	w := x.s.world
	x.harm()
	x.now = nil
	for _, c := range slices.Clone(x.children) {
		c.p.kill()
	}
	if w.chance(0.5) {
		x.s.network.spawn(func() {
			w.sleep(w.between(10*time.Millisecond, time.Second))
			at := pick(w, x.s.servers...)
			_, _ = ask(x.s, at, func(role roleServer) ([]stepfleet.Session, error) {
				return role.InstanceDead(context.Background(), instance, "killed")
			})
		})
	}
	w.after(w.between(100*time.Millisecond, 3*time.Second), x.boot)
}

// harm notes that the session cannot be blamed for what happens to it.
func (x *fleetWorker) harm() {
	x.harms++
	if x.now != nil {
		x.now.harmed = true
	}
}

// drain is SIGTERM.
func (x *fleetWorker) drain() {
	x.s.world.say(x.p, "is asked to stop")
	x.harm()
	x.leaving = true
	x.leave.send()
}

func (x *fleetWorker) run() {
	w := x.s.world
	for !x.leaving {
		var session stepfleet.Session
		var sent time.Time
		before := x.harms
		err := x.retry(nil, func() (err error) {
			sent = x.p.clock()
			session, err = x.led.Register(context.Background(), x.cfg.Spec)
			return err
		})
		if err != nil {
			break
		}
		w.say(x.p, "session %d begins", session.ID)
		l := &life{
			x: x, w: w, p: x.p, id: session.ID, renewed: sent, tasks: map[stepfleet.TaskID]*task{},
			free: x.cfg.Spec.Slots[queue], look: worker.NewLook(), harmed: x.harms > before,
		}
		x.now = l
		x.s.lives[session.ID] = l
		l.run()
		x.now = nil
	}
	x.p.kill() // it exits
}

var errOver = errors.New("the session is over")

// retry calls f until it succeeds, is refused for good, or the life is over.
func (x *fleetWorker) retry(l *life, f func() error) error {
	for {
		err := f()
		if r := stepfleet.RefusalOf(err); err == nil || r != nil && !r.Retry {
			return err
		}
		if l == nil {
			x.s.world.await(x.s.world.between(0, 2*time.Second), &x.leave)
			if x.leaving {
				return errOver
			}
			continue
		}
		if l.over || l.w.until(l.w.between(0, 2*time.Second), func() bool { return l.over }, &l.ends) {
			return errOver
		}
	}
}

// life is one session.
type life struct {
	x        *fleetWorker
	w        *world
	p        *process
	id       stepfleet.SessionID
	harmed   bool // it was killed, stopped, cut off or asked to stop, or a child of it was killed
	ranOut   bool // it ended itself before its run lease was over
	renewed  time.Time
	renewal  signal
	over     bool
	ends     signal
	tasks    map[stepfleet.TaskID]*task
	busy     int // threads of tasks
	free     int
	freed    signal
	stopping bool // no more claims
	holdings worker.Holdings
	look     worker.Look
}

func (l *life) run() {
	l.p.spawn(l.keepSession)
	l.p.spawn(l.watchFlags)
	l.p.spawn(l.lane)
	l.w.until(forever, func() bool { return l.over || l.x.leaving }, &l.ends, &l.x.leave)
	if !l.over {
		l.drain()
	}
	l.killAll()
	l.w.until(forever, func() bool { return l.busy == 0 }, &l.freed)
	l.end()
	l.w.say(l.p, "session %d is over", l.id)
}

func (l *life) end() {
	l.over, l.stopping = true, true
	l.ends.send()
}

func (l *life) age() time.Duration { return l.p.clock().Sub(l.renewed) }

// keepSession renews, and ends the life at the run lease's end.
func (l *life) keepSession() {
	next := l.p.clock().Add(lifetimes.Renew)
	for {
		if l.w.until(lifetimes.Renew/2, func() bool { return l.over }, &l.ends) {
			return
		}
		now := l.p.clock()
		if l.x.cfg.LeaseOver(l.age()) && l.x.s.cfg.Mutant != NoSelfFence {
			l.w.say(l.p, "its run lease runs out")
			l.ranOut = true
			l.killAll()
			l.end()
			return
		}
		if now.Before(next) {
			continue
		}
		next = now.Add(lifetimes.Renew)
		switch r, err := l.x.led.renew(context.Background(), l.id, l.x.cfg.Spec.Instance, lifetimes.Renew); {
		case errors.Is(err, stepfleet.ErrSessionDead):
			l.killAll()
			l.end()
			return
		case err == nil && !l.over:
			l.renewed = now
			l.renewal.send()
			l.reconcile(r.Held)
		}
	}
}

func (l *life) reconcile(held []stepfleet.Held) {
	l.flag(held)
	known := map[stepfleet.TaskID]*int{}
	for id, t := range l.tasks {
		known[id] = &t.missing
	}
	d := l.holdings.Compare(held, known)
	for _, id := range d.Foreign {
		l.w.say(l.p, "task %d has another owner", id)
		l.tasks[id].kill()
	}
	for _, ref := range d.Back {
		l.p.spawn(func() {
			_ = l.x.retry(l, func() error { return l.x.led.release(context.Background(), l.id, ref, "claim answer lost") })
		})
	}
	for _, ref := range d.Gone {
		l.p.spawn(func() {
			_ = l.x.retry(l, func() error { return l.x.led.abandon(context.Background(), l.id, ref, "it does not run here") })
		})
	}
}

func (l *life) watchFlags() {
	for !l.w.until(l.w.between(750*time.Millisecond, 1250*time.Millisecond), func() bool { return l.over }, &l.ends) {
		if len(l.tasks) > 0 {
			if held, err := l.x.led.Held(context.Background(), l.id); err == nil {
				l.flag(held)
			}
		}
	}
}

func (l *life) flag(held []stepfleet.Held) {
	for _, h := range held {
		if t := l.tasks[h.TaskID]; t != nil && h.CancelRequested {
			t.requestCancel()
		}
	}
}

// waitOpen waits until a renewal has come back that was sent less than the given time ago.
func (l *life) waitOpen(within time.Duration) error {
	l.w.until(forever, func() bool { return l.over || l.age() < within }, &l.ends, &l.renewal)
	if l.over {
		return stepfleet.ErrSessionDead
	}
	return nil
}

// lane claims when a bell rings or a look is due.
func (l *life) lane() {
	for {
		l.w.until(forever, func() bool { return l.stopping || l.free > 0 }, &l.ends, &l.freed)
		switch wait := l.look.At.Sub(l.p.clock()); {
		case l.stopping:
			return
		case wait <= 0:
			l.claim(nil)
		default:
			wait = min(wait, 20*time.Second)
			rung, err := l.x.s.bells.receive(l.free, wait, &l.ends)
			switch {
			case l.stopping:
				l.x.s.bells.giveBack(rung)
			case err != nil:
				l.look.Bells(false, l.p.clock(), l.w.jitter)
				l.w.await(max(0, l.look.At.Sub(l.p.clock())), &l.ends)
			case len(rung) > 0:
				l.look.Bells(true, l.p.clock(), l.w.jitter)
				l.claim(rung)
			}
		}
	}
}

func (w *world) jitter(d time.Duration) time.Duration { return w.between(d*3/4, d*5/4) }

func (l *life) claim(rung []*bell) {
	bells := l.x.s.bells
	if l.free == 0 || l.waitOpen(l.x.cfg.StartsFor()) != nil || l.stopping {
		bells.giveBack(rung)
		return
	}
	asked := l.free
	req := stepfleet.ClaimRequest{Session: l.id, Instance: l.x.cfg.Spec.Instance, ID: "claim", Queue: queue, Max: asked}
	claimed, err := l.x.led.Claim(context.Background(), req)
	if err != nil {
		bells.giveBack(rung)
		if errors.Is(err, stepfleet.ErrSessionDead) {
			l.end()
			return
		}
		l.w.await(l.w.between(0, 2*time.Second), &l.ends)
		return
	}
	for _, lease := range claimed.Leases {
		l.launch(lease)
	}
	if worker.AnswersBells(claimed) {
		bells.answer(rung)
	} else {
		bells.giveBack(rung)
	}
	l.look.Claimed(claimed, asked, l.p.clock(), l.w.jitter)
}

func (l *life) launch(lease stepfleet.Lease) {
	job := stepfleet.Job{Lease: lease}
	t := &task{Attempt: worker.NewAttempt(job), l: l, job: job}
	l.tasks[lease.TaskID] = t
	l.free--
	l.busy++
	l.p.spawn(func() {
		t.run()
		l.forget(t)
		l.free++
		l.busy--
		l.freed.send()
	})
}

func (l *life) forget(t *task) {
	if l.tasks[t.job.TaskID] == t {
		delete(l.tasks, t.job.TaskID)
	}
}

// sorted are the tasks in the order of their ids: a map has none.
func (l *life) sorted() []*task {
	var out []*task
	for _, t := range l.tasks {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *task) int { return int(a.job.TaskID - b.job.TaskID) })
	return out
}

func (l *life) killAll() {
	for _, t := range l.sorted() {
		t.kill()
	}
}

// drain waits for what runs, ends the rest as lost, and ends the session by its own word.
func (l *life) drain() {
	ctx := context.Background()
	l.stopping = true
	l.ends.send()
	_ = l.x.led.SetDraining(ctx, l.id, l.x.cfg.Spec.Instance)
	idle := func() bool { return l.busy == 0 || l.over }
	if !l.w.until(l.x.cfg.DrainTimeout, idle, &l.freed, &l.ends) {
		for _, t := range l.sorted() {
			l.p.spawn(func() { t.revoke("drained") })
		}
		l.w.until(2*callLimit, idle, &l.freed, &l.ends)
	}
	if !l.over {
		_ = l.x.led.EndSession(ctx, l.id, l.x.cfg.Spec.Instance, "drained")
		l.end()
	}
}
