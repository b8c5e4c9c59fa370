//go:build linux

package e2e

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

// retryDelay is longer than it takes to kill a run worker in a retry's delay and to resume the run.
const retryDelay = 30 * time.Second

// stage is a point of a run at which its run worker is killed, to be resumed by run monitoring.
type stage struct {
	name   string
	job    string
	config func(file string) config // ops wait for the file
	// arrive brings the run to the stage. Where it is nil, the run worker is about to write an event,
	// of this kind in Dagster's table and with these words in it.
	arrive              func(t *testing.T, r *stagedRun)
	heldKind, heldWords string
	// resumedBy are the attempts of the run workers that daemons start, when more than run monitoring's.
	resumedBy []string
	// resumed is done once another run worker has taken over and before the ops may end.
	resumed func(t *testing.T, r *stagedRun)
	// ended is what holds in the end, beside that nothing was done twice.
	ended func(t *testing.T, r *stagedRun)
	// status is how the run ends, RunSuccess when it is empty.
	status dagsterapi.RunStatus
	// attempts that there are, those of them whose op does not begin, and the events of Dagster's log
	// that are counted, by type.
	attempts, opless int
	events           map[string]int
}

// stagedRun is a run that is brought to a stage.
type stagedRun struct {
	stage
	*ownRun
	file string
	give func() // creates the file
}

var chainEvents = map[string]int{"RUN_START": 1, "STEP_SUCCESS": 4, "RUN_SUCCESS": 1}

var stages = []stage{
	{
		name: "no step is submitted", job: "chain",
		heldKind: "ENGINE_EVENT", heldWords: "Starting execution with step handler",
		attempts: 4, events: chainEvents,
	},
	{
		name: "a step runs", job: "chain", config: waitingFor("step_1"),
		arrive: untilBegun(2), resumed: adoptsWhatRuns, attempts: 4, events: chainEvents,
	},
	{
		name: "between two steps", job: "chain", config: waitingFor("step_1"),
		arrive: untilUnseenEnd(2, "step_1"), attempts: 4, events: chainEvents,
	},
	{
		name: "all steps have ended", job: "chain", config: waitingFor("step_3"),
		arrive: untilUnseenEnd(4, "step_3"), attempts: 4, events: chainEvents,
	},
	{
		name: "the run is closed and RUN_SUCCESS is not written", job: "chain",
		heldKind: "PIPELINE_SUCCESS", attempts: 4, events: chainEvents,
	},
	{
		name: "a step waits for its retry", job: "one",
		config: func(string) config {
			return config{ops: numbered("work", 1, behaviour{"fail_attempts": 1, "retry_seconds": retryDelay.Seconds()}, nil)}
		},
		arrive:   func(t *testing.T, r *stagedRun) { r.awaitEvent(t, "STEP_UP_FOR_RETRY", "work_0") },
		ended:    keptTheDelay,
		attempts: 2, events: map[string]int{"RUN_START": 1, "STEP_UP_FOR_RETRY": 1, "STEP_SUCCESS": 1, "RUN_SUCCESS": 1},
	},
	{
		name: "a step was skipped", job: "branches", config: waitingFor("left"),
		arrive: func(t *testing.T, r *stagedRun) {
			untilBegun(2)(t, r)
			r.awaitEvent(t, "STEP_SKIPPED", "right")
		},
		resumed:  adoptsWhatRuns,
		attempts: 2, events: map[string]int{"RUN_START": 1, "STEP_SUCCESS": 2, "STEP_SKIPPED": 1, "RUN_SUCCESS": 1},
	},
	{
		name: "tag_concurrency_limits hold steps back", job: "limited_beside_others",
		config: func(file string) config {
			return config{
				executor: map[string]any{"tag_concurrency_limits": []any{map[string]any{"key": "e2e/limited", "limit": 1}}},
				ops:      numbered("limited", 3, behaviour{"release": file}, map[string]any{"work_0": behaviour{"release": file + othersMayEnd}, "after": behaviour{}}),
			}
		},
		arrive: untilBegun(2), resumed: keepsTheLimit, ended: keptTheLimit,
		attempts: 5, events: map[string]int{"RUN_START": 1, "STEP_SUCCESS": 5, "RUN_SUCCESS": 1},
	},
	{
		name: "the log has more events than Dagster reads at once", job: "chain",
		config: func(file string) config {
			return config{ops: map[string]any{"begin": behaviour{"events": dagsterPage}, "step_1": behaviour{"release": file}}}
		},
		arrive: untilBegun(2), resumed: adoptsWhatRuns, ended: hasMoreThanAPage, attempts: 4, events: chainEvents,
	},
	{
		name: "max_concurrent holds steps back", job: "six",
		config: func(file string) config {
			return config{
				executor: map[string]any{"max_concurrent": mostAtOnce},
				ops:      numbered("work", 6, behaviour{"release": file}, map[string]any{"work_0": behaviour{"release": file + othersMayEnd}}),
			}
		},
		arrive: untilBegun(mostAtOnce), resumed: keepsMaxConcurrent, ended: keptMaxConcurrent,
		attempts: 6, events: map[string]int{"RUN_START": 1, "STEP_SUCCESS": 6, "RUN_SUCCESS": 1},
	},
	{
		name: "a resource has failed and nobody has said what becomes of its step", job: "one_guarded",
		config: func(file string) config {
			return config{resources: map[string]any{"flaky": map[string]any{"tries": file + ".tries", "failures": 1, "release": file}}}
		},
		arrive: untilUnseenResourceFailure, ended: saidOnceThatTheResourceFailed, status: dagsterapi.RunFailure,
		attempts: 1, opless: 1, events: map[string]int{"RUN_START": 1, "STEP_SUCCESS": 0, "STEP_UP_FOR_RETRY": 0, "RUN_FAILURE": 1, "RUN_SUCCESS": 0},
	},
	{
		name: "two daemons resume the run at once and one once more", job: "chain", config: waitingFor("step_1"),
		arrive: untilBegun(2), resumedBy: []string{"1", "1", "2"}, resumed: adoptsWhatRuns,
		attempts: 4, events: chainEvents,
	},
}

