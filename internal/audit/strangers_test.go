package audit_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
)

// ghost has Dagster's log tell of a step that the ledger does not have.
func (s *story) ghost(run string, ours bool, types ...string) {
	for _, kind := range types {
		s.dagster = append(s.dagster, audit.DagsterEvent{
			ID: int64(len(s.dagster) + 1), RunID: run, StepKey: "ghost", Type: kind, At: s.rows[0].At, Ours: ours,
		})
	}
}

// adjudicated has r1's executor ask to write the end of a step that the ledger does not have.
func (s *story) adjudicated(step string) {
	s.insertAfter(s.row("r1", "a", stepfleet.VerbStart), func(r *stepfleet.AuditRow) {
		*r = stepfleet.AuditRow{ID: r.ID, At: r.At, RunID: "r1", Verb: stepfleet.VerbAdjudicate, Actor: "executor 1", Detail: step + " attempt 0"}
	})
}

// theirs leaves of r3 its run worker only, under another executor.
func (s *story) theirs() {
	id := s.first("r3", "y").ID
	s.tasks = slices.DeleteFunc(s.tasks, func(t audit.Task) bool { return t.ID == id })
	s.rows = slices.DeleteFunc(s.rows, func(r stepfleet.AuditRow) bool { return r.TaskID == id || r.RunID == "r3" && r.TaskID == 0 })
	s.client = slices.DeleteFunc(s.client, func(e audit.ClientEvent) bool { return e.RunID == "r3" })
}

func TestOnlyWhatWasStepfleetsIsLost(t *testing.T) {
	for name, c := range map[string]struct {
		verdict audit.Verdict
		spoil   func(*story)
	}{
		"a submit that was refused":         {audit.Pass, func(s *story) { s.adjudicated("ghost"); s.ghost("r1", false, "STEP_FAILURE") }},
		"an end that nobody asked to write": {audit.Fail, func(s *story) { s.ghost("r1", false, "STEP_FAILURE") }},
		"an attempt that began and failed":  {audit.Fail, func(s *story) { s.ghost("r1", false, "STEP_START", "STEP_FAILURE") }},
		"the same, its end adjudicated": {audit.Fail, func(s *story) {
			s.adjudicated("ghost")
			s.ghost("r1", false, "STEP_START", "STEP_FAILURE")
		}},
		"a run of ours":                      {audit.Fail, func(s *story) { s.ghost("gone", true, "STEP_FAILURE") }},
		"a run of another executor":          {audit.Pass, func(s *story) { s.ghost("other", false, "STEP_START", "STEP_SUCCESS") }},
		"another executor in our run worker": {audit.Pass, func(s *story) { s.theirs() }},
	} {
		s := tell(t)
		c.spoil(s)
		if report := s.check(t); report.Verdict != c.verdict {
			t.Errorf("%s: %s, want %s: %+v", name, report.Verdict, c.verdict, report.Violations)
		}
	}
}

// All witnesses of a window, which begins and ends in the middle of things, find nothing lost.
func TestAWindowWithAllWitnessesFindsNothingLost(t *testing.T) {
	s := tell(t)
	first, last := s.rows[0].At, s.rows[len(s.rows)-1].At
	for at := first; at.Before(last); at = at.Add(50 * time.Millisecond) {
		for side, w := range map[string]audit.Witnesses{"from": s.cut(at, time.Time{}), "until": s.cut(time.Time{}, at)} {
			w.Client = audit.Slice(s.client...)
			w.Effects = audit.Slice(slices.DeleteFunc(slices.Clone(s.effects), func(e audit.Effect) bool {
				return e.Time().Before(at) == (side == "from")
			})...)
			for _, v := range check(t, w).Violations {
				if v.Invariant != "P1" { // it is of whole runs
					t.Errorf("%s %s after the begin: %s %s: %s", side, at.Sub(first), v.Invariant, v.Key, v.What)
				}
			}
		}
	}
}
