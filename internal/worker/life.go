package worker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/failpoint"
	"github.com/stepfleet/stepfleet/internal/mutant"
)

// life is one session: from its registration until it is dead, its lease has run out, or the
// worker drains.
type life struct {
	w       *Worker
	session stepfleet.SessionID
	notes   *notes
	log     *slog.Logger

	starts  *batcher[stepfleet.Ref]
	settles *batcher[stepfleet.Settlement]

	// over ends everything that belongs to the session, at its death or after the drain.
	over    context.Context
	endLife context.CancelCauseFunc

	mu       sync.Mutex
	renewed  time.Time     // when the last renewal that came back was sent
	renewal  chan struct{} // closed at each renewal that comes back
	tasks    map[stepfleet.TaskID]*task
	holdings Holdings
	draining bool

	byBell atomic.Int64 // claims that a bell led to

	slots map[string]*slots // by queue

	work sync.WaitGroup // lanes, and the tasks that lanes launch
	side sync.WaitGroup // short errands of lanes, tasks and keepers
}

var (
	errDead    = errors.New("session dead")
	errDrained = errors.New("drained")
	errAborted = errors.New("stopped at once")
)

func newLife(w *Worker, session stepfleet.SessionID, sent time.Time, notes *notes) *life {
	l := &life{
		w: w, session: session, notes: notes,
		log:     w.log.With("session_id", session),
		renewed: sent,
		renewal: make(chan struct{}),
		tasks:   map[stepfleet.TaskID]*task{},
		slots:   map[string]*slots{},
	}
	for queue, n := range w.cfg.Spec.Slots {
		l.slots[queue] = newSlots(n)
	}
	l.over, l.endLife = context.WithCancelCause(context.Background())
	l.starts = newBatcher(func(ctx context.Context, refs []stepfleet.Ref) ([]error, error) {
		return w.ports.Claims.Start(ctx, session, refs)
	})
	l.settles = newBatcher(func(ctx context.Context, ends []stepfleet.Settlement) ([]error, error) {
		return w.ports.Claims.Settle(ctx, session, ends)
	})
	return l
}

// run lives the life and returns when nothing of it is left. When ctx ends, it drains.
func (l *life) run(ctx context.Context) {
	claiming, stopClaiming := context.WithCancel(l.over)
	var keepers sync.WaitGroup
	keepers.Go(l.keepSession)
	keepers.Go(l.watchFlags)
	keepers.Go(l.watchAbort)
	keepers.Go(func() { l.starts.run(l.over) })
	keepers.Go(func() { l.settles.run(l.over) })
	for queue, slots := range l.slots {
		l.work.Go(func() { l.runLane(claiming, queue, slots) })
	}
	select {
	case <-ctx.Done():
		l.drain(stopClaiming)
	case <-l.over.Done():
	}
	stopClaiming()
	l.killAll()
	l.work.Wait()
	l.endLife(errDrained) // a cause that was given before stands
	keepers.Wait()
	l.side.Wait()
	l.log.Info("session over", "reason", context.Cause(l.over), "claims_by_bell", l.byBell.Load())
}

// keepSession renews, and ends the life when the session is dead or its run lease is about to
// run out. The deadline is looked at on the clock that counts suspend, at least once a second.
func (l *life) keepSession() {
	lt := l.w.cfg.Lifetimes
	next := l.w.cfg.Now().Add(lt.Renew)
	warned := false
	for {
		if !pause(l.over, min(time.Second, lt.Renew/2)) {
			return
		}
		now := l.w.cfg.Now()
		if age := l.age(now); l.w.cfg.LeaseOver(age) && !mutant.NoSelfFence {
			l.log.Error("run lease runs out: killing what runs", "since_renewal", age)
			_ = failpoint.Hit("fence.before")
			l.killAll()
			_ = failpoint.Hit("fence.after")
			l.endLife(errDead)
			return
		}
		if now.Before(next) {
			continue
		}
		next = now.Add(lt.Renew)
		switch err := l.renew(now); {
		case errors.Is(err, stepfleet.ErrSessionDead):
			l.log.Error("the ledger says the session is dead, or another worker's: killing what runs")
			l.killAll()
			l.endLife(errDead)
			return
		case err != nil && !warned:
			l.log.Warn("renew session", "err", err)
			warned = true
		case err == nil && warned:
			l.log.Info("session renewed again")
			warned = false
		}
	}
}

