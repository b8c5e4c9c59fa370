package audit

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/stepfleet/stepfleet"
)

// dagsterAgrees holds Dagster's log against the ledger, step by step and then attempt by attempt.
//
// A step of which attempts may be from before the window is passed over; which those are the ledger says,
// whose times have one clock. So is a run whose begin Dagster's log does not have, unless Runs says that it should be there:
// people delete runs, also those that still write, and old events.
func dagsterAgrees(f *facts, v *finding) {
	if f.Dagster == nil {
		v.unchecked("there is no event log of Dagster")
		return
	}
	for name, s := range f.steps {
		switch {
		case s.base < 0:
			f.unknownStep(name, s, v)
		case s.whole && f.inWindow(name.run) && f.logged(name.run):
			v.cases(1)
			f.countEvents(name, s, v)
		}
	}
	for i := range f.attempts {
		a := &f.attempts[i]
		s := f.steps[stepName{a.RunID, a.StepKey}]
		if a.run || s == nil || !s.whole || !f.inWindow(a.RunID) {
			continue
		}
		if f.logged(a.RunID) {
			v.cases(1)
			f.agree(a, s, v)
		}
	}
	f.counts.UnloggedRuns, _ = f.unlogged()
	if v.held.Cases == 0 {
		v.unchecked(cmp.Or(f.nothingLogged(), "Dagster's log and the window have no step whole"))
	}
}

// inWindow reports whether the window has tasks of the run.
func (f *facts) inWindow(run string) bool {
	r := f.runs[run]
	return r != nil && r.tasks > 0
}

// logged reports whether Dagster's log has the run from its begin, or should have.
func (f *facts) logged(run string) bool { return f.runs[run].log.begun || f.Runs != nil }

// countEvents looks for starts and endings that are too many.
func (f *facts) countEvents(name stepName, s *stepLog, v *finding) {
	key := stepfleet.Key{RunID: name.run, StepKey: name.step, Attempt: max(s.top, 0)}
	task := f.idOf(key)
	if s.restarted > 0 {
		v.bad(task, key, "Dagster's log has %d starts of the step and %d retries", s.starts, s.retries)
	}
	if s.finals > 1 {
		v.bad(task, key, "Dagster's log has %s of the step, and %s after it", s.final, s.extra)
	}
	if endings, known := f.endings(name, s); endings > known {
		v.bad(task, key, "Dagster's log has %d endings of the step, and the ledger %d attempts", endings, known)
	}
}

// endings counts those of a step in the log, and the attempts that may have one.
func (f *facts) endings(name stepName, s *stepLog) (endings, known int) {
	endings = s.endings()
	known = f.runs[name.run].orphaned[name.step] + s.top - s.base + 1
	if s.late && (f.Later == nil || s.final != stepSuccess) {
		return 0, known // the ledger had more attempts later, or refused them
	}
	return endings, known
}

// agree holds what the log has of an attempt against what the ledger has. Without an ending
// only a success is wrong: of the others the executor writes it, which may have been stopped, or
// have yet to do it. An attempt that is running may have its ending in the log for long: its hooks, or
// threads that it has left, are at work.
func (f *facts) agree(a *attempt, s *stepLog, v *finding) {
	state, ending := a.state.state(), s.ending(a.Attempt-s.base)
	if what := f.unbidden(a, s); what != "" {
		v.bad(a.id, a.Key, "the ledger has it %s and never started, and Dagster's log has %s", state, what)
		return
	}
	switch {
	case !state.Terminal():
	case state == stepfleet.StateSucceeded && ending != stepSuccess:
		v.bad(a.id, a.Key, "the ledger has it succeeded, and Dagster's log has %s", orNone(ending))
	case state != stepfleet.StateSucceeded && ending == stepSuccess:
		v.bad(a.id, a.Key, "the ledger has it %s, and Dagster's log has %s", state, ending)
	case a.event != "" && a.event != ending && a.event != initFailure:
		v.bad(a.id, a.Key, "its worker told of %s, and Dagster's log has %s", a.event, orNone(ending))
	}
}

// unbidden returns what the log has of an attempt that only its process can write, or the executor once
// the attempt has ended, though the attempt was never started.
func (f *facts) unbidden(a *attempt, s *stepLog) string {
	n := a.Attempt - s.base
	switch ending := s.ending(n); {
	case a.started:
	case ending == stepSuccess, ending != "" && !a.over:
		return ending
	case s.began(n) && !f.mayBeLate(a, s):
		return "a start"
	}
	return ""
}

// mayBeLate reports whether what looks like the attempt's start may be that of one before it, but for the
// first, which was started and has none in the log.
func (f *facts) mayBeLate(a *attempt, s *stepLog) bool {
	for n := a.Attempt - s.base - 1; n > 0; n-- {
		i, known := f.byKey[stepfleet.Key{RunID: a.RunID, StepKey: a.StepKey, Attempt: s.base + n}]
		if known && f.attempts[i].started && !s.began(n) {
			return true
		}
	}
	return false
}

// lookAgain takes what the ledger shows after the other witnesses were read, of the runs of which they have
// more than the ledger had: the system had gone on, or it was before the window. It also settles which steps are whole.
func (f *facts) lookAgain(ctx context.Context) error {
	doubtful := map[string]bool{}
	for name, s := range f.steps {
		s.whole = f.whole(name, s)
		if f.Later == nil || s.base < 0 || !s.whole || !f.inWindow(name.run) {
			continue
		}
		if endings, known := f.endings(name, s); endings > known {
			doubtful[name.run] = true
		}
	}
	if f.Later == nil {
		return nil
	}
	for i := range f.attempts {
		a := &f.attempts[i]
		if s := f.steps[stepName{a.RunID, a.StepKey}]; s != nil && s.whole && f.unbidden(a, s) != "" {
			doubtful[a.RunID] = true
		}
	}
	f.missing(doubtful)
	if len(doubtful) == 0 {
		return nil
	}
	for t, err := range f.Later(ctx, slices.Sorted(maps.Keys(doubtful))) {
		if err != nil {
			return err
		}
		f.later(t)
	}
	return nil
}

// firstExecutor is the epoch of the first executor that a run has.
const firstExecutor stepfleet.Epoch = 1

// whole reports whether all attempts of a step are in sight: the first one still moved in the window, or
// its run began there. That a write to the first one was refused there says nothing.
func (f *facts) whole(name stepName, s *stepLog) bool {
	if r := f.runs[name.run]; !f.replay.Window || r != nil && r.whole {
		return true
	}
	return s.base == 0 && f.lifeOf(stepfleet.Key{RunID: name.run, StepKey: name.step}) != nil
}

func orNone(event string) string {
	if event == "" {
		return "no ending"
	}
	return event
}
