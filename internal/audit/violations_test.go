package audit_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
)

// spoilt are histories with one thing wrong, the invariants that must find it, and a word that must be
// in what they say.
var spoilt = map[string]struct {
	by    []string
	says  string
	spoil func(s *story)
}{
	"an acknowledged submit left no task": {by: []string{"I1"}, says: "the ledger does not have it", spoil: func(s *story) {
		s.forget("r3", "y")
	}},
	"an acknowledged submit has no outcome": {by: []string{"I1", "I12"}, says: "still running", spoil: func(s *story) {
		s.last("r3", "y").State = stepfleet.StateRunning
		s.dropRow("r3", "y", stepfleet.VerbSettle)
	}},
	"a task that nobody asked for": {by: []string{"I1"}, says: "no client has asked", spoil: func(s *story) {
		s.client = slices.DeleteFunc(s.client, func(e audit.ClientEvent) bool { return e.StepKey == "a" })
	}},
	"user code began twice": {by: []string{"I2"}, says: "began 2 times", spoil: func(s *story) {
		s.effects = append(s.effects, s.effect("r1", "a", audit.EffectBegin))
	}},
	"a start was recorded twice": {by: []string{"I2"}, says: "was started before", spoil: func(s *story) {
		s.insertAfter(s.row("r1", "a", stepfleet.VerbStart), func(r *stepfleet.AuditRow) {})
	}},
	"an outcome was recorded twice": {by: []string{"I3"}, says: "had ended as succeeded", spoil: func(s *story) {
		s.insertAfter(s.row("r1", "a", stepfleet.VerbSettle), func(r *stepfleet.AuditRow) {})
	}},
	"an outcome was changed": {by: []string{"I3"}, says: "had ended as lost", spoil: func(s *story) {
		s.insertAfter(s.row("r1", "b", stepfleet.VerbSweep), func(r *stepfleet.AuditRow) {
			r.Verb, r.From, r.To, r.Actor = stepfleet.VerbSettle, stepfleet.StateRunning, stepfleet.StateSucceeded, "session 1"
		})
	}},
	"a sweep did not raise the fence": {by: []string{"I4"}, says: "should have 2", spoil: func(s *story) {
		s.row("r1", "b", stepfleet.VerbSweep).Fence--
	}},
	"another session settled": {by: []string{"I4"}, says: "the owner is session 1", spoil: func(s *story) {
		s.row("r1", "a", stepfleet.VerbSettle).Actor = "session 9"
	}},
	"the row has another fence": {by: []string{"I4"}, says: "its audit leads to 1", spoil: func(s *story) {
		s.last("r1", "a").Fence = 7
	}},
	"user code began without a start": {by: []string{"I5"}, says: "no start is recorded", spoil: func(s *story) {
		e := s.effect("r1", "a", audit.EffectBegin)
		e.Key = stepfleet.Key{RunID: "r2", StepKey: "z"}
		s.effects = append(s.effects, e)
	}},
	"user code began before its start": {by: []string{"I5"}, says: "before its start was recorded", spoil: func(s *story) {
		s.effectAt("r1", "a", audit.EffectBegin).At -= 10
	}},
	"user code began with another fence": {by: []string{"I5"}, says: "fence 1 was started", spoil: func(s *story) {
		s.effectAt("r1", "a", audit.EffectBegin).Fence = "3"
	}},
	"user code of a task that nobody knows": {by: []string{"I5"}, says: "does not know the task", spoil: func(s *story) {
		e := s.effect("r1", "a", audit.EffectBegin)
		e.StepKey = "ghost"
		s.effects = append(s.effects, e)
	}},
	"user code outlived its fence": {by: []string{"I6"}, says: "after its fence 1 was gone", spoil: func(s *story) {
		e := s.effect("r1", "b", audit.EffectBegin)
		e.Event, e.At = audit.EffectEnd, e.At+30
		s.effects = append(s.effects, e)
	}},
	"Dagster's log has two ends": {by: []string{"I7"}, says: "after it", spoil: func(s *story) {
		s.dagster = append(s.dagster, s.event("r1", "a", "STEP_FAILURE"))
	}},
	"Dagster's log has an end too many": {by: []string{"I7"}, says: "3 endings of the step", spoil: func(s *story) {
		e := s.event("r1", "b", "STEP_UP_FOR_RETRY")
		i := slices.IndexFunc(s.dagster, func(e audit.DagsterEvent) bool { return e.StepKey == "b" })
		s.dagster = slices.Insert(s.dagster, i, e)
	}},
	"Dagster's log has two starts": {by: []string{"I7"}, says: "2 starts of the step and 0 retries", spoil: func(s *story) {
		s.dagster = append(s.dagster, s.event("r1", "a", "STEP_START"))
	}},
	"Dagster calls failed what succeeded": {by: []string{"I7"}, says: "the ledger has it succeeded, and Dagster's log has STEP_FAILURE", spoil: func(s *story) {
		s.eventAt("r1", "a", "STEP_SUCCESS").Type = "STEP_FAILURE"
	}},
	"Dagster calls succeeded what was lost": {by: []string{"I7"}, says: "the ledger has it lost, and Dagster's log has STEP_SUCCESS", spoil: func(s *story) {
		s.dagster = slices.DeleteFunc(s.dagster, func(e audit.DagsterEvent) bool { return e.StepKey == "b" && e.Type != "STEP_START" })
		s.dagster = append(s.dagster, s.event("r1", "a", "STEP_SUCCESS"))
		s.dagster[len(s.dagster)-1].StepKey = "b"
	}},
	"Dagster has no end of what succeeded": {by: []string{"I7"}, says: "no ending", spoil: func(s *story) {
		s.dagster = slices.DeleteFunc(s.dagster, func(e audit.DagsterEvent) bool { return e.StepKey == "a" && e.Type == "STEP_SUCCESS" })
	}},
	"Dagster has a success that the ledger has not": {by: []string{"I7"}, says: "and the ledger 0 attempts", spoil: func(s *story) {
		e := s.event("r1", "a", "STEP_SUCCESS")
		e.StepKey = "ghost"
		s.dagster = append(s.dagster, e)
	}},
	"Dagster has a start of what was cancelled while it waited": {by: []string{"I7"}, says: "the ledger has it cancelled and never started, and Dagster's log has a start", spoil: func(s *story) {
		s.add("r2", "z", "STEP_START")
	}},
	"Dagster has a success of what waits": {by: []string{"I7"}, says: "the ledger has it queued and never started, and Dagster's log has STEP_SUCCESS", spoil: func(s *story) {
		s.queue("r3", "y")
	}},
	"Dagster has a failure of what waits": {by: []string{"I7"}, says: "the ledger has it queued and never started, and Dagster's log has STEP_FAILURE", spoil: func(s *story) {
		s.queue("r3", "y")
		s.eventAt("r3", "y", "STEP_SUCCESS").Type = "STEP_FAILURE"
	}},
	"Dagster has two starts of the attempt after one that was lost before its start": {by: []string{"I7"}, says: "2 starts of the step and 1 retries", spoil: func(s *story) {
		s.eventAt("r1", "b", "STEP_START").Type = "ENGINE_EVENT"
		s.add("r1", "b", "STEP_RESTARTED")
	}},
	"a run ended three times": {by: []string{"R3"}, says: "3 ends of the run: PIPELINE_SUCCESS, PIPELINE_FAILURE, PIPELINE_SUCCESS", spoil: func(s *story) {
		s.add("r3", "", "PIPELINE_FAILURE")
		s.add("r3", "", "PIPELINE_SUCCESS")
	}},
	"an audit row is missing": {by: []string{"I8"}, says: `begins at "leased"`, spoil: func(s *story) {
		s.dropRow("r1", "a", stepfleet.VerbClaim)
	}},
	"a task without an audit": {by: []string{"I8"}, says: "no row of it", spoil: func(s *story) {
		id := s.last("r3", "y").ID
		s.rows = slices.DeleteFunc(s.rows, func(r stepfleet.AuditRow) bool { return r.TaskID == id })
	}},
	"a row that its audit does not lead to": {by: []string{"I8"}, says: "its audit leads to succeeded", spoil: func(s *story) {
		s.last("r1", "a").State = stepfleet.StateFailed
	}},
	"a transition that does not exist": {by: []string{"I8"}, says: "no transition", spoil: func(s *story) {
		s.row("r1", "a", stepfleet.VerbSettle).To = stepfleet.StateDead
	}},
	"rows out of order": {by: []string{"I8"}, says: "comes after row", spoil: func(s *story) {
		s.row("r1", "a", stepfleet.VerbStart).ID--
	}},
	"an owner was refused": {by: []string{"I9"}, says: "nobody had won", spoil: func(s *story) {
		s.insertAfter(s.row("r1", "a", stepfleet.VerbStart), func(r *stepfleet.AuditRow) {
			r.Verb, r.From, r.To, r.Refused = stepfleet.VerbSettle, "", "", stepfleet.ErrFenced.Code
		})
	}},
	"an executor was superseded by nobody": {by: []string{"I9"}, says: "no later executor", spoil: func(s *story) {
		s.insertAfter(s.row("r1", "a", stepfleet.VerbStart), func(r *stepfleet.AuditRow) {
			*r = stepfleet.AuditRow{ID: r.ID, At: r.At, RunID: "r1", Verb: stepfleet.VerbSubmit, Actor: "executor 1", Refused: stepfleet.ErrSuperseded.Code}
		})
	}},
	"a task started after its run was closed": {by: []string{"I10"}, says: "after its run was closed", spoil: func(s *story) {
		s.insertAfter(s.row("r3", "y", stepfleet.VerbSubmit), func(r *stepfleet.AuditRow) {
			*r = stepfleet.AuditRow{ID: r.ID, At: r.At.Add(-time.Minute), RunID: "r3", Verb: stepfleet.VerbClose, Actor: "executor 1"}
		})
	}},
	"a task started after its cancel was acknowledged": {by: []string{"I10"}, says: "after its cancel was acknowledged", spoil: func(s *story) {
		submitted := s.last("r1", "e").SubmittedAt
		key := stepfleet.Key{RunID: "r1"}
		s.client = append(s.client,
			audit.ClientEvent{At: submitted.Add(time.Millisecond), Type: audit.Invoke, F: audit.OpCancel, Op: 99, Key: key},
			audit.ClientEvent{At: submitted.Add(2 * time.Millisecond), Type: audit.OK, F: audit.OpCancel, Op: 99, Key: key})
	}},
	"a run worker started after its run was closed for all": {by: []string{"I10"}, says: "after its close was acknowledged", spoil: func(s *story) {
		i := slices.IndexFunc(s.client, func(e audit.ClientEvent) bool {
			return e.RunID == "r3" && e.F == audit.OpClose && e.Type == audit.OK
		})
		s.client[i].Epoch = stepfleet.NoExecutor
	}},
	"one key, two answers": {by: []string{"I11"}, says: "the key's task is", spoil: func(s *story) {
		i := slices.IndexFunc(s.client, func(e audit.ClientEvent) bool { return e.Type == audit.OK && e.F == audit.OpSubmit })
		s.client[i].TaskID = 77
	}},
	"one key, two tasks": {by: []string{"I11"}, says: "have the same key", spoil: func(s *story) {
		twin := *s.last("r1", "a")
		twin.ID = 77
		s.tasks = append(s.tasks, twin)
	}},
	"a task ended too late": {by: []string{"I12"}, says: "after the faults were over", spoil: func(s *story) {
		s.healed = s.last("r3", "y").EndedAt.Add(-2 * time.Minute)
	}},
	"a message was left":    {by: []string{"I13"}, says: "3 messages", spoil: func(s *story) { s.rest.Bells = 3 }},
	"a process was left":    {by: []string{"I13"}, says: "process is left: 4711", spoil: func(s *story) { s.rest.Children = []string{"4711"} }},
	"a session was left":    {by: []string{"I13"}, says: "session is left", spoil: func(s *story) { s.rest.Sessions = []string{"9"} }},
	"a task is still held":  {by: []string{"I14"}, says: "held task", spoil: func(s *story) { s.rest.Held = []string{"5"} }},
	"a slot leaked":         {by: []string{"I14"}, says: "taken slot", spoil: func(s *story) { s.rest.Slots = []string{"two"} }},
	"a worker is protected": {by: []string{"I14"}, says: "protected worker", spoil: func(s *story) { s.rest.Protected = []string{"two"} }},
	"a run failed for nothing": {by: []string{"R1"}, says: "should be SUCCESS", spoil: func(s *story) {
		s.runs[0].Status = "FAILURE"
	}},
	"a step without retries was tried again": {by: []string{"R2"}, says: "attempt 1 of a step", spoil: func(s *story) {
		s.runs[1].NoRetries = true
	}},
	"two attempts ran in one process": {by: []string{"P2"}, says: "which had run r1/a/0", spoil: func(s *story) {
		for _, step := range []string{"a", "c"} {
			e := s.effectAt("r1", step, audit.EffectBegin)
			e.PID, e.Born, e.Worker = 7, 70, "w"
		}
	}},
	"a submit was new twice": {by: []string{"P1"}, says: "no order", spoil: func(s *story) {
		key, at := stepfleet.Key{RunID: "r1", StepKey: "a"}, s.last("r1", "a").EndedAt
		s.client = append(s.client,
			audit.ClientEvent{At: at, Type: audit.Invoke, F: audit.OpSubmit, Op: 99, Key: key},
			audit.ClientEvent{At: at, Type: audit.OK, F: audit.OpSubmit, Op: 99, Key: key})
	}},
	"a read saw a state of long ago": {by: []string{"P1"}, says: "no order", spoil: func(s *story) {
		key, at := stepfleet.Key{RunID: "r1", StepKey: "a"}, s.last("r1", "a").EndedAt.Add(time.Hour)
		s.client = append(s.client,
			audit.ClientEvent{At: at, Type: audit.Invoke, F: audit.OpRead, Op: 99, Key: key},
			audit.ClientEvent{At: at, Type: audit.OK, F: audit.OpRead, Op: 99, Key: key, State: stepfleet.StateQueued})
	}},
	"a cancel was acknowledged and did nothing": {by: []string{"P1"}, says: "no order", spoil: func(s *story) {
		key, at := stepfleet.Key{RunID: "r3", StepKey: "y"}, s.row("r3", "y", stepfleet.VerbStart).At
		late := s.row("r3", "y", stepfleet.VerbSettle)
		late.At = late.At.Add(time.Minute)
		s.client = append(s.client,
			audit.ClientEvent{At: at.Add(3 * time.Second), Type: audit.Invoke, F: audit.OpCancel, Op: 99, Key: key},
			audit.ClientEvent{At: at.Add(4 * time.Second), Type: audit.OK, F: audit.OpCancel, Op: 99, Key: key})
	}},
}

