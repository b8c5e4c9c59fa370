//go:build linux

package e2e

import (
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// serverOutage is how long the killed server stays down at least, bellOutage how long SQS hangs.
const (
	serverOutage = 5 * time.Second
	bellOutage   = 20 * time.Second
)

// Steps end, a step is released and a run is launched while there is no server. dev would start
// it again after a second, so dev is stopped meanwhile.
func TestRunsSurviveAKilledServer(t *testing.T) {
	s := shared(t)
	file, give := release(t)
	going := s.dagster.launch(t, "fan", config{ops: numbered("step", 12, behaviour{"release": file}, map[string]any{
		"begin": behaviour{}, "collect": behaviour{},
	})})
	s.awaitBegins(t, runTimeout, 13, going)

	thaw := s.freeze(t, "dev")
	killed := time.Now()
	s.signal(t, "server", syscall.SIGKILL)
	give()
	launched := s.dagster.launch(t, "chain", config{})
	await(t, runTimeout, "the steps to end without a server", func() (bool, string) {
		return len(firstOf("end", s.readEffects(t, going))) == 13, ""
	})
	time.Sleep(time.Until(killed.Add(serverOutage))) // the outage is the thing tested
	if s.server.ready() == nil {
		t.Fatal("the server answers although it was killed")
	}
	thaw()
	s.awaitHealthy(t)
	back := time.Now()
	t.Logf("the server was away for %.1f s", back.Sub(killed).Seconds())
	s.dagster.awaitEnd(t, runTimeout, going, dagsterapi.RunSuccess)
	s.dagster.awaitEnd(t, runTimeout, launched, dagsterapi.RunSuccess)
	t.Logf("both runs had ended %.1f s after it was back", time.Since(back).Seconds())
	for _, task := range s.server.tasks(t, going) {
		if task.Attempt != 0 || task.State != stepfleet.StateSucceeded {
			t.Errorf("task %s is %s, want one attempt that succeeded", task.Key, task.State)
		}
		if task.StepKey != "collect" && task.EndedAt.After(back) {
			t.Errorf("task %s was settled only after the server was back: workers settle in the ledger", task.Key)
		}
	}
	s.server.checkAudit(t, going)
	s.server.checkAudit(t, launched)
}

// The local AWS is stopped: it takes connections and answers nothing.
func TestStepsFlowWhileSQSHangs(t *testing.T) {
	s := shared(t)
	file, give := release(t)
	run := s.dagster.launch(t, "fan", config{ops: numbered("step", 12, behaviour{}, map[string]any{
		"begin": behaviour{"release": file}, "collect": behaviour{},
	})})
	s.awaitBegins(t, runTimeout, 1, run)
	thaw := s.freeze(t, "aws")
	hung := time.Now()
	give()
	second := s.dagster.launch(t, "chain", config{})
	time.Sleep(time.Until(hung.Add(bellOutage))) // the outage is the thing tested
	thaw()
	healed := time.Now()
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	s.dagster.awaitEnd(t, runTimeout, second, dagsterapi.RunSuccess)
	flowed := 0
	var slowest time.Duration
	for _, id := range []string{run, second} {
		for _, task := range s.server.tasks(t, id) {
			if task.SubmittedAt.After(hung) && task.EndedAt.Before(healed) {
				flowed++
				slowest = max(slowest, task.StartedAt.Sub(task.SubmittedAt))
			}
		}
		s.server.checkAudit(t, id)
	}
	t.Logf("%d steps were submitted and ended during %s without SQS; the slowest waited %.1f s for its start", flowed, bellOutage, slowest.Seconds())
	if flowed < 10 {
		t.Errorf("%d steps were submitted and ended without SQS, want at least 10", flowed)
	}
}
