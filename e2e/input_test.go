//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// inputTimeout bounds a run of one or two instant steps on a busy machine.
const inputTimeout = 120 * time.Second

// --- flags and settings -----------------------------------------------------------------------

func TestWrongFlagsAndSettingsAreRefusedWithWhatToDo(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	const dsn = "STEPFLEET_DATABASE_URL=postgres://stepfleet:hunter2@127.0.0.1:1/stepfleet"
	_, takenPort, _ := net.SplitHostPort(taken.Addr().String())
	for _, test := range []struct {
		name   string
		args   string
		env    []string
		status int
		says   []string
	}{
		{"unknown flag", "server --colour red", nil, 80, []string{"unknown flag --colour"}},
		{"unknown command", "sever", nil, 80, []string{"unexpected argument sever"}},
		{
			"worker's queue without slots", "worker --queue foo",
			[]string{dsn},
			1,
			[]string{`--queue "foo": use name:slots, as default:4`},
		},
		{
			"worker's queue with an impossible name", "worker --queue no/slash:4",
			[]string{dsn},
			1,
			[]string{`--queue "no/slash:4"`},
		},
		{
			"server without a database", "server --listen 127.0.0.1:0",
			nil, 1,
			[]string{"STEPFLEET_DATABASE_URL is not set", "postgres://user:password@host:5432/stepfleet"},
		},
		{"worker without a database", "worker", nil, 1, []string{"STEPFLEET_DATABASE_URL is not set"}},
		{"migrate without a database", "migrate", nil, 1, []string{"STEPFLEET_DATABASE_URL is not set"}},
		{
			"database address that is none", "server --listen 127.0.0.1:0",
			[]string{"STEPFLEET_DATABASE_URL=postgres://stepfleet:hunter2@host:port/db"},
			1,
			[]string{"STEPFLEET_DATABASE_URL: open ledger: the connection string cannot be read", "postgres://USER:PASSWORD@HOST:PORT/DATABASE"},
		},
		{
			"database address with a driver of Python's", "migrate",
			[]string{"STEPFLEET_DATABASE_URL=postgresql+psycopg2://stepfleet:hunter2@127.0.0.1:1/db?sslmode=disable"},
			1,
			[]string{"migrate ledger: the connection string cannot be read", "without a driver's name"},
		},
		{
			"migrate without PostgreSQL", "migrate",
			[]string{dsn},
			1,
			[]string{"migrate ledger: ", "127.0.0.1:1", "refused"},
		},
		{
			"server open to the network without a token", "server --listen 0.0.0.0:0",
			[]string{dsn},
			1,
			[]string{"--listen 0.0.0.0:0 reaches beyond this machine: set STEPFLEET_TOKEN or STEPFLEET_TOKEN_FILE"},
		},
		{
			"worker open to the network without a token", "worker --listen :0",
			[]string{dsn},
			1,
			[]string{"--listen :0 reaches beyond this machine"},
		},
		{
			"server without a port", "server --listen localhost",
			[]string{dsn},
			1,
			[]string{`--listen "localhost": use host:port`},
		},
		{
			"server on a taken port", "server --listen " + taken.Addr().String(),
			[]string{dsn},
			1,
			[]string{taken.Addr().String(), "address already in use", "--listen"},
		},
		{
			"empty token file", "server --listen 127.0.0.1:0",
			[]string{dsn, "STEPFLEET_TOKEN_FILE=/dev/null"},
			1,
			[]string{"STEPFLEET_TOKEN_FILE: /dev/null is empty"},
		},
		{
			"deadlines that contradict each other", "server --listen 127.0.0.1:0 --session-ttl 300s",
			[]string{dsn},
			1,
			[]string{"run lease 3m0s must exceed session TTL 5m0s"},
		},
		{"local AWS open to the network", "aws --listen 0.0.0.0:0", nil, 1, []string{"0.0.0.0", "loopback"}},
		{"dev without workers", "dev --workers 0", nil, 1, []string{"--workers 0: use 1 to 32"}},
		{"dev with a queue of no slots", "dev --queue default:0", nil, 1, []string{"--queue default:0", "as in default:4"}},
		{"dev with a file that is not there", "dev -f nothing.py --python " + python, nil, 1, []string{"-f nothing.py", "no such file"}},
		{"dev with nothing to run", "dev --python " + python, nil, 1, []string{"-m MODULE or -f FILE", "pyproject.toml"}},
		{"dev with a Python that is not there", "dev -m x --python /no/python", nil, 1, []string{"/no/python", "--python PATH"}},
		{
			"dev on a taken port", "dev -m stepfleet_examples.definitions --port-server " + takenPort + " --python " + python,
			nil, 1,
			[]string{"port " + takenPort + " is taken", "--port-server"},
		},
		{
			"dev with one port for two", "dev -m stepfleet_examples.definitions --port-server 4999 --port-sqs 4999 --python " + python,
			nil, 1,
			[]string{"port 4999 is given to both --port-server and --port-sqs"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			status, out := runProgram(t, dir, test.env, strings.Fields(test.args)...)
			if status != test.status {
				t.Errorf("exit status %d, want %d", status, test.status)
			}
			for _, want := range test.says {
				if !strings.Contains(out, want) {
					t.Errorf("does not say %q", want)
				}
			}
			if strings.Contains(out, "hunter2") {
				t.Error("says the password")
			}
			// What dev says before it starts anything: its directory may have the lock, no more.
			if _, err := os.Stat(filepath.Join(dir, ".stepfleet", "postgres")); err == nil {
				t.Error("PostgreSQL was made before the refusal")
			}
			if t.Failed() {
				t.Logf("it says:\n%s", out)
			}
		})
	}
}

