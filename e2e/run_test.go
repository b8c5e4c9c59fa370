//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// runTimeout bounds a run that nothing disturbs, on a machine that has other work.
const runTimeout = 90 * time.Second

func TestChainAndFanOutSucceed(t *testing.T) {
	s := shared(t)
	began := time.Now()
	chain := s.dagster.launch(t, "chain", config{})
	fan := s.dagster.launch(t, "fan", config{})
	s.dagster.awaitEnd(t, runTimeout, chain, dagsterapi.RunSuccess)
	s.dagster.awaitEnd(t, runTimeout, fan, dagsterapi.RunSuccess)
	t.Logf("4 steps in a line and 14 in a fan took %.1f s from launch", time.Since(began).Seconds())
	for run, steps := range map[string]int{chain: 4, fan: 14} {
		tasks := s.server.tasks(t, run)
		if done := tasks.in(stepfleet.StateSucceeded); len(done) != steps || len(tasks) != steps {
			t.Errorf("ledger: %s, want %d succeeded", tasks, steps)
		}
		if ends := firstOf("end", s.readEffects(t, run)); len(ends) != steps {
			t.Errorf("effect log: %d ends, want %d", len(ends), steps)
		}
		s.server.checkAudit(t, run)
	}
}

func TestOutputOfEachStepIsShownByDagster(t *testing.T) {
	s := shared(t)
	run := s.dagster.launch(t, "chain", config{})
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	shown := map[string]bool{}
	for _, e := range s.dagster.events(t, run) {
		if e.Type != "LOGS_CAPTURED" || len(e.StepKeys) != 1 {
			continue
		}
		step := e.StepKeys[0]
		shown[step] = true
		stdout, stderr := s.dagster.logs(t, run, e.FileKey)
		if want := fmt.Sprintf("stdout of %s, attempt 0", step); strings.Count(stdout, "stdout of ") != 1 || !strings.Contains(stdout, want) {
			t.Errorf("stdout of step %s is %q, want %q and of no other step", step, stdout, want)
		}
		if want := fmt.Sprintf("stderr of %s, attempt 0", step); strings.Count(stderr, "stderr of ") != 1 || !strings.Contains(stderr, want) {
			t.Errorf("stderr of step %s is %q, want %q in it and of no other step", step, stderr, want)
		}
	}
	for _, step := range []string{"begin", "step_1", "step_2", "step_3"} {
		if !shown[step] {
			t.Errorf("no LOGS_CAPTURED event of step %s", step)
		}
	}
}

func TestEachAttemptOfARetryPolicyIsATask(t *testing.T) {
	s := shared(t)
	run := s.dagster.launch(t, "one_retried", config{ops: map[string]any{"retried_0": behaviour{"fail_attempts": 1}}})
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	tasks := s.server.tasks(t, run)
	if len(tasks) != 2 {
		t.Fatalf("ledger: %s, want two attempts", tasks)
	}
	first, second := tasks.of(t, "retried_0", 0), tasks.of(t, "retried_0", 1)
	if first.State != stepfleet.StateFailed || first.Result == nil || first.Result.Event != "STEP_UP_FOR_RETRY" {
		t.Errorf("attempt 0 is %s with %+v, want failed with STEP_UP_FOR_RETRY", first.State, first.Result)
	}
	if second.State != stepfleet.StateSucceeded || second.Result == nil || second.Result.Event != "STEP_SUCCESS" {
		t.Errorf("attempt 1 is %s with %+v, want succeeded with STEP_SUCCESS", second.State, second.Result)
	}
	if first.RetryBudget.PolicyRetries != 1 {
		t.Errorf("policy_retries is %d, want 1", first.RetryBudget.PolicyRetries)
	}
	for _, task := range tasks {
		verbs := []stepfleet.Verb{}
		for _, row := range s.server.checkAudit(t, run) {
			if row.TaskID == task.ID {
				verbs = append(verbs, row.Verb)
			}
		}
		want := []stepfleet.Verb{stepfleet.VerbSubmit, stepfleet.VerbClaim, stepfleet.VerbStart, stepfleet.VerbSettle}
		if !slices.Equal(verbs, want) {
			t.Errorf("audit of attempt %d: %v, want %v", task.Attempt, verbs, want)
		}
	}
}

