package pyhost_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/pyhost"
)

// python is the project's own interpreter, with Dagster and the plugin.
func python(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../.venv/bin/python")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make setup` first", err)
	}
	return path
}

const wait = 60 * time.Second

// dagsterRun makes a run of a one-op job on an instance of its own, and the payload of its step.
func dagsterRun(t *testing.T, body string) (dir, runID, payload string) {
	t.Helper()
	dir = t.TempDir()
	script := `
import json, os, sys
from dagster import DagsterInstance, reconstructable
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._grpc.types import ExecuteStepArgs
from dagster._serdes import serialize_value
from dagster._core.definitions.reconstruct import ReconstructableJob
os.environ["DAGSTER_HOME"] = sys.argv[1]
sys.path.insert(0, sys.argv[1])
open(os.path.join(sys.argv[1], "dagster.yaml"), "w").write("telemetry: {enabled: false}\n")
import probe_defs
with DagsterInstance.get() as instance:
    recon = ReconstructableJob.for_file(os.path.join(sys.argv[1], "probe_defs.py"), "probe_job")
    run = instance.create_run_for_job(probe_defs.probe_job, job_code_origin=recon.get_python_origin())
    args = ExecuteStepArgs(job_origin=recon.get_python_origin(), run_id=run.run_id, step_keys_to_execute=None,
        instance_ref=instance.get_ref(), retry_mode=RetryMode.DEFERRED, known_state=KnownExecutionState(), should_verify_step=False)
    print(json.dumps({"run_id": run.run_id, "payload": serialize_value(args)}))
`
	defs := "import os, time, sys, signal, subprocess\nfrom dagster import job, op\n\n@op\ndef probe(context):\n" + body + "\n\n@job\ndef probe_job():\n    probe()\n"
	if err := os.WriteFile(filepath.Join(dir, "probe_defs.py"), []byte(defs), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python(t), "-c", script, dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var made struct{ RunID, Payload string }
	var raw map[string]string
	if err := json.Unmarshal(out[strings.LastIndex(string(out), "{\"run_id"):], &raw); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	made.RunID, made.Payload = raw["run_id"], raw["payload"]
	return dir, made.RunID, made.Payload
}

func startHost(t *testing.T, mode pyhost.Mode, dir string, besides ...pyhost.Preload) *pyhost.Host {
	t.Helper()
	h := pyhost.New(pyhost.Config{
		Python: python(t), Mode: mode, Idle: 1,
		Preload: append([]pyhost.Preload{{File: filepath.Join(dir, "probe_defs.py")}}, besides...),
		Spool:   filepath.Join(dir, "spool"),
		Logger:  slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("host: %v", err)
		}
	})
	return h
}

// openGate grants everything and tells what was asked.
type openGate struct {
	refuse  error
	started chan struct{}
	events  chan string
}

func newGate() *openGate {
	return &openGate{started: make(chan struct{}, 1), events: make(chan string, 100)}
}

func (g *openGate) Start(context.Context) error {
	if g.refuse == nil {
		g.started <- struct{}{}
	}
	return g.refuse
}

func (g *openGate) Event(_ context.Context, name string) error { g.events <- name; return nil }

func launch(t *testing.T, h *pyhost.Host, runID, payload string, gate stepfleet.Gate) stepfleet.Process {
	t.Helper()
	key := stepfleet.Key{RunID: runID, StepKey: "probe"}
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	p, err := h.Launch(ctx, stepfleet.Job{
		Lease: stepfleet.Lease{Ref: stepfleet.Ref{TaskID: 7, Fence: 3}, Task: stepfleet.Task{
			V: 1, Kind: stepfleet.KindStep, Key: key, Op: "probe", Job: "probe_job", IdempotencyKey: key.IdempotencyKey(),
			Queue: "default", Payload: stepfleet.DigestOf([]byte(payload)),
		}},
		Payload: []byte(payload),
		Env:     map[string]string{"STEPFLEET_FENCE": "3", "STEPFLEET_IDEMPOTENCY_KEY": key.IdempotencyKey()},
	}, gate)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func exitOf(t *testing.T, p stepfleet.Process) stepfleet.Exit {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(wait):
		t.Fatal("the process does not end")
	}
	return p.Exit()
}

func receiveWithin(t *testing.T, c <-chan struct{}, otherwise string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(wait):
		t.Fatal(otherwise)
	}
}

