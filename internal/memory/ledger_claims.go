package memory

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stepfleet/stepfleet"
)

// Register implements stepfleet.Claims.
func (l *Ledger) Register(ctx context.Context, spec stepfleet.SessionSpec) (s stepfleet.Session, err error) {
	leave, err := l.enter(ctx, "register")
	if err != nil {
		return s, err
	}
	defer leave(&err)
	spec = spec.WithLifetimes()
	if spec.Slots = maps.Clone(spec.Slots); spec.Slots == nil {
		spec.Slots = map[string]int{}
	}
	now := l.now()
	s = stepfleet.Session{
		ID: stepfleet.SessionID(len(l.sessions) + 1), SessionSpec: spec, State: stepfleet.SessionAlive, StartedAt: now, RenewedAt: now,
	}
	l.sessions = append(l.sessions, &session{Session: s})
	return s, nil
}

// Renew implements stepfleet.Claims.
func (l *Ledger) Renew(ctx context.Context, id stepfleet.SessionID, instance string) (r stepfleet.Renewal, err error) {
	leave, err := l.enter(ctx, "renew")
	if err != nil {
		return r, err
	}
	defer leave(&err)
	s := l.own(id, instance)
	if s == nil || s.State == stepfleet.SessionDead {
		return r, fmt.Errorf("renew session %d of instance %s: %w", id, instance, stepfleet.ErrSessionDead)
	}
	r = stepfleet.Renewal{Was: s.State, Held: l.held(id)}
	s.State, s.RenewedAt = stepfleet.SessionAlive, l.now()
	return r, nil
}

// own returns the session if it is of this instance.
func (l *Ledger) own(id stepfleet.SessionID, instance string) *session {
	if s := l.session(id); s != nil && s.Instance == instance {
		return s
	}
	return nil
}

// Held implements stepfleet.Claims.
func (l *Ledger) Held(ctx context.Context, id stepfleet.SessionID) (out []stepfleet.Held, err error) {
	leave, err := l.enter(ctx, "held")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	return l.held(id), nil
}

func (l *Ledger) held(id stepfleet.SessionID) []stepfleet.Held {
	var out []stepfleet.Held
	for _, t := range l.tasks {
		if t.Session == id && !t.State.Terminal() {
			out = append(out, stepfleet.Held{TaskID: t.ID, Fence: t.Fence, State: t.State, CancelRequested: t.CancelRequested})
		}
	}
	return out
}

// SetDraining implements stepfleet.Claims.
func (l *Ledger) SetDraining(ctx context.Context, id stepfleet.SessionID, instance string) (err error) {
	leave, err := l.enter(ctx, "drain")
	if err != nil {
		return err
	}
	defer leave(&err)
	s := l.own(id, instance)
	if s == nil || s.State == stepfleet.SessionDead {
		return fmt.Errorf("drain session %d of instance %s: %w", id, instance, stepfleet.ErrSessionDead)
	}
	s.Draining = true
	return nil
}

// EndSession implements stepfleet.Claims.
func (l *Ledger) EndSession(ctx context.Context, id stepfleet.SessionID, instance, reason string) (err error) {
	leave, err := l.enter(ctx, "end session")
	if err != nil {
		return err
	}
	defer leave(&err)
	if s := l.own(id, instance); s != nil && s.State != stepfleet.SessionDead {
		l.die(s, reason)
	}
	return nil
}

func (l *Ledger) die(s *session, reason string) {
	s.State, s.EndReason, s.endedAt = stepfleet.SessionDead, reason, l.now()
}

// mayWork says why a session may not claim or start; nil is one that is not there.
func mayWork(s *session) *stepfleet.Refusal {
	switch {
	case s == nil || s.State == stepfleet.SessionDead:
		return stepfleet.ErrSessionDead
	case s.State == stepfleet.SessionSuspect:
		return stepfleet.ErrSessionSuspect
	}
	return nil
}

