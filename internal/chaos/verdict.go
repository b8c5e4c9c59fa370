package chaos

import (
	"fmt"
	"maps"
	"slices"
	"syscall"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// judge holds the witnesses against each other and fills the report in.
func (r *Report) judge(w witnesses, runs []runRecord, faults []*Injected, drained error, left int) {
	r.Runs, r.Faults = runs, faults
	r.count(w, runs, faults)
	r.Counts.Missing = r.judgeSubmits(w)
	r.Counts.DoubleStarts = r.judgeStarts(w)
	r.Counts.DoubleOutcomes = r.judgeOutcomes(w)
	r.Counts.Disagreements = r.judgeLog(w)
	r.judgeRuns(w, runs)
	r.judgeRecovery(w, faults)
	if drained != nil {
		r.problem("liveness", "%v", drained)
	}
	if r.Counts.LeftProcesses = left; left > 0 {
		r.problem("left", "%d processes outlive the stack", left)
	}
	r.judgeVacuity()
	r.Verdict = "PASS"
	if !r.Pass() {
		r.Verdict = "FAIL"
	}
}

func (r *Report) count(w witnesses, runs []runRecord, faults []*Injected) {
	c := &r.Counts
	c.Runs, c.RunsByStatus, c.TasksByState = len(runs), map[string]int{}, map[string]int{}
	for _, run := range runs {
		c.RunsByStatus[string(run.Status)]++
	}
	for _, t := range w.Tasks {
		if t.Kind == stepfleet.KindStep {
			c.Tasks++
		}
		c.TasksByState[string(t.Kind)+" "+string(t.State)]++
	}
	for _, a := range w.Audit {
		if a.Refused != "" {
			c.RefusedWrites++
		}
	}
	r.Landed, r.Links = map[schedule.Kind]int{}, map[string]int{}
	for _, f := range faults {
		if !f.Ok() {
			c.MissedFaults++
			continue
		}
		c.Faults++
		r.Landed[f.Kind]++
		if f.Kind.Mode() != "" {
			kind, _, _ := cutLast(f.Target)
			r.Links[kind+" "+string(f.Kind.Mode())]++
		}
	}
}

// cutLast cuts an edge's name into its kind and whose it is.
func cutLast(edge string) (kind, whose string, ok bool) {
	for i := len(edge) - 1; i >= 0; i-- {
		if edge[i] == '/' {
			return edge[:i], edge[i+1:], true
		}
	}
	return edge, "", false
}

// judgeSubmits counts the acknowledged tasks without an outcome.
func (r *Report) judgeSubmits(w witnesses) (missing int) {
	ended := map[stepfleet.Key]bool{}
	for _, t := range w.Tasks {
		ended[t.Key] = t.State.Terminal()
	}
	for _, line := range w.History {
		if line.F == "submit" && line.Type == "ok" && !ended[line.Key] {
			missing++
			ended[line.Key] = true
			r.problem("missing", "%s was acknowledged and has no outcome", line.Key)
		}
	}
	return missing
}

// judgeStarts counts the attempts whose code began more than once.
func (r *Report) judgeStarts(w witnesses) (double int) {
	begun := map[stepfleet.Key][]effect{}
	for _, e := range w.Effects {
		if e.Event == "begin" {
			begun[e.Key] = append(begun[e.Key], e)
		}
	}
	for key, all := range begun {
		if len(all) > 1 {
			double++
			r.problem("double start", "%s began %d times: processes %d and %d", key, len(all), all[0].PID, all[1].PID)
		}
	}
	return double
}

// judgeOutcomes counts the tasks that ended more than once in the audit trail, or in another state than
// their row says.
func (r *Report) judgeOutcomes(w witnesses) (double int) {
	ends := map[int64][]auditRow{}
	for _, a := range w.Audit {
		from, to := stepfleet.State(a.From), stepfleet.State(a.To)
		if a.TaskID != 0 && a.Refused == "" && to.Terminal() && !from.Terminal() {
			ends[a.TaskID] = append(ends[a.TaskID], a)
		}
	}
	for _, t := range w.Tasks {
		switch all := ends[t.ID]; {
		case len(all) > 1:
			double++
			r.problem("double outcome", "%s ended %d times: %s by %s, then %s by %s", t.Key, len(all), all[0].To, all[0].Verb, all[1].To, all[1].Verb)
		case t.State.Terminal() && (len(all) == 0 || all[0].To != string(t.State)):
			double++
			r.problem("double outcome", "%s is %s, its audit trail says %v", t.Key, t.State, all)
		}
	}
	return double
}

// endings are the events that end an attempt.
var endings = []string{"STEP_SUCCESS", "STEP_FAILURE", "STEP_UP_FOR_RETRY"}

// judgeLog counts the attempts of which Dagster's log and the ledger say different things: a second
// ending, or a success that only one of the two knows.
func (r *Report) judgeLog(w witnesses) (disagreements int) {
	type step struct{ run, key string }
	logged, attempts := map[step][]logRow{}, map[step][]taskRow{}
	for _, e := range w.Log {
		if slices.Contains(endings, e.Type) {
			at := step{e.RunID, e.Step}
			logged[at] = append(logged[at], e)
		}
	}
	for _, t := range w.Tasks {
		if t.Kind == stepfleet.KindStep {
			at := step{t.RunID, t.StepKey}
			attempts[at] = append(attempts[at], t)
		}
	}
	for at, ends := range logged {
		tasks := attempts[at]
		slices.SortFunc(tasks, func(a, b taskRow) int { return a.Attempt - b.Attempt })
		if len(ends) > len(tasks) {
			disagreements++
			r.problem("dagster", "run %s step %s has %d endings %s and %d attempts", at.run, at.key, len(ends), types(ends), len(tasks))
			continue
		}
		for i, e := range ends {
			if succeeded := tasks[i].State == stepfleet.StateSucceeded; succeeded != (e.Type == "STEP_SUCCESS") && !retryAsked(tasks[i], e) {
				disagreements++
				r.problem("dagster", "%s is %s in the ledger and %s in Dagster's log", tasks[i].Key, tasks[i].State, e.Type)
			}
		}
	}
	for at, tasks := range attempts {
		for _, t := range tasks[min(len(logged[at]), len(tasks)):] {
			if t.State == stepfleet.StateSucceeded {
				disagreements++
				r.problem("dagster", "%s is succeeded in the ledger and has no ending in Dagster's log", t.Key)
			}
		}
	}
	return disagreements
}

// retryAsked: a task whose code ran to its end and asked for another attempt has done what it should.
func retryAsked(t taskRow, e logRow) bool {
	return t.State == stepfleet.StateSucceeded && e.Type != "STEP_SUCCESS" && t.Code == ""
}

func types(rows []logRow) []string {
	var all []string
	for _, row := range rows {
		all = append(all, row.Type)
	}
	return all
}

// judgeRuns requires SUCCESS of every run that was not cancelled and lost no step.
func (r *Report) judgeRuns(w witnesses, runs []runRecord) {
	hurt := map[string]bool{}
	for _, t := range w.Tasks {
		killed := t.Code == "process_died" && t.ExitCode == -int(syscall.SIGKILL)
		if t.Kind == stepfleet.KindStep && (t.State == stepfleet.StateLost || t.State == stepfleet.StateDead || killed) {
			hurt[t.RunID] = true
		}
	}
	for _, run := range runs {
		if run.Status != dagsterapi.RunSuccess && run.Cancelled.IsZero() && !hurt[run.ID] {
			r.problem("run", "run %s of %s ended %s: it was not cancelled and lost no step", run.ID, run.Job, run.Status)
		}
	}
}

// judgeVacuity fails a run that proves nothing.
func (r *Report) judgeVacuity() {
	c, want := r.Counts, r.Config
	need := func(what string, have, least int) {
		if have < least {
			r.problem("vacuous", "%d %s, want at least %d", have, what, least)
		}
	}
	need("tasks", c.Tasks, want.LeastTasks)
	need("runs", c.Runs, want.LeastRuns)
	need("runs that succeeded", c.RunsByStatus[string(dagsterapi.RunSuccess)], want.LeastRuns/2)
	need("faults", c.Faults, int(float64(want.PerMinute)*want.DurationSeconds/60))
	plan := schedule.Plan{Without: (&Config{FIFO: want.FIFO}).without()}
	for _, kind := range plan.Kinds() {
		need("faults of kind "+string(kind), r.Landed[kind], want.Least)
	}
}

// Summary says in a few lines what happened.
func (r *Report) Summary() string {
	text := fmt.Sprintf("  runs %v\n  tasks %v\n  refused writes %d, faults missed %d\n", r.Counts.RunsByStatus, r.Counts.TasksByState, r.Counts.RefusedWrites, r.Counts.MissedFaults)
	for _, kind := range slices.Sorted(maps.Keys(r.Landed)) {
		text += fmt.Sprintf("  %-18s %d\n", kind, r.Landed[kind])
	}
	for _, p := range r.Problems {
		text += fmt.Sprintf("  PROBLEM %s: %s\n", p.Kind, p.What)
	}
	return text
}
