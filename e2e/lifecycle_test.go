//go:build linux

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/proctable"
	"github.com/stepfleet/stepfleet/internal/supervise"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// The code locations of the user's project, by file.
const (
	inputDefs   = "input_defs.py"
	inputWorker = "input_worker.py"
	inputBroken = "input_broken.py"
)

// postgresOutageSeconds is longer than Dagster itself waits for its storage, some 6 s.
const postgresOutageSeconds = 15

// wardenTimeout bounds how long anything outlives a dev that was killed.
const wardenTimeout = 15 * time.Second

// shortLives are deadlines that let a test see a worker that has not renewed its session.
var shortLives = []string{
	"STEPFLEET_RENEW=1s", "STEPFLEET_SESSION_TTL=8s", "STEPFLEET_MARGIN=2s", "STEPFLEET_RUN_LEASE=90s",
}

// dev is a `stepfleet dev` of one user's project.
type dev struct {
	stack
	program *program
}

// One directory lives through three stacks: one that is stopped by Ctrl-C, one that goes on with its
// data and is killed, one that forgets.
func TestStackStopsCleanlyAndGoesOn(t *testing.T) {
	t.Parallel()
	dir, err := stackDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	project := filepath.Join(dir, "project")
	activated := []string{"VIRTUAL_ENV=" + filepath.Dir(filepath.Dir(python))}
	for _, file := range []string{inputDefs, inputWorker, inputBroken} {
		copyFile(t, filepath.Join("testdata", file), filepath.Join(project, file))
	}

	d := startDev(t, dir, project, shortLives, "--python", python, "-f", inputDefs, "-f", inputWorker, "-f", inputBroken)
	t.Run("wrong input", func(t *testing.T) { testWrongInputToRuns(t, d, project) })
	t.Run("every process has probes", func(t *testing.T) { testProbesOfEveryProcess(t, d) })
	t.Run("PostgreSQL hangs", func(t *testing.T) { testPostgreSQLHangs(t, d) })
	t.Run("PostgreSQL is killed", func(t *testing.T) { testPostgreSQLIsKilled(t, d) })
	t.Run("a second dev is refused", func(t *testing.T) { testSecondDevIsRefused(t, d, project) })
	done := d.dagster.launch(t, "one", config{})
	d.dagster.awaitEnd(t, inputTimeout, done, dagsterapi.RunSuccess)
	t.Run("every process has metrics", func(t *testing.T) { testMetricsOfEveryProcess(t, d) })
	file, _ := release(t)
	going := d.dagster.launch(t, "one", config{ops: map[string]any{"work": behaviour{"release": file}}})
	d.awaitBegins(t, inputTimeout, 1, going)
	t.Run("Ctrl-C leaves nothing", func(t *testing.T) { d.interrupt(t) })

	d = startDev(t, dir, project, exampleSchedules, "--python", python, "-m", "stepfleet_examples.definitions")
	t.Run("the next dev goes on with the data", func(t *testing.T) { testGoesOn(t, d, done, going) })
	t.Run("the example schedule ticks", func(t *testing.T) { testScheduleTicks(t, d) })
	t.Run("kill -9 leaves nothing", func(t *testing.T) { d.kill(t) })

	copyFile(t, filepath.Join("testdata", inputDefs), filepath.Join(project, "shop", "definitions.py"))
	d = startDev(t, dir, project, activated, "-m", "shop.definitions", "--fresh")
	t.Run("fresh starts empty", func(t *testing.T) { testStartsEmpty(t, d, done) })
	t.Run("Ctrl-C leaves nothing again", func(t *testing.T) { d.interrupt(t) })
}

// A template that still imports is no reason to kill the worker, and one to send it nothing yet.
func TestWorkerIsNotReadyWhileItsTemplateLoads(t *testing.T) {
	file, give := release(t)
	defs, err := filepath.Abs("testdata/input_slow.py")
	if err != nil {
		t.Fatal(err)
	}
	worker := startProgram(t, t.TempDir(), []string{
		"STEPFLEET_DATABASE_URL=" + testenv.Migrated(t), "STEPFLEET_E2E_RELEASE=" + file,
	}, "worker", "--queue", "default:1", "--python", python, "-f", defs)
	url := worker.awaitLine(t, `worker begins.* probes=(\S+)`)
	awaitProbe(t, url+"/readyz", http.StatusServiceUnavailable, "host: the template is loading")
	awaitProbe(t, url+"/livez", http.StatusOK, "")
	give()
	awaitProbe(t, url+"/readyz", http.StatusOK, "")
}

