package memory

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/stepfleet/stepfleet"
)

// Beat implements stepfleet.Keeper.
func (l *Ledger) Beat(ctx context.Context, server string) (at time.Time, err error) {
	leave, err := l.enter(ctx, "beat")
	if err != nil {
		return at, err
	}
	defer leave(&err)
	l.beats[server] = l.now()
	return l.beats[server], nil
}

// ExpireSessions implements stepfleet.Keeper.
func (l *Ledger) ExpireSessions(ctx context.Context, beats stepfleet.Beats) (out []stepfleet.Session, err error) {
	leave, err := l.enter(ctx, "expire sessions")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	for _, s := range l.sessions {
		silent := beats.Last.Sub(s.RenewedAt)
		switch {
		case s.State == stepfleet.SessionDead, s.SessionTTL > beats.Unbroken:
			continue
		case silent >= s.RunLease:
			l.die(s, fmt.Sprintf("no renewal for %.0f s", math.Round(silent.Seconds())))
		case s.State == stepfleet.SessionAlive && silent >= s.SessionTTL:
			s.State = stepfleet.SessionSuspect
		default:
			continue
		}
		out = append(out, s.copy())
	}
	return out, nil
}

func (s *session) copy() stepfleet.Session {
	out := s.Session
	out.Slots = maps.Clone(out.Slots)
	return out
}

// DeclareDead implements stepfleet.Keeper. An empty instance names nobody.
func (l *Ledger) DeclareDead(ctx context.Context, instance, reason string) (out []stepfleet.Session, err error) {
	leave, err := l.enter(ctx, "declare dead")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	for _, s := range l.sessions {
		if instance != "" && s.Instance == instance && s.State != stepfleet.SessionDead {
			l.die(s, reason)
			out = append(out, s.copy())
		}
	}
	return out, nil
}

// Sweep implements stepfleet.Keeper.
func (l *Ledger) Sweep(ctx context.Context, startWithin time.Duration, max int) (out []stepfleet.Change, err error) {
	leave, err := l.enter(ctx, "sweep")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	for _, t := range l.tasks {
		if len(out) >= max {
			break
		}
		if reason := l.lapsed(t, startWithin); reason != "" {
			out = append(out, l.sweep(t, reason))
		}
	}
	return out, nil
}

// lapsed says why the task's owner has lost it; "" when it has not.
func (l *Ledger) lapsed(t *task, startWithin time.Duration) string {
	if t.State != stepfleet.StateLeased {
		return ""
	}
	s := l.session(t.Session)
	name := fmt.Sprintf("session %d", s.ID)
	switch {
	case s.State == stepfleet.SessionDead:
		return name + " is dead: " + s.EndReason
	case s.State == stepfleet.SessionSuspect:
		return name + " is suspect"
	case l.since(t.ClaimedAt) >= startWithin:
		return name + " did not start it in time"
	}
	return ""
}

func (l *Ledger) sweep(t *task, reason string) stepfleet.Change {
	if s := l.session(t.Session); s.State == stepfleet.SessionDead && !s.Draining {
		t.deaths++
		if t.deaths >= stepfleet.PoisonDeaths {
			t.Reason = fmt.Sprintf("its lease was held by %d sessions that died, the last one: %s", t.deaths, reason)
			return l.move(t, stepfleet.VerbPoison, stepfleet.StateDead, "server", t.Reason)
		}
	}
	return l.move(t, stepfleet.VerbSweep, stepfleet.StateQueued, "server", reason)
}

// RunTasks implements stepfleet.Records.
func (l *Ledger) RunTasks(ctx context.Context, runID string, kinds ...stepfleet.Kind) ([]stepfleet.View, error) {
	return l.views(ctx, "run tasks", func(t *task) bool {
		return t.RunID == runID && (len(kinds) == 0 || slices.Contains(kinds, t.Kind))
	})
}

// Tasks implements stepfleet.Records.
func (l *Ledger) Tasks(ctx context.Context, ids []stepfleet.TaskID) ([]stepfleet.View, error) {
	return l.views(ctx, "tasks", func(t *task) bool { return slices.Contains(ids, t.ID) })
}

func (l *Ledger) views(ctx context.Context, op string, want func(*task) bool) (out []stepfleet.View, err error) {
	leave, err := l.enter(ctx, op)
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	for _, t := range l.tasks {
		if !want(t) {
			continue
		}
		v := t.View
		if v.Result != nil {
			if v.Result, err = copyResult(*v.Result); err != nil {
				return nil, err
			}
		}
		out = append(out, v)
	}
	return out, nil
}

// Audit implements stepfleet.Records.
func (l *Ledger) Audit(ctx context.Context, runID string) (out []stepfleet.AuditRow, err error) {
	leave, err := l.enter(ctx, "audit")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	for _, row := range l.audit {
		if runID != "" && row.RunID == runID {
			out = append(out, row)
		}
	}
	return out, nil
}

// WholeAudit returns all audit rows, of all runs and of none, by id. For those that hold a whole history
// against what is promised.
func (l *Ledger) WholeAudit() []stepfleet.AuditRow {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.audit)
}

// Lanes implements stepfleet.Records.
func (l *Ledger) Lanes(ctx context.Context) (out []stepfleet.Lane, err error) {
	leave, err := l.enter(ctx, "lanes")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	byQueue := map[string]*stepfleet.Lane{}
	at := func(queue string) *stepfleet.Lane {
		if byQueue[queue] == nil {
			byQueue[queue] = &stepfleet.Lane{Queue: queue}
		}
		return byQueue[queue]
	}
	for _, t := range l.tasks {
		switch t.State {
		case stepfleet.StateQueued:
			at(t.Queue).Ready++
			at(t.Queue).OldestAge = max(at(t.Queue).OldestAge, l.since(t.SubmittedAt))
		case stepfleet.StateLeased:
			at(t.Queue).Leased++
		case stepfleet.StateRunning:
			at(t.Queue).Running++
		}
	}
	for _, s := range l.sessions {
		for queue, n := range s.Slots {
			if n > 0 && s.State == stepfleet.SessionAlive && !s.Draining {
				at(queue).Slots += n
			}
		}
	}
	for _, lane := range byQueue {
		out = append(out, *lane)
	}
	slices.SortFunc(out, func(a, b stepfleet.Lane) int { return cmp.Compare(a.Queue, b.Queue) })
	return out, nil
}

// Sessions implements stepfleet.Records.
func (l *Ledger) Sessions(ctx context.Context, since time.Duration) (out []stepfleet.Session, err error) {
	leave, err := l.enter(ctx, "sessions")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	for _, s := range l.sessions {
		if s.State != stepfleet.SessionDead || l.since(s.endedAt) < since {
			out = append(out, s.copy())
		}
	}
	return out, nil
}

// Check implements stepfleet.Records.
func (l *Ledger) Check(ctx context.Context) (err error) {
	leave, err := l.enter(ctx, "check")
	if err != nil {
		return err
	}
	leave(&err)
	return err
}

// AgeSession makes the session's last renewal older, as if d had passed. For tests that cannot
// move the clock.
func (l *Ledger) AgeSession(id stepfleet.SessionID, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.session(id)
	s.RenewedAt = s.RenewedAt.Add(-d)
}

// AgeLease makes the task's claim older by d.
func (l *Ledger) AgeLease(id stepfleet.TaskID, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.task(id)
	if !t.ClaimedAt.IsZero() {
		t.ClaimedAt = t.ClaimedAt.Add(-d)
	}
}