func TestEachSpoiltHistoryIsFound(t *testing.T) {
	covered := map[string]bool{}
	for name, c := range spoilt {
		for _, id := range c.by {
			covered[id] = true
		}
		t.Run(name, func(t *testing.T) {
			s := tell(t)
			c.spoil(s)
			report := s.check(t)
			if report.Verdict != audit.Fail {
				t.Error("the verdict is PASS")
			}
			said := ""
			for _, id := range c.by {
				i := slices.IndexFunc(report.Invariants, func(h audit.Held) bool { return h.ID == id })
				if report.Invariants[i].Violations == 0 {
					t.Errorf("%s holds", id)
				}
			}
			for _, v := range report.Violations {
				said += v.Invariant + " " + v.What + "\n"
			}
			if !strings.Contains(said, c.says) {
				t.Errorf("nothing says %q:\n%s", c.says, said)
			}
		})
	}
	for _, inv := range audit.Invariants {
		if !covered[inv.ID] {
			t.Errorf("no spoilt history is for %s", inv.ID)
		}
	}
}

// add adds an event to Dagster's log.
func (s *story) add(run, step, kind string) {
	last := s.dagster[len(s.dagster)-1]
	s.dagster = append(s.dagster, audit.DagsterEvent{ID: last.ID + 1, RunID: run, StepKey: step, Type: kind, At: last.At})
}

