//go:build failpoint

package failpoint

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/stepfleet/stepfleet"
)

// act is an act with its edge's points around it. One that fails by itself has no point after it.
func act[T any](edge string, f func() (T, error)) (T, error) {
	return when(edge, func(T) bool { return true }, f)
}

// some is act for what returns what it has changed or found: the point after it sees only those times
// when that is something.
func some[T any](edge string, f func() ([]T, error)) ([]T, error) {
	return when(edge, func(all []T) bool { return len(all) > 0 }, f)
}

func when[T any](edge string, counts func(T) bool, f func() (T, error)) (out T, err error) {
	var none T
	if err := Hit(edge + ".before"); err != nil {
		return none, err
	}
	if out, err = f(); err != nil || !counts(out) {
		return out, err
	}
	if err := Hit(edge + ".after"); err != nil {
		return none, err
	}
	return out, nil
}

// done is act for what returns nothing.
func done(edge string, f func() error) error {
	_, err := act(edge, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

type ledger struct {
	stepfleet.Ledger
	marked *atomic.Bool // sessions were marked since the last sweep
}

// Ledger is the ledger, with points around what it writes.
func Ledger(l stepfleet.Ledger) stepfleet.Ledger { return ledger{l, new(atomic.Bool)} }

func (l ledger) TakeEpoch(ctx context.Context, runID string, executor stepfleet.Executor, notifyURL string) (stepfleet.Epoch, error) {
	return act("takeover", func() (stepfleet.Epoch, error) { return l.Ledger.TakeEpoch(ctx, runID, executor, notifyURL) })
}

func (l ledger) Rejoin(ctx context.Context, runID string, epoch stepfleet.Epoch, notifyURL string) error {
	return done("rejoin", func() error { return l.Ledger.Rejoin(ctx, runID, epoch, notifyURL) })
}

func (l ledger) Submit(ctx context.Context, b stepfleet.Batch) ([]stepfleet.Receipt, error) {
	return act("submit", func() ([]stepfleet.Receipt, error) { return l.Ledger.Submit(ctx, b) })
}

func (l ledger) Cancel(ctx context.Context, runID string, epoch stepfleet.Epoch, keys []stepfleet.Key, reason string) ([]stepfleet.Change, error) {
	return act("cancel", func() ([]stepfleet.Change, error) { return l.Ledger.Cancel(ctx, runID, epoch, keys, reason) })
}

func (l ledger) CloseRun(ctx context.Context, runID string, epoch stepfleet.Epoch, reason string) ([]stepfleet.Change, error) {
	return act("close", func() ([]stepfleet.Change, error) { return l.Ledger.CloseRun(ctx, runID, epoch, reason) })
}

func (l ledger) Adjudicate(ctx context.Context, runID string, epoch stepfleet.Epoch, keys []stepfleet.Key) ([]stepfleet.Ruling, error) {
	return act("adjudicate", func() ([]stepfleet.Ruling, error) { return l.Ledger.Adjudicate(ctx, runID, epoch, keys) })
}

func (l ledger) Register(ctx context.Context, spec stepfleet.SessionSpec) (stepfleet.Session, error) {
	return act("register", func() (stepfleet.Session, error) { return l.Ledger.Register(ctx, spec) })
}

func (l ledger) Renew(ctx context.Context, id stepfleet.SessionID, instance string) (stepfleet.Renewal, error) {
	return act("renew", func() (stepfleet.Renewal, error) { return l.Ledger.Renew(ctx, id, instance) })
}

func (l ledger) SetDraining(ctx context.Context, id stepfleet.SessionID, instance string) error {
	return done("drain", func() error { return l.Ledger.SetDraining(ctx, id, instance) })
}

func (l ledger) EndSession(ctx context.Context, id stepfleet.SessionID, instance, reason string) error {
	return done("end_session", func() error { return l.Ledger.EndSession(ctx, id, instance, reason) })
}

func (l ledger) Claim(ctx context.Context, req stepfleet.ClaimRequest) (stepfleet.Claimed, error) {
	taken := func(c stepfleet.Claimed) bool { return len(c.Leases) > 0 }
	return when("claim", taken, func() (stepfleet.Claimed, error) { return l.Ledger.Claim(ctx, req) })
}

func (l ledger) Start(ctx context.Context, session stepfleet.SessionID, refs []stepfleet.Ref) ([]error, error) {
	return act("start", func() ([]error, error) { return l.Ledger.Start(ctx, session, refs) })
}

func (l ledger) Settle(ctx context.Context, session stepfleet.SessionID, ends []stepfleet.Settlement) ([]error, error) {
	return act("settle", func() ([]error, error) { return l.Ledger.Settle(ctx, session, ends) })
}

func (l ledger) Release(ctx context.Context, session stepfleet.SessionID, refs []stepfleet.Ref, reason string) ([]error, error) {
	return act("release", func() ([]error, error) { return l.Ledger.Release(ctx, session, refs, reason) })
}

func (l ledger) Revoke(ctx context.Context, session stepfleet.SessionID, ref stepfleet.Ref, reason string) (stepfleet.Fence, error) {
	return act("revoke", func() (stepfleet.Fence, error) { return l.Ledger.Revoke(ctx, session, ref, reason) })
}

func (l ledger) Abandon(ctx context.Context, session stepfleet.SessionID, refs []stepfleet.Ref, process int, reason string) ([]error, error) {
	return act("abandon", func() ([]error, error) { return l.Ledger.Abandon(ctx, session, refs, process, reason) })
}

func (l ledger) Beat(ctx context.Context, server string) (time.Time, error) {
	return act("beat", func() (time.Time, error) { return l.Ledger.Beat(ctx, server) })
}

func (l ledger) ExpireSessions(ctx context.Context, beats stepfleet.Beats) ([]stepfleet.Session, error) {
	return l.mark("expire", func() ([]stepfleet.Session, error) { return l.Ledger.ExpireSessions(ctx, beats) })
}

func (l ledger) DeclareDead(ctx context.Context, instance, reason string) ([]stepfleet.Session, error) {
	return l.mark("declare", func() ([]stepfleet.Session, error) { return l.Ledger.DeclareDead(ctx, instance, reason) })
}

// mark is some for what marks sessions.
func (l ledger) mark(edge string, f func() ([]stepfleet.Session, error)) ([]stepfleet.Session, error) {
	return some(edge, func() ([]stepfleet.Session, error) {
		marked, err := f()
		if len(marked) > 0 {
			l.marked.Store(true)
		}
		return marked, err
	})
}

// Sweep has points around the first sweep after sessions were marked: most find nothing.
func (l ledger) Sweep(ctx context.Context, startWithin time.Duration, max int) ([]stepfleet.Change, error) {
	if !l.marked.Swap(false) {
		return l.Ledger.Sweep(ctx, startWithin, max)
	}
	return some("sweep", func() ([]stepfleet.Change, error) { return l.Ledger.Sweep(ctx, startWithin, max) })
}

func (l ledger) Decide(ctx context.Context, decisions []stepfleet.Decision) ([]stepfleet.Change, error) {
	return some("decide", func() ([]stepfleet.Change, error) { return l.Ledger.Decide(ctx, decisions) })
}

func (l ledger) TakeDuty(ctx context.Context, duty, server string, hold time.Duration) (bool, error) {
	return act("duty", func() (bool, error) { return l.Ledger.TakeDuty(ctx, duty, server, hold) })
}

func (l ledger) OpenRuns(ctx context.Context, after string, max int) ([]stepfleet.OpenRun, error) {
	return some("reconcile", func() ([]stepfleet.OpenRun, error) { return l.Ledger.OpenRuns(ctx, after, max) })
}

type ringer struct{ stepfleet.Ringer }

// Ringer is the server's side of the bells, with points around it.
func Ringer(r stepfleet.Ringer) stepfleet.Ringer { return ringer{r} }

func (r ringer) Ring(ctx context.Context, queue string, n int) error {
	return done("ring", func() error { return r.Ringer.Ring(ctx, queue, n) })
}

type listener struct{ stepfleet.Listener }

// Listener is the worker's side of the bells, with points around it.
func Listener(l stepfleet.Listener) stepfleet.Listener { return listener{l} }

func (l listener) Receive(ctx context.Context, queue string, max int, wait time.Duration) ([]stepfleet.RungBell, error) {
	return some("receive", func() ([]stepfleet.RungBell, error) { return l.Listener.Receive(ctx, queue, max, wait) })
}

func (l listener) Answer(ctx context.Context, queue string, bells []stepfleet.RungBell) error {
	return done("answer", func() error { return l.Listener.Answer(ctx, queue, bells) })
}

func (l listener) Return(ctx context.Context, queue string, bells []stepfleet.RungBell) error {
	return done("return", func() error { return l.Listener.Return(ctx, queue, bells) })
}

type eventLog struct{ stepfleet.EventLog }

// EventLog is Dagster's event log, with points around what is asked of it.
func EventLog(l stepfleet.EventLog) stepfleet.EventLog {
	if l == nil {
		return nil
	}
	return eventLog{l}
}

func (l eventLog) Endings(ctx context.Context, orphans []stepfleet.Orphan) ([]stepfleet.Ending, error) {
	return some("endings", func() ([]stepfleet.Ending, error) { return l.EventLog.Endings(ctx, orphans) })
}

type host struct{ stepfleet.Host }

// Host is the host, with points around what its processes ask.
func Host(h stepfleet.Host) stepfleet.Host { return host{h} }

func (h host) Launch(ctx context.Context, job stepfleet.Job, g stepfleet.Gate) (stepfleet.Process, error) {
	return h.Host.Launch(ctx, job, gate{g})
}

type gate struct{ stepfleet.Gate }

func (g gate) Start(ctx context.Context) error {
	return done("gate_start", func() error { return g.Gate.Start(ctx) })
}

func (g gate) Event(ctx context.Context, name string) error {
	return done("gate_event", func() error { return g.Gate.Event(ctx, name) })
}

// Notify is how servers are told of ends, with points around it.
func Notify(f func(context.Context, string, []stepfleet.Lease) error) func(context.Context, string, []stepfleet.Lease) error {
	return func(ctx context.Context, url string, ended []stepfleet.Lease) error {
		return done("notify", func() error { return f(ctx, url, ended) })
	}
}
