package audit

import (
	"github.com/stepfleet/stepfleet"
)

// dagsterAgrees holds Dagster's log against the ledger, step by step and then attempt by attempt.
//
// A run that began before the window is passed over: not all of its attempts are known. So is a run
// of which Dagster's log has nothing at all, unless Runs says that it should be there: people delete
// runs.
func dagsterAgrees(f *facts, v *finding) {
	if f.Dagster == nil {
		v.unchecked("there is no event log of Dagster")
		return
	}
	for name, s := range f.steps {
		if !s.early && f.stepsOf(name.run) {
			v.cases(1)
			f.countEvents(name, s, v)
		}
	}
	for i := range f.attempts {
		a := &f.attempts[i]
		s := f.steps[stepName{a.RunID, a.StepKey}]
		if a.run || s == nil || s.early || !f.stepsOf(a.RunID) {
			continue
		}
		v.cases(1)
		if f.runs[a.RunID].events > 0 || f.Runs != nil {
			agree(a, s.ending(a.Attempt-s.base), v)
		}
	}
}

// stepsOf reports whether the run's steps went through the ledger, and did so within the window.
func (f *facts) stepsOf(run string) bool {
	r := f.runs[run]
	return r != nil && r.tasks > 0
}

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
	endings := s.retries + min(s.finals, 1)
	known := f.runs[name.run].orphaned[name.step]
	if s.base >= 0 {
		known += s.top - s.base + 1
	}
	if s.base < 0 && (s.final != stepSuccess || f.foreign(name.run)) {
		return // its only attempt was refused at submit, and the executor said so
	}
	if endings > known && !s.late {
		v.bad(task, key, "Dagster's log has %d endings of the step, and the ledger %d attempts", endings, known)
	}
}

// foreign reports whether the run's steps are none of ours: only its run worker is.
func (f *facts) foreign(run string) bool {
	r := f.runs[run]
	return r.steps == 0
}

// agree holds an attempt's ending in the log against its outcome in the ledger. Without an ending
// only a success is wrong: of the others the executor writes it, which may have been stopped, or
// have yet to do it.
func agree(a *attempt, ending string, v *finding) {
	state := a.state.state()
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

func orNone(event string) string {
	if event == "" {
		return "no ending"
	}
	return event
}
