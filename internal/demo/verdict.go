package demo

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// Effect is a line of the effect log: user code's own word on what it did, written outside Dagster
// and stepfleet (examples/stepfleet_examples/effects.py).
type Effect = audit.Effect

// ParseEffects reads an effect log.
func ParseEffects(log io.Reader) ([]Effect, error) {
	var effects []Effect
	source := audit.ReadEffects(func() (io.ReadCloser, error) { return io.NopCloser(log), nil })
	for effect, err := range source(context.Background()) {
		if err != nil {
			return nil, err
		}
		effects = append(effects, effect)
	}
	return effects, nil
}

// RunRecord is a run that was launched, how it should end, and how it did.
type RunRecord struct {
	ID     string               `json:"run_id"`
	Job    string               `json:"job"`
	Want   dagsterapi.RunStatus `json:"expected"`
	Status dagsterapi.RunStatus `json:"status"`
	// Seconds is from start to end as Dagster saw it.
	Seconds float64 `json:"seconds"`
}

// Verdict is what the witnesses say together: Dagster (how runs ended), the ledger (tasks), user code
// itself (the effect log), and the workers (their logs).
type Verdict struct {
	Runs     int `json:"runs"`
	Steps    int `json:"steps"`
	Attempts int `json:"attempts"`
	// Lost counts attempts that began and died with their worker.
	Lost int `json:"lost"`
	// Doubled counts attempts whose user code began more than once.
	Doubled int `json:"doubled"`
	// Missing counts steps that the ledger calls succeeded and whose user code never came to its end.
	Missing int `json:"missing"`
	// Bells counts claims that a bell of SQS led to.
	Bells   int      `json:"claims_by_bell"`
	Workers []string `json:"workers"`
	// Problems says everything that speaks against PASS, for people.
	Problems []string `json:"problems"`
}

// minWorkers is how many workers must have run steps: with one, nothing was distributed.
const minWorkers = 2

// Judge compares the witnesses.
func Judge(effects []Effect, tasks []stepfleet.View, runs []RunRecord, bells int) Verdict {
	v := Verdict{Runs: len(runs), Attempts: len(tasks), Bells: bells, Workers: []string{}, Problems: []string{}}
	begins, ends := count(effects, "begin"), count(effects, "end")
	v.judgeRuns(runs, tasks)
	v.judgeTasks(tasks, begins, ends)
	v.judgeEffects(effects, tasks, begins)
	if v.Lost == 0 {
		v.problem("no attempt was lost: the kill hit nothing, so nothing was proved")
	}
	if v.Bells == 0 {
		v.problem("no bell led to a claim: SQS delivered nothing, and workers found every task in the ledger")
	}
	if len(v.Workers) < minWorkers {
		v.problem("steps ran on %d worker(s) %v, want at least %d", len(v.Workers), v.Workers, minWorkers)
	}
	return v
}

// judgeRuns holds each run against its expected status; a run whose steps nobody recorded did not go
// through the fleet at all.
func (v *Verdict) judgeRuns(runs []RunRecord, tasks []stepfleet.View) {
	recorded := map[string]bool{}
	for _, t := range tasks {
		recorded[t.RunID] = true
	}
	for _, run := range runs {
		if run.Status != run.Want {
			v.problem("run %s of %s ended %s, expected %s", run.ID, run.Job, run.Status, run.Want)
		}
		if !recorded[run.ID] {
			v.problem("run %s of %s has no task in the ledger", run.ID, run.Job)
		}
	}
	if len(runs) == 0 {
		v.problem("no run was launched")
	}
}

func (v *Verdict) judgeTasks(tasks []stepfleet.View, begins, ends map[stepfleet.Key]int) {
	steps := map[string]bool{}
	workers := map[string]bool{}
	for _, t := range tasks {
		steps[t.RunID+"/"+t.StepKey] = true
		if begins[t.Key] > 0 && t.Worker != "" {
			workers[t.Worker] = true
		}
		switch {
		case !t.State.Terminal():
			v.problem("task %s is still %s", t.Key, t.State)
		case t.State == stepfleet.StateLost:
			v.Lost++
		case t.State == stepfleet.StateSucceeded && ends[t.Key] == 0:
			v.Missing++
			v.problem("task %s is succeeded, but its code never came to its end", t.Key)
		}
	}
	v.Steps = len(steps)
	for worker := range workers {
		v.Workers = append(v.Workers, worker)
	}
	slices.Sort(v.Workers)
}

// judgeEffects counts what ran twice, and what ran without the ledger's leave.
func (v *Verdict) judgeEffects(effects []Effect, tasks []stepfleet.View, begins map[stepfleet.Key]int) {
	known := map[stepfleet.Key]stepfleet.View{}
	for _, t := range tasks {
		known[t.Key] = t
	}
	seen := map[stepfleet.Key]bool{}
	for _, e := range effects {
		if seen[e.Key] {
			continue
		}
		seen[e.Key] = true
		if n := begins[e.Key]; n > 1 {
			v.Doubled++
			v.problem("code of %s began %d times", e.Key, n)
		}
		if t, ok := known[e.Key]; !ok {
			v.problem("code of %s ran, and the ledger does not know it", e.Key)
		} else if t.StartedAt.IsZero() {
			v.problem("code of %s ran, and the ledger has no start of it", e.Key)
		}
	}
}

func (v *Verdict) problem(format string, args ...any) {
	v.Problems = append(v.Problems, fmt.Sprintf(format, args...))
}

// count counts the events of one kind by attempt.
func count(effects []Effect, event string) map[stepfleet.Key]int {
	n := map[stepfleet.Key]int{}
	for _, e := range effects {
		if e.Event == event {
			n[e.Key]++
		}
	}
	return n
}

// Pass reports whether nothing speaks against it.
func (v Verdict) Pass() bool { return len(v.Problems) == 0 }

// Word is PASS or FAIL.
func (v Verdict) Word() string {
	if v.Pass() {
		return "PASS"
	}
	return "FAIL"
}

// String is the last line of the demo, for people and for scripts.
func (v Verdict) String() string {
	return strings.Join([]string{
		"demo:", v.Word(), fmt.Sprintf("runs=%d", v.Runs), fmt.Sprintf("steps=%d", v.Steps),
		fmt.Sprintf("attempts=%d", v.Attempts), fmt.Sprintf("lost=%d", v.Lost),
		fmt.Sprintf("doubled=%d", v.Doubled), fmt.Sprintf("missing=%d", v.Missing),
	}, " ")
}

// Failed is the verdict's line of a demo that could not be carried out.
func Failed() string { return Verdict{Problems: []string{"not carried out"}}.String() }
