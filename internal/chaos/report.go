package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
)

// Report is what a run of chaos found, as it is written in JSON.
type Report struct {
	Verdict  audit.Verdict         `json:"verdict"`
	Config   ReportedConfig        `json:"config"`
	Began    time.Time             `json:"began"`
	Phases   []Phase               `json:"phases"`
	Counts   Counts                `json:"counts"`
	Landed   map[schedule.Kind]int `json:"landed"`
	Links    map[string]int        `json:"links"` // landed, by edge and mode
	Problems []Problem             `json:"problems"`
	Runs     []runRecord           `json:"runs"`
	Faults   []*Injected           `json:"faults"`
	Recovery map[string]Recovery   `json:"recovery"` // by kind of deadline
	Check    audit.Report          `json:"check"`
	// Unmeasured counts the tasks that were taken from owners that had ended by themselves, or of whose last
	// renewal nothing is known: no deadline applied to them.
	Unmeasured int `json:"recovery_unmeasured"`
	// Survived counts the steps that ran on through a partition.
	Survived int `json:"survived,omitempty"`
}

// Phase is a part and how long it took.
type Phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// ReportedConfig is what tells one run of chaos from another.
type ReportedConfig struct {
	Seed            uint64  `json:"seed"`
	DurationSeconds float64 `json:"duration_seconds"`
	FIFO            bool    `json:"fifo"`
	Partition       float64 `json:"partition_seconds,omitempty"`
	Act             string  `json:"act,omitempty"`
	TTLSeconds      float64 `json:"session_ttl_seconds"`
	RunLeaseSeconds float64 `json:"run_lease_seconds"`
	// StartWithinSeconds is how long a lease may wait for its start.
	StartWithinSeconds float64 `json:"start_within_seconds"`
	Least              int     `json:"least_of_each_kind"`
	PerMinute          int     `json:"least_faults_per_minute"`
	LeastTasks         int     `json:"least_tasks"`
	LeastRuns          int     `json:"least_runs"`
	LeastRefusals      int     `json:"least_refusals"`
	LeastRecoveries    int     `json:"least_recoveries"`
}

func reported(c Config) ReportedConfig {
	return ReportedConfig{
		Seed: c.Seed, DurationSeconds: c.Duration.Seconds(), FIFO: c.FIFO, Partition: c.Partition.Seconds(), Act: c.Act, TTLSeconds: c.Lifetimes.SessionTTL.Seconds(),
		RunLeaseSeconds: c.Lifetimes.RunLease.Seconds(), Least: c.Least, PerMinute: c.PerMinute,
		StartWithinSeconds: c.Lifetimes.StartWithin.Seconds(),
		LeastTasks:         c.LeastTasks, LeastRuns: c.LeastRuns, LeastRefusals: c.LeastRefusals, LeastRecoveries: c.LeastRecoveries,
	}
}

// Counts are the figures of the last line, and those it rests on.
type Counts struct {
	Runs            int            `json:"runs"`
	RunsByStatus    map[string]int `json:"runs_by_status"`
	Tasks           int            `json:"tasks"`
	Faults          int            `json:"faults"`
	MissedFaults    int            `json:"missed_faults"`
	Missing         int            `json:"missing"`
	DoubleStarts    int            `json:"double_starts"`
	DoubleOutcomes  int            `json:"double_outcomes"`
	Disagreements   int            `json:"dagster_disagreements"`
	FailedLaunches  int            `json:"failed_launches"` // by Dagster's webserver, which told the client
	LeftProcesses   int            `json:"left_processes"`
	RecoveryP99Secs float64        `json:"recovery_p99_seconds"`
}

// Problem is one reason for FAIL.
type Problem struct {
	Kind string `json:"kind"`
	What string `json:"what"`
}

func (r *Report) problem(kind, format string, args ...any) {
	r.Problems = append(r.Problems, Problem{kind, fmt.Sprintf(format, args...)})
}

// Pass reports the verdict.
func (r *Report) Pass() bool { return len(r.Problems) == 0 }

// String is the last line.
func (r *Report) String() string {
	c := r.Counts
	return fmt.Sprintf("chaos: %s seed=%d tasks=%d faults=%d missing=%d double_starts=%d double_outcomes=%d dagster_disagreements=%d recovery_p99_seconds=%.1f",
		r.Verdict, r.Config.Seed, c.Tasks, c.Faults, c.Missing, c.DoubleStarts, c.DoubleOutcomes, c.Disagreements, c.RecoveryP99Secs)
}

// Write writes the report.
func (r *Report) Write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