// awaitChildren waits until the host has these step processes.
func awaitChildren(t *testing.T, h *pyhost.Host, want map[string]int) {
	t.Helper()
	for end := time.Now().Add(wait); !maps.Equal(h.Children(), want); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("there are the processes %v, want %v", h.Children(), want)
		}
	}
}

func modes(t *testing.T, f func(t *testing.T, mode pyhost.Mode)) {
	for _, mode := range []pyhost.Mode{pyhost.ModeFork, pyhost.ModeCold} {
		t.Run(string(mode), func(t *testing.T) { f(t, mode) })
	}
}

func TestAStepRunsAndReports(t *testing.T) {
	modes(t, func(t *testing.T, mode pyhost.Mode) {
		dir, run, payload := dagsterRun(t, `    open(os.path.join(os.path.dirname(__file__), "ran"), "a").write(os.environ["STEPFLEET_FENCE"] + os.environ.get("STEPFLEET_TOKEN", "") + os.environ.get("OUR_SETTING", "") + os.environ.get("PYTHONUNBUFFERED", "") + os.environ["THEIR_SETTING"])`)
		t.Setenv("DAGSTER_HOME", dir)
		t.Setenv("PYTHONUNBUFFERED", "")
		t.Setenv("STEPFLEET_TOKEN", "secret")
		t.Setenv("OUR_SETTING", "for the worker alone")
		t.Setenv("THEIR_SETTING", "-user")
		t.Setenv("STEPFLEET_WITHHELD_ENV", "SOMETHING_ELSE,OUR_SETTING")
		gate := newGate()
		host := startHost(t, mode, dir)
		if mode == pyhost.ModeFork {
			awaitChildren(t, host, map[string]int{"starting": 0, "idle": 1, "busy": 0})
		}
		p := launch(t, host, run, payload, gate)
		if p.Warm() != (mode == pyhost.ModeFork) {
			t.Errorf("the process of mode %s is warm: %t", mode, p.Warm())
		}
		exit := exitOf(t, p)
		if mode == pyhost.ModeCold {
			awaitChildren(t, host, map[string]int{"starting": 0, "idle": 0, "busy": 0})
		}
		if exit.Result == nil || !exit.Result.Success || exit.Result.Event != "STEP_SUCCESS" || exit.Status != 0 {
			t.Fatalf("exit %+v result %+v", exit, exit.Result)
		}
		if ran, _ := os.ReadFile(filepath.Join(dir, "ran")); string(ran) != "3-user" {
			t.Errorf("user code saw %q", ran)
		}
		close(gate.events)
		asked := map[string]int{}
		for e := range gate.events {
			asked[e]++
		}
		if asked["STEP_OUTPUT"] != 1 || asked["STEP_SUCCESS"] != 1 {
			t.Errorf("asked %v", asked)
		}
	})
}

