//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// ownRun is a run whose run workers the test starts itself, as a launcher that can resume does.
type ownRun struct {
	s      *stack
	ID     string `json:"run_id"`
	Start  string `json:"execute"`
	Resume string `json:"resume"`
}

// create makes a run that no launcher knows.
func (s *stack) create(t *testing.T, job string, c config) *ownRun {
	t.Helper()
	defs, err := filepath.Abs("testdata/e2e_defs.py")
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs("testdata/run_worker.py")
	if err != nil {
		t.Fatal(err)
	}
	given, err := json.Marshal(c.json())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, script, defs, job, string(given))
	cmd.Dir, cmd.Env = s.dir, s.runWorkerEnviron(t)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	run := &ownRun{s: s}
	if err == nil {
		err = json.Unmarshal(out, run)
	}
	if err != nil {
		t.Fatalf("create a run of %s: %v\n%s", job, err, out)
	}
	return run
}

func (s *stack) runWorkerEnviron(t *testing.T) []string {
	t.Helper()
	state := s.state()
	dsn, err := os.ReadFile(state.DagsterURL)
	if err != nil {
		t.Fatal(err)
	}
	return append(os.Environ(),
		"DAGSTER_HOME="+state.DagsterHome, "DAGSTER_DATABASE_URL="+strings.TrimSpace(string(dsn)),
		"STEPFLEET_URL="+state.URLs["server"], "STEPFLEET_TOKEN_FILE="+state.TokenFile, "STEPFLEET_EFFECT_LOG="+s.effects)
}

// runWorker is one process of `dagster api`.
type runWorker struct {
	cmd  *exec.Cmd
	gone chan error
}

// work starts a run worker, with the run's first arguments or with those of a resume.
func (r *ownRun) work(t *testing.T, resume bool) *runWorker {
	t.Helper()
	command, arguments := "execute_run", r.Start
	if resume {
		command, arguments = "resume_run", r.Resume
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "run_worker.log"))
	if err != nil {
		t.Fatal(err)
	}
	w := &runWorker{cmd: exec.Command(python, "-m", "dagster", "api", command, arguments), gone: make(chan error, 1)}
	w.cmd.Dir, w.cmd.Env = r.s.dir, r.s.runWorkerEnviron(t)
	w.cmd.Stdout, w.cmd.Stderr = log, log
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { w.gone <- w.cmd.Wait() }()
	t.Cleanup(func() {
		_ = syscall.Kill(-w.cmd.Process.Pid, syscall.SIGKILL)
		if raw, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("run worker (%s):\n%s", command, raw)
		}
		log.Close()
	})
	return w
}

func (w *runWorker) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := w.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// await waits for the process's end.
func (w *runWorker) await(t *testing.T) error {
	t.Helper()
	select {
	case err := <-w.gone:
		return err
	case <-time.After(runTimeout):
		t.Fatalf("the run worker has not ended within %s", runTimeout)
		return nil
	}
}

// checkOnce checks that neither the run nor an attempt ended twice in Dagster's log.
func (r *ownRun) checkOnce(t *testing.T, want map[string]int) {
	t.Helper()
	count, kinds := map[string]int{}, map[string]int{}
	for _, e := range r.s.dagster.events(t, r.ID) {
		switch e.Type {
		case "STEP_SUCCESS", "STEP_FAILURE", "STEP_SKIPPED", "STEP_UP_FOR_RETRY", "RUN_START", "RUN_SUCCESS", "RUN_FAILURE", "RUN_CANCELED":
			kinds[e.Type]++
			if count[e.Type+" "+e.Step]++; count[e.Type+" "+e.Step] > 1 {
				t.Errorf("Dagster's log has %d %s of %q", count[e.Type+" "+e.Step], e.Type, e.Step)
			}
		}
	}
	for kind, n := range want {
		if kinds[kind] != n {
			t.Errorf("Dagster's log has %d %s, want %d", kinds[kind], kind, n)
		}
	}
}

// executors returns the epochs whose takeover the run's audit shows.
func (r *ownRun) executors(t *testing.T) []string {
	t.Helper()
	var who []string
	for _, row := range r.s.server.checkAudit(t, r.ID) {
		if row.Verb == stepfleet.VerbTakeover && row.Refused == "" {
			who = append(who, row.Actor)
		}
	}
	return who
}

// Steps that wait and steps that run go on without a run worker: the run is not over. The next one
// adopts what there is.
func TestARunIsTakenOnWhereItsKilledRunWorkerLeftIt(t *testing.T) {
	s := defaultLauncher(t) // nobody else resumes its runs
	file, give := release(t)
	run := s.create(t, "eight_then_after", config{
		executor: map[string]any{"queue": "small"},
		ops:      numbered("work", 8, behaviour{"release": file}, map[string]any{"after": behaviour{}}),
	})
	first := run.work(t, false)
	s.awaitBegins(t, runTimeout, 4, run.ID) // as many as there are slots; the others wait
	first.signal(t, syscall.SIGKILL)
	_ = first.await(t)
	second := run.work(t, true)
	await(t, runTimeout, "the takeover", func() (bool, string) {
		who := run.executors(t)
		return len(who) == 2, strings.Join(who, ", ")
	})
	give()
	if err := second.await(t); err != nil {
		t.Errorf("run worker: %v", err)
	}
	s.dagster.awaitEnd(t, runTimeout, run.ID, dagsterapi.RunSuccess)
	if tasks := s.server.tasks(t, run.ID); len(tasks.in(stepfleet.StateSucceeded)) != 9 || len(tasks) != 9 {
		t.Errorf("ledger: %s, want 9 succeeded", tasks)
	}
	run.checkOnce(t, map[string]int{"STEP_SUCCESS": 9, "RUN_SUCCESS": 1})
}

