package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/stepfleet/stepfleet"
)

// duty is what one server has, until when.
type duty struct {
	server string
	until  time.Time
}

// owner returns the session that has, or had, the running task, and whether it still owns it.
func (l *Ledger) owner(t *task) (s *session, owns bool) {
	if t.Session == 0 {
		return l.session(t.abandonedBy), false
	}
	s = l.session(t.Session)
	return s, s.State != stepfleet.SessionDead
}

// Orphans implements stepfleet.Keeper.
func (l *Ledger) Orphans(ctx context.Context, after stepfleet.TaskID, max int) (out []stepfleet.Orphan, err error) {
	leave, err := l.enter(ctx, "orphans")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	for _, t := range l.tasks {
		if t.ID <= after || t.State != stepfleet.StateRunning || len(out) >= max {
			continue
		}
		s, owns := l.owner(t)
		if owns {
			continue
		}
		o := stepfleet.Orphan{
			Ref: stepfleet.Ref{TaskID: t.ID, Fence: t.Fence}, Key: t.Key, Kind: t.Kind, CancelRequested: t.CancelRequested,
			FirstAttempt: t.Attempt, Worker: s.Worker, InFlight: s.RunLease,
		}
		if t.Session == 0 {
			o.Gone, o.Reason = l.since(t.abandonedAt), fmt.Sprintf("session %d has abandoned it", s.ID)
		} else {
			o.Gone, o.Reason = l.since(s.endedAt), fmt.Sprintf("session %d is dead: %s", s.ID, s.EndReason)
		}
		o.Connections = l.connections(t, s)
		for _, other := range l.tasks {
			if other.RunID == t.RunID && other.StepKey == t.StepKey {
				o.FirstAttempt = min(o.FirstAttempt, other.Attempt)
			}
		}
		out = append(out, o)
	}
	return out, nil
}

// connections is the name of those that the orphan's process may have used.
func (l *Ledger) connections(t *task, s *session) string {
	if s.Instance == "" || t.Session == 0 && t.process == 0 {
		return ""
	}
	if t.Session == 0 {
		return stepfleet.ConnectionNameOf(s.Instance, t.process)
	}
	for _, later := range l.sessions {
		if later.Instance == s.Instance && later.ID > s.ID {
			return ""
		}
	}
	return stepfleet.ConnectionNameOf(s.Instance, 0)
}

// Decide implements stepfleet.Keeper.
func (l *Ledger) Decide(ctx context.Context, decisions []stepfleet.Decision) (out []stepfleet.Change, err error) {
	leave, err := l.enter(ctx, "decide")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	for _, d := range decisions {
		t := l.task(d.TaskID)
		if t == nil || t.State != stepfleet.StateRunning || t.Fence != d.Fence || t.CancelRequested != d.CancelRequested {
			continue
		}
		s, owns := l.owner(t)
		if owns {
			continue
		}
		t.Session, t.Worker, t.Reason = s.ID, s.Worker, d.Reason
		if r := d.Result(); r != nil {
			if t.Result, err = copyResult(*r); err != nil {
				return nil, err
			}
		}
		out = append(out, l.move(t, d.Verb(), d.Outcome(), "server", d.Reason))
	}
	return out, nil
}

// TakeDuty implements stepfleet.Keeper.
func (l *Ledger) TakeDuty(ctx context.Context, name, server string, hold time.Duration) (taken bool, err error) {
	leave, err := l.enter(ctx, "take duty")
	if err != nil {
		return false, err
	}
	defer leave(&err)
	d, now := l.duties[name], l.now()
	if d.server != "" && d.server != server && d.until.After(now) {
		return false, nil
	}
	l.duties[name] = duty{server, now.Add(hold)}
	return true, nil
}