// Claim implements stepfleet.Claims.
func (l *Ledger) Claim(ctx context.Context, req stepfleet.ClaimRequest) (out stepfleet.Claimed, err error) {
	leave, err := l.enter(ctx, "claim")
	if err != nil {
		return out, err
	}
	defer leave(&err)
	own := l.own(req.Session, req.Instance)
	if refused := mayWork(own); refused != nil {
		l.note(stepfleet.AuditRow{Verb: stepfleet.VerbClaim, Actor: actor(req.Session), Refused: refused.Code, Detail: req.ID})
		return out, fmt.Errorf("claim queue %s for session %d of instance %s: %w", req.Queue, req.Session, req.Instance, refused)
	}
	waiting := slices.DeleteFunc(l.waiting(req.Queue), func(t *task) bool { return slices.Contains(req.Except, t.CodeLocation) })
	take := min(max(req.Max, 0), len(waiting))
	if own.Draining {
		take = 0
	}
	out = stepfleet.Claimed{Payloads: map[stepfleet.Digest][]byte{}, More: len(waiting) > take}
	for _, t := range waiting[:take] {
		t.Session, t.Worker, t.ClaimedAt = own.ID, own.Worker, l.now()
		l.move(t, stepfleet.VerbClaim, stepfleet.StateLeased, actor(req.Session), req.ID)
		at := lane{t.Queue, t.Priority}
		l.turns[at] = max(l.turns[at], t.turn)
		out.Leases = append(out.Leases, stepfleet.Lease{
			Ref: stepfleet.Ref{TaskID: t.ID, Fence: t.Fence}, Task: t.Task, NotifyURL: l.run(t.RunID).notify,
		})
		out.Payloads[t.Payload] = slices.Clone(l.payloads[t.Payload])
	}
	return out, nil
}

// waiting returns the lane's queued tasks, best first.
func (l *Ledger) waiting(queue string) []*task {
	var out []*task
	for _, t := range l.tasks {
		if t.State == stepfleet.StateQueued && t.Queue == queue {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b *task) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.turn, b.turn), byID(a, b))
	})
	return out
}

// owned returns the task if the session owns it with this fence, in the state.
func (l *Ledger) owned(id stepfleet.SessionID, ref stepfleet.Ref, in ...stepfleet.State) *task {
	t := l.task(ref.TaskID)
	if t == nil || t.Session != id || t.Fence != ref.Fence || !slices.Contains(in, t.State) {
		return nil
	}
	return t
}

// Start implements stepfleet.Claims.
func (l *Ledger) Start(ctx context.Context, id stepfleet.SessionID, refs []stepfleet.Ref) (errs []error, err error) {
	leave, err := l.enter(ctx, "start")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	for _, ref := range refs {
		errs = append(errs, l.start(id, ref))
	}
	return errs, nil
}

func (l *Ledger) start(id stepfleet.SessionID, ref stepfleet.Ref) error {
	refuse := func(r *stepfleet.Refusal) error { return l.refuse(stepfleet.VerbStart, actor(id), ref, r, "") }
	if refused := mayWork(l.session(id)); refused != nil {
		return refuse(refused)
	}
	next := stepfleet.Ref{TaskID: ref.TaskID, Fence: ref.Fence + 1}
	if t := l.owned(id, next, stepfleet.StateCancelled); t != nil {
		if l.run(t.RunID).over(t.Kind) {
			return refuse(stepfleet.ErrRunClosed)
		}
		return refuse(stepfleet.ErrCancelled)
	}
	t := l.owned(id, ref, stepfleet.StateLeased, stepfleet.StateRunning)
	switch {
	case t == nil:
		return refuse(stepfleet.ErrFenced)
	case t.State == stepfleet.StateRunning:
		return nil // an earlier try of this call
	case l.run(t.RunID).over(t.Kind):
		return refuse(stepfleet.ErrRunClosed)
	}
	t.StartedAt = l.now()
	l.move(t, stepfleet.VerbStart, stepfleet.StateRunning, actor(id), "")
	return nil
}

// Settle implements stepfleet.Claims.
func (l *Ledger) Settle(ctx context.Context, id stepfleet.SessionID, ends []stepfleet.Settlement) (errs []error, err error) {
	leave, err := l.enter(ctx, "settle")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	for _, end := range ends {
		errs = append(errs, l.settle(id, end))
	}
	return errs, nil
}

