package outage

import (
	"context"
	"time"

	"github.com/stepfleet/stepfleet"
)

// ledger is a ledger behind a breaker. A method that it does not name passes unseen.
type ledger struct {
	stepfleet.Ledger
	b *Breaker
}

// Ledger puts the breaker before the ledger. What ends or keeps a task or a session passes it always,
// and so do the heartbeats and the check, which find out soonest that the ledger is back.
func Ledger(l stepfleet.Ledger, b *Breaker) stepfleet.Ledger { return ledger{l, b} }

func (l ledger) TakeEpoch(ctx context.Context, runID string, executor stepfleet.Executor, notifyURL string) (stepfleet.Epoch, error) {
	return do(ctx, l.b, guarded, "take_epoch", func() (stepfleet.Epoch, error) { return l.Ledger.TakeEpoch(ctx, runID, executor, notifyURL) })
}

func (l ledger) Rejoin(ctx context.Context, runID string, epoch stepfleet.Epoch, notifyURL string) error {
	return try(ctx, l.b, guarded, "rejoin", func() error { return l.Ledger.Rejoin(ctx, runID, epoch, notifyURL) })
}

func (l ledger) Submit(ctx context.Context, b stepfleet.Batch) ([]stepfleet.Receipt, error) {
	return do(ctx, l.b, guarded, "submit", func() ([]stepfleet.Receipt, error) { return l.Ledger.Submit(ctx, b) })
}

func (l ledger) Cancel(ctx context.Context, runID string, epoch stepfleet.Epoch, keys []stepfleet.Key, reason string) ([]stepfleet.Change, error) {
	return do(ctx, l.b, guarded, "cancel", func() ([]stepfleet.Change, error) { return l.Ledger.Cancel(ctx, runID, epoch, keys, reason) })
}

func (l ledger) CloseRun(ctx context.Context, runID string, epoch stepfleet.Epoch, reason string) ([]stepfleet.Change, error) {
	return do(ctx, l.b, guarded, "close_run", func() ([]stepfleet.Change, error) { return l.Ledger.CloseRun(ctx, runID, epoch, reason) })
}

func (l ledger) Adjudicate(ctx context.Context, runID string, epoch stepfleet.Epoch, keys []stepfleet.Key) ([]stepfleet.Ruling, error) {
	return do(ctx, l.b, guarded, "adjudicate", func() ([]stepfleet.Ruling, error) { return l.Ledger.Adjudicate(ctx, runID, epoch, keys) })
}

func (l ledger) Register(ctx context.Context, spec stepfleet.SessionSpec) (stepfleet.Session, error) {
	return do(ctx, l.b, guarded, "register", func() (stepfleet.Session, error) { return l.Ledger.Register(ctx, spec) })
}

func (l ledger) Renew(ctx context.Context, id stepfleet.SessionID, instance string) (stepfleet.Renewal, error) {
	return do(ctx, l.b, passing, "renew", func() (stepfleet.Renewal, error) { return l.Ledger.Renew(ctx, id, instance) })
}

func (l ledger) Held(ctx context.Context, id stepfleet.SessionID) ([]stepfleet.Held, error) {
	return do(ctx, l.b, guarded, "held", func() ([]stepfleet.Held, error) { return l.Ledger.Held(ctx, id) })
}

func (l ledger) SetDraining(ctx context.Context, id stepfleet.SessionID, instance string) error {
	return try(ctx, l.b, passing, "set_draining", func() error { return l.Ledger.SetDraining(ctx, id, instance) })
}

func (l ledger) EndSession(ctx context.Context, id stepfleet.SessionID, instance, reason string) error {
	return try(ctx, l.b, passing, "end_session", func() error { return l.Ledger.EndSession(ctx, id, instance, reason) })
}

func (l ledger) Claim(ctx context.Context, req stepfleet.ClaimRequest) (stepfleet.Claimed, error) {
	return do(ctx, l.b, guarded, "claim", func() (stepfleet.Claimed, error) { return l.Ledger.Claim(ctx, req) })
}

func (l ledger) Start(ctx context.Context, session stepfleet.SessionID, refs []stepfleet.Ref) ([]error, error) {
	return do(ctx, l.b, guarded, "start", func() ([]error, error) { return l.Ledger.Start(ctx, session, refs) })
}

func (l ledger) Settle(ctx context.Context, session stepfleet.SessionID, ends []stepfleet.Settlement) ([]error, error) {
	return do(ctx, l.b, passing, "settle", func() ([]error, error) { return l.Ledger.Settle(ctx, session, ends) })
}

func (l ledger) Release(ctx context.Context, session stepfleet.SessionID, refs []stepfleet.Ref, reason string) ([]error, error) {
	return do(ctx, l.b, passing, "release", func() ([]error, error) { return l.Ledger.Release(ctx, session, refs, reason) })
}

