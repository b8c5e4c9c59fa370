package chaos

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
)

// ended returns the outcome of a history with two runs that failed: one that began, and one that
// Dagster's webserver could not enqueue.
func ended() outcome {
	return outcome{
		witnesses: &witnesses{
			hurt: map[string]bool{},
			dagster: []audit.DagsterEvent{
				{ID: 1, RunID: "began", Type: "PIPELINE_ENQUEUED"},
				{ID: 2, RunID: "began", Type: "PIPELINE_FAILURE"},
				{ID: 3, RunID: "refused", Type: "ENGINE_EVENT"},
				{ID: 4, RunID: "refused", Type: "PIPELINE_FAILURE"},
			},
			failures: map[string][]string{"began": {"why"}},
		},
		runs: []runRecord{{ID: "began", Job: "wide", Status: "FAILURE"}, {ID: "refused", Job: "wide", Status: "FAILURE"}},
	}
}

func verdict(t *testing.T, o outcome) *Report {
	t.Helper()
	return judgedBy(t, Config{Duration: time.Minute, Lifetimes: Lifetimes, Partition: time.Minute}, o)
}

// judgedBy is the verdict where user code has done nothing.
func judgedBy(t *testing.T, c Config, o outcome) *Report {
	t.Helper()
	c.Dir = t.TempDir()
	if err := writeLines(c.effectLog(), []audit.Effect{}); err != nil {
		t.Fatal(err)
	}
	r := &Report{Config: reported(c)}
	if err := r.judge(t.Context(), c, o); err != nil {
		t.Fatal(err)
	}
	return r
}

func problems(r *Report, kind string) (what []string) {
	for _, p := range r.Problems {
		if p.Kind == kind {
			what = append(what, p.What)
		}
	}
	return what
}

func TestARunMustSucceedUnlessItWasNeverLaunched(t *testing.T) {
	r := verdict(t, ended())
	found := strings.Join(problems(r, "R1"), "\n")
	if r.Verdict != audit.Fail || !strings.Contains(found, "began") || strings.Contains(found, "refused") {
		t.Errorf("%s: %s, want the run that began", r.Verdict, found)
	}
	if r.Counts.FailedLaunches != 1 || len(r.Runs[0].Failures) != 1 {
		t.Errorf("%+v, want one launch that failed, and why the run did", r.Counts)
	}
	o := ended()
	o.hurt["began"] = true
	if found := problems(verdict(t, o), "R1"); len(found) > 0 {
		t.Errorf("%q, but a step's process was killed", found)
	}
}

// judged is the verdict on a schedule's run that left nothing behind but what o says.
func judged(t *testing.T, duration time.Duration, o outcome) *Report {
	t.Helper()
	return judgedBy(t, Config{Duration: duration, Lifetimes: Lifetimes, LeastRefusals: 2, LeastRecoveries: 3}, o)
}

func TestARunWithoutRefusalsAndRecoveriesProvesNothing(t *testing.T) {
	r := judged(t, time.Minute, ended())
	found := strings.Join(problems(r, "vacuous"), "\n")
	for _, want := range []string{"0 writes of old owners were refused, want at least 2", "0 tasks were taken from owners that were gone, want at least 3"} {
		if !strings.Contains(found, want) {
			t.Errorf("%q, want %q", found, want)
		}
	}
	if r.Config.LeastRefusals != 2 || r.Config.LeastRecoveries != 3 {
		t.Errorf("%+v, want the floors in the report", r.Config)
	}
}

func TestALongRunMustHaveSeenEveryDeadline(t *testing.T) {
	for _, kind := range []string{byProof, byTTL, byRunLease} {
		want := "after chaos of 5m0s nothing was recovered by " + kind
		if found := problems(judged(t, Whole, ended()), "vacuous"); !slices.Contains(found, want) {
			t.Errorf("%q, want %q", found, want)
		}
	}
}

// Others read this line.
func TestTheLastLineKeepsItsForm(t *testing.T) {
	r := &Report{Verdict: audit.Pass, Config: ReportedConfig{Seed: 7}, Counts: Counts{Tasks: 500, Faults: 300, RecoveryP99Secs: 1.25}}
	const want = "chaos: PASS seed=7 tasks=500 faults=300 missing=0 double_starts=0 double_outcomes=0 dagster_disagreements=0 recovery_p99_seconds=1.2"
	if got := r.String(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestAnInvariantWithoutACaseProvesNothing(t *testing.T) {
	cases := func(r *Report) (found []string) {
		for _, what := range problems(r, "vacuous") {
			if id, _, ok := strings.Cut(what, " had no case"); ok {
				found = append(found, id)
			}
		}
		return found
	}
	if got := cases(judged(t, time.Minute, ended())); !slices.Contains(got, "I9") || !slices.Contains(got, "I2") || slices.Contains(got, "R1") {
		t.Errorf("without a case: %v; want those of which the history has none", got)
	}
	if got := cases(verdict(t, ended())); slices.Contains(got, "I9") || !slices.Contains(got, "I2") {
		t.Errorf("without a case in a partition: %v; nobody is refused anything there", got)
	}
	for name, one := range acts {
		got := cases(judgedBy(t, Config{Act: name, Lifetimes: Lifetimes}, ended()))
		for _, id := range one.empty {
			if slices.Contains(got, id) || !slices.ContainsFunc(audit.Invariants, func(inv audit.Invariant) bool { return inv.ID == id }) {
				t.Errorf("without a case in the act %s: %v; it makes none of %s", name, got, id)
			}
		}
		if !slices.Contains(got, "I7") {
			t.Errorf("without a case in the act %s: %v; it must make some of I7", name, got)
		}
	}
	text := judged(t, time.Minute, ended()).Summary()
	for _, inv := range audit.Invariants {
		if !strings.Contains(text, " "+inv.ID+" ") {
			t.Errorf("the summary does not say how many cases %s had", inv.ID)
		}
	}
	if !strings.Contains(text, "I14 does not say whether there was a protected worker") {
		t.Errorf("the summary does not say what nobody looked at:\n%s", text)
	}
}

func TestAPartitionThatMeetsNoStepProvesNothing(t *testing.T) {
	if found := problems(verdict(t, ended()), "vacuous"); len(found) == 0 {
		t.Error("no step ran through the partition, and it passed")
	}
}

func TestOnlyFaultsThatLandedCount(t *testing.T) {
	r := &Report{}
	landed := &Injected{Fault: schedule.Fault{Kind: schedule.LinkCut}, Target: "worker-PG/worker-1", Landed: time.Unix(1, 0)}
	missed := &Injected{Fault: schedule.Fault{Kind: schedule.LinkCut}, Missed: "no victim"}
	r.countFaults([]*Injected{landed, missed})
	if r.Counts.Faults != 1 || r.Counts.MissedFaults != 1 || r.Links["worker-PG cut"] != 1 {
		t.Errorf("%+v %v", r.Counts, r.Links)
	}
}