// queue makes the ledger have the step's only attempt in its queue still.
func (s *story) queue(run, step string) {
	task := s.last(run, step)
	task.State, task.Fence, task.Event = stepfleet.StateQueued, 0, ""
	task.StartedAt, task.EndedAt = time.Time{}, time.Time{}
	s.rows = slices.DeleteFunc(s.rows, func(r stepfleet.AuditRow) bool {
		return r.TaskID == task.ID && r.Verb != stepfleet.VerbSubmit
	})
}

func (s *story) last(run, step string) *audit.Task {
	for i := len(s.tasks) - 1; i >= 0; i-- {
		if s.tasks[i].RunID == run && s.tasks[i].StepKey == step {
			return &s.tasks[i]
		}
	}
	panic("no task of " + step)
}

func (s *story) first(run, step string) *audit.Task {
	i := slices.IndexFunc(s.tasks, func(t audit.Task) bool { return t.RunID == run && t.StepKey == step })
	return &s.tasks[i]
}

// row returns the first row of the verb of the step's first attempt.
func (s *story) row(run, step string, verb stepfleet.Verb) *stepfleet.AuditRow {
	id := s.first(run, step).ID
	i := slices.IndexFunc(s.rows, func(r stepfleet.AuditRow) bool { return r.TaskID == id && r.Verb == verb && r.Refused == "" })
	return &s.rows[i]
}