// watchAbort ends the life when the worker is to stop at once: it kills what runs, and tells the ledger
// if that answers.
func (l *life) watchAbort() {
	select {
	case <-l.over.Done():
		return
	case <-l.w.cfg.Abort:
	}
	l.log.Warn("told to stop at once: killing what runs")
	l.killAll()
	ctx, cancel := context.WithTimeout(context.Background(), abortTimeout)
	defer cancel()
	if err := l.w.ports.Renewals.EndSession(ctx, l.session, l.w.cfg.Spec.Instance, errAborted.Error()); err != nil {
		l.log.Warn("end session; what ran is lost when its run lease is over", "err", err)
	}
	l.endLife(errAborted)
}

func (l *life) renew(now time.Time) error {
	lt := l.w.cfg.Lifetimes
	// A renewal that hangs must not hold up the look at the run lease.
	ctx, cancel := context.WithTimeout(l.over, min(lt.Renew, lt.RunLease-lt.Margin-l.age(now)))
	defer cancel()
	r, err := l.w.ports.Renewals.Renew(ctx, l.session, l.w.cfg.Spec.Instance)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.renewed = now
	close(l.renewal)
	l.renewal = make(chan struct{})
	l.mu.Unlock()
	l.reconcile(r.Held)
	return nil
}

// reconcile compares what the ledger says we hold with what we know.
func (l *life) reconcile(held []stepfleet.Held) {
	l.flag(held)
	l.mu.Lock()
	defer l.mu.Unlock()
	known := make(map[stepfleet.TaskID]*int, len(l.tasks))
	for id, t := range l.tasks {
		known[id] = &t.missing
	}
	d := l.holdings.Compare(held, known)
	for _, id := range d.Foreign {
		l.log.Error("task has another owner: killing its process", "task_id", id)
		l.tasks[id].kill()
	}
	if len(d.Back) > 0 {
		l.side.Go(func() { l.release(d.Back, "claim answer lost") })
	}
	if len(d.Gone) > 0 {
		l.side.Go(func() { l.abandon(d.Gone, "it does not run here") })
	}
}

// watchFlags looks for cancel flags between renewals, while something runs.
func (l *life) watchFlags() {
	for pause(l.over, jitter(watchEvery)) {
		l.mu.Lock()
		idle := len(l.tasks) == 0
		l.mu.Unlock()
		if idle {
			continue
		}
		ctx, cancel := context.WithTimeout(l.over, callTimeout)
		held, err := l.w.ports.Claims.Held(ctx, l.session)
		cancel()
		if err != nil {
			l.log.Debug("look for cancel flags", "err", err)
			continue
		}
		l.flag(held)
	}
}

func (l *life) flag(held []stepfleet.Held) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range held {
		if t := l.tasks[h.TaskID]; t != nil && h.CancelRequested {
			t.requestCancel()
		}
	}
}

// age is how long ago the last renewal that came back was sent.
func (l *life) age(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return now.Sub(l.renewed)
}

// waitOpen waits until a renewal has come back that was sent less than the given time ago.
func (l *life) waitOpen(ctx context.Context, within time.Duration) error {
	for {
		l.mu.Lock()
		open := l.w.cfg.Now().Sub(l.renewed) < within
		renewal := l.renewal
		l.mu.Unlock()
		if open {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.over.Done():
			return stepfleet.ErrSessionDead
		case <-renewal:
		}
	}
}

