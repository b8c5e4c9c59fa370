//go:build linux

package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

func TestStepsBelowAFailedOneDoNotRun(t *testing.T) {
	s := shared(t)
	run := s.dagster.launch(t, "fan", config{ops: map[string]any{"step_5": behaviour{"fail_attempts": 1}}})
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunFailure)
	tasks := s.server.tasks(t, run)
	if len(tasks) != 13 || len(tasks.in(stepfleet.StateSucceeded)) != 12 {
		t.Errorf("ledger: %s, want begin and 12 steps, one of them failed, and no collect", tasks)
	}
	failed := tasks.of(t, "step_5", 0)
	if failed.State != stepfleet.StateFailed || failed.Result == nil || failed.Result.Event != "STEP_FAILURE" {
		t.Errorf("step_5 is %s with %+v, want failed with STEP_FAILURE", failed.State, failed.Result)
	}
	counts := s.dagster.counts(t, run)
	if counts["STEP_FAILURE step_5"] != 1 || counts["STEP_START collect"] != 0 || counts["STEP_FAILURE collect"] != 0 {
		t.Errorf("Dagster's log: %v, want one STEP_FAILURE, and nothing of collect", counts)
	}
	s.server.checkAudit(t, run)
}

func TestStepsWithoutInputAreSkipped(t *testing.T) {
	s := shared(t)
	run := s.dagster.launch(t, "branches", config{})
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	if tasks := s.server.tasks(t, run); len(tasks) != 2 || len(tasks.in(stepfleet.StateSucceeded)) != 2 {
		t.Errorf("ledger: %s, want choose and left", tasks)
	}
	if counts := s.dagster.counts(t, run); counts["STEP_SKIPPED right"] != 1 || counts["STEP_SUCCESS left"] != 1 {
		t.Errorf("Dagster's log: %v, want right skipped and left successful", counts)
	}
}

func TestMappedStepsAreCollected(t *testing.T) {
	s := shared(t)
	run := s.dagster.launch(t, "mapped", config{ops: map[string]any{"split": map[string]any{"count": 4}}})
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	if tasks := s.server.tasks(t, run); len(tasks) != 6 || len(tasks.in(stepfleet.StateSucceeded)) != 6 {
		t.Errorf("ledger: %s, want split, 4 steps and collect", tasks)
	}
	counts := s.dagster.counts(t, run)
	for _, key := range []string{"split", "step[0]", "step[1]", "step[2]", "step[3]", "collect"} {
		if counts["STEP_SUCCESS "+key] != 1 {
			t.Errorf("Dagster's log: %v, want one STEP_SUCCESS of %s", counts, key)
		}
	}
}

// Dagster 1.12 lets a RetryPolicy retry a resource that cannot be set up; before, the step has
// failed then, without an event of its own. The run fails in any case, as under multiprocess.
func TestResourceThatFailsEndsOrRetriesTheStep(t *testing.T) {
	s := shared(t)
	major, minor := s.dagster.version(t)
	retries := major > 1 || minor >= 12
	for job, retried := range map[string]bool{"one_guarded": false, "one_guarded_retried": retries} {
		tries := filepath.Join(t.TempDir(), "tries")
		run := s.dagster.launch(t, job, config{resources: map[string]any{
			"flaky": map[string]any{"tries": tries, "failures": 1},
		}})
		step := strings.TrimPrefix(job, "one_")
		attempts := 1
		if retried {
			attempts = 2
		}
		s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunFailure)
		tasks := s.server.tasks(t, run)
		if len(tasks) != attempts {
			t.Errorf("ledger: %s, want %d attempts", tasks, attempts)
		}
		first := tasks.of(t, step, 0)
		if first.State != stepfleet.StateFailed || first.Result == nil || first.Result.Event != "RESOURCE_INIT_FAILURE" {
			t.Errorf("attempt 0 of %s is %s with %+v, want failed with RESOURCE_INIT_FAILURE", step, first.State, first.Result)
		}
		want := map[string]int{"RESOURCE_INIT_FAILURE": 1, "STEP_UP_FOR_RETRY": 0, "STEP_FAILURE": 0, "STEP_SUCCESS": 0}
		switch {
		case retried:
			want["STEP_UP_FOR_RETRY"], want["STEP_SUCCESS"] = 1, 1
		case retries:
			want["STEP_FAILURE"] = 1
		}
		counts := s.dagster.counts(t, run)
		for kind, n := range want {
			if counts[kind+" "+step] != n {
				t.Errorf("%s has %d %s, want %d; Dagster's log: %v", step, counts[kind+" "+step], kind, n, counts)
			}
		}
		s.server.checkAudit(t, run)
	}
}

// counts says how many events of each type each step has, by "TYPE step".
func (d *dagster) counts(t *testing.T, run string) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, e := range d.events(t, run) {
		if e.Step != "" {
			counts[e.Type+" "+e.Step]++
		}
	}
	return counts
}
