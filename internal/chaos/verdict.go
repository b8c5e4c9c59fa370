package chaos

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// outcome is what a run of chaos leaves behind.
type outcome struct {
	*witnesses
	runs   []runRecord
	faults []*Injected
	span   time.Duration // for which faults were made
	healed time.Time
	// played says why an act could not be played.
	played error
	// drained says why runs or tasks have not ended, left how many processes the stack left.
	drained error
	left    int
}

// judge has the verifier hold the witnesses against each other, and adds what only the harness knows.
func (r *Report) judge(ctx context.Context, c Config, o outcome) error {
	r.Runs, r.Faults = o.runs, o.faults
	found, err := audit.Check(ctx, o.witnessed(c))
	if err != nil {
		return err
	}
	r.Check = found
	r.Counts = Counts{
		Runs: len(o.runs), RunsByStatus: map[string]int{}, Tasks: found.Counts.Tasks, Missing: found.Counts.Missing,
		DoubleStarts: found.Counts.DoubleStarts, DoubleOutcomes: found.Counts.DoubleOutcomes,
		Disagreements: found.Counts.DagsterDisagreements, LeftProcesses: o.left,
	}
	for i := range r.Runs {
		run := &r.Runs[i]
		r.Counts.RunsByStatus[string(run.Status)]++
		run.Failures = o.failures[run.ID]
		if o.failedLaunch(*run) {
			r.Counts.FailedLaunches++
		}
	}
	r.countFaults(o.faults)
	for _, held := range found.Invariants {
		if held.Violations > 0 {
			r.problem(held.ID, "%d times not: %s", held.Violations, held.Sentence)
		}
	}
	for _, v := range found.Violations {
		r.problem(v.Invariant, "%s: %s", v.Key, v.What)
	}
	for _, why := range found.Vacuous {
		r.problem("vacuous", "%s", why)
	}
	if o.played != nil {
		r.problem("vacuous", "%v", o.played)
	}
	if o.drained != nil {
		r.problem("drain", "%v", o.drained)
	}
	if o.left > 0 {
		r.problem("left", "%d processes outlive the stack", o.left)
	}
	r.judgeRecovery(o)
	r.judgeExercised(c, o.faults)
	if c.Partition > 0 {
		r.judgePartition(o, c.effects())
	}
	r.Verdict = audit.Pass
	if !r.Pass() {
		r.Verdict = audit.Fail
	}
	return nil
}

// failedLaunch reports whether Dagster's webserver itself has failed the run in its launch: it could
// not enqueue it, marked it as failed and told the client so. Such a run was never launched.
func (o outcome) failedLaunch(run runRecord) bool {
	return run.Status == dagsterapi.RunFailure && !slices.ContainsFunc(o.dagster, func(e audit.DagsterEvent) bool {
		return e.RunID == run.ID && e.Type != "ENGINE_EVENT" && e.Type != "PIPELINE_FAILURE"
	})
}

