package audit

import (
	"cmp"
	"fmt"
	"time"

	"github.com/stepfleet/stepfleet"
)

// Invariant is one thing that every history must keep.
type Invariant struct {
	ID       string
	Sentence string
	check    func(*facts, *finding)
}

// Invariants are all of them, in the order in which they are reported.
var Invariants = []Invariant{
	{"I1", "No acknowledged submit is lost: its task is in the ledger and has an outcome.", acknowledgedEnds},
	{"I2", "User code of one attempt begins at most once.", beginsOnce},
	{"I3", "A task has at most one outcome, and what has ended never changes.", oneOutcome},
	{"I4", "Each owner's write carries the task's fence, and fences only rise.", fencesRise},
	{"I5", "User code begins only after its start was recorded, under that start's fence.", beginsStarted},
	{"I6", "User code is not at work once its fence is revoked and the session's TTL and margin have passed.", noZombie},
	{"I7", "Dagster's log has at most one start and one ending of each attempt, and agrees with the ledger on it.", dagsterAgrees},
	{"I8", "The audit trail alone rebuilds every task.", auditRebuilds},
	{"I9", "Each refused write has a winner.", refusalsHaveWinners},
	{"I10", "Nothing starts after its cancel or its run's closing was acknowledged.", nothingAfterCancel},
	{"I11", "Submits of one key are answered with one task.", oneTaskPerKey},
	{"I12", "Once the faults are over every task ends in time.", everythingEnds},
	{"I13", "At the end no message, no process and no session is left.", nothingLeft},
	{"I14", "At the end no task is held, no slot taken and no worker protected.", nothingLeaked},
	{"R1", "Every run without a cancel and without a lost attempt ends as it should.", runsEnd},
	{"R2", "A step that was given no retries has one attempt.", triedOnce},
	{"R3", "Dagster's log has at most one end of a run, and one more where Dagster itself has ended it.", endsOnce},
	{"P1", "One order of what happened to a task explains all that was seen of it.", linearizable},
	{"P2", "A process runs the user code of one attempt.", ownProcess},
}

// finding is where an invariant's check says what it saw.
type finding struct {
	held  Held
	first []Violation
}

// unchecked says why the invariant could not be checked.
func (v *finding) unchecked(why string) { v.held.Unchecked = why }

func (v *finding) cases(n int) { v.held.Cases += n }

func (v *finding) bad(task stepfleet.TaskID, key stepfleet.Key, format string, args ...any) {
	v.held.Violations++
	if len(v.first) < MaxViolations {
		v.first = append(v.first, Violation{
			Invariant: v.held.ID, Sentence: v.held.Sentence, TaskID: task, Key: key, What: fmt.Sprintf(format, args...), Evidence: []Moment{},
		})
	}
}

// found takes over what was seen while the witnesses were read.
func (v *finding) found(f *facts, kinds ...BreakKind) {
	for _, kind := range kinds {
		list := f.found[kind]
		if list == nil {
			continue
		}
		for _, one := range list.first {
			v.bad(one.task, one.key, "%s", one.what)
		}
		v.held.Violations += list.n - len(list.first)
	}
}

// acknowledgedEnds is linear set algebra in the terms of Jepsen's total-queue: what was acknowledged
// less what has an outcome is lost, and what the ledger has of these runs that nobody attempted is
// unexpected. A submit without an answer may have happened.
func acknowledgedEnds(f *facts, v *finding) {
	if f.Client == nil {
		v.unchecked("there is no client history")
		return
	}
	acked, attempted, runs := map[stepfleet.Key]bool{}, map[stepfleet.Key]bool{}, map[string]bool{}
	for _, op := range f.ops {
		if op.F != OpSubmit {
			continue
		}
		attempted[op.Key], runs[op.RunID] = true, true
		if op.Type == OK && f.within(op.At) {
			acked[op.Key] = true
		}
	}
	v.cases(len(acked))
	if len(acked) == 0 {
		v.unchecked("the client history has no acknowledged submit of these runs")
	}
	for key := range attempted {
		i, known := f.byKey[key]
		switch {
		case !acked[key] && known && f.attempts[i].state.state().Terminal():
			f.counts.Recovered++
		case !acked[key], f.beyond[key], !known && f.cut():
		case !known:
			v.bad(0, key, "its submit was acknowledged, and the ledger does not have it")
		case !f.attempts[i].state.state().Terminal() && !f.Healed.IsZero():
			v.bad(f.attempts[i].id, key, "its submit was acknowledged, and it is still %s", f.attempts[i].state.state())
		}
	}
	for _, a := range f.attempts {
		if runs[a.RunID] && !a.run && !attempted[a.Key] {
			v.bad(a.id, a.Key, "the ledger has it, and no client has asked for it")
		}
	}
}

// within reports whether a time is of the window.
func (f *facts) within(at time.Time) bool {
	return !at.Before(f.From) && (f.Until.IsZero() || f.Snapshot || at.Before(f.Until))
}

func beginsOnce(f *facts, v *finding) {
	v.found(f, BreakRestart)
	v.cases(len(f.attempts))
	for key, e := range f.effects {
		if e.begins > 1 {
			v.bad(f.idOf(key), key, "its code began %d times", e.begins)
		}
	}
}

