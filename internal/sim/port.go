package sim

import (
	"context"
	"fmt"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/memory"
)

// port is the ledger as one process reaches it: over a link that is slow, breaks before the call or
// before its answer, and may deliver a call after its caller has given up.
type port struct {
	*memory.Ledger
	s *simulation
	p *process

	beats int // of the mutant that counts them
}

// callLimit bounds a call, as the roles' own timeouts do.
const callLimit = 3 * time.Second

// arrived is the context of a call that has arrived: it is carried out whether or not its caller still waits.
var arrived = context.Background()

// critical are the calls at which processes die most.
var critical = map[string]bool{
	"register": true, "claim": true, "start": true, "settle": true, "release": true, "revoke": true, "abandon": true,
	"submit": true, "sweep": true, "expire": true, "decide": true, "epoch": true, "adjudicate": true, "close": true,
}

type answer[T any] struct {
	value T
	err   error
	came  bool
	news  signal
}

func (a *answer[T]) give(v T, err error) {
	if !a.came {
		a.value, a.err, a.came = v, err, true
		a.news.send()
	}
}

// call asks the ledger. What becomes of it is decided at its start, so that it does not depend on how
// long others take.
func call[T any](o *port, op string, limit time.Duration, f func() (T, error)) (T, error) {
	s, w := o.s, o.s.world
	var none T
	fate := s.fate(o.p, op)
	lost := fmt.Errorf("%s: ledger %w", op, stepfleet.ErrUnavailable)
	if fate == dieBefore {
		w.say(o.p, "is killed before %s", op)
		o.p.kill()
	}
	a := &answer[T]{}
	s.network.spawn(func() {
		w.sleep(s.latency(fate))
		if fate == refused {
			a.give(none, lost)
			return
		}
		if fate == answerEarly { // the connection breaks, and the call is carried out all the same
			a.give(none, lost)
			w.sleep(w.between(0, 8*time.Second))
		}
		if fate == dropped || s.away(o.p) {
			return
		}
		v, err := f()
		w.say(o.p, "%s%s", op, s.remark(fate, err))
		switch {
		case fate == dieAfter:
			o.p.kill()
		case fate == answerLost:
			a.give(none, lost)
		default:
			w.sleep(s.latency(fate))
			if !s.away(o.p) {
				a.give(v, err)
			}
		}
	})
	if w.until(limit, func() bool { return a.came }, &a.news) {
		return a.value, a.err
	}
	return none, lost
}