// The runs come to their stages side by side, so that one round of run monitoring resumes them all.
func TestARunIsTakenOnFromEveryStage(t *testing.T) {
	s := shared(t)
	held := s.holdWrites(t)
	thaw := s.freezeWorkers(t) // no run goes on before it is known which of its events are held
	var runs []*stagedRun
	for _, st := range stages {
		r := &stagedRun{stage: st}
		r.file, r.give = release(t)
		c := config{}
		if st.config != nil {
			c = st.config(r.file)
		}
		r.ownRun = &ownRun{s: s, ID: s.dagster.launch(t, st.job, c)}
		if st.arrive == nil {
			held.add(t, r.ID, st.heldKind, st.heldWords)
		}
		runs = append(runs, r)
	}
	for _, r := range runs {
		s.awaitRunWorker(t, r.ID, 0, stepfleet.StateQueued)
	}
	thaw()
	for _, r := range runs {
		if r.arrive != nil {
			r.arrive(t, r)
		}
	}
	held.await(t)

	thawDaemon := s.freeze(t, "daemon")
	killed := time.Now()
	var dead []proctable.Process
	for _, r := range runs {
		p := s.runWorker(t, r.ID)
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			t.Fatalf("%s: kill the run worker: %v", r.name, err)
		}
		dead = append(dead, p)
	}
	awaitGone(t, childrenGoneWithin, killed, dead)
	held.drop(t)
	for _, r := range runs {
		if len(r.resumedBy) > 0 {
			r.resumeByDaemons(t)
		}
	}
	thawDaemon()
	for _, r := range runs {
		t.Run(r.name, r.testResumed)
	}
}

