//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// Four witnesses of a run that lost a worker agree, and a task's life can be told.
func TestVerifyOfARunThatLostAWorker(t *testing.T) {
	s := defaultLauncher(t) // its run workers outlive a worker
	file, give := release(t)
	run := s.dagster.launch(t, "six", config{
		executor: map[string]any{"lost_step_retries": 1}, ops: numbered("work", 6, behaviour{"release": file}, nil),
	})
	s.awaitBegins(t, runTimeout, 6, run)
	victim := s.server.tasks(t, run).in(stepfleet.StateRunning)[0]
	if err := syscall.Kill(s.pid(t, victim.Worker), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	next := victim.Key
	next.Attempt++
	await(t, recoverWithin, "the attempt after "+victim.Key.String(), func() (bool, string) {
		_, begun := s.begins(t, run)[next]
		return begun, s.server.tasks(t, run).String()
	})
	give()
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)

	out, status := s.command(t, "verify", "--run", run, "--effects", s.effects, "--dagster-dsn-file", s.state().DagsterURL)
	if status != 0 || !strings.Contains(out, "verify: PASS") {
		t.Errorf("verify ended with status %d:\n%s", status, out)
	}
	for _, checked := range []string{"I2", "I3", "I5", "I6", "I7", "I8", "I9", "I10", "P1"} {
		if !strings.Contains(out, "  ok   "+checked+" ") {
			t.Errorf("verify has not checked %s:\n%s", checked, out)
		}
	}
	out, status = s.command(t, "verify", "--run", run, "--dagster-url", s.state().URLs["dagster"])
	if status != 0 || !strings.Contains(out, "  ok   I7 ") {
		t.Errorf("verify by Dagster's webserver ended with status %d:\n%s", status, out)
	}
	out, status = s.command(t, "task", "explain", victim.Key.String())
	if status != 0 || !strings.Contains(out, "it is lost") || !strings.Contains(out, "worker "+victim.Worker+") started it") {
		t.Errorf("task explain ended with status %d:\n%s", status, out)
	}
}

// command runs one of stepfleet's on the stack's ledger and returns what it prints.
func (s *stack) command(t *testing.T, args ...string) (out string, status int) {
	t.Helper()
	dsn, err := os.ReadFile(s.state().LedgerURL)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "STEPFLEET_DATABASE_URL="+strings.TrimSpace(string(dsn)))
	cmd.Stdout, cmd.Stderr = &text, &text
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return text.String(), cmd.ProcessState.ExitCode()
}
