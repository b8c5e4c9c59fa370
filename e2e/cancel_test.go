//go:build linux

package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

// A shared machine is given three times what is promised.
const (
	sharedMachine = 3
	cancelPromise = 5 * time.Second
	cancelWithin  = sharedMachine * cancelPromise
)

// checkPromise checks how long something took that is promised within so long.
func checkPromise(t *testing.T, what string, took, promised time.Duration) {
	t.Helper()
	t.Logf("%s took %.1f s; promised are %s", what, took.Seconds(), promised)
	if took > sharedMachine*promised {
		t.Errorf("%s took %s, want %d times %s at most", what, took, sharedMachine, promised)
	}
}

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
	checkPromise(t, "the end of the steps' processes", awaitGone(t, cancelWithin, asked, steps), cancelPromise)
	s.dagster.awaitEnd(t, cancelWithin, run, dagsterapi.RunCanceled)
	checkPromise(t, "the run's cancel", time.Since(asked), cancelPromise)
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

// Of a run whose run worker is gone; runKillGrace is that of the stack without run monitoring.
const (
	runKillGrace   = 5 * time.Second
	concludeWithin = 10 * time.Second // of the run worker's end
)

// Nobody but the server ends these runs: run monitoring is off.
var unmonitoredStack = sharedBy{options: stackOptions{
	workers: 1, queues: []string{"default:20", "small:2"}, dagsterYAML: "run_monitoring:\n  enabled: false\n",
	environ: []string{"STEPFLEET_RUN_KILL_GRACE=" + runKillGrace.String()},
}}

func TestACancelEndsARunWhoseRunWorkerIsFrozen(t *testing.T) {
	testBereft(t, runKillGrace+concludeWithin, func(worker proctable.Process, terminate func()) {
		if err := syscall.Kill(worker.PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		terminate()
	})
}

func TestACancelEndsARunWhoseRunWorkerIsKilledOverIt(t *testing.T) {
	testBereft(t, concludeWithin, func(worker proctable.Process, terminate func()) {
		// It cannot begin to write RUN_CANCELED before it is killed.
		if err := syscall.Kill(worker.PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		terminate()
		if err := syscall.Kill(worker.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	})
}

// testBereft cancels a run, with steps that run and steps that wait, in a way that leaves it
// without a run worker that could end it.
func testBereft(t *testing.T, within time.Duration, cancel func(worker proctable.Process, terminate func())) {
	s := unmonitoredStack.use(t)
	file, _ := release(t)
	run := s.dagster.launch(t, "eight_then_after", config{
		executor: map[string]any{"queue": "small"},
		ops:      numbered("work", 8, behaviour{"release": file}, map[string]any{"after": behaviour{}}),
	})
	steps := s.awaitSteps(t, 2, run)
	worker := s.runWorker(t, run)
	asked := time.Now()
	cancel(worker, func() { s.dagster.terminate(t, run) })
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunCanceled)
	checkPromise(t, "the run's cancel", time.Since(asked), within)
	if alive := living(append(steps, worker)); len(alive) > 0 {
		t.Errorf("the run is CANCELED and %+v still live", alive)
	}
	tasks := awaitAllEnded(t, s, run)
	if len(tasks) != 8 || len(tasks.in(stepfleet.StateCancelled)) != 8 {
		t.Errorf("ledger: %s, want 8 cancelled", tasks)
	}
	if after := s.begins(t, run); len(after) != 2 {
		t.Errorf("%d steps began, want 2", len(after))
	}
	ends := 0
	for _, e := range s.dagster.events(t, run) {
		switch {
		case e.Type == "RUN_CANCELED" || e.Type == "PIPELINE_CANCELED":
			ends++
		case strings.HasPrefix(e.Type, "STEP_") && ends > 0:
			t.Errorf("%s of %s after the run's end", e.Type, e.Step)
		}
	}
	if ends != 1 {
		t.Errorf("Dagster's log has %d ends of the run, want one", ends)
	}
	s.server.checkAudit(t, run)
}

// awaitSteps waits until n steps of the run have begun and returns their processes.
func (s *stack) awaitSteps(t *testing.T, n int, run string) []proctable.Process {
	t.Helper()
	var steps []proctable.Process
	for key, e := range s.awaitBegins(t, runTimeout, n, run) {
		p, ok := proctable.Read(e.PID)
		if !ok {
			t.Fatalf("step %s has no process %d", key, e.PID)
		}
		steps = append(steps, p)
	}
	return steps
}
