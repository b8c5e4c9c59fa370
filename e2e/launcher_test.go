//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

const (
	// resumedWithin is run monitoring's interval (5 s), a resume and its first steps.
	resumedWithin = 60 * time.Second
	// longOutage is several of run monitoring's intervals.
	longOutage = 30 * time.Second
)

func TestTheRunWorkerIsATaskWithSlotsOfItsOwn(t *testing.T) {
	s := shared(t)
	run := s.dagster.launch(t, "chain", config{})
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	awaitAllEnded(t, s, run)
	workers := s.server.runWorkers(t, run)
	if len(workers) != 1 {
		t.Fatalf("ledger: %s, want one run worker", workers)
	}
	w := workers[0]
	if w.StepKey != stepfleet.RunStepKey || w.Attempt != 0 || w.Queue != stepfleet.RunsQueue || w.State != stepfleet.StateSucceeded {
		t.Errorf("run worker %s in queue %s is %s %+v, want @run/0 in runs, succeeded", w.Key, w.Queue, w.State, w.Result)
	}
	if w.RetryBudget.LostStepRetries != 3 {
		t.Errorf("the run worker may be followed by %d, want the 3 of max_resume_run_attempts", w.RetryBudget.LostStepRetries)
	}
	p := s.runWorker(t, run)
	await(t, stopTimeout, "the run worker to be gone after its result", func() (bool, string) { return !p.Alive(), fmt.Sprintf("%+v", p) })
	s.server.checkAudit(t, run)
}

// As a daemon that repeats a launch, and as two daemons that launch at once.
func TestARunThatIsLaunchedThriceRunsOnce(t *testing.T) {
	s := shared(t)
	thaw := s.freezeWorkers(t)
	run := s.dagster.launch(t, "chain", config{})
	s.awaitRunWorker(t, run, 0, stepfleet.StateQueued)
	var daemons []*exec.Cmd
	for range 2 {
		daemons = append(daemons, s.launchAgain(t, run))
	}
	for _, daemon := range daemons {
		if err := daemon.Wait(); err != nil {
			t.Errorf("the launch that came later: %v", err)
		}
	}
	thaw()
	s.awaitHealthy(t)
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	if workers := s.server.runWorkers(t, run); len(workers) != 1 {
		t.Errorf("ledger: %s, want one run worker", workers)
	}
	if again := s.launchAgain(t, run).Wait(); again != nil {
		t.Errorf("a launch after the run's end: %v", again)
	}
	if begins := s.begins(t, run); len(begins) != 4 {
		t.Errorf("%d steps began, want 4", len(begins))
	}
	s.server.checkAudit(t, run)
}

// Dagster's way to cancel a run that is STARTING: it asks no launcher, and marks the run.
func TestARunThatIsCanceledBeforeItsRunWorkerBeginsNeverBegins(t *testing.T) {
	s := shared(t)
	thaw := s.freezeWorkers(t)
	run := s.dagster.launch(t, "chain", config{})
	s.awaitRunWorker(t, run, 0, stepfleet.StateQueued)
	s.dagster.terminateBy(t, run, "MARK_AS_CANCELED_IMMEDIATELY")
	s.dagster.awaitEnd(t, cancelWithin, run, dagsterapi.RunCanceled)
	thaw()
	s.awaitRunWorker(t, run, 0, stepfleet.StateCancelled)
	s.dagster.awaitEnd(t, cancelWithin, run, dagsterapi.RunCanceled)
	if tasks := s.server.tasks(t, run); len(tasks) > 0 || len(s.begins(t, run)) > 0 {
		t.Errorf("a run that was canceled before it began has the tasks %s", tasks)
	}
	s.server.checkAudit(t, run)
}

// The run is CANCELED in Dagster before anything of it has stopped.
func TestAForcedCancelStopsTheRunWorkerAndItsSteps(t *testing.T) {
	s := shared(t)
	file, _ := release(t)
	run := s.dagster.launch(t, "six", config{ops: numbered("work", 6, behaviour{"release": file}, nil)})
	processes := append(s.awaitSteps(t, 6, run), s.runWorker(t, run))
	asked := time.Now()
	s.dagster.terminateBy(t, run, "MARK_AS_CANCELED_IMMEDIATELY")
	s.dagster.awaitEnd(t, cancelWithin, run, dagsterapi.RunCanceled)
	checkPromise(t, "the end of run worker and steps", awaitGone(t, cancelWithin, asked, processes), cancelPromise)
	tasks := awaitAllEnded(t, s, run)
	if len(tasks.in(stepfleet.StateCancelled)) != 6 {
		t.Errorf("ledger: %s, want 6 cancelled", tasks)
	}
	s.dagster.awaitEnd(t, cancelWithin, run, dagsterapi.RunCanceled)
	s.server.checkAudit(t, run)
}

