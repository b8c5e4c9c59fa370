package audit_test

import (
	"context"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
)

// ledgerAlone leaves what is verified of a window of a ledger in use, beside Dagster's log.
func (s *story) ledgerAlone() audit.Witnesses {
	w := s.witnesses()
	w.Client, w.Effects, w.Runs, w.Rest, w.Healed = nil, nil, nil, nil, time.Time{}
	w.Holds = audit.Slice(s.holds...)
	return w
}

// cut is the window of the story that ends or begins at a moment, as the ledger shows it: the rows by
// their times, the tasks that these name and those that were submitted by then.
func (s *story) cut(from, until time.Time) audit.Witnesses {
	w := s.ledgerAlone()
	rows := slices.DeleteFunc(slices.Clone(s.rows), func(r stepfleet.AuditRow) bool {
		return r.At.Before(from) || !until.IsZero() && !r.At.Before(until)
	})
	named := map[stepfleet.TaskID]bool{}
	for _, r := range rows {
		named[r.TaskID] = true
	}
	tasks := slices.DeleteFunc(slices.Clone(s.tasks), func(t audit.Task) bool {
		return !named[t.ID] && (t.SubmittedAt.Before(from) || !until.IsZero() && !t.SubmittedAt.Before(until))
	})
	w.Audit, w.Tasks, w.From, w.Until = audit.Slice(rows...), audit.Slice(tasks...), from, until
	w.Later = s.later
	return w
}

// later is the ledger at the end of the story.
func (s *story) later(ctx context.Context, runs []string) iter.Seq2[audit.Task, error] {
	return audit.Slice(slices.DeleteFunc(slices.Clone(s.tasks), func(t audit.Task) bool {
		return !slices.Contains(runs, t.RunID)
	})...)(ctx)
}