// drain claims no more, waits for what runs, and ends the rest as lost. It leaves the session
// dead by its own word.
func (l *life) drain(stopClaiming context.CancelFunc) {
	stopClaiming()
	l.mu.Lock()
	l.draining = true
	l.mu.Unlock()
	l.log.Info("draining", "timeout", l.w.cfg.DrainTimeout)
	ctx, cancel := context.WithTimeout(l.over, callTimeout)
	if err := l.w.ports.Claims.SetDraining(ctx, l.session, l.w.cfg.Spec.Instance); err != nil {
		l.log.Warn("mark session draining", "err", err)
	}
	cancel()
	idle := make(chan struct{})
	go func() { l.work.Wait(); close(idle) }()
	leave := min(handOverMax, l.w.cfg.DrainTimeout/2)
	for _, stage := range []struct {
		wait time.Duration
		then func()
	}{
		{l.w.cfg.DrainTimeout - leave, l.handOverAll},
		{leave, l.revokeAll},
		{callTimeout, l.killAll}, // the ledger does not answer; the sweep will settle them
	} {
		select {
		case <-idle:
		case <-l.over.Done():
			return
		case <-time.After(stage.wait):
			stage.then()
			continue
		}
		break
	}
	ctx, cancel = context.WithTimeout(l.over, callTimeout)
	defer cancel()
	if err := l.w.ports.Claims.EndSession(ctx, l.session, l.w.cfg.Spec.Instance, "drained"); err != nil {
		l.log.Warn("end session", "err", err)
	}
	l.endLife(errDrained)
}

func (l *life) handOverAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.tasks {
		t.handOver()
	}
}

// revokeAll takes every running task from its process and kills the process; each task's own
// goroutine then settles it as lost.
func (l *life) revokeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.tasks {
		l.side.Go(func() { t.revoke(errDrained.Error()) })
	}
}

func (l *life) killAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.tasks {
		t.kill()
	}
}

// release gives leases back. Leases that cannot be given back now are swept.
func (l *life) release(refs []stepfleet.Ref, reason string) {
	l.part("release", refs, func(ctx context.Context) ([]error, error) {
		return l.w.ports.Claims.Release(ctx, l.session, refs, reason)
	})
}

// abandon has the server decide how tasks ended of which nothing is known here. Those that cannot be
// abandoned now are seen again.
func (l *life) abandon(refs []stepfleet.Ref, reason string) {
	l.log.Error("the ledger says that tasks run here which do not: abandoning them", "tasks", refs)
	l.part("abandon", refs, func(ctx context.Context) ([]error, error) {
		return l.w.ports.Claims.Abandon(ctx, l.session, refs, 0, reason)
	})
}

// part repeats what takes tasks from the session until it is answered. What the answer says of each is no
// matter: those that were refused have another owner.
func (l *life) part(op string, refs []stepfleet.Ref, ask func(context.Context) ([]error, error)) {
	err := retry(l.over, l.log, op, func(ctx context.Context) error {
		_, err := ask(ctx)
		return err
	})
	if err != nil {
		l.log.Warn(op, "tasks", len(refs), "err", err)
	}
}

func (l *life) add(t *task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tasks[t.job.TaskID] = t
}

// remove forgets the task, unless the worker has claimed it anew in the meantime.
func (l *life) remove(t *task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tasks[t.job.TaskID] == t {
		delete(l.tasks, t.job.TaskID)
	}
}

func (l *life) isDraining() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.draining
}

// status is what the probes say of the current life.
type status struct {
	mu  sync.Mutex
	l   *life
	why error // of the last try to register
}

func (s *status) begin(l *life) { s.mu.Lock(); defer s.mu.Unlock(); s.l = l }
func (s *status) end()          { s.mu.Lock(); defer s.mu.Unlock(); s.l = nil }

func (s *status) registering(err error) { s.mu.Lock(); defer s.mu.Unlock(); s.why = err }

func (s *status) holdsLeases() bool {
	s.mu.Lock()
	l := s.l
	s.mu.Unlock()
	return l == nil || !l.w.cfg.LeaseOver(l.age(l.w.cfg.Now()))
}

// taken returns how many slots of each queue are taken; without a life there are none.
func (s *status) taken() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.l == nil {
		return nil
	}
	n := map[string]int{}
	for queue, slots := range s.l.slots {
		n[queue] = slots.taken()
	}
	return n
}

func (s *status) reasons() []string {
	s.mu.Lock()
	l, why := s.l, s.why
	s.mu.Unlock()
	switch {
	case l == nil && why != nil:
		return []string{"session: none; registering with the ledger: " + why.Error()}
	case l == nil:
		return []string{"session: none; registering with the ledger"}
	}
	lt := l.w.cfg.Lifetimes
	if age := l.age(l.w.cfg.Now()); age >= lt.SessionTTL-lt.Margin {
		return []string{"session: not renewed for " + age.Round(time.Second).String()}
	}
	if l.isDraining() {
		return []string{"draining"}
	}
	return nil
}