func (s *story) dropRow(run, step string, verb stepfleet.Verb) {
	id := s.row(run, step, verb).ID
	s.rows = slices.DeleteFunc(s.rows, func(r stepfleet.AuditRow) bool { return r.ID == id })
}

// insertAfter adds a changed copy of the row after it, and gives all that follow new ids.
func (s *story) insertAfter(row *stepfleet.AuditRow, change func(*stepfleet.AuditRow)) {
	i := slices.IndexFunc(s.rows, func(r stepfleet.AuditRow) bool { return r.ID == row.ID })
	added := *row
	added.ID++
	added.At = added.At.Add(time.Millisecond)
	change(&added)
	for j := i + 1; j < len(s.rows); j++ {
		s.rows[j].ID++
	}
	s.rows = slices.Insert(s.rows, i+1, added)
}

// forget takes a step out of everything but the client history.
func (s *story) forget(run, step string) {
	id := s.first(run, step).ID
	s.rows = slices.DeleteFunc(s.rows, func(r stepfleet.AuditRow) bool { return r.TaskID == id })
	s.tasks = slices.DeleteFunc(s.tasks, func(t audit.Task) bool { return t.ID == id })
	s.effects = slices.DeleteFunc(s.effects, func(e audit.Effect) bool { return e.RunID == run && e.StepKey == step })
	s.dagster = slices.DeleteFunc(s.dagster, func(e audit.DagsterEvent) bool { return e.RunID == run && e.StepKey == step })
}

func (s *story) effectAt(run, step, event string) *audit.Effect {
	i := slices.IndexFunc(s.effects, func(e audit.Effect) bool { return e.RunID == run && e.StepKey == step && e.Event == event })
	return &s.effects[i]
}

func (s *story) effect(run, step, event string) audit.Effect { return *s.effectAt(run, step, event) }

// eventAt returns the step's event of the type, or its last one of another.
func (s *story) eventAt(run, step, kind string) *audit.DagsterEvent {
	var last *audit.DagsterEvent
	for i := range s.dagster {
		if e := &s.dagster[i]; e.RunID == run && e.StepKey == step {
			if last = e; e.Type == kind {
				return e
			}
		}
	}
	return last
}

// event returns a later event of the step.
func (s *story) event(run, step, kind string) audit.DagsterEvent {
	e := *s.eventAt(run, step, kind)
	e.Type, e.ID = kind, int64(len(s.dagster)+1)
	return e
}