func (l ledger) Revoke(ctx context.Context, session stepfleet.SessionID, ref stepfleet.Ref, reason string) (stepfleet.Fence, error) {
	return do(ctx, l.b, passing, "revoke", func() (stepfleet.Fence, error) { return l.Ledger.Revoke(ctx, session, ref, reason) })
}

func (l ledger) Abandon(ctx context.Context, session stepfleet.SessionID, refs []stepfleet.Ref, process int, reason string) ([]error, error) {
	return do(ctx, l.b, passing, "abandon", func() ([]error, error) { return l.Ledger.Abandon(ctx, session, refs, process, reason) })
}

func (l ledger) Beat(ctx context.Context, server string) (time.Time, error) {
	return do(ctx, l.b, passing, "beat", func() (time.Time, error) { return l.Ledger.Beat(ctx, server) })
}

func (l ledger) ExpireSessions(ctx context.Context, beats stepfleet.Beats) ([]stepfleet.Session, error) {
	return do(ctx, l.b, guarded, "expire_sessions", func() ([]stepfleet.Session, error) { return l.Ledger.ExpireSessions(ctx, beats) })
}

func (l ledger) DeclareDead(ctx context.Context, instance, reason string) ([]stepfleet.Session, error) {
	return do(ctx, l.b, guarded, "declare_dead", func() ([]stepfleet.Session, error) { return l.Ledger.DeclareDead(ctx, instance, reason) })
}

func (l ledger) Sweep(ctx context.Context, startWithin time.Duration, max int) ([]stepfleet.Change, error) {
	return do(ctx, l.b, guarded, "sweep", func() ([]stepfleet.Change, error) { return l.Ledger.Sweep(ctx, startWithin, max) })
}

func (l ledger) Orphans(ctx context.Context, after stepfleet.TaskID, max int) ([]stepfleet.Orphan, error) {
	return do(ctx, l.b, guarded, "orphans", func() ([]stepfleet.Orphan, error) { return l.Ledger.Orphans(ctx, after, max) })
}

func (l ledger) Decide(ctx context.Context, decisions []stepfleet.Decision) ([]stepfleet.Change, error) {
	return do(ctx, l.b, guarded, "decide", func() ([]stepfleet.Change, error) { return l.Ledger.Decide(ctx, decisions) })
}

func (l ledger) TakeDuty(ctx context.Context, duty, server string, hold time.Duration) (bool, error) {
	return do(ctx, l.b, guarded, "take_duty", func() (bool, error) { return l.Ledger.TakeDuty(ctx, duty, server, hold) })
}

func (l ledger) OpenRuns(ctx context.Context, after string, max int) ([]stepfleet.OpenRun, error) {
	return do(ctx, l.b, guarded, "open_runs", func() ([]stepfleet.OpenRun, error) { return l.Ledger.OpenRuns(ctx, after, max) })
}

func (l ledger) CarriedRuns(ctx context.Context, runIDs []string) ([]stepfleet.CarriedRun, error) {
	return do(ctx, l.b, guarded, "carried_runs", func() ([]stepfleet.CarriedRun, error) { return l.Ledger.CarriedRuns(ctx, runIDs) })
}

func (l ledger) RunTasks(ctx context.Context, runID string, kinds ...stepfleet.Kind) ([]stepfleet.View, error) {
	return do(ctx, l.b, guarded, "run_tasks", func() ([]stepfleet.View, error) { return l.Ledger.RunTasks(ctx, runID, kinds...) })
}

func (l ledger) Tasks(ctx context.Context, ids []stepfleet.TaskID) ([]stepfleet.View, error) {
	return do(ctx, l.b, guarded, "tasks", func() ([]stepfleet.View, error) { return l.Ledger.Tasks(ctx, ids) })
}

func (l ledger) Audit(ctx context.Context, runID string) ([]stepfleet.AuditRow, error) {
	return do(ctx, l.b, guarded, "audit", func() ([]stepfleet.AuditRow, error) { return l.Ledger.Audit(ctx, runID) })
}

func (l ledger) Epochs(ctx context.Context, runIDs []string) (map[string]stepfleet.Epoch, error) {
	return do(ctx, l.b, guarded, "epochs", func() (map[string]stepfleet.Epoch, error) { return l.Ledger.Epochs(ctx, runIDs) })
}

func (l ledger) Lanes(ctx context.Context) ([]stepfleet.Lane, error) {
	return do(ctx, l.b, guarded, "lanes", func() ([]stepfleet.Lane, error) { return l.Ledger.Lanes(ctx) })
}

func (l ledger) Sessions(ctx context.Context, since time.Duration) ([]stepfleet.Session, error) {
	return do(ctx, l.b, guarded, "sessions", func() ([]stepfleet.Session, error) { return l.Ledger.Sessions(ctx, since) })
}

func (l ledger) Check(ctx context.Context) error {
	return try(ctx, l.b, passing, "check", func() error { return l.Ledger.Check(ctx) })
}
