//go:build linux

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// killOwner kills the worker that runs the task, without a word.
func (s *stack) killOwner(t *testing.T, task stepfleet.View) time.Time {
	t.Helper()
	worker := s.pid(t, task.Worker)
	killed := time.Now()
	if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	return killed
}

func (s *stack) awaitTask(t *testing.T, run string, attempt int, want stepfleet.State) stepfleet.View {
	t.Helper()
	var found stepfleet.View
	await(t, runTimeout, fmt.Sprintf("attempt %d of run %s to be %s", attempt, run, want), func() (bool, string) {
		tasks := s.server.tasks(t, run)
		for _, task := range tasks.in(want) {
			if task.Attempt == attempt {
				found = task
				return true, ""
			}
		}
		return false, tasks.String()
	})
	return found
}

// The worker dies between the step's STEP_SUCCESS and its report: while the success hook runs.
func TestAStepThatHadSucceededWhenItsWorkerDiedIsRepaired(t *testing.T) {
	s := defaultLauncher(t)
	file, give := release(t)
	defer give()
	run := s.dagster.launch(t, "one_hooked", config{ops: map[string]any{"work_0": behaviour{"hook_release": file}}})
	await(t, runTimeout, "STEP_SUCCESS of run "+run, func() (bool, string) {
		counts := s.dagster.counts(t, run)
		return counts["STEP_SUCCESS work_0"] == 1, fmt.Sprint(counts)
	})
	killed := s.killOwner(t, s.awaitTask(t, run, 0, stepfleet.StateRunning))
	s.dagster.awaitEnd(t, recoverWithin, run, dagsterapi.RunSuccess)
	t.Logf("repaired, and the run ended, %s after the kill", time.Since(killed).Round(time.Millisecond))
	tasks := s.server.tasks(t, run)
	task := tasks.of(t, "work_0", 0)
	if len(tasks) != 1 || task.State != stepfleet.StateSucceeded || !strings.Contains(task.Reason, stepfleet.EventSuccess) {
		t.Errorf("ledger: %s, its reason %q", tasks, task.Reason)
	}
	rows := s.server.checkAudit(t, run)
	if !slices.ContainsFunc(rows, func(r stepfleet.AuditRow) bool { return r.TaskID == task.ID && r.Verb == stepfleet.VerbRepair }) {
		t.Errorf("no repair among %+v", rows)
	}
	if counts := s.dagster.counts(t, run); counts["STEP_SUCCESS work_0"] != 1 || counts["STEP_FAILURE work_0"] != 0 || counts["STEP_UP_FOR_RETRY work_0"] != 0 {
		t.Errorf("Dagster's log: %v", counts)
	}
}

// By this the server tells what a dead process has left in Dagster's database.
func TestConnectionsGoByTheirProcess(t *testing.T) {
	s := defaultLauncher(t)
	file, give := release(t)
	defer give()
	run := s.dagster.launch(t, "one", config{ops: map[string]any{"work_0": behaviour{"release": file}}})
	task := s.awaitTask(t, run, 0, stepfleet.StateRunning)
	sessions, err := s.server.sessions()
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(sessions, func(other stepfleet.Session) bool { return other.ID == task.Session })
	if at < 0 {
		t.Fatalf("no session %d among %+v", task.Session, sessions)
	}
	worker, conn := stepfleet.ConnectionNameOf(sessions[at].Instance, 0), s.dagsterDatabase(t)
	defer conn.Close(context.Background())
	names := func() (names []string) {
		err := conn.QueryRow(t.Context(), `SELECT coalesce(array_agg(application_name), '{}') FROM pg_stat_activity
WHERE left(application_name, length($1)) = $1`, worker).Scan(&names)
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	found := names()
	if len(found) == 0 {
		t.Errorf("no connection goes by %s", worker)
	}
	for _, name := range found {
		number, err := strconv.Atoi(strings.TrimPrefix(name, worker))
		if group, groupErr := syscall.Getpgid(number); err != nil || groupErr != nil || group != number {
			t.Errorf("connection %s: no process leads that group (%v, %v)", name, err, groupErr)
		}
	}
	s.killOwner(t, task)
	s.awaitTask(t, run, 0, stepfleet.StateLost)
	if left := names(); len(left) != 0 {
		t.Errorf("decided with %v still there", left)
	}
}

// A step that takes its worker with it three times is not given a fourth.
func TestAStepWhoseAttemptsAreLostIsRefusedWithTheEvidence(t *testing.T) {
	s := defaultLauncher(t)
	file, give := release(t)
	defer give()
	run := s.dagster.launch(t, "one", config{
		executor: map[string]any{"lost_step_retries": 9}, ops: map[string]any{"work_0": behaviour{"release": file}},
	})
	for attempt := range stepfleet.PoisonLost {
		killed := s.killOwner(t, s.awaitTask(t, run, attempt, stepfleet.StateRunning))
		s.awaitTask(t, run, attempt, stepfleet.StateLost)
		t.Logf("attempt %d was lost %s after the kill", attempt, time.Since(killed).Round(time.Millisecond))
	}
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunFailure)
	dead := s.server.tasks(t, run).of(t, "work_0", stepfleet.PoisonLost)
	const evidence = "3 attempts of this step were lost"
	if dead.State != stepfleet.StateDead || !strings.Contains(dead.Reason, evidence) || !dead.StartedAt.IsZero() {
		t.Errorf("ledger: %+v", dead)
	}
	var says string
	for _, e := range s.dagster.events(t, run) {
		if e.Type == "STEP_FAILURE" {
			says += e.Message + " " + e.reason()
		}
	}
	for _, want := range []string{evidence, "attempt 0 on worker", "attempt 2 on worker"} {
		if !strings.Contains(says, want) {
			t.Errorf("STEP_FAILURE says %q, want %q", says, want)
		}
	}
	s.server.checkAudit(t, run)
}