// witnessed gives the verifier what it holds against each other.
func (o outcome) witnessed(c Config) audit.Witnesses {
	var runs []audit.Run
	for _, r := range o.runs {
		if o.failedLaunch(r) {
			continue
		}
		run := audit.Run{
			ID: r.ID, Job: r.Job, Status: string(r.Status), Cancelled: !r.Cancelled.IsZero(), NoRetries: slices.Contains(noRetries, r.Job),
		}
		if o.hurt[r.ID] && run.Status == "FAILURE" {
			run.Want = run.Status // a step's process was killed: that is a lost step by another name
		}
		runs = append(runs, run)
	}
	var faults []audit.Fault
	for _, f := range o.faults {
		faults = append(faults, audit.Fault{
			Kind: string(f.Kind), Target: f.Target, At: f.Landed, Until: f.Healed, Landed: f.Ok(), Detail: f.Missed,
			Host: f.Kind == schedule.PauseHost || f.Kind == schedule.FreezeHost,
		})
	}
	var kinds []string
	if c.Partition == 0 && c.Act == "" {
		for _, kind := range c.plan().Kinds() {
			kinds = append(kinds, string(kind))
		}
	}
	for i := range o.sessions {
		o.sessions[i].SessionTTL, o.sessions[i].RunLease = c.Lifetimes.SessionTTL, c.Lifetimes.RunLease
	}
	return audit.Witnesses{
		Client: audit.Slice(o.client...), Effects: c.effects(), Audit: audit.Slice(o.audit...), Tasks: audit.Slice(o.tasks...),
		Sessions: audit.Slice(o.sessions...), Dagster: audit.Slice(o.dagster...), Runs: audit.Slice(runs...),
		Faults: faults, Span: o.span, Healed: o.healed, Within: drainTimeout, Rest: &o.rest, Lifetimes: c.Lifetimes, Snapshot: true,
		Want: audit.Want{
			Tasks: c.LeastTasks, Runs: c.LeastRuns, Kinds: kinds, FaultsPerKind: c.Least, FaultsPerMinute: float64(c.PerMinute),
			AnsweredShare: 0.8, SucceededShare: 0.5, Refusals: c.LeastRefusals, Recoveries: c.LeastRecoveries, Cases: c.cases(),
		},
	}
}

// emptyInPartition may have no case where one worker is cut off and nothing else is done: nobody loses a
// task there, so nobody is refused one. The zombies of every other run, of the shortest too, make cases of
// each invariant.
var emptyInPartition = []string{"I9"}

// cases returns the invariants that must have had a case.
func (c *Config) cases() (ids []string) {
	empty := acts[c.Act].empty
	if c.Partition > 0 {
		empty = emptyInPartition
	}
	for _, inv := range audit.Invariants {
		if !slices.Contains(empty, inv.ID) {
			ids = append(ids, inv.ID)
		}
	}
	return ids
}

func (r *Report) countFaults(faults []*Injected) {
	r.Landed, r.Links = map[schedule.Kind]int{}, map[string]int{}
	for _, f := range faults {
		if !f.Ok() {
			r.Counts.MissedFaults++
			continue
		}
		r.Counts.Faults++
		r.Landed[f.Kind]++
		if f.Kind.Mode() != "" {
			edge, _, _ := strings.Cut(f.Target, "/")
			r.Links[edge+" "+string(f.Kind.Mode())]++
		}
	}
}

// Summary says in a few lines what happened.
func (r *Report) Summary() string {
	var text strings.Builder
	fmt.Fprintf(&text, "  runs %v\n  tasks %v\n  refused %v, faults missed %d, launches that failed in Dagster's webserver %d\n",
		r.Counts.RunsByStatus, r.Check.Counts.ByState, r.Check.Counts.Refused, r.Counts.MissedFaults, r.Counts.FailedLaunches)
	for _, kind := range slices.Sorted(maps.Keys(r.Landed)) {
		fmt.Fprintf(&text, "  %-18s %d\n", kind, r.Landed[kind])
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Recovery)) {
		one := r.Recovery[kind]
		fmt.Fprintf(&text, "  recovery by %s: %d sessions, %d tasks, p99 %.3f s\n", kind, one.Sessions.Count, one.Tasks.Count, one.P99Seconds)
	}
	fmt.Fprintf(&text, "  %d tasks taken from owners that ended by themselves\n  cases:", r.Unmeasured)
	for _, held := range r.Check.Invariants {
		fmt.Fprintf(&text, " %s %d", held.ID, held.Cases)
	}
	text.WriteByte('\n')
	for _, held := range r.Check.Invariants {
		if held.Unchecked != "" {
			fmt.Fprintf(&text, "  %s was not checked: %s\n", held.ID, held.Unchecked)
		}
		for _, part := range held.Unseen {
			fmt.Fprintf(&text, "  %s does not say whether there was a %s: no witness was asked\n", held.ID, part)
		}
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&text, "  PROBLEM %s: %s\n", p.Kind, p.What)
	}
	return text.String()
}