func TestDevRefusesAPythonWithoutThePlugin(t *testing.T) {
	dir := t.TempDir()
	bare := filepath.Join(dir, "venv")
	if out, err := exec.Command(python, "-m", "venv", "--without-pip", bare).CombinedOutput(); err != nil {
		t.Fatalf("make a bare virtual environment: %v\n%s", err, out)
	}
	interpreter := filepath.Join(bare, "bin", "python")
	status, out := runProgram(t, dir, nil, "dev", "-m", "shop.definitions", "--python", interpreter)
	if status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
	for _, want := range []string{
		"cannot import dagster, dagster_webserver, dagster_postgres, dagster_stepfleet",
		interpreter + " -m pip install dagster dagster-webserver dagster-postgres dagster-stepfleet", "--python PATH",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("does not say %q:\n%s", want, out)
		}
	}
}

// --- the database -----------------------------------------------------------------------------

func TestTooOldPostgreSQLIsRefusedByVersion(t *testing.T) {
	ledger, err := postgres.Open(t.Context(), testenv.Migrated(t), postgres.Options{MinServerVersion: 990000})
	if err != nil {
		t.Fatal(err)
	}
	defer ledger.Close()
	err = ledger.Check(t.Context())
	if !errors.Is(err, stepfleet.ErrSchema) || !strings.Contains(err.Error(), "is too old: stepfleet needs 99 or newer") {
		t.Errorf("Check says %v", err)
	}
}

// One server, started before its schema is there, lives through everything that may be wrong with it.
func TestServerSaysWhatIsWrongWithTheSchemaAndServesWhenItIsMended(t *testing.T) {
	dsn := testenv.Postgres(t)
	env := []string{"STEPFLEET_DATABASE_URL=" + dsn}
	server := startServer(t, env)
	worker := startProgram(t, t.TempDir(), env, "worker", "--queue", "default:1", "--host-mode", "cold")
	workerURL := worker.awaitLine(t, `worker begins.* probes=(\S+)`)

	awaitProbe(t, server+"/readyz", http.StatusServiceUnavailable, "run `stepfleet migrate`")
	awaitProbe(t, server+"/livez", http.StatusOK, "")
	awaitProbe(t, workerURL+"/readyz", http.StatusServiceUnavailable, "session: none")
	awaitProbe(t, workerURL+"/livez", http.StatusOK, "")
	status, code, message := submitOne(t, server, "run-1")
	if status != http.StatusServiceUnavailable || code != "schema" || !strings.Contains(message, "stepfleet migrate") {
		t.Errorf("submit answers %d %s: %s", status, code, message)
	}

	if status, out := runProgram(t, t.TempDir(), env, "migrate"); status != 0 {
		t.Fatalf("migrate: exit status %d\n%s", status, out)
	}
	awaitProbe(t, server+"/readyz", http.StatusOK, "")
	awaitProbe(t, workerURL+"/readyz", http.StatusOK, "")
	if status, code, message := submitOne(t, server, "run-2"); status != http.StatusOK {
		t.Errorf("submit answers %d %s: %s", status, code, message)
	}

	// A newer server has migrated the database that an older one, this binary, still uses.
	const newer = 4711
	execSQL(t, dsn, fmt.Sprintf("INSERT INTO stepfleet.goose_db_version (version_id, is_applied) VALUES (%d, true)", newer))
	awaitProbe(t, server+"/readyz", http.StatusServiceUnavailable, "the schema has version 4711")
	awaitProbe(t, server+"/readyz", http.StatusServiceUnavailable, "upgrade this binary")
	late := startProgram(t, t.TempDir(), env, "worker", "--queue", "default:1", "--host-mode", "cold")
	lateURL := late.awaitLine(t, `worker begins.* probes=(\S+)`)
	awaitProbe(t, lateURL+"/readyz", http.StatusServiceUnavailable, "upgrade this binary")
	execSQL(t, dsn, fmt.Sprintf("DELETE FROM stepfleet.goose_db_version WHERE version_id = %d", newer))
	awaitProbe(t, server+"/readyz", http.StatusOK, "")
	awaitProbe(t, lateURL+"/readyz", http.StatusOK, "")
}

