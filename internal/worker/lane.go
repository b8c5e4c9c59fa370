package worker

import (
	"context"
	"errors"
	"maps"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/mutant"
)

// lane claims for one queue. It looks at the ledger when a bell rings, and without one when its Look says.
type lane struct {
	l     *life
	queue string
	slots *slots

	look  Look
	fails int // launches or claims in a row that failed
}

// runLane claims until ctx ends.
func (l *life) runLane(ctx context.Context, queue string, own *slots) {
	ln := &lane{l: l, queue: queue, slots: own, look: NewLook()}
	for ctx.Err() == nil {
		free := ln.slots.waitFree(ctx)
		if free == 0 || !ln.waitHost(ctx) {
			return
		}
		if wait := time.Until(ln.look.At); wait <= 0 {
			ln.claim(ctx, free, nil)
		} else if bells := ln.listen(ctx, free, wait); len(bells) > 0 {
			ln.claim(ctx, ln.slots.free(), bells)
		}
	}
}

// waitHost waits until the host can be expected to give processes, and reports whether ctx is on.
func (ln *lane) waitHost(ctx context.Context) bool {
	select {
	case <-ln.l.w.ports.Host.Available():
		return true
	case <-ctx.Done():
		return false
	}
}

func (ln *lane) hostAvailable() bool {
	select {
	case <-ln.l.w.ports.Host.Available():
		return true
	default:
		return false
	}
}

// listen waits for bells until the next look is due. Where bells fail, it waits for the look.
func (ln *lane) listen(ctx context.Context, free int, wait time.Duration) []stepfleet.RungBell {
	// A queue service that hangs must not delay the look.
	wait = min(wait, bellWaitMax)
	call, cancel := context.WithTimeout(ctx, wait+bellSlack)
	defer cancel()
	bells, err := ln.l.w.ports.Bells.Receive(call, ln.queue, min(free, bellBatchMax), wait)
	switch {
	case ctx.Err() != nil:
		if len(bells) > 0 {
			ln.giveBack(bells)
		}
		return nil
	case err != nil:
		if ln.look.Bells(false, time.Now(), jitter) {
			ln.l.log.Warn("bells do not come; looking at the ledger meanwhile", "queue", ln.queue, "err", err)
		}
		pause(ctx, time.Until(ln.look.At))
		return nil
	case ln.look.Bells(true, time.Now(), jitter):
		ln.l.log.Info("bells come again", "queue", ln.queue)
	}
	return bells
}

// claim takes up to free tasks and runs each. Its bells are answered once the claim is
// committed, and given back when the claim may have left work that they stand for.
func (ln *lane) claim(ctx context.Context, free int, bells []stepfleet.RungBell) {
	if free == 0 || ln.l.waitOpen(ctx, ln.l.w.cfg.StartsFor()) != nil || !ln.hostAvailable() {
		ln.giveBack(bells)
		return
	}
	if mutant.BellBeforeClaim {
		ln.answer(bells)
	}
	req := stepfleet.ClaimRequest{
		Session: ln.l.session, Instance: ln.l.w.cfg.Spec.Instance, ID: uuid.NewString(),
		Queue: ln.queue, Max: free, Except: ln.l.w.ports.Host.Down(),
	}
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), ln.l.w.cfg.Lifetimes.Renew)
	asked := time.Now()
	claimed, err := ln.l.w.ports.Claims.Claim(call, req)
	cancel()
	if err != nil {
		ln.refused(ctx, bells, err)
		return
	}
	ln.fails = 0
	if len(bells) > 0 && len(claimed.Leases) > 0 {
		ln.l.byBell.Add(1)
	}
	for _, lease := range claimed.Leases {
		ln.launch(ctx, lease, claimed.Payloads[lease.Payload], asked)
	}
	if AnswersBells(claimed) {
		ln.answer(bells)
	} else {
		ln.giveBack(bells)
	}
	ln.look.Claimed(claimed, free, time.Now(), jitter)
}

func (ln *lane) refused(ctx context.Context, bells []stepfleet.RungBell, err error) {
	ln.giveBack(bells)
	if errors.Is(err, stepfleet.ErrSessionDead) {
		ln.l.endLife(errDead)
		return
	}
	if ln.fails == 0 {
		ln.l.log.Warn("claim", "queue", ln.queue, "err", err)
	}
	stepfleet.Rest(ctx, err, ln.fails)
	ln.fails++
}

// launch runs one leased task in its own goroutine and slot.
func (ln *lane) launch(ctx context.Context, lease stepfleet.Lease, payload []byte, asked time.Time) {
	t := newTask(ln.l, stepfleet.Job{Lease: lease, Payload: payload, Env: taskEnv(lease, ln.l.w.cfg)}, asked)
	ln.l.add(t)
	ln.slots.take()
	ln.l.work.Go(func() {
		defer ln.slots.put()
		defer ln.l.remove(t)
		t.run(ctx)
	})
}

// taskEnv is what user code may read about its attempt, and what a run worker needs.
func taskEnv(lease stepfleet.Lease, cfg Config) map[string]string {
	env := map[string]string{
		"STEPFLEET_RUN_ID":          lease.RunID,
		"STEPFLEET_STEP_KEY":        lease.StepKey,
		"STEPFLEET_ATTEMPT":         strconv.Itoa(lease.Attempt),
		"STEPFLEET_IDEMPOTENCY_KEY": lease.Task.IdempotencyKey,
		"STEPFLEET_FENCE":           strconv.FormatInt(int64(lease.Fence), 10),
		"STEPFLEET_WORKER":          cfg.Spec.Worker,
	}
	if lease.Kind == stepfleet.KindRun {
		maps.Copy(env, cfg.RunEnv)
	}
	return env
}

// answer deletes bells, off the path of the claim. One that is not deleted rings again.
func (ln *lane) answer(bells []stepfleet.RungBell) {
	ln.tell(bells, "answer bells", ln.l.w.ports.Bells.Answer)
}

func (ln *lane) giveBack(bells []stepfleet.RungBell) {
	ln.tell(bells, "return bells", ln.l.w.ports.Bells.Return)
}

func (ln *lane) tell(bells []stepfleet.RungBell, what string, f func(context.Context, string, []stepfleet.RungBell) error) {
	if len(bells) == 0 {
		return
	}
	ln.l.side.Go(func() {
		ctx, cancel := context.WithTimeout(ln.l.over, stepfleet.BellVisibility)
		defer cancel()
		if err := f(ctx, ln.queue, bells); err != nil {
			ln.l.log.Debug(what, "queue", ln.queue, "err", err)
		}
	})
}