// Run monitoring asks for the run worker's health all the while.
func TestARunIsNotResumedWhileOnlyTheServerIsAway(t *testing.T) {
	s := shared(t)
	file, give := release(t)
	run := s.dagster.launch(t, "chain", config{ops: map[string]any{"step_1": behaviour{"release": file}}})
	s.awaitBegins(t, runTimeout, 2, run)
	thaw := s.freeze(t, "dev") // it would start the server again
	s.signal(t, "server", syscall.SIGKILL)
	killed := time.Now()
	time.Sleep(longOutage / 2) // the outage is the thing tested
	give()
	time.Sleep(time.Until(killed.Add(longOutage)))
	if status, err := s.dagster.status(run); err != nil || status != "STARTED" {
		t.Errorf("the run is %s %v while the server is away, want STARTED", status, err)
	}
	thaw()
	s.awaitHealthy(t)
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	if workers := s.server.runWorkers(t, run); len(workers) != 1 {
		t.Errorf("ledger: %s, want the one run worker of the launch", workers)
	}
	s.server.checkAudit(t, run)
}

// The daemon has shown the run as starting, cannot launch it while the server is away, and is killed.
func TestARunIsLaunchedWhoseDaemonDiedOverIt(t *testing.T) {
	s := shared(t)
	thaw := s.freeze(t, "dev") // it would start them again
	s.signal(t, "server", syscall.SIGKILL)
	run := s.dagster.launch(t, "chain", config{})
	await(t, runTimeout, "the daemon to begin the launch", func() (bool, string) {
		status, err := s.dagster.status(run)
		return status == "STARTING", fmt.Sprint(status, err)
	})
	s.signal(t, "daemon", syscall.SIGKILL)
	thaw()
	s.awaitHealthy(t)
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	if workers := s.server.runWorkers(t, run); len(workers) != 1 {
		t.Errorf("ledger: %s, want one run worker", workers)
	}
	s.server.checkAudit(t, run)
}