// testResumed follows a run whose run worker was killed to its end.
func (r *stagedRun) testResumed(t *testing.T) {
	if r.resumed != nil {
		await(t, resumedWithin, "the takeover", func() (bool, string) {
			who := r.executors(t)
			return len(who) > 1, strings.Join(who, ", ") + "; " + r.s.server.runWorkers(t, r.ID).String()
		})
		r.resumed(t, r)
	}
	r.give()
	r.s.dagster.awaitEnd(t, resumedWithin, r.ID, cmp.Or(r.status, dagsterapi.RunSuccess))
	r.checkOnce(t, r.events)
	tasks := awaitAllEnded(t, r.s, r.ID)
	count := map[string]int{}
	for _, e := range r.s.readEffects(t, r.ID) {
		count[e.Event]++
	}
	if len(tasks) != r.attempts || count["begin"] != r.attempts-r.opless || count["end"] != r.events["STEP_SUCCESS"] {
		t.Errorf("%d attempts in the ledger, %v in the effect log, want %d, of which %d begin: %s",
			len(tasks), count, r.attempts, r.attempts-r.opless, tasks)
	}
	r.checkRunWorkers(t)
	for _, row := range r.s.server.checkAudit(t, r.ID) {
		if row.Verb == stepfleet.VerbCancel && row.Refused == "" {
			t.Errorf("a run that was resumed has the audit row %+v", row)
		}
	}
	if r.ended != nil {
		r.ended(t, r)
	}
}

// checkRunWorkers checks that one run worker has ended the run, and that there were no more than
// daemons have asked for.
func (r *stagedRun) checkRunWorkers(t *testing.T) {
	t.Helper()
	want := 2
	for _, attempt := range r.resumedBy {
		n, _ := strconv.Atoi(attempt) // digits
		want = max(want, 1+n)
	}
	var workers views
	await(t, resumedWithin, "the run workers to end", func() (bool, string) {
		workers = r.s.server.runWorkers(t, r.ID)
		return len(workers.open()) == 0, workers.String()
	})
	if len(workers) != want || len(workers.in(stepfleet.StateSucceeded)) != 1 {
		t.Errorf("ledger: %s, want %d run workers, one of which has succeeded", workers, want)
	}
}

const resumeScript = `
import sys
from dagster import DagsterInstance
with DagsterInstance.get() as instance:
    instance.resume_run(sys.argv[1], None, int(sys.argv[2]))
`

// resumeByDaemons has several daemons at once resume the run.
func (r *stagedRun) resumeByDaemons(t *testing.T) {
	t.Helper()
	r.s.awaitRunWorker(t, r.ID, 0, stepfleet.StateFailed)
	var daemons []*exec.Cmd
	for _, attempt := range r.resumedBy {
		daemons = append(daemons, r.s.asDaemon(t, resumeScript, r.ID, attempt))
	}
	for _, daemon := range daemons {
		if err := daemon.Wait(); err != nil {
			t.Errorf("resume: %v", err)
		}
	}
}

// --- the stages' parts ----------------------------------------------------------------------------

// waitingFor has one op wait for the file.
func waitingFor(op string) func(file string) config {
	return func(file string) config { return config{ops: map[string]any{op: behaviour{"release": file}}} }
}

func untilBegun(n int) func(*testing.T, *stagedRun) {
	return func(t *testing.T, r *stagedRun) {
		t.Helper()
		r.s.awaitBegins(t, runTimeout, n, r.ID)
	}
}