// What user code finds in its environment of ours is listed here, so that a secret cannot be added to
// it unseen.
func TestNoSecretOfTheWorkerReachesUserCode(t *testing.T) {
	const secret = "a secret of the worker"
	modes(t, func(t *testing.T, mode pyhost.Mode) {
		dir, run, payload := dagsterRun(t, `    open(os.path.join(os.path.dirname(__file__), "saw"), "w").write("\n".join(f"{n}={v}" for n, v in os.environ.items()))`)
		t.Setenv("DAGSTER_HOME", dir)
		for _, variable := range os.Environ() {
			if name, value, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "STEPFLEET_") {
				t.Setenv(name, value) // so that it comes back
				if err := os.Unsetenv(name); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, name := range []string{"STEPFLEET_TOKEN", "STEPFLEET_TOKEN_FILE", "STEPFLEET_DATABASE_URL"} {
			t.Setenv(name, secret)
		}
		if exit := exitOf(t, launch(t, startHost(t, mode, dir), run, payload, newGate())); exit.Result == nil || !exit.Result.Success {
			t.Fatalf("exit %+v result %+v", exit, exit.Result)
		}
		saw, err := os.ReadFile(filepath.Join(dir, "saw"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(saw), secret) {
			t.Errorf("user code saw a secret:\n%s", saw)
		}
		var ours []string
		for variable := range strings.Lines(string(saw)) {
			if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "STEPFLEET_") {
				ours = append(ours, name)
			}
		}
		slices.Sort(ours)
		if want := []string{"STEPFLEET_FENCE", "STEPFLEET_IDEMPOTENCY_KEY", "STEPFLEET_SPOOL"}; !slices.Equal(ours, want) {
			t.Errorf("user code saw %v, want %v", ours, want)
		}
	})
}

func TestARefusedStartRunsNoUserCode(t *testing.T) {
	modes(t, func(t *testing.T, mode pyhost.Mode) {
		dir, run, payload := dagsterRun(t, `    open(os.path.join(os.path.dirname(__file__), "ran"), "a").write("x")`)
		t.Setenv("DAGSTER_HOME", dir)
		gate := newGate()
		gate.refuse = stepfleet.ErrFenced
		exit := exitOf(t, launch(t, startHost(t, mode, dir), run, payload, gate))
		if exit.Result != nil || exit.Status != 3 {
			t.Errorf("exit %+v", exit)
		}
		if _, err := os.Stat(filepath.Join(dir, "ran")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("user code ran: %v", err)
		}
	})
}

func TestKillTakesTheWholeGroup(t *testing.T) {
	modes(t, func(t *testing.T, mode pyhost.Mode) {
		dir, run, payload := dagsterRun(t, `    p = subprocess.Popen(["sleep", "600"])
    path = os.path.join(os.path.dirname(__file__), "pid")
    open(path + ".new", "w").write(str(p.pid))
    os.rename(path + ".new", path)
    time.sleep(600)`)
		t.Setenv("DAGSTER_HOME", dir)
		gate := newGate()
		p := launch(t, startHost(t, mode, dir), run, payload, gate)
		pid := waitPID(t, filepath.Join(dir, "pid"))
		group, err := syscall.Getpgid(pid)
		if err != nil {
			t.Fatal(err)
		}
		p.Kill()
		if exit := exitOf(t, p); exit.Status != -int(syscall.SIGKILL) || exit.Result != nil || exit.PID != group {
			t.Errorf("exit %+v of the group %d", exit, group)
		}
		waitGone(t, pid)
	})
}

func TestAStepThatIgnoresSIGTERMEndsWithAnEventWhenInterrupted(t *testing.T) {
	modes(t, func(t *testing.T, mode pyhost.Mode) {
		dir, run, payload := dagsterRun(t, `    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    path = os.path.join(os.path.dirname(__file__), "pid")
    open(path + ".new", "w").write(str(os.getpid()))
    os.rename(path + ".new", path)
    time.sleep(600)`)
		t.Setenv("DAGSTER_HOME", dir)
		p := launch(t, startHost(t, mode, dir), run, payload, newGate())
		waitPID(t, filepath.Join(dir, "pid"))
		p.Terminate()
		p.Interrupt()
		if exit := exitOf(t, p); exit.Result == nil || exit.Result.Event != "STEP_FAILURE" {
			t.Errorf("exit %+v with result %+v, want STEP_FAILURE", exit, exit.Result)
		}
	})
}

// Dagster waits for the marker before it calls a log complete; a killed step cannot leave it.
func TestTheLogsOfAKilledStepAreComplete(t *testing.T) {
	modes(t, func(t *testing.T, mode pyhost.Mode) {
		dir, run, payload := dagsterRun(t, `    print("last words", end="")
    os.kill(os.getpid(), signal.SIGKILL)`)
		t.Setenv("DAGSTER_HOME", dir)
		if exit := exitOf(t, launch(t, startHost(t, mode, dir), run, payload, newGate())); exit.Result != nil {
			t.Errorf("exit %+v", exit)
		}
		logs := filepath.Join(dir, "storage", run, "compute_logs")
		for end := time.Now().Add(wait); ; time.Sleep(10 * time.Millisecond) {
			if markers, _ := filepath.Glob(filepath.Join(logs, "*.complete")); len(markers) == 1 {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the log is never complete")
			}
		}
		files, _ := filepath.Glob(filepath.Join(logs, "*.out"))
		if len(files) != 1 {
			t.Fatalf("logs %v", files)
		}
		if text, _ := os.ReadFile(files[0]); string(text) != "last words" {
			t.Errorf("log %q", text)
		}
	})
}

// A template that takes a second to fail leaves cold processes to be had, also while it is tried.
func TestATemplateThatNeverLoadsDoesNotTakeTheHostAway(t *testing.T) {
	python := filepath.Join(t.TempDir(), "python")
	if err := os.WriteFile(python, []byte("#!/bin/sh\nsleep 1\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	h := pyhost.New(pyhost.Config{Python: python, Mode: pyhost.ModeAuto, Idle: 1, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	select {
	case <-h.Available():
	case <-time.After(wait):
		t.Fatal("it is never known that there is no template")
	}
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		select {
		case <-h.Available():
		default:
			t.Fatal("the host is away while a template is tried again")
		}
	}
	if reasons := h.Ready(); len(reasons) != 1 || !strings.Contains(reasons[0], "template") {
		t.Errorf("reasons %v", reasons)
	}
}

const startsThread = `    import threading
    def later():
        time.sleep(1)
        open(os.path.join(os.path.dirname(__file__), "later"), "w").write("x")
        %s
    threading.Thread(target=later).start()`

func TestAStepWaitsForItsThreadsBeforeItReports(t *testing.T) {
	modes(t, func(t *testing.T, mode pyhost.Mode) {
		dir, run, payload := dagsterRun(t, fmt.Sprintf(startsThread, ""))
		t.Setenv("DAGSTER_HOME", dir)
		p := launch(t, startHost(t, mode, dir), run, payload, newGate())
		receiveWithin(t, p.Lingers(), "the process does not say that threads are left")
		receiveWithin(t, p.Reported(), "the process does not report")
		if _, err := os.Stat(filepath.Join(dir, "later")); err != nil {
			t.Errorf("it has reported before its thread had ended: %v", err)
		}
		if exit := exitOf(t, p); exit.Result == nil || !exit.Result.Success || exit.Result.ExecutionSeconds < 1 {
			t.Errorf("exit %+v with result %+v", exit, exit.Result)
		}
	})
}

func TestAThreadThatEndsTheProcessDoesNotUndoItsStep(t *testing.T) {
	modes(t, func(t *testing.T, mode pyhost.Mode) {
		dir, run, payload := dagsterRun(t, fmt.Sprintf(startsThread, "os._exit(7)"))
		t.Setenv("DAGSTER_HOME", dir)
		exit := exitOf(t, launch(t, startHost(t, mode, dir), run, payload, newGate()))
		if exit.Result == nil || exit.Result.Event != "STEP_SUCCESS" || exit.Status != 7 {
			t.Errorf("exit %+v with result %+v, want STEP_SUCCESS and status 7", exit, exit.Result)
		}
	})
}

func TestADyingStepIsReportedByItsStatus(t *testing.T) {
	modes(t, func(t *testing.T, mode pyhost.Mode) {
		dir, run, payload := dagsterRun(t, `    os._exit(17)`)
		t.Setenv("DAGSTER_HOME", dir)
		if exit := exitOf(t, launch(t, startHost(t, mode, dir), run, payload, newGate())); exit.Status != 17 || exit.Result != nil {
			t.Errorf("exit %+v", exit)
		}
	})
}

const tellsPID = `    path = os.path.join(os.path.dirname(__file__), "pid")
    open(path + ".new", "w").write(str(os.getpid()))
    os.rename(path + ".new", path)
`

func TestAStoppedTemplateHidesNobodysDeath(t *testing.T) {
	for name, c := range map[string]struct {
		body   string
		kill   bool
		status int
	}{
		"killed":    {tellsPID + "    time.sleep(600)", true, -int(syscall.SIGKILL)},
		"by itself": {tellsPID + "    time.sleep(2)\n    os._exit(17)", false, 17},
	} {
		t.Run(name, func(t *testing.T) {
			dir, run, payload := dagsterRun(t, c.body)
			t.Setenv("DAGSTER_HOME", dir)
			p := launch(t, startHost(t, pyhost.ModeFork, dir), run, payload, newGate())
			stopProcess(t, parentOf(t, waitPID(t, filepath.Join(dir, "pid"))))
			if c.kill {
				p.Kill()
			}
			before := time.Now()
			if exit := exitOf(t, p); exit.Status != c.status || exit.Result != nil || exit.HostDied {
				t.Errorf("exit %+v, want status %d", exit, c.status)
			}
			if took := time.Since(before); took > 10*time.Second {
				t.Errorf("the end was known after %s", took)
			}
		})
	}
}

func stopProcess(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return parent
}

func waitPID(t *testing.T, path string) int {
	t.Helper()
	for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if raw, err := os.ReadFile(path); err == nil {
			pid, err := strconv.Atoi(string(raw))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("%s does not come", path)
	return 0
}

func waitGone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	t.Errorf("process %d lives", pid)
}
