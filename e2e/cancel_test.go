//go:build linux

package e2e

import (
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// cancelWithin is what a shared machine is given; the promise is 5 s.
const cancelWithin = 15 * time.Second

func TestCancelStopsStepsThatDieOnSIGTERM(t *testing.T) { testCancel(t, false) }

func TestCancelStopsStepsThatIgnoreSIGTERM(t *testing.T) { testCancel(t, true) }

// testCancel cancels a run with four running steps (the slots of its queue), four that wait for
// slots, and one that waits for all.
func testCancel(t *testing.T, ignoreSIGTERM bool) {
	s := shared(t)
	file, _ := release(t)
	run := s.dagster.launch(t, "eight_then_after", config{
		executor: map[string]any{"queue": "small"},
		ops: numbered("work", 8, behaviour{"release": file, "ignore_sigterm": ignoreSIGTERM},
			map[string]any{"after": behaviour{}}),
	})
	steps := s.awaitSteps(t, 4, run)
	asked := time.Now()
	s.dagster.terminate(t, run)
	gone := awaitGone(t, cancelWithin, asked, steps)
	s.dagster.awaitEnd(t, cancelWithin, run, dagsterapi.RunCanceled)
	canceled := time.Since(asked)
	t.Logf("after the cancel in Dagster the steps' processes were gone in %.1f s, the run was CANCELED in %.1f s", gone.Seconds(), canceled.Seconds())
	tasks := awaitAllEnded(t, s, run)
	if len(tasks) != 8 || len(tasks.in(stepfleet.StateCancelled)) != 8 {
		t.Errorf("ledger: %s, want 8 cancelled", tasks)
	}
	started := 0
	for _, task := range tasks {
		if !task.StartedAt.IsZero() {
			started++
			if task.StartedAt.After(asked) {
				t.Errorf("task %s started %s after the cancel", task.Key, task.StartedAt.Sub(asked))
			}
		}
	}
	if after := s.begins(t, run); started != 4 || len(after) != 4 {
		t.Errorf("%d tasks started, %d steps began, want 4 of each", started, len(after))
	}
	if ends := firstOf("end", s.readEffects(t, run)); len(ends) > 0 {
		t.Errorf("%d steps came to their end, want none", len(ends))
	}
	s.server.checkAudit(t, run)
}

// awaitSteps waits until n steps of the run have begun and returns their processes.
func (s *stack) awaitSteps(t *testing.T, n int, run string) []process {
	t.Helper()
	var steps []process
	for key, e := range s.awaitBegins(t, runTimeout, n, run) {
		p, ok := readProcess(e.PID)
		if !ok {
			t.Fatalf("step %s has no process %d", key, e.PID)
		}
		steps = append(steps, p)
	}
	return steps
}