// --- the parts --------------------------------------------------------------------------------

func testProbesOfEveryProcess(t *testing.T, d *dev) {
	for _, url := range []string{d.server.url, d.workerURL(t), d.state().URLs["aws"]} {
		awaitProbe(t, url+"/livez", http.StatusOK, "")
		awaitProbe(t, url+"/readyz", http.StatusOK, "")
	}
}

// A PostgreSQL that answers nothing, and closes nothing either.
func testPostgreSQLHangs(t *testing.T, d *dev) {
	back := stopped(t, withDescendants(d.pid(t, "postgres")))
	awaitProbe(t, d.server.url+"/readyz", http.StatusServiceUnavailable, "ledger: ")
	awaitProbe(t, d.workerURL(t)+"/readyz", http.StatusServiceUnavailable, "session: not renewed for ")
	awaitProbe(t, d.server.url+"/livez", http.StatusOK, "")
	back()
	awaitProbe(t, d.server.url+"/readyz", http.StatusOK, "")
	awaitProbe(t, d.workerURL(t)+"/readyz", http.StatusOK, "")
}

// dev would start it again after a second, so dev is stopped meanwhile.
func testPostgreSQLIsKilled(t *testing.T, d *dev) {
	file, give := release(t)
	ops := numbered("work", 4, behaviour{"release": file}, nil)
	run := d.dagster.launch(t, "four", config{ops: ops})
	d.awaitBegins(t, inputTimeout, 4, run)

	postmaster := d.pid(t, "postgres")
	supervisor := d.program.cmd.Process
	t.Cleanup(func() { _ = supervisor.Signal(syscall.SIGCONT) })
	if err := supervisor.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	d.signal(t, "postgres", syscall.SIGKILL)
	awaitProbe(t, d.server.url+"/readyz", http.StatusServiceUnavailable, "ledger: ")
	awaitProbe(t, d.workerURL(t)+"/readyz", http.StatusServiceUnavailable, "session: not renewed for 6s")
	awaitProbe(t, d.workerURL(t)+"/livez", http.StatusOK, "")
	awaitProbe(t, d.state().URLs["aws"]+"/readyz", http.StatusOK, "")
	give() // the steps end while nobody can record it
	awaitProbe(t, d.workerURL(t)+"/readyz", http.StatusServiceUnavailable, fmt.Sprintf("session: not renewed for %ds", postgresOutageSeconds))
	if err := supervisor.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	awaitProbe(t, d.server.url+"/readyz", http.StatusOK, "")
	awaitProbe(t, d.workerURL(t)+"/readyz", http.StatusOK, "")
	await(t, healthyTimeout, "dev.json to name another PostgreSQL than the killed one", func() (bool, string) {
		return d.pid(t, "postgres") != postmaster, "it still does"
	})

	d.dagster.awaitEnd(t, inputTimeout, run, dagsterapi.RunSuccess)
	tasks := d.server.tasks(t, run)
	if len(tasks) != 4 || len(tasks.in(stepfleet.StateSucceeded)) != 4 {
		t.Errorf("the ledger has %s", tasks)
	}
	d.server.checkAudit(t, run)
	for _, event := range []string{"begin", "end"} {
		n := 0
		for _, e := range d.readEffects(t, run) {
			if e.Event == event {
				n++
			}
		}
		if n != 4 {
			t.Errorf("%d times %s in the effect log, want 4", n, event)
		}
	}
	var events []event
	await(t, inputTimeout, "Dagster's webserver to use a new connection", func() (bool, string) {
		events = d.dagster.events(t, run)
		return len(events) > 0, "no events"
	})
	for step := range ops {
		n := 0
		for _, e := range events {
			if e.Step == step && (e.Type == "STEP_SUCCESS" || e.Type == "STEP_FAILURE") {
				n++
			}
		}
		if n != 1 {
			t.Errorf("step %s has %d ending events, want 1: %+v", step, n, events)
		}
	}
}

