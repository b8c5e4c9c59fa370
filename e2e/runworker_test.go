//go:build linux

package e2e

import (
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

// closedPromise is the time for Dagster's run monitoring to notice (5 s here), the server's
// comparison (10 s) and the cancel.
const (
	closedPromise = 15*time.Second + cancelPromise
	closedWithin  = sharedMachine * closedPromise
)

// A run worker that is killed cannot cancel its steps. Dagster says that the run has failed, and
// the server must not let the steps go on.
func TestADeadRunWorkersStepsAreStopped(t *testing.T) {
	s := defaultLauncher(t)
	before := map[int]bool{}
	for _, p := range proctable.Descendants(s.pid(t, "code-1")) {
		before[p.PID] = true
	}
	file, _ := release(t)
	run := s.dagster.launch(t, "eight_then_after", config{
		executor: map[string]any{"queue": "small"},
		ops:      numbered("work", 8, behaviour{"release": file}, map[string]any{"after": behaviour{}}),
	})
	steps := s.awaitSteps(t, 4, run)
	killed := time.Now()
	workers := 0
	for _, p := range proctable.Descendants(s.pid(t, "code-1")) {
		if !before[p.PID] && syscall.Kill(p.PID, syscall.SIGKILL) == nil {
			workers++
		}
	}
	if workers == 0 {
		t.Fatal("the run has no run worker below the code server")
	}
	gone := awaitGone(t, closedWithin, killed, steps)
	s.dagster.awaitEnd(t, closedWithin, run, dagsterapi.RunFailure)
	tasks := awaitAllEnded(t, s, run)
	checkPromise(t, "the end of the killed run worker's steps", gone, closedPromise)
	if len(tasks) != 8 || len(tasks.in(stepfleet.StateCancelled)) != 8 {
		t.Errorf("ledger: %s, want 8 cancelled", tasks)
	}
	if after := s.begins(t, run); len(after) != 4 {
		t.Errorf("%d steps began, want the 4 that ran when the run worker was killed", len(after))
	}
	s.server.checkAudit(t, run)
}