func check(t *testing.T, w audit.Witnesses) audit.Report {
	t.Helper()
	report, err := audit.Check(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// A task's row has times that are a little before its audit rows'. Whatever the window's end, no row is
// missing for that.
func TestAWindowMayEndBetweenATaskAndItsAuditRow(t *testing.T) {
	s := tell(t)
	const gap = 47 * time.Millisecond
	for i := range s.tasks {
		task := &s.tasks[i]
		task.SubmittedAt = task.SubmittedAt.Add(-gap)
		if !task.EndedAt.IsZero() {
			task.EndedAt = task.EndedAt.Add(-gap)
		}
	}
	for _, row := range s.rows {
		report := check(t, s.cut(time.Time{}, row.At.Add(-gap/2)))
		for _, v := range report.Violations {
			t.Errorf("until %s of task %d: %s %s", row.Verb, row.TaskID, v.Invariant, v.What)
		}
	}
	w := s.cut(time.Time{}, s.rows[len(s.rows)-1].At)
	w.Audit = audit.Slice(slices.DeleteFunc(slices.Clone(s.rows), func(r stepfleet.AuditRow) bool { return r.TaskID == s.tasks[0].ID })...)
	if report := check(t, w); report.Verdict != audit.Fail {
		t.Error("a task without any audit row passes")
	}
}

// The clocks of workers may be wrong as they like: what is compared is chosen by the ledger's.
func TestWrongClocksOfWorkersChangeNothing(t *testing.T) {
	for _, off := range []time.Duration{0, 2 * time.Second, -2 * time.Second, 2 * time.Hour, -2 * time.Hour} {
		s := tell(t)
		for i := range s.dagster {
			s.dagster[i].At = s.dagster[i].At.Add(off)
		}
		first, last := s.rows[0].At, s.rows[len(s.rows)-1].At
		for at := first; at.Before(last); at = at.Add(50 * time.Millisecond) {
			for side, w := range map[string]audit.Witnesses{"from": s.cut(at, time.Time{}), "until": s.cut(time.Time{}, at)} {
				for _, v := range check(t, w).Violations {
					t.Errorf("clocks off by %s, %s %s after the begin: %s %s: %s", off, side, at.Sub(first), v.Invariant, v.Key, v.What)
				}
			}
		}
		s.eventAt("r1", "e", "STEP_FAILURE").Type = "STEP_SUCCESS"
		report := check(t, s.cut(first, last.Add(time.Second)))
		if len(report.Violations) != 1 || report.Violations[0].StepKey != "e" {
			t.Errorf("clocks off by %s: what Dagster calls succeeded and the ledger failed: %+v", off, report.Violations)
		}
	}
}

// A step that the ledger has nothing of is none from before the window when the second look does not show it
// either. Without one nobody can say.
func TestAStepThatTheLedgerHasLostIsFoundInAWindow(t *testing.T) {
	s := tell(t)
	e := s.event("r1", "a", "STEP_SUCCESS")
	e.StepKey = "ghost"
	s.dagster = append(s.dagster, e)
	first := s.rows[0].At
	for from, want := range map[time.Time]int{first.Add(-time.Second): 1, first.Add(time.Second): 1} {
		if report := check(t, s.cut(from, time.Time{})); len(report.Violations) != want {
			t.Errorf("from %s after the begin: %+v, want %d", from.Sub(first), report.Violations, want)
		}
	}
	blind := s.cut(first.Add(time.Second), time.Time{})
	blind.Later = nil
	if report := check(t, blind); len(report.Violations) != 0 {
		t.Errorf("without a second look: %+v", report.Violations)
	}
	if report := check(t, s.cut(time.Time{}, first.Add(time.Second))); len(report.Violations) != 1 {
		t.Errorf("until before its event: %+v, want it found", report.Violations)
	}
}

// A zombie's write is refused long after the next attempt has ended.
func TestARefusedWriteDoesNotBringItsStepIntoTheWindow(t *testing.T) {
	s := tell(t)
	refused := slices.IndexFunc(s.rows, func(r stepfleet.AuditRow) bool { return r.Refused != "" && r.TaskID == s.first("r1", "b").ID })
	late := s.rows[refused]
	late.ID, late.At = s.rows[len(s.rows)-1].ID+1, s.rows[len(s.rows)-1].At.Add(time.Hour)
	s.rows = append(slices.Delete(s.rows, refused, refused+1), late)
	w := s.cut(late.At.Add(-time.Minute), time.Time{})
	w.Later = nil
	if report := check(t, w); report.Verdict != audit.Pass || report.Counts.Tasks != 1 {
		t.Errorf("%d tasks: %+v", report.Counts.Tasks, report.Violations)
	}
}

// Dagster's log is read after the ledger. What has begun or been submitted in between is looked up.
func TestWhatHappenedAfterTheLedgerWasReadIsNoViolation(t *testing.T) {
	for name, spoil := range map[string]func(*story){
		"a task was started":          func(s *story) { s.queue("r3", "y") },
		"an attempt was submitted":    func(s *story) { s.unsubmit("r1", "b") },
		"a whole step was submitted":  func(s *story) { s.unsubmit("r1", "c") },
		"a cancelled one has a start": nil,
	} {
		then := tell(t)
		now := tell(t)
		if spoil == nil {
			then.add("r2", "z", "STEP_START")
		} else {
			spoil(then)
		}
		for _, later := range []*story{now, then} {
			w := then.ledgerAlone()
			w.Until, w.Snapshot, w.Later = then.rows[len(then.rows)-1].At.Add(time.Hour), true, later.later
			report := check(t, w)
			want := audit.Pass
			if later == then || spoil == nil {
				want = audit.Fail
			}
			if report.Verdict != want {
				t.Errorf("%s: %s, want %s: %+v", name, report.Verdict, want, report.Violations)
			}
		}
	}
}

// unsubmit takes the last attempt of the step out of the ledger.
func (s *story) unsubmit(run, step string) {
	id := s.last(run, step).ID
	s.rows = slices.DeleteFunc(s.rows, func(r stepfleet.AuditRow) bool { return r.TaskID == id })
	s.tasks = slices.DeleteFunc(s.tasks, func(t audit.Task) bool { return t.ID == id })
}

// The start of an attempt that was given up may come after that of the next one: it is no second one.
func TestALateStartOfTheFirstAttemptIsNoSecondStart(t *testing.T) {
	s := tell(t)
	s.eventAt("r1", "b", "STEP_START").Type = "ENGINE_EVENT"
	s.add("r1", "b", "STEP_START")
	if report := s.check(t); report.Verdict != audit.Pass {
		t.Errorf("%+v", report.Violations)
	}
}

// On a system in use a task may be open for as long as it likes, and be held for as long as its owner
// speaks.
func TestATaskHangsWhenNobodySpeaksForIt(t *testing.T) {
	for name, c := range map[string]struct {
		hold stepfleet.Hold
		says string
	}{
		"a session that speaks":       {stepfleet.Hold{State: stepfleet.StateRunning, Session: 3, Silent: 20 * time.Second, RunLease: 3 * time.Minute}, ""},
		"a session dead for a while":  {stepfleet.Hold{State: stepfleet.StateRunning, Session: 3, Silent: 7 * time.Minute, RunLease: 3 * time.Minute}, ""},
		"a longer run lease":          {stepfleet.Hold{State: stepfleet.StateRunning, Session: 3, Silent: time.Hour, RunLease: time.Hour}, ""},
		"a session that is silent":    {stepfleet.Hold{State: stepfleet.StateRunning, Session: 3, Silent: 3 * time.Hour, RunLease: 3 * time.Minute}, "it is running, and its session 3 is silent for 3h0m0s"},
		"a lease that nobody sweeps":  {stepfleet.Hold{State: stepfleet.StateLeased, Session: 3, Silent: 9 * time.Minute, RunLease: 3 * time.Minute}, "it is leased, and its session 3 is silent for 9m0s"},
		"abandoned and not decided":   {stepfleet.Hold{State: stepfleet.StateRunning, Session: 3, Abandoned: true, Silent: 3 * time.Hour, RunLease: 3 * time.Minute}, "session 3 has abandoned it 3h0m0s ago"},
		"abandoned a short while ago": {stepfleet.Hold{State: stepfleet.StateRunning, Session: 3, Abandoned: true, Silent: time.Minute, RunLease: 3 * time.Minute}, ""},
	} {
		s := tell(t)
		c.hold.ID, c.hold.Key = 4711, stepfleet.Key{RunID: "before the window", StepKey: "s"}
		s.holds = []stepfleet.Hold{c.hold}
		report := check(t, s.ledgerAlone())
		switch {
		case c.says == "" && report.Verdict != audit.Pass:
			t.Errorf("%s: %+v", name, report.Violations)
		case c.says != "" && (len(report.Violations) != 1 || report.Violations[0].Invariant != "I12" || !strings.Contains(report.Violations[0].What, c.says)):
			t.Errorf("%s: %+v, want %q", name, report.Violations, c.says)
		}
	}
}

// Dagster itself may end a run beside its run worker, as with every executor. What it may not show is an
// end too many of a run that nobody else has ended.
func TestHowOftenARunMayEnd(t *testing.T) {
	const start, canceling, canceled, success, failure = "PIPELINE_START", "PIPELINE_CANCELING", "PIPELINE_CANCELED", "PIPELINE_SUCCESS", "PIPELINE_FAILURE"
	for name, c := range map[string]struct {
		events  []string
		bereft  bool // the server has ended the cancelled run
		foreign bool // its run worker is no task
		want    audit.Verdict
	}{
		"once":                                {events: []string{start, success}, want: audit.Pass},
		"not yet":                             {events: []string{start}, want: audit.Pass},
		"twice":                               {events: []string{start, failure, success}, want: audit.Fail},
		"the same twice":                      {events: []string{start, success, success}, want: audit.Fail},
		"cancelled, and too late":             {events: []string{start, canceling, success}, want: audit.Pass},
		"forced while it ended":               {events: []string{start, canceling, canceled, canceled}, want: audit.Pass},
		"forced without a way to tell it":     {events: []string{start, canceled, success}, want: audit.Pass},
		"ended by the daemon after its time":  {events: []string{start, canceling, failure, canceled}, want: audit.Pass},
		"and once more":                       {events: []string{start, canceling, failure, canceled, success}, want: audit.Fail},
		"launched after Dagster gave it up":   {events: []string{failure, start, success}, want: audit.Pass},
		"ended by the server":                 {events: []string{start, canceling, canceled}, bereft: true, want: audit.Pass},
		"ended by the server, and late":       {events: []string{start, canceling, canceled, success}, bereft: true, want: audit.Fail},
		"given up by another launcher's":      {events: []string{start, failure, success}, foreign: true, want: audit.Pass},
		"given up by another's, and too much": {events: []string{start, failure, success, success}, foreign: true, want: audit.Fail},
	} {
		s := tell(t)
		run := "r3"
		if c.foreign {
			run = "r1"
		}
		s.dagster = slices.DeleteFunc(s.dagster, func(e audit.DagsterEvent) bool { return e.StepKey == "" })
		for _, kind := range c.events {
			s.add(run, "", kind)
		}
		if c.bereft {
			last := s.rows[len(s.rows)-1]
			s.rows = append(s.rows, stepfleet.AuditRow{
				ID: last.ID + 1, At: last.At, RunID: run, Verb: stepfleet.VerbClose, Actor: "server",
				Detail: "the run was cancelled in Dagster " + stepfleet.RunWorkerGone,
			})
		}
		if report := s.check(t); report.Verdict != c.want {
			t.Errorf("%s: %s, want %s: %+v", name, report.Verdict, c.want, report.Violations)
		}
	}
}

// An attempt that has no process ends too, be it poisoned or cancelled, and its executor writes the end.
func TestAnAttemptMayEndUnstartedAfterTheLedgerWasRead(t *testing.T) {
	for state, want := range map[stepfleet.State]audit.Verdict{
		stepfleet.StateDead: audit.Pass, stepfleet.StateCancelled: audit.Pass, stepfleet.StateLeased: audit.Fail,
	} {
		s := tell(t)
		s.queue("r1", "e")
		s.dagster = slices.DeleteFunc(s.dagster, func(e audit.DagsterEvent) bool { return e.StepKey == "e" && e.Type == "STEP_START" })
		w := s.ledgerAlone()
		w.Until, w.Snapshot = s.rows[len(s.rows)-1].At.Add(time.Hour), true
		now := *s.last("r1", "e")
		now.State = state
		w.Later = func(ctx context.Context, _ []string) iter.Seq2[audit.Task, error] { return audit.Slice(now)(ctx) }
		if report := check(t, w); report.Verdict != want {
			t.Errorf("%s by now: %s, want %s: %+v", state, report.Verdict, want, report.Violations)
		}
	}
}

// A run goes on while it is verified: what was acknowledged after the ledger was read has no row there.
func TestWhatClientsSawAfterTheLedgerWasReadIsLeftOut(t *testing.T) {
	for after, want := range map[time.Duration]audit.Verdict{time.Minute: audit.Pass, -time.Hour: audit.Fail} {
		s := tell(t)
		key := stepfleet.Key{RunID: "r1", StepKey: "c"}
		s.last("r1", "c").State = stepfleet.StateRunning
		s.dropRow("r1", "c", stepfleet.VerbSettle)
		w := s.ledgerAlone()
		w.Until, w.Snapshot, w.Effects = s.rows[len(s.rows)-1].At.Add(2*time.Hour), true, audit.Slice(s.effects...)
		at := w.Until.Add(after)
		w.Client = audit.Slice(append(s.client,
			audit.ClientEvent{At: at, Type: audit.Invoke, F: audit.OpCancel, Op: 99, Key: key},
			audit.ClientEvent{At: at.Add(time.Second), Type: audit.OK, F: audit.OpCancel, Op: 99, Key: key},
			audit.ClientEvent{At: at.Add(2 * time.Second), Type: audit.Invoke, F: audit.OpRead, Op: 100, Key: key},
			audit.ClientEvent{At: at.Add(3 * time.Second), Type: audit.OK, F: audit.OpRead, Op: 100, Key: key, State: stepfleet.StateCancelled})...)
		if report := check(t, w); report.Verdict != want {
			t.Errorf("%s after: %s, want %s: %+v", after, report.Verdict, want, report.Violations)
		}
	}
}
