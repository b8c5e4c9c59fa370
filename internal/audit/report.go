package audit

import (
	"time"

	"github.com/stepfleet/stepfleet"
)

// Verdict is what a check ends with.
type Verdict string

// The verdicts.
const (
	Pass Verdict = "PASS"
	Fail Verdict = "FAIL"
)

// MaxViolations bounds how many violations of one invariant are listed; all are counted.
const MaxViolations = 100

// Report is the outcome of a check, as JSON and for timelines.
type Report struct {
	Verdict Verdict `json:"verdict"`
	// Vacuous says why the history proves too little; nothing is in it when it proves enough.
	Vacuous    []string    `json:"vacuous"`
	Counts     Counts      `json:"counts"`
	Invariants []Held      `json:"invariants"`
	Violations []Violation `json:"violations"`
}

// Held says of one invariant whether it was checked and held.
type Held struct {
	ID       string `json:"id"`
	Sentence string `json:"sentence"`
	// Cases is how many cases were looked at. Unchecked says why there was none to look at.
	Cases     int    `json:"cases"`
	Unchecked string `json:"unchecked,omitempty"`
	// Unseen are parts of it that no witness spoke of; the others were checked.
	Unseen     []string `json:"unseen,omitempty"`
	Violations int      `json:"violations"`
}

// Violation is one case in which an invariant did not hold.
type Violation struct {
	Invariant string `json:"invariant"`
	Sentence  string `json:"sentence"`
	// What says what was found, in words.
	What   string           `json:"what"`
	TaskID stepfleet.TaskID `json:"task_id,omitempty"`
	stepfleet.Key
	// Evidence is what every witness says of the task or the run, by time.
	Evidence []Moment `json:"evidence"`
	// Timeline is the file that shows it, where one was written.
	Timeline string `json:"timeline,omitempty"`
}

// Moment is one line of evidence.
type Moment struct {
	At      time.Time `json:"at"`
	Witness string    `json:"witness"` // client, effect, ledger, dagster, fault
	Actor   string    `json:"actor"`
	What    string    `json:"what"`
	Fence   string    `json:"fence,omitempty"`
	Refused bool      `json:"refused,omitempty"`
}

// Counts is the history in numbers.
type Counts struct {
	AuditRows     int `json:"audit_rows"`
	Tasks         int `json:"tasks"`
	Runs          int `json:"runs"`
	Effects       int `json:"effects"`
	DagsterEvents int `json:"dagster_events"`
	ClientEvents  int `json:"client_events"`
	// ForeignEffects are lines of the effect log that no step of stepfleet's has written, UnloggedRuns
	// runs of which Dagster's log has nothing, or not the begin.
	ForeignEffects int `json:"foreign_effects,omitempty"`
	UnloggedRuns   int `json:"unlogged_runs,omitempty"`
	// ByState counts tasks, Refused refused writes by code.
	ByState map[stepfleet.State]int `json:"by_state"`
	Refused map[string]int          `json:"refused"`

	// Of the client history: operations that were asked and answered; submits by key in the terms
	// of Jepsen's total-queue.
	Asked        int `json:"asked"`
	Answered     int `json:"answered"`
	Attempted    int `json:"attempted"`
	Acknowledged int `json:"acknowledged"`
	Recovered    int `json:"recovered"` // no answer came, and the task ended all the same

	Missing              int `json:"missing"`               // acknowledged and without an outcome: I1
	DoubleStarts         int `json:"double_starts"`         // I2
	DoubleOutcomes       int `json:"double_outcomes"`       // I3
	DagsterDisagreements int `json:"dagster_disagreements"` // I7

	RunsEnded  int          `json:"runs_ended"` // in Dagster
	Faults     int          `json:"faults"`     // that landed
	FaultKinds []FaultCount `json:"faults_by_kind"`
	Seconds    float64      `json:"seconds"` // how long faults were made
	Sweeps     int          `json:"sweeps"`  // tasks taken from owners that were gone
	// OverlapMax is the longest that user code was seen at work after its task had another owner or
	// had ended.
	OverlapMax float64 `json:"overlap_max_seconds"`
	// Recovery is how long after the deadline that applied the sweep took tasks; after a proven death, how
	// long after the last renewal, which may be some seconds before it.
	Recovery Quantiles `json:"recovery_seconds"`
}

// Quantiles of a set of durations in seconds.
type Quantiles struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// FaultCount counts the faults of one kind.
type FaultCount struct {
	Kind   string `json:"kind"`
	Tried  int    `json:"tried"`
	Landed int    `json:"landed"`
}