func TestARunGoesOnWithANewRunWorkerWhenItsOwnIsKilled(t *testing.T) {
	s := shared(t)
	file, give := release(t)
	run := s.dagster.launch(t, "chain", config{ops: map[string]any{"step_1": behaviour{"release": file}}})
	begun := s.awaitBegins(t, runTimeout, 2, run)[stepfleet.Key{RunID: run, StepKey: "step_1"}]
	step, _ := proctable.Read(begun.PID)
	killed := time.Now()
	if err := syscall.Kill(s.runWorker(t, run).PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.awaitRunWorker(t, run, 0, stepfleet.StateFailed)
	s.awaitRunWorker(t, run, 1, stepfleet.StateRunning)
	t.Logf("the run had a new run worker %.1f s after the kill", time.Since(killed).Seconds())
	if !step.Alive() {
		t.Error("the run's step was stopped with its run worker")
	}
	give()
	s.dagster.awaitEnd(t, resumedWithin, run, dagsterapi.RunSuccess)
	s.checkEachStepOnce(t, run, 4)
}

// The run worker is on the worker that drains, its step on the other one.
func TestARunGoesOnWhenTheWorkerOfItsRunWorkerDrains(t *testing.T) {
	s := shared(t)
	const drained, other = "worker-1", "worker-2"
	thaw := s.freeze(t, other)
	full, giveFull := release(t)
	filler := s.dagster.launch(t, "two", config{
		executor: map[string]any{"queue": "small"}, ops: numbered("work", 2, behaviour{"release": full}, nil),
	})
	s.awaitBegins(t, runTimeout, 2, filler)
	file, give := release(t)
	run := s.dagster.launch(t, "chain", config{
		executor: map[string]any{"queue": "small"}, ops: map[string]any{"begin": behaviour{"release": file}},
	})
	s.awaitRunWorker(t, run, 0, stepfleet.StateRunning)
	thaw()
	steps := s.awaitSteps(t, 1, run)
	if on := s.server.tasks(t, run).on(other); len(on) != 1 {
		t.Fatalf("ledger: %s, want a step on %s", s.server.tasks(t, run), other)
	}
	giveFull()
	s.dagster.awaitEnd(t, runTimeout, filler, dagsterapi.RunSuccess)

	asked := time.Now()
	s.signal(t, drained, syscall.SIGTERM)
	s.awaitRunWorker(t, run, 0, stepfleet.StateLost)
	if first := s.server.runWorkers(t, run)[0]; first.Result == nil || first.Result.Error == nil || first.Result.Error.Code != "drained" {
		t.Errorf("the run worker was lost with %+v, want drained", first.Result)
	}
	s.awaitRunWorker(t, run, 1, stepfleet.StateRunning)
	t.Logf("the run had a new run worker %.1f s after the drain began", time.Since(asked).Seconds())
	if len(living(steps)) != 1 {
		t.Error("the run's step was stopped with its run worker")
	}
	give()
	s.dagster.awaitEnd(t, resumedWithin, run, dagsterapi.RunSuccess)
	s.checkEachStepOnce(t, run, 4)
}

// --- what the tests above ask ---------------------------------------------------------------------

// checkEachStepOnce checks that each of the run's steps had one attempt, which ran once.
func (s *stack) checkEachStepOnce(t *testing.T, run string, steps int) {
	t.Helper()
	tasks := awaitAllEnded(t, s, run)
	if len(tasks) != steps || len(tasks.in(stepfleet.StateSucceeded)) != steps {
		t.Errorf("ledger: %s, want %d steps that succeeded at once", tasks, steps)
	}
	if ends := firstOf("end", s.readEffects(t, run)); len(ends) != steps {
		t.Errorf("effect log: %d ends, want %d", len(ends), steps)
	}
	count := map[string]int{}
	for _, e := range s.dagster.events(t, run) {
		if e.Type == "STEP_SUCCESS" || e.Type == "STEP_FAILURE" || e.Type == "STEP_UP_FOR_RETRY" {
			count[e.Step]++
		}
	}
	for step, n := range count {
		if n != 1 {
			t.Errorf("Dagster's log has %d ends of step %s", n, step)
		}
	}
	s.server.checkAudit(t, run)
}

// awaitRunWorker waits until the run's run worker of an attempt is in the state.
func (s *stack) awaitRunWorker(t *testing.T, run string, attempt int, want stepfleet.State) {
	t.Helper()
	await(t, resumedWithin, fmt.Sprintf("run worker %d of run %s to be %s", attempt, run, want), func() (bool, string) {
		workers := s.server.runWorkers(t, run)
		for _, w := range workers {
			if w.Attempt == attempt && w.State == want {
				return true, ""
			}
		}
		status, err := s.dagster.status(run)
		return false, fmt.Sprintf("%s; Dagster %s %v", workers, status, err)
	})
}

var runWorkerPID = regexp.MustCompile(`^Started process for (?:run|resuming job) \(pid: (\d+)\)`)

// runWorker returns the process of the run's latest run worker, gone or not.
func (s *stack) runWorker(t *testing.T, run string) proctable.Process {
	t.Helper()
	var found proctable.Process
	for _, e := range s.dagster.events(t, run) {
		if match := runWorkerPID.FindStringSubmatch(e.Message); match != nil {
			pid, _ := strconv.Atoi(match[1]) // digits
			p, ok := proctable.Read(pid)
			if !ok {
				p = proctable.Process{PID: pid}
			}
			found = p
		}
	}
	if found.PID == 0 {
		t.Fatalf("the event log of run %s names no process of a run worker", run)
	}
	return found
}

// freezeWorkers stops every worker, so that nothing is claimed, until the returned function is called.
func (s *stack) freezeWorkers(t *testing.T) (thaw func()) {
	t.Helper()
	var thaws []func()
	for i := range s.options.workers {
		thaws = append(thaws, s.freeze(t, fmt.Sprintf("worker-%d", i+1)))
	}
	return func() {
		for _, thaw := range thaws {
			thaw()
		}
	}
}

const launchAgainScript = `
import sys
from dagster import DagsterInstance
from dagster._core.launcher import LaunchRunContext
with DagsterInstance.get() as instance:
    run = instance.get_run_by_id(sys.argv[1])
    instance.run_launcher.launch_run(LaunchRunContext(run, None))
`

// launchAgain starts a process that launches the run as a daemon does.
func (s *stack) launchAgain(t *testing.T, run string) *exec.Cmd {
	t.Helper()
	return s.asDaemon(t, launchAgainScript, run)
}

// asDaemon starts a process that does something to Dagster's instance as a daemon does.
func (s *stack) asDaemon(t *testing.T, script string, args ...string) *exec.Cmd {
	t.Helper()
	state := s.state()
	dsn, err := os.ReadFile(state.DagsterURL)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, append([]string{"-c", script}, args...)...)
	cmd.Env = append(os.Environ(),
		"DAGSTER_HOME="+state.DagsterHome, "DAGSTER_DATABASE_URL="+strings.TrimSpace(string(dsn)),
		"STEPFLEET_URL="+state.URLs["server"], "STEPFLEET_TOKEN_FILE="+state.TokenFile,
	)
	cmd.Dir = filepath.Dir(s.effects)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}