func execSQL(t *testing.T, dsn, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// submitOne submits a step as the plugin would.
func submitOne(t *testing.T, url, run string) (status int, code, message string) {
	t.Helper()
	var taken struct{ Epoch int64 }
	status, code, message = post(t, url+"/v1/runs/"+run+"/epoch", map[string]any{"v": 1, "executor": "test"}, &taken)
	if status != http.StatusOK {
		return status, code, message
	}
	payload := "{}"
	digest := stepfleet.DigestOf([]byte(payload))
	return post(t, url+"/v1/runs/"+run+"/tasks", map[string]any{
		"v": 1, "epoch": taken.Epoch, "identity": "00", "payloads": map[string]string{string(digest): payload},
		"tasks": []any{map[string]any{
			"v": 1, "kind": "step", "run_id": run, "step_key": "work", "attempt": 0, "op": "work", "job": "one",
			"idempotency_key": run + "/work", "queue": "default", "priority": 0, "code_location": "shop",
			"payload": string(digest), "retry_budget": map[string]int{"policy_retries": 0, "lost_step_retries": 0},
		}},
	}, &struct{}{})
}

// post sends a request to the server and reads its answer, or its refusal.
func post(t *testing.T, url string, request map[string]any, into any) (status int, code, message string) {
	t.Helper()
	body, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Timeout: 30 * time.Second}
	response, err := client.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var refusal struct {
		Error struct{ Code, Message string }
	}
	if err := errors.Join(json.Unmarshal(raw, &refusal), json.Unmarshal(raw, into)); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, refusal.Error.Code, refusal.Error.Message
}

// --- runs -------------------------------------------------------------------------------------

// wrongRun is a run with something wrong, and what must then be seen. All are launched at once.
type wrongRun struct {
	name     string
	location string
	job      string
	executor map[string]any
	check    func(t *testing.T, run string)
}