// The last step ends, and nobody is there to say that the run has.
func TestARunIsTakenOnWhenAllItsStepsHaveEnded(t *testing.T) {
	s := defaultLauncher(t) // nobody else resumes its runs
	file, give := release(t)
	run := s.create(t, "one", config{ops: numbered("work", 1, behaviour{"release": file}, nil)})
	first := run.work(t, false)
	s.awaitBegins(t, runTimeout, 1, run.ID)
	first.signal(t, syscall.SIGKILL)
	_ = first.await(t)
	give()
	awaitAllEnded(t, s, run.ID)
	second := run.work(t, true)
	if err := second.await(t); err != nil {
		t.Errorf("run worker: %v", err)
	}
	s.dagster.awaitEnd(t, runTimeout, run.ID, dagsterapi.RunSuccess)
	run.checkOnce(t, map[string]int{"STEP_SUCCESS": 1, "RUN_SUCCESS": 1})
}

// The worker dies while nobody speaks for the run; who takes it on says once, in Dagster's log,
// that the attempt was lost.
func TestAStepThatIsLostWithoutARunWorkerIsRetriedOnce(t *testing.T) {
	s := defaultLauncher(t) // nobody else resumes its runs
	file, give := release(t)
	run := s.create(t, "one", config{
		executor: map[string]any{"lost_step_retries": 1}, ops: numbered("work", 1, behaviour{"release": file}, nil),
	})
	first := run.work(t, false)
	begins := s.awaitBegins(t, runTimeout, 1, run.ID)
	first.signal(t, syscall.SIGKILL)
	_ = first.await(t)
	s.signal(t, begins[stepfleet.Key{RunID: run.ID, StepKey: "work_0"}].Worker, syscall.SIGKILL)
	await(t, recoverWithin, "the attempt to be lost", func() (bool, string) {
		tasks := s.server.tasks(t, run.ID)
		return len(tasks.in(stepfleet.StateLost)) == 1, tasks.String()
	})
	second := run.work(t, true)
	s.awaitBegins(t, runTimeout, 2, run.ID)
	give()
	if err := second.await(t); err != nil {
		t.Errorf("run worker: %v", err)
	}
	s.dagster.awaitEnd(t, runTimeout, run.ID, dagsterapi.RunSuccess)
	run.checkOnce(t, map[string]int{"STEP_UP_FOR_RETRY": 1, "STEP_SUCCESS": 1, "STEP_FAILURE": 0, "RUN_SUCCESS": 1})
	granted := 0
	for _, row := range s.server.checkAudit(t, run.ID) {
		if row.Verb == stepfleet.VerbAdjudicate && row.Refused == "" && row.Actor == "executor 2" {
			granted++
		}
	}
	if granted != 1 {
		t.Errorf("adjudicated %d times by executor 2, want once", granted)
	}
}

// The old run worker was stopped, as behind a partition, and wakes while the new one works.
func TestAnOldRunWorkerThatWakesLeavesTheRunAlone(t *testing.T) {
	s := defaultLauncher(t) // nobody else resumes its runs
	file, give := release(t)
	run := s.create(t, "chain", config{ops: map[string]any{
		"begin": behaviour{}, "step_1": behaviour{"release": file}, "step_2": behaviour{}, "step_3": behaviour{},
	}})
	first := run.work(t, false)
	s.awaitBegins(t, runTimeout, 2, run.ID)
	first.signal(t, syscall.SIGSTOP)
	second := run.work(t, true)
	await(t, runTimeout, "the takeover", func() (bool, string) {
		who := run.executors(t)
		return len(who) == 2, strings.Join(who, ", ")
	})
	first.signal(t, syscall.SIGCONT)
	if err := first.await(t); err != nil {
		t.Errorf("the old run worker: %v", err)
	}
	if status, err := s.dagster.status(run.ID); err != nil || status.Ended() {
		t.Errorf("the old run worker has left, and the run is %s %v", status, err)
	}
	give()
	if err := second.await(t); err != nil {
		t.Errorf("run worker: %v", err)
	}
	s.dagster.awaitEnd(t, runTimeout, run.ID, dagsterapi.RunSuccess)
	run.checkOnce(t, map[string]int{"STEP_SUCCESS": 4, "STEP_FAILURE": 0, "RUN_SUCCESS": 1, "RUN_FAILURE": 0, "RUN_CANCELED": 0})
	for _, row := range s.server.checkAudit(t, run.ID) {
		if row.Verb == stepfleet.VerbCancel || row.Verb == stepfleet.VerbClose && row.Actor != "executor 2" {
			t.Errorf("audit row %+v", row)
		}
	}
}