func TestTwoRunsHaveFortyStepsInFlightAtOnce(t *testing.T) {
	s := shared(t)
	file, give := release(t)
	c := config{ops: numbered("work", 20, behaviour{"release": file}, nil)}
	began := time.Now()
	one, two := s.dagster.launch(t, "twenty", c), s.dagster.launch(t, "twenty", c)
	begins := s.awaitBegins(t, runTimeout, 40, one, two)
	t.Logf("40 steps had begun %.1f s after launch", time.Since(began).Seconds())
	perWorker := map[string]int{}
	for _, e := range begins {
		perWorker[e.Worker]++
	}
	if perWorker["worker-1"] != 20 || perWorker["worker-2"] != 20 {
		t.Errorf("begins by worker: %v, want 20 each", perWorker)
	}
	for _, run := range []string{one, two} {
		if running := s.server.tasks(t, run).in(stepfleet.StateRunning); len(running) != 20 {
			t.Errorf("ledger has %d running tasks of run %s, want 20", len(running), run)
		}
	}
	give()
	s.dagster.awaitEnd(t, runTimeout, one, dagsterapi.RunSuccess)
	s.dagster.awaitEnd(t, runTimeout, two, dagsterapi.RunSuccess)
	s.server.checkAudit(t, one)
	s.server.checkAudit(t, two)
}

// The steps wait; the run is cancelled once the submission has been looked at.
func TestThousandStepsAreSubmittedInOneCommit(t *testing.T) {
	s := shared(t)
	file, _ := release(t)
	run := s.dagster.launch(t, "dynamic", config{ops: map[string]any{
		"split": map[string]any{"count": 1000}, "step": behaviour{"release": file},
	}})
	var pieces views
	await(t, runTimeout, "1000 tasks in the ledger", func() (bool, string) {
		pieces = slices.DeleteFunc(s.server.tasks(t, run), func(v stepfleet.View) bool { return v.StepKey == "split" })
		return len(pieces) > 0, fmt.Sprintf("%d tasks", len(pieces))
	})
	if len(pieces) != 1000 {
		t.Errorf("a reader sees %d tasks of the fan-out, want none or all 1000", len(pieces))
	}
	for _, piece := range pieces {
		if piece.Payload != pieces[0].Payload {
			t.Errorf("task %s has a payload of its own: the fan-out shares one", piece.Key)
		}
	}
	first, last := pieces[0].SubmittedAt, pieces[0].SubmittedAt
	for _, piece := range pieces {
		if piece.SubmittedAt.Before(first) {
			first = piece.SubmittedAt
		}
		if piece.SubmittedAt.After(last) {
			last = piece.SubmittedAt
		}
	}
	t.Logf("submit times of 1000 tasks lie within %s", last.Sub(first))
	s.awaitBegins(t, runTimeout, 41, run) // split, and as many as there are slots
	asked := time.Now()
	s.dagster.terminate(t, run)
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunCanceled)
	tasks := awaitAllEnded(t, s, run)
	t.Logf("40 running and 960 waiting steps were cancelled %.1f s after the cancel in Dagster", time.Since(asked).Seconds())
	if cancelled := tasks.in(stepfleet.StateCancelled); len(cancelled) != 1000 {
		t.Errorf("%d tasks are cancelled, want 1000", len(cancelled))
	}
	if begins := s.begins(t, run); len(begins) != 41 {
		t.Errorf("%d steps began, want 41: none starts after the cancel", len(begins))
	}
}

// awaitAllEnded waits for the end of the run's steps and run workers, and returns the steps.
func awaitAllEnded(t *testing.T, s *stack, run string) views {
	t.Helper()
	var tasks views
	await(t, 15*time.Second, "every task to end", func() (bool, string) {
		tasks = s.server.allTasks(t, run)
		return len(tasks.open()) == 0, tasks.open().String()
	})
	return tasks.kind(stepfleet.KindStep)
}