// testWrongInputToRuns is a part of TestStackStopsCleanlyAndGoesOn: it uses its stack.
func testWrongInputToRuns(t *testing.T, d *dev, project string) {
	closed := closedURL(t)
	outage := startOutage(t, d.server.url)
	stranger := d.startServer(t, "STEPFLEET_TOKEN=another-token")
	narrow := d.startServer(t, "STEPFLEET_MAX_PAYLOAD_BYTES=9000")
	cases := []wrongRun{
		{"server unreachable", inputDefs, "one", map[string]any{"server_url": closed, "outage_budget_seconds": 3}, func(t *testing.T, run string) {
			d.dagster.awaitEnd(t, inputTimeout, run, dagsterapi.RunFailure)
			wantEvent(t, d.dagster.events(t, run), "RUN_FAILURE", "", closed, "Check that `stepfleet server` runs there", "STEPFLEET_URL", "outage_budget_seconds")
			wantTasks(t, d, run, 0)
		}},
		{"server comes back within the budget", inputDefs, "one", map[string]any{"server_url": outage.url}, func(t *testing.T, run string) {
			select {
			case <-outage.refusedTwice:
			case <-time.After(inputTimeout):
				t.Fatal("the run has not tried to reach the server twice")
			}
			if status, err := d.dagster.status(run); err != nil || status.Ended() {
				t.Fatalf("the run is %s during the outage (%v)", status, err)
			}
			outage.over.Store(true)
			d.dagster.awaitEnd(t, inputTimeout, run, dagsterapi.RunSuccess)
			wantTasks(t, d, run, 1)
		}},
		{"wrong token", inputDefs, "one", map[string]any{"server_url": stranger}, func(t *testing.T, run string) {
			d.dagster.awaitEnd(t, inputTimeout, run, dagsterapi.RunFailure)
			wantEvent(t, d.dagster.events(t, run), "RUN_FAILURE", "", stranger, "401 unauthorized", "Set STEPFLEET_TOKEN, or STEPFLEET_TOKEN_FILE")
			wantTasks(t, d, run, 0)
		}},
		{"unknown queue", inputDefs, "unknown_queue", nil, func(t *testing.T, run string) {
			d.dagster.awaitEnd(t, inputTimeout, run, dagsterapi.RunFailure)
			events := d.dagster.events(t, run)
			wantEvent(t, events, "STEP_FAILURE", "on_gpu", "unknown_queue", `"gpu"`, "--queue gpu", "stepfleet/queue tag")
			wantEvent(t, events, "STEP_SUCCESS", "beside")
			wantTasks(t, d, run, 1)
		}},
		{"arguments over the limit", inputDefs, "growing", map[string]any{"server_url": narrow}, func(t *testing.T, run string) {
			d.dagster.awaitEnd(t, inputTimeout, run, dagsterapi.RunFailure)
			events := d.dagster.events(t, run)
			wantEvent(t, events, "STEP_SUCCESS", "split")
			failed := 0
			for _, e := range events {
				if e.Type == "STEP_FAILURE" && strings.Contains(e.reason(), "payload_too_big") && strings.Contains(e.reason(), "allowed are 9000") {
					failed++
				}
			}
			if failed != 40 {
				t.Errorf("%d steps failed for the size of their arguments, want 40", failed)
			}
			wantTasks(t, d, run, 1)
		}},
		{"code that does not import in the worker", inputWorker, "needs_package", nil, func(t *testing.T, run string) {
			// Its run worker needs the code, too: it waits for a worker that has it, while others go by.
			await(t, inputTimeout, "the launch", func() (bool, string) { return len(d.server.runWorkers(t, run)) == 1, "no run worker" })
			d.dagster.awaitEnd(t, inputTimeout, d.dagster.launch(t, "one", config{}), dagsterapi.RunSuccess)
			if tasks := d.server.allTasks(t, run); len(tasks) != 1 || tasks[0].State != stepfleet.StateQueued || tasks[0].Fence != 0 {
				t.Errorf("the tasks of code that is not there: %s", tasks)
			}
			if err := os.WriteFile(filepath.Join(project, "installed"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			d.dagster.awaitEnd(t, inputTimeout, run, dagsterapi.RunSuccess)
		}},
	}
	runs := make([]string, len(cases))
	for i, c := range cases {
		location := dagster{url: d.dagster.url, location: c.location}
		runs[i] = location.launch(t, c.job, config{executor: c.executor})
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.check(t, runs[i]) })
	}
	t.Run("code that imports nowhere", func(t *testing.T) { testBrokenCode(t, d) })
}

func testBrokenCode(t *testing.T, d *dev) {
	locations, err := dagsterapi.New(d.dagster.url).Locations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(locations, func(l dagsterapi.Location) bool { return l.Name == inputBroken })
	if i < 0 || !strings.Contains(locations[i].Error, "no module named 'not_installed_anywhere'") {
		t.Errorf("Dagster shows %+v", locations)
	}
	if out := d.output(t); !strings.Contains(out, "code location input_broken.py did not load") || !strings.Contains(out, "not_installed_anywhere") {
		t.Errorf("dev does not say it:\n%s", out)
	}
}

// wantEvent wants an event of this type and step whose message and error say all of it.
func wantEvent(t *testing.T, events []event, kind, step string, says ...string) {
	t.Helper()
	var seen []string
	for _, e := range events {
		if e.Type != kind || e.Step != step {
			continue
		}
		text := e.Message + " " + e.reason()
		missing := slices.DeleteFunc(slices.Clone(says), func(want string) bool { return strings.Contains(text, want) })
		if len(missing) == 0 {
			return
		}
		seen = append(seen, text)
	}
	t.Errorf("no %s %s that says %q; there are %q", kind, step, says, seen)
}

func wantTasks(t *testing.T, d *dev, run string, n int) {
	t.Helper()
	tasks := d.server.tasks(t, run)
	if len(tasks) != n || len(tasks.open()) > 0 {
		t.Errorf("the ledger has %d tasks of run %s, want %d, none open: %s", len(tasks), run, n, tasks)
	}
	d.server.checkAudit(t, run)
}

// closedURL is where nothing listens.
func closedURL(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// outage stands in front of the server and hangs up until it is over.
type outage struct {
	url          string
	over         atomic.Bool
	refusedTwice chan struct{}
}

func startOutage(t *testing.T, server string) *outage {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	o := &outage{url: "http://" + l.Addr().String(), refusedTwice: make(chan struct{})}
	go func() {
		for refused := 0; ; {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if o.over.Load() {
				go relay(conn, strings.TrimPrefix(server, "http://"))
				continue
			}
			conn.Close()
			if refused++; refused == 2 {
				close(o.refusedTwice)
			}
		}
	}()
	return o
}

// relay joins two connections until both sides have ended.
func relay(client net.Conn, address string) {
	defer client.Close()
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, client)
		server.Close()
	}()
	_, _ = io.Copy(client, server)
}