func oneOutcome(f *facts, v *finding) {
	v.found(f, BreakEnded)
	v.cases(len(f.attempts))
}

func fencesRise(f *facts, v *finding) {
	v.found(f, BreakFence, BreakOwner, foundFence)
	v.cases(len(f.attempts))
}

func beginsStarted(f *facts, v *finding) {
	if f.Effects == nil {
		v.unchecked("there is no effect log")
		return
	}
	if len(f.effects) == 0 {
		v.unchecked("the effect log has nothing of these runs")
	}
	v.found(f, foundUnstarted)
	for key, e := range f.effects {
		for _, line := range e.lines {
			if line.event == EffectBegin {
				v.cases(1)
				f.startOf(key, line, v)
			}
		}
	}
}

func (f *facts) startOf(key stepfleet.Key, line effectLine, v *finding) {
	l := f.lifeOf(key)
	if l == nil {
		return // found while reading, or its row is missing: I8
	}
	fence, given := line.fence.Number()
	switch {
	case l.started == 0 && !l.partial && !f.startedSince(key):
		v.bad(l.task, key, "its code began, and no start is recorded")
	case l.started == 0:
	case given && fence != l.ran:
		v.bad(l.task, key, "its code began with fence %d, and fence %d was started", fence, l.ran)
	case line.at < l.started-int64(f.Skew):
		v.bad(l.task, key, "its code began %s before its start was recorded", time.Duration(l.started-line.at))
	}
}

// noZombie also measures the longest overlap: how long user code was seen at work after its fence
// was gone.
func noZombie(f *facts, v *finding) {
	if f.Effects == nil {
		v.unchecked("there is no effect log")
		return
	}
	if len(f.effects) == 0 {
		v.unchecked("the effect log has nothing of these runs")
	}
	for key, e := range f.effects {
		l := f.lifeOf(key)
		if l == nil || l.gone == 0 {
			continue
		}
		v.cases(1)
		budget := cmp.Or(f.sessions[l.owner].SessionTTL, f.Lifetimes.SessionTTL) + f.Lifetimes.Margin
		for _, line := range e.lines {
			over := time.Duration(line.at - l.gone)
			f.counts.OverlapMax = max(f.counts.OverlapMax, over.Seconds())
			if line.at-f.awake(f.sessions[l.owner].Worker, l.gone, line.at) > int64(budget) {
				v.bad(l.task, key, "its code wrote %q %s after its fence %d was gone, allowed are %s", line.event, over.Round(time.Millisecond), l.ran, budget)
				break
			}
		}
	}
}

// awake returns since when a worker could have killed what lost its fence at gone, seen at work at the
// time at: not while the host stood still, and its processes with it.
func (f *facts) awake(worker string, gone, at int64) int64 {
	for _, fault := range f.Faults {
		if fault.Host && fault.Landed && fault.Target == worker && fault.At.UnixNano() < at {
			gone = max(gone, min(fault.Until.UnixNano(), at))
		}
	}
	return gone
}

func auditRebuilds(f *facts, v *finding) {
	v.found(f, BreakOrder, BreakGap, BreakVerb, foundRow)
	v.cases(f.counts.AuditRows)
}

func refusalsHaveWinners(f *facts, v *finding) {
	v.found(f, foundRefusal)
	for _, n := range f.counts.Refused {
		v.cases(n)
	}
}

// closeGrace is how long after the close's row a start may stand that did not see it: its statement
// was under way. The close's second statement then raises its flag.
const closeGrace = 5 * time.Second

// nothingAfterCancel looks at the ledger's own closes, and at the cancels and closes that clients
// saw acknowledged. A task that was running when it was cancelled had been started before.
func nothingAfterCancel(f *facts, v *finding) {
	acks := f.cancelAcks()
	for _, a := range f.attempts {
		if a.life < 0 {
			continue
		}
		l := f.replay.lives[a.life]
		closed := f.runs[a.RunID].closedSteps
		if a.run {
			closed = f.runs[a.RunID].closed
		}
		if closed != 0 {
			v.cases(1)
			if l.started > closed+int64(closeGrace) {
				v.bad(a.id, a.Key, "it started %s after its run was closed", time.Duration(l.started-closed))
			}
			if a.submitted > closed+int64(closeGrace) {
				v.bad(a.id, a.Key, "it was submitted %s after its run was closed", time.Duration(a.submitted-closed))
			}
		}
		for _, ack := range acks[a.RunID] {
			if ack.StepKey != "" && ack.Key != a.Key || ack.F == OpCancel && a.submitted > ack.invoked.UnixNano() {
				continue
			}
			if ack.F == OpClose && a.run && ack.Epoch != stepfleet.NoExecutor {
				continue // an executor closes its run for steps: Dagster may resume it
			}
			v.cases(1)
			if after := time.Duration(l.started - ack.At.UnixNano()); l.started != 0 && after > f.Skew {
				v.bad(a.id, a.Key, "it started %s after its %s was acknowledged", after, ack.F)
			}
		}
	}
}

