//go:build linux

package e2e

import (
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

func TestStepThatExitsFailsTheRunWithItsStatus(t *testing.T) {
	testCrash(t, behaviour{"exit_status": 7}, "exited with status 7", 7)
}

func TestStepThatSegfaultsFailsTheRunWithItsSignal(t *testing.T) {
	testCrash(t, behaviour{"crash": true}, "signal 11 (segmentation fault)", -11)
}

// testCrash runs a step whose process dies without a word, and looks for the reason in Dagster's
// event log and in the ledger.
func testCrash(t *testing.T, dies behaviour, reason string, status int) {
	s := shared(t)
	run := s.dagster.launch(t, "one", config{ops: map[string]any{"work_0": dies}})
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunFailure)
	failures := 0
	for _, e := range s.dagster.events(t, run) {
		if e.Type == "STEP_FAILURE" {
			failures++
			if text := e.Message + " " + e.reason(); e.Step != "work_0" || !strings.Contains(text, reason) {
				t.Errorf("STEP_FAILURE of %s says %q, want %q", e.Step, text, reason)
			}
		}
	}
	if failures != 1 {
		t.Errorf("%d STEP_FAILURE events, want 1", failures)
	}
	task := s.server.tasks(t, run).of(t, "work_0", 0)
	if task.State != stepfleet.StateFailed || task.Result == nil || task.Result.ExitCode != status {
		t.Errorf("ledger: %s with %+v, want failed with exit code %d", task.State, task.Result, status)
	}
	s.server.checkAudit(t, run)
}