// --- programs ---------------------------------------------------------------------------------

// program is the binary under test with one of its commands.
type program struct {
	cmd   *exec.Cmd
	out   string // path of what it prints
	gone  chan struct{}
	ended error // how, then
}

// cleanEnv is the environment without what would configure stepfleet, with credentials for a local
// SQS that may not be there.
func cleanEnv(extra ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "STEPFLEET_") || strings.HasPrefix(v, "AWS_") || strings.HasPrefix(v, "DAGSTER_")
	})
	return append(append(env, "AWS_ENDPOINT_URL=http://127.0.0.1:1", "AWS_REGION=us-east-1",
		"AWS_ACCESS_KEY_ID=local", "AWS_SECRET_ACCESS_KEY=local"), extra...)
}

// launchProgram starts the binary in dir; it dies with this process, however this one ends.
func launchProgram(t *testing.T, dir, out string, env []string, args ...string) *program {
	t.Helper()
	return launchCommand(t, dir, out, env, binary, args...)
}

// launchCommand is launchProgram for any program.
func launchCommand(t *testing.T, dir, out string, env []string, name string, args ...string) *program {
	t.Helper()
	return launchWith(t, dir, out, cleanEnv(env...), name, args...)
}

// launchWith is launchCommand with the whole environment.
func launchWith(t *testing.T, dir, out string, environ []string, name string, args ...string) *program {
	t.Helper()
	file, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	p := &program{cmd: exec.Command(name, args...), out: out, gone: make(chan struct{})}
	p.cmd.Env, p.cmd.Dir = environ, dir
	p.cmd.Stdout, p.cmd.Stderr = file, file
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the death signal comes when the starting thread ends
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.ended = p.cmd.Wait()
			close(p.gone)
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s %s: %v", name, strings.Join(args, " "), err)
	}
	return p
}

// startProgram starts one that the test's end kills.
func startProgram(t *testing.T, dir string, env []string, args ...string) *program {
	t.Helper()
	p := launchProgram(t, dir, filepath.Join(t.TempDir(), "out"), env, args...)
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.gone
		if t.Failed() {
			t.Logf("stepfleet %s says:\n%s", strings.Join(args, " "), p.output(t))
		}
	})
	return p
}

// runProgram runs one to its end.
func runProgram(t *testing.T, dir string, env []string, args ...string) (status int, out string) {
	t.Helper()
	p := startProgram(t, dir, env, args...)
	select {
	case <-p.gone:
	case <-time.After(stopTimeout):
		t.Fatalf("stepfleet %s goes on", strings.Join(args, " "))
	}
	return p.cmd.ProcessState.ExitCode(), p.output(t)
}

func (p *program) output(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile(p.out)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// awaitLine waits for the expression in what the program prints and returns its group.
func (p *program) awaitLine(t *testing.T, expression string) string {
	t.Helper()
	pattern := regexp.MustCompile(expression)
	var match []string
	await(t, healthyTimeout, expression, func() (bool, string) {
		out := p.output(t)
		match = pattern.FindStringSubmatch(out)
		return match != nil, out
	})
	return match[1]
}

// startServer starts a server on a free port and returns its URL.
func startServer(t *testing.T, env []string, args ...string) string {
	t.Helper()
	p := startProgram(t, t.TempDir(), env, append([]string{"server", "--listen", "127.0.0.1:0"}, args...)...)
	return p.awaitLine(t, `server listens.* url=(\S+)`)
}

// awaitProbe waits until a probe answers with the status and says this among its reasons.
func awaitProbe(t *testing.T, url string, status int, says string) {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second}
	await(t, healthyTimeout, fmt.Sprintf("%s to answer %d %q", url, status, says), func() (bool, string) {
		response, err := client.Get(url)
		if err != nil {
			return false, err.Error()
		}
		defer response.Body.Close()
		raw, err := io.ReadAll(response.Body)
		if err != nil {
			return false, err.Error()
		}
		var answer struct {
			Reasons []string `json:"reasons"`
		}
		_ = json.Unmarshal(raw, &answer) // the local AWS answers in plain text
		said := strings.Contains(strings.Join(answer.Reasons, "\n"), says)
		return response.StatusCode == status && said, fmt.Sprintf("%s: %s", response.Status, raw)
	})
}
