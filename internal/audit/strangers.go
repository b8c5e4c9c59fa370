package audit

import "github.com/stepfleet/stepfleet"

// What other witnesses name and the ledger's tasks do not have was lost, unless the ledger has it outside
// the window, or has it by now, or it was never of stepfleet. A run may have steps that never were: its
// executor is another one, and at most its run worker is a task.

// elsewhere is what the ledger has of a run besides Tasks.
type elsewhere struct{ tasks, steps int }

// missing adds the runs of which another witness names what Tasks does not have.
func (f *facts) missing(doubtful map[string]bool) {
	for name, s := range f.steps {
		if s.base < 0 && f.ours(name.run, s) {
			doubtful[name.run] = true
		}
	}
	for _, e := range f.unknown {
		if e.Fence != "" {
			doubtful[e.RunID] = true
		}
	}
	for key, e := range f.effects {
		if l := f.lifeOf(key); e.begins > 0 && l != nil && l.started == 0 {
			doubtful[key.RunID] = true
		}
	}
	for _, op := range f.ops {
		if _, known := f.byKey[op.Key]; !known && op.F == OpSubmit && op.Type == OK {
			doubtful[op.RunID] = true
		}
	}
}

// cut reports whether nobody can say what the ledger has outside the window.
func (f *facts) cut() bool {
	return f.Later == nil && (f.replay.Window || !f.Until.IsZero() && !f.Snapshot)
}

// later takes a task of the second look.
func (f *facts) later(t Task) {
	i, known := f.byKey[t.Key]
	if known {
		a := &f.attempts[i]
		a.started = a.started || !t.StartedAt.IsZero()
		a.over = a.over || t.State.Terminal()
	} else {
		f.beyond[t.Key] = true
		f.run(t.RunID).elsewhere.tasks++
	}
	if t.Kind == stepfleet.KindStep {
		f.span(t.Key)
		if !known {
			f.run(t.RunID).elsewhere.steps++
		}
	}
}

// ours reports whether stepfleet ran the step: a process of ours has written about it, or the run's
// executor is ours.
func (f *facts) ours(run string, s *stepLog) bool {
	r := f.runs[run]
	return s.ours || r != nil && (r.steps+r.elsewhere.steps > 0 || r.epoch != stepfleet.NoExecutor)
}

// foreign reports whether another executor's step has written the line, or code outside stepfleet: it has
// no fence, or that of its run worker.
func (f *facts) foreign(e Effect) bool {
	r := f.run(e.RunID)
	known := r.tasks+r.elsewhere.tasks > 0
	return e.Fence == "" || known && r.steps+r.elsewhere.steps == 0 && r.epoch == stepfleet.NoExecutor
}

// takeUnknown takes the lines of the effect log that are of none of Tasks.
func (f *facts) takeUnknown() {
	told := map[stepfleet.Key]bool{}
	for _, e := range f.unknown {
		if !f.beyond[e.Key] && f.foreign(e) {
			f.counts.ForeignEffects++
			continue
		}
		f.take(e)
		if !f.cut() && !f.beyond[e.Key] && !told[e.Key] {
			told[e.Key] = true
			f.find(foundUnstarted, 0, e.Key, "user code of process %d on %s ran, and the ledger does not know the task", e.PID, e.Worker)
		}
	}
	f.unknown = nil
}

// unknownStep judges a step that Dagster's log has and the ledger has not. A submit that was refused leaves
// no task; its executor then asks to write the step's end, of which there is a row.
func (f *facts) unknownStep(name stepName, s *stepLog, v *finding) {
	if f.cut() || !f.ours(name.run, s) {
		return
	}
	v.cases(1)
	endings := s.endings()
	refused := endings <= f.runs[name.run].orphaned[name.step] || f.replay.Window || s.late
	if s.starts == 0 && !s.ours && s.final != stepSuccess && refused {
		return
	}
	v.bad(0, stepfleet.Key{RunID: name.run, StepKey: name.step},
		"Dagster's log has %d starts and %d endings of the step, and the ledger 0 attempts", s.starts, endings)
}

// unlogged counts the runs of which Dagster's log has nothing, or only what was written after it was deleted.
func (f *facts) unlogged() (runs, all int) {
	for _, r := range f.runs {
		if r.tasks == 0 {
			continue
		}
		all++
		if r.events == 0 || r.log.beheaded() {
			runs++
		}
	}
	return runs, all
}

// nothingLogged says why Dagster's log cannot be compared at all, empty where it can.
func (f *facts) nothingLogged() string {
	switch unlogged, runs := f.unlogged(); {
	case runs == 0:
		return "the ledger's window has no run"
	case unlogged == runs:
		return "Dagster's log has nothing of these runs, or not their begin"
	}
	return ""
}

// startedSince reports whether the attempt was started after the audit was read.
func (f *facts) startedSince(key stepfleet.Key) bool {
	l := f.lifeOf(key)
	return l != nil && l.started == 0 && f.attempts[f.byKey[key]].started
}