func testSecondDevIsRefused(t *testing.T, d *dev, project string) {
	status, out := runProgram(t, project, nil, "dev", "--dir", filepath.Join(d.dir, "dev"), "--python", python, "-f", inputDefs)
	want := fmt.Sprintf("another `stepfleet dev` runs in %s (process %d)", filepath.Join(d.dir, "dev"), d.program.cmd.Process.Pid)
	if status != 1 || !strings.Contains(out, want) || !strings.Contains(out, "--dir") {
		t.Errorf("exit status %d, it says:\n%s\nwant 1 and %q", status, out, want)
	}
	awaitProbe(t, d.server.url+"/readyz", http.StatusOK, "") // and it did no harm
}

func testGoesOn(t *testing.T, d *dev, done, going string) {
	if runs := d.runs(t); !slices.Contains(runs, done) || !slices.Contains(runs, going) {
		t.Errorf("the runs of before are gone; there are %v", runs)
	}
	d.dagster.awaitEnd(t, inputTimeout, done, dagsterapi.RunSuccess)
	d.dagster.awaitEnd(t, inputTimeout, going, dagsterapi.RunFailure) // it was stopped with dev
	wantEvent(t, d.dagster.events(t, going), "RUN_FAILURE", "", "stepfleet dev was stopped while this run was going on")
	if tasks := d.server.tasks(t, done); len(tasks.in(stepfleet.StateSucceeded)) != 1 {
		t.Errorf("of the run of before the ledger has %s", tasks)
	}
	await(t, healthyTimeout, "the stopped run's task to end", func() (bool, string) {
		tasks := d.server.tasks(t, going)
		return len(tasks.open()) == 0, tasks.String()
	})
	examples := dagster{url: d.dagster.url, location: "stepfleet_examples.definitions"}
	d.dagster.awaitEnd(t, inputTimeout, examples.launch(t, "diamond", config{}), dagsterapi.RunSuccess)
}

func testStartsEmpty(t *testing.T, d *dev, done string) {
	if runs := d.runs(t); len(runs) > 0 {
		t.Errorf("Dagster still has the runs %v", runs)
	}
	if tasks := d.server.tasks(t, done); len(tasks) > 0 {
		t.Errorf("the ledger still has %s", tasks)
	}
	shop := dagster{url: d.dagster.url, location: "shop.definitions"}
	run := shop.launch(t, "one", config{})
	d.dagster.awaitEnd(t, inputTimeout, run, dagsterapi.RunSuccess)
	wantTasks(t, d, run, 1)
}

// --- dev --------------------------------------------------------------------------------------

// startDev starts dev in the project's directory and waits until everything is up.
func startDev(t *testing.T, dir, project string, env []string, args ...string) *dev {
	t.Helper()
	began := time.Now()
	d := &dev{stack: stack{dir: dir, effects: filepath.Join(dir, "effects.jsonl"), options: stackOptions{workers: 1}}}
	d.program = launchProgram(t, project, filepath.Join(dir, "dev.out"), slices.Concat(env, []string{"STEPFLEET_EFFECT_LOG=" + d.effects}),
		slices.Concat([]string{
			"dev", "--dir", filepath.Join(dir, "dev"), "--workers", "1", "--queue", "default:8",
			"--port-dagster", "0", "--port-server", "0", "--port-sqs", "0",
		}, args)...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(d.logTails())
		}
		_ = d.program.cmd.Process.Kill()
		<-d.program.gone
	})
	await(t, startTimeout, "dev to be ready", func() (bool, string) {
		select {
		case <-d.program.gone:
			t.Fatalf("dev has ended: %v\n%s", d.program.ended, d.output(t))
		default:
		}
		state := d.state() // of a dev that was killed before, until this one has cleared it away
		return state.Ready && state.PIDs["dev"] == d.program.cmd.Process.Pid, d.output(t)
	})
	state := d.state()
	token, err := os.ReadFile(state.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	d.server = &server{url: state.URLs["server"], token: strings.TrimSpace(string(token))}
	d.dagster = &dagster{url: state.URLs["dagster"], location: inputDefs}
	t.Logf("dev was ready after %.1f s", time.Since(began).Seconds())
	return d
}

func (d *dev) output(t *testing.T) string { return d.program.output(t) }

func (d *dev) workerURL(t *testing.T) string {
	t.Helper()
	return d.program.awaitLine(t, `ready +worker-1 +(http://\S+)`)
}

