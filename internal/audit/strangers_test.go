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

// What a run wrote before it was deleted in Dagster is gone, and what it wrote after that is no whole story.
func TestARunThatWasDeletedWhileItRanIsNotCompared(t *testing.T) {
	for begin, want := range map[string]audit.Verdict{"": audit.Pass, "PIPELINE_START": audit.Fail} {
		s := tell(t)
		s.dagster = slices.DeleteFunc(s.dagster, func(e audit.DagsterEvent) bool {
			return e.RunID == "r1" && e.Type != "STEP_FAILURE" && (begin == "" || e.Type != begin)
		})
		report := check(t, s.ledgerAlone())
		if unlogged := report.Counts.UnloggedRuns; report.Verdict != want || (unlogged == 1) != (want == audit.Pass) {
			t.Errorf("with %q: %s, %d without a begin: %+v", begin, report.Verdict, unlogged, report.Violations)
		}
	}
}

// Why nothing was compared is told as it is.
func TestAWindowWithoutRunsDoesNotBlameDagstersLog(t *testing.T) {
	s := tell(t)
	w := s.ledgerAlone()
	w.Audit, w.Tasks, w.Dagster = audit.Slice[stepfleet.AuditRow](), audit.Slice[audit.Task](), audit.Slice[audit.DagsterEvent]()
	for _, h := range check(t, w).Invariants {
		if (h.ID == "I7" || h.ID == "R3") && h.Unchecked != "the ledger's window has no run" {
			t.Errorf("%s: %q", h.ID, h.Unchecked)
		}
	}
}