// untilUnseenEnd lets the step end, the n-th that begins, while the run worker stands still.
func untilUnseenEnd(n int, step string) func(*testing.T, *stagedRun) {
	return func(t *testing.T, r *stagedRun) {
		t.Helper()
		untilBegun(n)(t, r)
		if err := syscall.Kill(r.s.runWorker(t, r.ID).PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		r.give()
		r.awaitEvent(t, "STEP_SUCCESS", step)
	}
}

// untilUnseenResourceFailure lets the resource of the run's step fail while the run worker stands
// still.
func untilUnseenResourceFailure(t *testing.T, r *stagedRun) {
	t.Helper()
	await(t, runTimeout, "the step to make its resource", func() (bool, string) {
		tries, err := os.ReadFile(r.file + ".tries")
		return len(tries) == 1, fmt.Sprint(err)
	})
	if err := syscall.Kill(r.s.runWorker(t, r.ID).PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	r.give()
	r.awaitEvent(t, "RESOURCE_INIT_FAILURE", "guarded")
}

func (r *stagedRun) awaitEvent(t *testing.T, kind, step string) {
	t.Helper()
	await(t, runTimeout, kind+" of "+step, func() (bool, string) {
		events := r.s.dagster.events(t, r.ID)
		return slices.ContainsFunc(events, func(e event) bool { return e.Type == kind && e.Step == step }), r.s.standing(t, []string{r.ID})
	})
}

// adoptsWhatRuns checks that the steps of before the kill go on.
func adoptsWhatRuns(t *testing.T, r *stagedRun) {
	t.Helper()
	running := r.s.server.tasks(t, r.ID).in(stepfleet.StateRunning)
	if len(running) != 1 {
		t.Fatalf("ledger: %s, want one running", r.s.server.tasks(t, r.ID))
	}
	if p, ok := proctable.Read(r.s.begins(t, r.ID)[running[0].Key].PID); !ok || !p.Alive() {
		t.Errorf("the process of %s is gone", running[0].Key)
	}
}

// othersMayEnd makes another file's name.
const othersMayEnd = ".others"

// keepsTheLimit has the new run worker submit a step that no limit concerns.
func keepsTheLimit(t *testing.T, r *stagedRun) {
	t.Helper()
	if err := os.WriteFile(r.file+othersMayEnd, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	after := stepfleet.Key{RunID: r.ID, StepKey: "after"}
	await(t, resumedWithin, "the step after", func() (bool, string) {
		_, begun := r.s.begins(t, r.ID)[after]
		return begun, r.s.standing(t, []string{r.ID})
	})
	tasks := r.s.server.tasks(t, r.ID)
	if limited := slices.DeleteFunc(tasks, func(v stepfleet.View) bool { return !isLimited(v.Key) }); len(limited) != 1 {
		t.Errorf("ledger: %s, want one at a time", limited)
	}
}

func keptTheLimit(t *testing.T, r *stagedRun) {
	t.Helper()
	effects := slices.DeleteFunc(r.s.readEffects(t, r.ID), func(e effect) bool { return !isLimited(e.Key) })
	slices.SortFunc(effects, func(a, b effect) int { return cmp.Compare(a.At, b.At) })
	for i, e := range effects {
		if want := []string{"begin", "end"}[i%2]; e.Event != want {
			t.Errorf("effect %d is the %s of %s, want a %s: one at a time", i, e.Event, e.Key, want)
		}
	}
}

// mostAtOnce is the limit of the run's steps.
const mostAtOnce = 2

// keepsMaxConcurrent has one of the steps of before the kill end, and the new run worker submit
// another one in its place.
func keepsMaxConcurrent(t *testing.T, r *stagedRun) {
	t.Helper()
	if err := os.WriteFile(r.file+othersMayEnd, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.s.awaitBegins(t, resumedWithin, mostAtOnce+1, r.ID)
	if tasks := r.s.server.tasks(t, r.ID); len(tasks) != mostAtOnce+1 || len(tasks.open()) != mostAtOnce {
		t.Errorf("ledger: %s, want %d that go on and one that has ended", tasks, mostAtOnce)
	}
}

func keptMaxConcurrent(t *testing.T, r *stagedRun) {
	t.Helper()
	effects := r.s.readEffects(t, r.ID)
	slices.SortFunc(effects, func(a, b effect) int { return cmp.Compare(a.At, b.At) })
	going := map[stepfleet.Key]bool{}
	for _, e := range effects {
		if going[e.Key] = e.Event == "begin"; !going[e.Key] {
			delete(going, e.Key)
		}
		if len(going) > mostAtOnce {
			t.Errorf("%v go on at once, want %d at most", going, mostAtOnce)
		}
	}
}

// dagsterPage is how many events Dagster reads at once when it resumes a run.
const dagsterPage = 1000

func hasMoreThanAPage(t *testing.T, r *stagedRun) {
	t.Helper()
	if n := r.s.dagster.counts(t, r.ID)["STEP_EXPECTATION_RESULT begin"]; n != dagsterPage {
		t.Errorf("Dagster's log has %d events that begin has reported, want %d", n, dagsterPage)
	}
}

// saidOnceThatTheResourceFailed checks the verdict. Before Dagster 1.12 the event of the resource's
// failure is all that the step's end has.
func saidOnceThatTheResourceFailed(t *testing.T, r *stagedRun) {
	t.Helper()
	want := 1
	if major, minor := r.s.dagster.version(t); major == 1 && minor < 12 {
		want = 0
	}
	counts := r.s.dagster.counts(t, r.ID)
	if counts["RESOURCE_INIT_FAILURE guarded"] != 1 || counts["STEP_FAILURE guarded"] != want {
		t.Errorf("Dagster's log: %v, want one RESOURCE_INIT_FAILURE and %d STEP_FAILURE of guarded", counts, want)
	}
}

func isLimited(key stepfleet.Key) bool { return strings.HasPrefix(key.StepKey, "limited_") }

// keptTheDelay checks that the retry's delay was neither lost nor begun anew at the resume.
func keptTheDelay(t *testing.T, r *stagedRun) {
	t.Helper()
	var failed, resumed time.Time
	for _, e := range r.s.dagster.events(t, r.ID) {
		if milliseconds, err := strconv.ParseInt(e.Timestamp, 10, 64); err == nil && e.Type == "STEP_UP_FOR_RETRY" {
			failed = time.UnixMilli(milliseconds)
		}
	}
	for _, row := range r.s.server.checkAudit(t, r.ID) {
		if row.Verb == stepfleet.VerbTakeover {
			resumed = row.At
		}
	}
	began := r.s.begins(t, r.ID)[stepfleet.Key{RunID: r.ID, StepKey: "work_0", Attempt: 1}].time()
	if waited := began.Sub(failed); waited < retryDelay-50*time.Millisecond {
		t.Errorf("the retry began %s after the failure, want %s", waited, retryDelay)
	}
	switch {
	case resumed.Sub(failed) > retryDelay:
		t.Errorf("the run was resumed %s after the failure, when the delay of %s was over", resumed.Sub(failed), retryDelay)
	case began.Sub(resumed) >= retryDelay:
		t.Errorf("the retry began %s after the resume, as if its delay had begun anew", began.Sub(resumed))
	}
}

// --- before anything has begun, and cancels -------------------------------------------------------

// launchHeld launches a run and returns when its run worker is about to write the engine event.
func (s *stack) launchHeld(t *testing.T, job, says string) (run string, held *heldWrites) {
	t.Helper()
	held = s.holdWrites(t)
	thaw := s.freezeWorkers(t) // it must not get there before it is held
	run = s.dagster.launch(t, job, config{})
	held.add(t, run, "ENGINE_EVENT", says)
	s.awaitRunWorker(t, run, 0, stepfleet.StateQueued)
	thaw()
	held.await(t)
	return run, held
}

// The task of the run worker has an owner, whose process is killed before its start is recorded.
func TestARunWorkerThatIsKilledBeforeItsStartIsStartedElsewhere(t *testing.T) {
	s := shared(t)
	idle := s.idleProcesses(t)
	stopAll(t, idle)
	run := s.dagster.launch(t, "chain", config{})
	s.awaitRunWorker(t, run, 0, stepfleet.StateLeased)
	for _, p := range idle {
		_ = syscall.Kill(p.PID, syscall.SIGKILL) // an idle one may have been replaced
	}
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	s.checkEachStepOnce(t, run, 4)
	s.awaitRunWorker(t, run, 0, stepfleet.StateSucceeded)
	if workers := s.server.runWorkers(t, run); len(workers) != 1 || workers[0].Fence < 2 {
		t.Errorf("ledger: %+v, want one run worker that has had two owners", workers)
	}
}

// It has started, and is about to write its first event. Dagster resumes no run that is STARTING.
func TestARunWorkerThatIsKilledBeforeItsFirstEventIsStartedAnew(t *testing.T) {
	s := shared(t)
	run, held := s.launchHeld(t, "chain", "Started process for run")
	s.awaitRunWorker(t, run, 0, stepfleet.StateRunning)
	for _, p := range s.idleProcesses(t) { // and the run worker, which has told nobody its number
		_ = syscall.Kill(p.PID, syscall.SIGKILL)
	}
	held.drop(t)
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	s.checkEachStepOnce(t, run, 4)
	s.awaitRunWorker(t, run, 0, stepfleet.StateSucceeded)
	if workers := s.server.runWorkers(t, run); len(workers) != 1 {
		t.Errorf("ledger: %s, want the run worker of the launch", workers)
	}
	(&ownRun{s: s, ID: run}).checkOnce(t, chainEvents)
}

func TestARunIsCanceledWhileItsStepsAreLeased(t *testing.T) {
	s := shared(t)
	run, held := s.launchHeld(t, "three", "Starting execution with step handler")
	worker := s.runWorker(t, run)
	stopped := slices.DeleteFunc(s.idleProcesses(t), func(p proctable.Process) bool { return p.PID == worker.PID })
	goOn := stopAll(t, append(stopped, s.templates(t)...)) // a template would fork others
	held.release(t)
	await(t, runTimeout, "leases", func() (bool, string) {
		tasks := s.server.tasks(t, run)
		return len(tasks.in(stepfleet.StateLeased)) == 3, tasks.String()
	})
	s.dagster.terminate(t, run)
	s.dagster.awaitEnd(t, cancelWithin, run, dagsterapi.RunCanceled)
	goOn()
	s.checkNothingIsLeft(t, run, worker, 3)
	if begun := s.readEffects(t, run); len(begun) > 0 {
		t.Errorf("effect log: %+v, want nothing", begun)
	}
}

func TestARunIsCanceledWhileAStepWaitsForItsRetry(t *testing.T) {
	s := shared(t)
	run := s.dagster.launch(t, "one", config{
		ops: numbered("work", 1, behaviour{"fail_attempts": 1, "retry_seconds": time.Hour.Seconds()}, nil),
	})
	(&stagedRun{ownRun: &ownRun{s: s, ID: run}}).awaitEvent(t, "STEP_UP_FOR_RETRY", "work_0")
	worker := s.runWorker(t, run)
	s.dagster.terminate(t, run)
	s.dagster.awaitEnd(t, cancelWithin, run, dagsterapi.RunCanceled)
	tasks := s.checkNothingIsLeft(t, run, worker, 0)
	if len(tasks) != 1 || len(s.begins(t, run)) != 1 {
		t.Errorf("ledger: %s, want the attempt that has failed and no other", tasks)
	}
}

// checkNothingIsLeft checks that a run that was canceled has no process and no open task, and that
// so many of its tasks were cancelled.
func (s *stack) checkNothingIsLeft(t *testing.T, run string, worker proctable.Process, cancelled int) views {
	t.Helper()
	awaitGone(t, cancelWithin, time.Now(), []proctable.Process{worker})
	tasks := awaitAllEnded(t, s, run)
	if len(tasks.in(stepfleet.StateCancelled)) != cancelled {
		t.Errorf("ledger: %s, want %d cancelled", tasks, cancelled)
	}
	await(t, cancelWithin, "the run worker's task to end", func() (bool, string) {
		workers := s.server.runWorkers(t, run)
		return len(workers.open()) == 0, workers.String()
	})
	(&ownRun{s: s, ID: run}).checkOnce(t, map[string]int{"RUN_CANCELED": 1, "RUN_SUCCESS": 0, "RUN_FAILURE": 0, "STEP_SUCCESS": 0})
	s.server.checkAudit(t, run)
	return tasks
}

// templates returns the processes that fork the workers' others.
func (s *stack) templates(t *testing.T) []proctable.Process {
	t.Helper()
	var all []proctable.Process
	for i := range s.options.workers {
		p, ok := proctable.Read(templateOf(t, s.pid(t, "worker-"+strconv.Itoa(i+1))))
		if !ok {
			t.Fatal("a template is gone")
		}
		all = append(all, p)
	}
	return all
}

// idleProcesses returns what the templates have forked: while no run goes on, all wait for tasks.
func (s *stack) idleProcesses(t *testing.T) []proctable.Process {
	t.Helper()
	var idle []proctable.Process
	for _, template := range s.templates(t) {
		idle = append(idle, slices.DeleteFunc(proctable.Descendants(template.PID), func(p proctable.Process) bool { return p.Parent != template.PID })...)
	}
	return idle
}

// stopAll stops the processes until the returned function is called, or the test ends.
func stopAll(t *testing.T, all []proctable.Process) (goOn func()) {
	t.Helper()
	each := func(sig syscall.Signal) {
		for _, p := range all {
			if p.Alive() {
				_ = syscall.Kill(p.PID, sig)
			}
		}
	}
	each(syscall.SIGSTOP)
	t.Cleanup(func() { each(syscall.SIGCONT) })
	return func() { each(syscall.SIGCONT) }
}