func (l *Ledger) settle(id stepfleet.SessionID, end stepfleet.Settlement) error {
	detail := string(end.Result.Outcome)
	if err := end.Result.Validate(); err != nil {
		_ = l.refuse(stepfleet.VerbSettle, actor(id), end.Ref, stepfleet.ErrTaskInvalid, detail)
		return fmt.Errorf("settle task %d: %w", end.TaskID, err)
	}
	t := l.task(end.TaskID)
	if t == nil || t.Session != id || t.Fence != end.Fence ||
		t.State == stepfleet.StateQueued || t.State == stepfleet.StateLeased {
		return l.refuse(stepfleet.VerbSettle, actor(id), end.Ref, stepfleet.ErrFenced, detail)
	}
	if t.State.Terminal() {
		return nil // an earlier try of this call; the first result stays
	}
	result, err := copyResult(end.Result)
	if err != nil {
		return l.refuse(stepfleet.VerbSettle, actor(id), end.Ref, stepfleet.ErrTaskInvalid, detail)
	}
	t.Result, t.Reason = result, strings.ReplaceAll(end.Result.LostWith(), "\x00", "\uFFFD") // no text of PostgreSQL has a zero byte
	l.move(t, stepfleet.VerbSettle, end.Result.Outcome, actor(id), "")
	return nil
}

// Release implements stepfleet.Claims.
func (l *Ledger) Release(ctx context.Context, id stepfleet.SessionID, refs []stepfleet.Ref, reason string) (errs []error, err error) {
	leave, err := l.enter(ctx, "release")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	for _, ref := range refs {
		errs = append(errs, l.release(id, ref, reason))
	}
	return errs, nil
}

func (l *Ledger) release(id stepfleet.SessionID, ref stepfleet.Ref, reason string) error {
	if t := l.owned(id, ref, stepfleet.StateLeased); t != nil {
		t.releasedFence = ref.Fence
		l.move(t, stepfleet.VerbRelease, stepfleet.StateQueued, actor(id), reason)
		return nil
	}
	if t := l.task(ref.TaskID); t != nil && t.releasedFence == ref.Fence {
		return nil // an earlier try of this call
	}
	return l.refuse(stepfleet.VerbRelease, actor(id), ref, stepfleet.ErrFenced, reason)
}

// Revoke implements stepfleet.Claims.
func (l *Ledger) Revoke(ctx context.Context, id stepfleet.SessionID, ref stepfleet.Ref, reason string) (f stepfleet.Fence, err error) {
	leave, err := l.enter(ctx, "revoke")
	if err != nil {
		return 0, err
	}
	defer leave(&err)
	next := stepfleet.Ref{TaskID: ref.TaskID, Fence: ref.Fence + 1}
	if l.owned(id, next, stepfleet.StateRunning) != nil {
		return next.Fence, nil // an earlier try of this call
	}
	t := l.owned(id, ref, stepfleet.StateRunning)
	if t == nil {
		return 0, l.refuse(stepfleet.VerbRevoke, actor(id), ref, stepfleet.ErrFenced, reason)
	}
	l.move(t, stepfleet.VerbRevoke, stepfleet.StateRunning, actor(id), reason)
	return t.Fence, nil
}

// Abandon implements stepfleet.Claims.
func (l *Ledger) Abandon(ctx context.Context, id stepfleet.SessionID, refs []stepfleet.Ref, process int, reason string) (errs []error, err error) {
	leave, err := l.enter(ctx, "abandon")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	for _, ref := range refs {
		errs = append(errs, l.abandon(id, ref, process, reason))
	}
	return errs, nil
}

func (l *Ledger) abandon(id stepfleet.SessionID, ref stepfleet.Ref, process int, reason string) error {
	if t := l.owned(id, ref, stepfleet.StateRunning); t != nil {
		t.abandonedBy, t.abandonedAt, t.process = id, l.now(), process
		l.move(t, stepfleet.VerbAbandon, stepfleet.StateRunning, actor(id), reason)
		t.Session, t.Worker = 0, ""
		return nil
	}
	next, decided := ref.Fence+1, ref.Fence+2
	switch t := l.task(ref.TaskID); {
	case t == nil:
	case t.State == stepfleet.StateRunning && t.Session == 0 && t.Fence == next:
		return nil // an earlier try of this call
	case t.State.Terminal() && t.Session == id && t.Fence == decided && !t.StartedAt.IsZero():
		return nil // and the server has decided it
	}
	return l.refuse(stepfleet.VerbAbandon, actor(id), ref, stepfleet.ErrFenced, reason)
}
