package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/stepfleet/stepfleet"
)

// Report is report.json.
type Report struct {
	Word string `json:"verdict"`
	Verdict
	Killed  []Kill      `json:"killed"`
	Phases  []Phase     `json:"phases"`
	Jobs    []RunRecord `json:"run_records"`
	Records []Record    `json:"records"`
}

// Phase is a part of the demo and how long it took.
type Phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// Kill is a worker that the demo killed.
type Kill struct {
	Worker string   `json:"worker"`
	PID    int      `json:"pid"`
	Steps  []string `json:"running_steps"`
}

// Record is one attempt as the ledger has it.
type Record struct {
	RunID   string          `json:"run_id"`
	Job     string          `json:"job"`
	StepKey string          `json:"step_key"`
	Attempt int             `json:"attempt"`
	Worker  string          `json:"worker"`
	Fence   stepfleet.Fence `json:"fence"`
	States  []Reached       `json:"states"`
	Outcome stepfleet.State `json:"outcome"`
	Reason  string          `json:"reason,omitempty"`
}

// Reached is a state of a task and when it got there.
type Reached struct {
	State stepfleet.State `json:"state"`
	At    time.Time       `json:"at"`
}

// records makes the report's records of the ledger's views.
func records(tasks []stepfleet.View) []Record {
	list := make([]Record, 0, len(tasks))
	for _, t := range tasks {
		r := Record{
			RunID: t.RunID, Job: t.Job, StepKey: t.StepKey, Attempt: t.Attempt, Worker: t.Worker,
			Fence: t.Fence, Outcome: t.State, Reason: t.Reason,
		}
		for _, reached := range []Reached{
			{stepfleet.StateQueued, t.SubmittedAt},
			{stepfleet.StateLeased, t.ClaimedAt},
			{stepfleet.StateRunning, t.StartedAt},
			{t.State, t.EndedAt},
		} {
			if !reached.At.IsZero() {
				r.States = append(r.States, reached)
			}
		}
		list = append(list, r)
	}
	return list
}

// write writes report.json.
func (r Report) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// print prints the report for people; the verdict's line is printed by itself, at the very end.
func (r Report) print(out io.Writer, tasks []stepfleet.View) {
	fmt.Fprintln(out)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "  job\trun\tended\texpected\tsteps\tattempts\tlost\tseconds")
	for _, run := range r.Jobs {
		steps, attempts, lost := tally(run.ID, tasks)
		fmt.Fprintf(table, "  %s\t%.8s\t%s\t%s\t%d\t%d\t%d\t%.1f\n",
			run.Job, run.ID, run.Status, run.Want, steps, attempts, lost, run.Seconds)
	}
	table.Flush()
	fmt.Fprintln(out)
	for _, k := range r.Killed {
		fmt.Fprintf(out, "  killed %s (process %d) with SIGKILL while it ran %s\n", k.Worker, k.PID, strings.Join(k.Steps, ", "))
	}
	for _, t := range tasks {
		if t.State == stepfleet.StateLost {
			fmt.Fprintf(out, "  lost   %s attempt %d on %s: known %.1f s after its start\n",
				t.StepKey, t.Attempt, t.Worker, t.EndedAt.Sub(t.StartedAt).Seconds())
		}
	}
	waits := waitsOf(tasks)
	if len(waits) > 0 {
		fmt.Fprintf(out, "  a first step attempt waited %s (median), %s (95 of 100) from submit to its start\n",
			quantile(waits, 0.5), quantile(waits, 0.95))
	}
	fmt.Fprintf(out, "  steps ran on %s\n", strings.Join(r.Workers, ", "))
	fmt.Fprintf(out, "  bells of SQS led to %d claims of workers that ended in peace\n", r.Bells)
	for _, p := range r.Problems {
		fmt.Fprintf(out, "  PROBLEM %s\n", p)
	}
	for _, p := range r.Phases {
		fmt.Fprintf(out, "  %-32s %6.1f s\n", p.Name, p.Seconds)
	}
}

func tally(runID string, tasks []stepfleet.View) (steps, attempts, lost int) {
	seen := map[string]bool{}
	for _, t := range tasks {
		if t.RunID != runID {
			continue
		}
		seen[t.StepKey] = true
		attempts++
		if t.State == stepfleet.StateLost {
			lost++
		}
	}
	return len(seen), attempts, lost
}

// waitsOf returns how long tasks waited from submit to start, shortest first.
func waitsOf(tasks []stepfleet.View) []time.Duration {
	var waits []time.Duration
	for _, t := range tasks {
		if !t.StartedAt.IsZero() && t.Attempt == 0 {
			waits = append(waits, t.StartedAt.Sub(t.SubmittedAt))
		}
	}
	slices.Sort(waits)
	return waits
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[int(q*float64(len(sorted)-1))].Round(time.Millisecond)
}