func do(o *port, op string, f func() error) error {
	_, err := call(o, op, callLimit, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

func (o *port) TakeEpoch(_ context.Context, run string, executor stepfleet.Executor, url string) (stepfleet.Epoch, error) {
	return call(o, "epoch", callLimit, func() (stepfleet.Epoch, error) { return o.Ledger.TakeEpoch(arrived, run, executor, url) })
}

func (o *port) Submit(_ context.Context, b stepfleet.Batch) ([]stepfleet.Receipt, error) {
	return call(o, "submit", callLimit, func() ([]stepfleet.Receipt, error) { return o.Ledger.Submit(arrived, b) })
}

func (o *port) Cancel(_ context.Context, run string, e stepfleet.Epoch, keys []stepfleet.Key, why string) ([]stepfleet.Change, error) {
	return call(o, "cancel", callLimit, func() ([]stepfleet.Change, error) { return o.Ledger.Cancel(arrived, run, e, keys, why) })
}

func (o *port) CloseRun(_ context.Context, run string, e stepfleet.Epoch, why string) ([]stepfleet.Change, error) {
	return call(o, "close", callLimit, func() ([]stepfleet.Change, error) { return o.Ledger.CloseRun(arrived, run, e, why) })
}

func (o *port) Adjudicate(_ context.Context, run string, e stepfleet.Epoch, keys []stepfleet.Key) ([]stepfleet.Ruling, error) {
	return call(o, "adjudicate", callLimit, func() ([]stepfleet.Ruling, error) { return o.Ledger.Adjudicate(arrived, run, e, keys) })
}

func (o *port) Register(_ context.Context, spec stepfleet.SessionSpec) (stepfleet.Session, error) {
	return call(o, "register", callLimit, func() (stepfleet.Session, error) { return o.Ledger.Register(arrived, spec) })
}

func (o *port) renew(_ context.Context, id stepfleet.SessionID, instance string, limit time.Duration) (stepfleet.Renewal, error) {
	return call(o, "renew", limit, func() (stepfleet.Renewal, error) { return o.Ledger.Renew(arrived, id, instance) })
}

func (o *port) Held(_ context.Context, id stepfleet.SessionID) ([]stepfleet.Held, error) {
	return call(o, "held", callLimit, func() ([]stepfleet.Held, error) { return o.Ledger.Held(arrived, id) })
}

func (o *port) SetDraining(_ context.Context, id stepfleet.SessionID, instance string) error {
	return do(o, "drain", func() error { return o.Ledger.SetDraining(arrived, id, instance) })
}

func (o *port) EndSession(_ context.Context, id stepfleet.SessionID, instance, why string) error {
	return do(o, "end", func() error { return o.Ledger.EndSession(arrived, id, instance, why) })
}

func (o *port) Claim(_ context.Context, req stepfleet.ClaimRequest) (stepfleet.Claimed, error) {
	return call(o, "claim", lifetimes.Renew, func() (stepfleet.Claimed, error) { return o.Ledger.Claim(arrived, req) })
}

// one makes a call for one task of a call that takes many.
func one(o *port, op string, f func() ([]error, error)) error {
	return do(o, op, func() error {
		errs, err := f()
		if err != nil {
			return err
		}
		return errs[0]
	})
}

func (o *port) start(_ context.Context, id stepfleet.SessionID, ref stepfleet.Ref) error {
	return one(o, "start", func() ([]error, error) { return o.Ledger.Start(arrived, id, []stepfleet.Ref{ref}) })
}

func (o *port) settle(_ context.Context, id stepfleet.SessionID, end stepfleet.Settlement) error {
	return one(o, "settle", func() ([]error, error) {
		if o.s.cfg.Mutant == SettleWithoutFence {
			id, end.Ref = o.s.ownerNow(end.Ref, id)
		}
		return o.Ledger.Settle(arrived, id, []stepfleet.Settlement{end})
	})
}

func (o *port) release(_ context.Context, id stepfleet.SessionID, ref stepfleet.Ref, why string) error {
	return one(o, "release", func() ([]error, error) { return o.Ledger.Release(arrived, id, []stepfleet.Ref{ref}, why) })
}

func (o *port) abandon(_ context.Context, id stepfleet.SessionID, ref stepfleet.Ref, why string) error {
	return one(o, "abandon", func() ([]error, error) { return o.Ledger.Abandon(arrived, id, []stepfleet.Ref{ref}, 0, why) })
}

func (o *port) Revoke(_ context.Context, id stepfleet.SessionID, ref stepfleet.Ref, why string) (stepfleet.Fence, error) {
	return call(o, "revoke", callLimit, func() (stepfleet.Fence, error) { return o.Ledger.Revoke(arrived, id, ref, why) })
}

func (o *port) Beat(_ context.Context, server string) (time.Time, error) {
	at, err := call(o, "beat", lifetimes.Renew, func() (time.Time, error) { return o.Ledger.Beat(arrived, server) })
	if o.s.cfg.Mutant == CountedBeats {
		o.beats++
		return epoch.Add(time.Duration(o.beats) * sweepTurn), nil
	}
	return at, err
}

func (o *port) ExpireSessions(_ context.Context, beats stepfleet.Beats) ([]stepfleet.Session, error) {
	return call(o, "expire", callLimit, func() ([]stepfleet.Session, error) {
		if o.s.cfg.Mutant == CountedBeats {
			beats.Last, _ = o.Ledger.Beat(arrived, "") // it goes by the time at which it acts
		}
		changed, err := o.Ledger.ExpireSessions(arrived, beats)
		o.s.expired(changed)
		if o.s.cfg.Mutant == SweepSuspects {
			for _, one := range changed {
				if _, err := o.Ledger.DeclareDead(arrived, one.Instance, "suspect"); err != nil {
					return nil, err
				}
			}
		}
		return changed, err
	})
}

func (o *port) DeclareDead(_ context.Context, instance, why string) ([]stepfleet.Session, error) {
	return call(o, "proof", callLimit, func() ([]stepfleet.Session, error) { return o.Ledger.DeclareDead(arrived, instance, why) })
}

func (o *port) Sweep(_ context.Context, within time.Duration, max int) ([]stepfleet.Change, error) {
	return call(o, "sweep", callLimit, func() ([]stepfleet.Change, error) { return o.Ledger.Sweep(arrived, within, max) })
}

func (o *port) Orphans(_ context.Context, after stepfleet.TaskID, max int) ([]stepfleet.Orphan, error) {
	return call(o, "orphans", callLimit, func() ([]stepfleet.Orphan, error) { return o.Ledger.Orphans(arrived, after, max) })
}

func (o *port) Decide(_ context.Context, decisions []stepfleet.Decision) ([]stepfleet.Change, error) {
	return call(o, "decide", callLimit, func() ([]stepfleet.Change, error) { return o.Ledger.Decide(arrived, decisions) })
}

func (o *port) TakeDuty(_ context.Context, duty, server string, hold time.Duration) (bool, error) {
	return call(o, "duty", callLimit, func() (bool, error) { return o.Ledger.TakeDuty(arrived, duty, server, hold) })
}

func (o *port) OpenRuns(_ context.Context, after string, max int) ([]stepfleet.OpenRun, error) {
	return call(o, "open runs", callLimit, func() ([]stepfleet.OpenRun, error) { return o.Ledger.OpenRuns(arrived, after, max) })
}

func (o *port) Lanes(_ context.Context) ([]stepfleet.Lane, error) {
	return call(o, "lanes", callLimit, func() ([]stepfleet.Lane, error) { return o.Ledger.Lanes(arrived) })
}

func (o *port) RunTasks(_ context.Context, run string, kinds ...stepfleet.Kind) ([]stepfleet.View, error) {
	return call(o, "run tasks", callLimit, func() ([]stepfleet.View, error) { return o.Ledger.RunTasks(arrived, run, kinds...) })
}

func (o *port) Tasks(_ context.Context, ids []stepfleet.TaskID) ([]stepfleet.View, error) {
	return call(o, "tasks", callLimit, func() ([]stepfleet.View, error) { return o.Ledger.Tasks(arrived, ids) })
}