// startServer starts one more server on the stack's ledger, with settings of its own.
func (d *dev) startServer(t *testing.T, settings ...string) string {
	t.Helper()
	state := d.state()
	env := slices.Concat(shortLives, settings, []string{
		"STEPFLEET_DATABASE_URL=" + readLine(t, state.LedgerURL), "AWS_ENDPOINT_URL=" + state.URLs["aws"],
	})
	if !slices.ContainsFunc(settings, func(s string) bool { return strings.HasPrefix(s, "STEPFLEET_TOKEN=") }) {
		env = append(env, "STEPFLEET_TOKEN_FILE="+state.TokenFile)
	}
	return startServer(t, env)
}

// runs returns the ids of all runs that Dagster has.
func (d *dev) runs(t *testing.T) []string {
	t.Helper()
	var data struct {
		RunsOrError struct {
			Results []struct{ RunID string }
		}
	}
	if err := d.dagster.ask(`{ runsOrError { ... on Runs { results { runId } } } }`, nil, &data); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, run := range data.RunsOrError.Results {
		ids = append(ids, run.RunID)
	}
	return ids
}

// interrupt ends dev as Ctrl-C does, and wants nothing left of it.
func (d *dev) interrupt(t *testing.T) {
	t.Helper()
	traces := d.traces(t)
	began := time.Now()
	if err := d.program.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.program.gone:
	case <-time.After(stopTimeout):
		t.Fatalf("dev goes on %s after Ctrl-C:\n%s", stopTimeout, d.output(t))
	}
	if d.program.ended != nil {
		t.Errorf("dev ended with %v:\n%s", d.program.ended, d.output(t))
	}
	t.Logf("dev had ended %.1f s after Ctrl-C", time.Since(began).Seconds())
	traces.wantGone(t, time.Now(), 0)
	if _, err := os.Stat(filepath.Join(d.dir, "dev", "dev.json")); err == nil {
		t.Error("dev.json is still there")
	}
}

// kill kills dev itself, and wants nothing left of it soon.
func (d *dev) kill(t *testing.T) {
	t.Helper()
	traces := d.traces(t)
	killed := time.Now()
	if err := d.program.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.program.gone
	took := traces.wantGone(t, killed, wardenTimeout)
	t.Logf("%d processes were gone %.1f s after kill -9", len(traces.processes), took.Seconds())
}

// traces are what a stack must not leave behind.
type traces struct {
	id        string
	lock      string
	processes []proctable.Process
	addresses []string
}

func (d *dev) traces(t *testing.T) traces {
	t.Helper()
	state := d.state()
	trace := traces{id: state.ID, lock: filepath.Join(d.dir, "dev", "lock")}
	pids := append(supervise.Marked(state.ID), state.PIDs["warden"])
	for _, p := range proctable.Descendants(d.program.cmd.Process.Pid) {
		pids = append(pids, p.PID)
	}
	slices.Sort(pids)
	for _, pid := range slices.Compact(pids) {
		if p, ok := proctable.Read(pid); ok {
			trace.processes = append(trace.processes, p)
		}
	}
	// PostgreSQL, its children, server, worker, template, local AWS, code server, webserver, daemon.
	if len(trace.processes) < 12 {
		t.Errorf("only %d processes belong to the stack", len(trace.processes))
	}
	for _, text := range []string{
		state.URLs["dagster"], state.URLs["server"], state.URLs["aws"], d.workerURL(t), readLine(t, state.LedgerURL),
	} {
		address, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		trace.addresses = append(trace.addresses, address.Host)
	}
	return trace
}

// wantGone wants no process, no listening port and no lock.
func (trace traces) wantGone(t *testing.T, since time.Time, timeout time.Duration) time.Duration {
	t.Helper()
	took := awaitGone(t, timeout, since, trace.processes)
	if left := supervise.Marked(trace.id); len(left) > 0 {
		t.Errorf("processes %v carry the stack's mark", left)
	}
	for _, address := range trace.addresses {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			t.Errorf("somebody still listens on %s", address)
		}
	}
	lock, err := os.OpenFile(trace.lock, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Errorf("%s is still locked: %v", trace.lock, err)
	}
	return took
}

func readLine(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	raw, err := os.ReadFile(from)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err == nil {
		err = os.WriteFile(to, raw, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