// cancelAcks returns the acknowledged cancels and closes by run.
func (f *facts) cancelAcks() map[string][]clientOp {
	acks := map[string][]clientOp{}
	for _, op := range f.ops {
		if (op.F == OpCancel || op.F == OpClose) && op.Type == OK {
			acks[op.RunID] = append(acks[op.RunID], op)
		}
	}
	return acks
}

func oneTaskPerKey(f *facts, v *finding) {
	v.found(f, foundTwin)
	v.cases(len(f.attempts))
	ids := map[stepfleet.Key]stepfleet.TaskID{}
	for _, op := range f.ops {
		if op.F != OpSubmit || op.Type != OK || op.TaskID == 0 {
			continue
		}
		first, known := ids[op.Key]
		if !known {
			first = f.idOf(op.Key)
			ids[op.Key] = first
		}
		if first != 0 && op.TaskID != first {
			v.bad(op.TaskID, op.Key, "a submit was answered with task %d, and the key's task is %d", op.TaskID, first)
		}
	}
}

// everythingEnds judges all tasks where the system was left to heal. Elsewhere a task may well be
// open; but not in the hands of a session that is long silent, nor of nobody.
func everythingEnds(f *facts, v *finding) {
	if f.Healed.IsZero() {
		nothingHangs(f, v)
		return
	}
	limit := f.Healed.Add(f.Within)
	for _, a := range f.attempts {
		v.cases(1)
		switch state := a.state.state(); {
		case !state.Terminal():
			v.bad(a.id, a.Key, "it is still %s", state)
		case a.ended > limit.UnixNano():
			v.bad(a.id, a.Key, "it ended %s after the faults were over, allowed are %s", time.Duration(a.ended-f.Healed.UnixNano()), f.Within)
		}
	}
}

func nothingHangs(f *facts, v *finding) {
	if f.Holds == nil {
		v.unchecked("nobody waited for the end, and nobody said which tasks are held")
		return
	}
	v.cases(len(f.attempts) + f.holds)
	for _, h := range f.stuck {
		silent := h.Silent.Round(time.Second)
		if h.Abandoned {
			v.bad(h.ID, h.Key, "it is %s, session %d has abandoned it %s ago, and nobody has decided on it", h.State, h.Session, silent)
		} else {
			v.bad(h.ID, h.Key, "it is %s, and its session %d is silent for %s", h.State, h.Session, silent)
		}
	}
}

// stuckAfter is how much later than the run lease the sweep may be on a system that is in use: a
// database that was away makes it wait for a whole TTL of its own heartbeats.
const stuckAfter = 5 * time.Minute

// hold takes a task that a session holds.
func (f *facts) hold(h stepfleet.Hold) {
	f.holds++
	if h.Silent > cmp.Or(h.RunLease, f.Lifetimes.RunLease)+stuckAfter {
		f.stuck = append(f.stuck, h)
	}
}

func nothingLeft(f *facts, v *finding) {
	if f.Rest == nil {
		v.unchecked("nobody looked what was left at the end")
		return
	}
	v.cases(1)
	if n := f.Rest.Bells; n > 0 {
		v.bad(0, stepfleet.Key{}, "%d messages are left in the queues", n)
	}
	v.left("process", f.Rest.Children)
	v.left("session", f.Rest.Sessions)
}

func nothingLeaked(f *facts, v *finding) {
	if f.Rest == nil {
		v.unchecked("nobody looked what was left at the end")
		return
	}
	v.cases(1 + f.Rest.Lanes)
	v.left("held task", f.Rest.Held)
	v.left("taken slot", f.Rest.Slots)
	v.left("protected worker", f.Rest.Protected)
}

func (v *finding) left(what string, names []string) {
	if names == nil {
		v.held.Unseen = append(v.held.Unseen, what)
	}
	for _, name := range names {
		v.bad(0, stepfleet.Key{}, "a %s is left: %s", what, name)
	}
}

func runsEnd(f *facts, v *finding) {
	if f.Runs == nil {
		v.unchecked("nobody said how runs should have ended")
		return
	}
	for _, run := range f.ended {
		want := run.Want
		if want == "" {
			want = "SUCCESS"
		}
		if lost := f.runs[run.ID] != nil && f.runs[run.ID].lost; run.Cancelled || lost {
			continue
		}
		v.cases(1)
		if run.Status != want {
			v.bad(0, stepfleet.Key{RunID: run.ID}, "run %s of %s is %s in Dagster, and should be %s", run.ID, run.Job, run.Status, want)
		}
	}
}

// idOf returns the task of a key, 0 when there is none.
func (f *facts) idOf(key stepfleet.Key) stepfleet.TaskID {
	if i, ok := f.byKey[key]; ok {
		return f.attempts[i].id
	}
	return 0
}

// lifeOf returns what the audit says of a key's task, nil when it says nothing.
func (f *facts) lifeOf(key stepfleet.Key) *life {
	i, ok := f.byKey[key]
	if !ok || f.attempts[i].life < 0 {
		return nil
	}
	return &f.replay.lives[f.attempts[i].life]
}
