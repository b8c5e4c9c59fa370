//go:build linux

package e2e

import (
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// The worker lives on: its steps' processes are gone and it says so, at once and by itself.
func TestStepsOfAKilledTemplateAreLostAndRunAgain(t *testing.T) {
	s := defaultLauncher(t)
	file, give := release(t)
	run := s.dagster.launch(t, "six_retried", config{ops: numbered("retried", 6, behaviour{"release": file}, nil)})
	s.awaitBegins(t, runTimeout, 6, run)
	victim := s.server.tasks(t, run)[0].Worker
	on := s.server.tasks(t, run).in(stepfleet.StateRunning).on(victim)
	worker := s.pid(t, victim)
	killed := time.Now()
	if err := syscall.Kill(templateOf(t, worker), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.awaitBegins(t, runTimeout, 6+len(on), run)
	t.Logf("next attempts of %d steps had begun %.1f s after the template was killed", len(on), time.Since(killed).Seconds())
	for _, task := range on {
		now := s.server.tasks(t, run).of(t, task.StepKey, 0)
		if now.State != stepfleet.StateLost || now.Result == nil || now.Result.Error == nil || now.Result.Error.Code != "host_died" {
			t.Errorf("task %s is %s with %+v, want lost with host_died", now.Key, now.State, now.Result)
		}
	}
	if s.pid(t, victim) != worker {
		t.Errorf("%s was started again: only its template was killed", victim)
	}
	give()
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	s.server.checkAudit(t, run)
}

func TestRunsGoOnWithoutDaemonAndWebserver(t *testing.T) {
	s := shared(t)
	file, give := release(t)
	run := s.dagster.launch(t, "fan", config{ops: numbered("step", 12, behaviour{}, map[string]any{
		"begin": behaviour{"release": file}, "collect": behaviour{},
	})})
	s.awaitBegins(t, runTimeout, 1, run)
	thaw := s.freeze(t, "dev") // it would start them again
	s.signal(t, "daemon", syscall.SIGKILL)
	s.signal(t, "webserver", syscall.SIGKILL)
	give()
	await(t, runTimeout, "all steps to end", func() (bool, string) {
		tasks := s.server.tasks(t, run)
		return len(tasks.in(stepfleet.StateSucceeded)) == 14, tasks.String()
	})
	if _, err := s.dagster.status(run); err == nil {
		t.Error("the webserver answers although it was killed")
	}
	thaw()
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	s.server.checkAudit(t, run)
}
