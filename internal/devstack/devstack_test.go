package devstack

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/stepfleet/stepfleet/internal/supervise"
)

// takenPort listens on a port for as long as the test runs.
func takenPort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener.Addr().(*net.TCPAddr).Port
}

func TestAssignRefusesATakenPortByItsFlag(t *testing.T) {
	port := takenPort(t)
	for flag, ports := range map[string]Ports{
		"--port-dagster":  {Dagster: port},
		"--port-server":   {Server: port},
		"--port-sqs":      {AWS: port},
		"--port-postgres": {Postgres: port},
	} {
		_, err := assign(Config{Ports: ports, Workers: 1, Servers: 1}, 1)
		if err == nil || !strings.Contains(err.Error(), flag) || !strings.Contains(err.Error(), strconv.Itoa(port)) {
			t.Errorf("%s: err = %v", flag, err)
		}
	}
	if _, err := assign(Config{Ports: Ports{AWS: port}, Workers: 1, Servers: 1, AWSEndpoint: "http://elsewhere"}, 1); err != nil {
		t.Errorf("without a local AWS its port is nobody's business: %v", err)
	}
}

func TestAssignFindsDifferentPorts(t *testing.T) {
	a, err := assign(Config{Workers: 8, Servers: 3}, 8)
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Concat([]int{a.dagster, a.aws, a.postgres}, a.servers, a.workers, a.code)
	slices.Sort(all)
	if len(slices.Compact(slices.Clone(all))) != 22 || all[0] < firstFreePort {
		t.Errorf("ports = %v", all)
	}
	if _, err := assign(Config{Ports: Ports{Dagster: all[0], Server: all[0]}, Workers: 1, Servers: 1}, 1); err == nil {
		t.Error("one port was given twice")
	}
}

func TestParseQueues(t *testing.T) {
	queues, err := ParseQueues([]string{"default:8", "gpu"})
	if err != nil || len(queues) != 2 || queues[0].String() != "default:8" || queues[1].String() != "gpu:4" {
		t.Errorf("queues = %v, %v", queues, err)
	}
	for _, wrong := range []string{"default:0", "default:x", "Default:1", ":4", "a:9999"} {
		if _, err := ParseQueues([]string{wrong}); err == nil || !strings.Contains(err.Error(), wrong) {
			t.Errorf("%q: err = %v", wrong, err)
		}
	}
}

func TestASecondStackOnADirectoryIsRefused(t *testing.T) {
	layout := Layout{filepath.Join(t.TempDir(), "dir")}
	lock, err := layout.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(layout.State(), []byte(`{"v":1,"pids":{"dev":4711}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := layout.Lock(); err == nil || !strings.Contains(err.Error(), "4711") || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("second lock: %v", err)
	}
	lock.Close()
	again, err := layout.Lock()
	if err != nil {
		t.Fatalf("after the first is gone: %v", err)
	}
	again.Close()
}

func TestCreateKeepsAndForgets(t *testing.T) {
	layout := Layout{t.TempDir()}
	mine := filepath.Join(layout.Dir, "mine.txt")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := layout.Create(false)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(layout.Log("server"), []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	second, err := layout.Create(false)
	if err != nil || second != first || len(first) < 20 {
		t.Errorf("token %q, then %q, %v", first, second, err)
	}
	if text, _ := os.ReadFile(layout.Log("server") + ".1"); string(text) != "before" {
		t.Errorf("the log before is %q", text)
	}
	if info, err := os.Stat(layout.TokenFile()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("token file: %v, %v", info.Mode(), err)
	}
	third, err := layout.Create(true)
	if err != nil || third == first {
		t.Errorf("a fresh stack has the old token, %v", err)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Errorf("--fresh removed somebody else's file: %v", err)
	}
}

func testStack(t *testing.T) *Stack {
	t.Helper()
	return &Stack{
		config: Config{Python: "/venv/bin/python", Project: "/project", MaxRuns: 7, Executable: "/bin/stepfleet", Queues: []Queue{{"default", 4}}},
		layout: Layout{t.TempDir()}, id: "the-id", instances: map[string]string{},
		targets: []Target{{Name: `odd: "name"`, Flag: "-m", Code: "a.defs"}, {Name: "b.py", Flag: "-f", Code: "/b.py"}},
		ports:   assigned{dagster: 1, servers: []int{2}, aws: 3, postgres: 4, workers: []int{5}, code: []int{6, 7}},
		running: &Database{OwnerURL: "postgres://owner", ServerURL: "postgres://server", WorkerURL: "postgres://worker", DagsterURL: "postgresql://dagster", PID: 9},
	}
}

// TestDagsterHome checks lines; that Dagster takes the files is seen whenever a stack starts.
func TestDagsterHome(t *testing.T) {
	s := testStack(t)
	home, err := s.dagsterHome()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"      env: DAGSTER_DATABASE_URL\n", "    max_concurrent_runs: 7\n", "run_monitoring:\n  enabled: true\n",
		"telemetry:\n  enabled: false\n", "    base_dir: \"" + s.layout.Dir + "/dagster_home/compute_logs\"\n",
	} {
		if !strings.Contains(home.Instance, line) {
			t.Errorf("dagster.yaml lacks %q:\n%s", line, home.Instance)
		}
	}
	if strings.Contains(home.Instance, "postgresql://") {
		t.Error("dagster.yaml holds the database's URL")
	}
	const want = `load_from:
  - grpc_server:
      host: 127.0.0.1
      port: 6
      location_name: "odd: \"name\""
  - grpc_server:
      host: 127.0.0.1
      port: 7
      location_name: "b.py"
`
	if !strings.HasSuffix(home.Workspace, want) {
		t.Errorf("workspace.yaml:\n%s\nwant:\n%s", home.Workspace, want)
	}
}

func TestTheRunLauncherIsInDagstersFileAndHasSlots(t *testing.T) {
	s := testStack(t)
	instance := func() string {
		home, err := s.dagsterHome()
		if err != nil {
			t.Fatal(err)
		}
		return home.Instance
	}
	s.config.addRunQueue()
	if len(s.config.Queues) != 1 || strings.Contains(instance(), "run_launcher") {
		t.Errorf("with Dagster's own launcher: queues %v", s.config.Queues)
	}
	s.config.RunLauncher = LauncherStepfleet
	s.config.addRunQueue()
	s.config.addRunQueue()
	if want := (Queue{"runs", 7}); len(s.config.Queues) != 2 || s.config.Queues[1] != want {
		t.Errorf("queues %v, want one more: %v, for as many runs as there can be", s.config.Queues, want)
	}
	for _, line := range []string{"  max_resume_run_attempts: 3\n", "  class: StepfleetRunLauncher\n"} {
		if home := instance(); !strings.Contains(home, line) {
			t.Errorf("dagster.yaml lacks %q:\n%s", line, home)
		}
	}
}

func TestTheUsersDagsterYAML(t *testing.T) {
	s := testStack(t)
	s.config.DagsterYAML = filepath.Join(t.TempDir(), "dagster.yaml")
	write := func(text string) {
		if err := os.WriteFile(s.config.DagsterYAML, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("compute_logs:\n  class: Mine\n  config: {bucket: {env: BUCKET}, upload_interval: 5}\nretention:\n  sensor: {purge_after_days: 3}\n")
	home, err := s.dagsterHome()
	if err != nil {
		t.Fatal(err)
	}
	var merged struct {
		Storage     struct{ Postgres map[string]any }
		ComputeLogs map[string]any `yaml:"compute_logs"`
		Retention   map[string]any
	}
	if err := yaml.Unmarshal([]byte(home.Instance), &merged); err != nil {
		t.Fatalf("%v\n%s", err, home.Instance)
	}
	want := map[string]any{"class": "Mine", "config": map[string]any{"bucket": map[string]any{"env": "BUCKET"}, "upload_interval": uint64(5)}}
	if diff := cmp.Diff(want, merged.ComputeLogs); diff != "" {
		t.Errorf("compute_logs (-want +got):\n%s", diff)
	}
	if merged.Storage.Postgres == nil || merged.Retention == nil {
		t.Errorf("storage of the stack, or retention of the user, is missing:\n%s", home.Instance)
	}
	write("storage:\n  sqlite: {base_dir: /data}\n")
	if _, err := s.dagsterHome(); err == nil || !strings.Contains(err.Error(), "leave storage out") {
		t.Errorf("storage: err = %v", err)
	}
	write("a: [\n")
	if _, err := s.dagsterHome(); err == nil || !strings.Contains(err.Error(), s.config.DagsterYAML) {
		t.Errorf("no YAML: err = %v", err)
	}
}

func value(environ []string, name string) string {
	for _, variable := range environ {
		if key, value, _ := strings.Cut(variable, "="); key == name {
			return value
		}
	}
	return ""
}

func TestEnvironmentOfChildren(t *testing.T) {
	t.Setenv("AWS_PROFILE", "work")
	t.Setenv("STEPFLEET_DATABASE_URL", "postgres://elsewhere")
	t.Setenv("MY_SETTING", "kept")
	t.Setenv("PYTHONUNBUFFERED", "")
	s := testStack(t)
	for name, want := range map[string]string{
		"MY_SETTING": "kept", "AWS_PROFILE": "work", "AWS_ENDPOINT_URL_SQS": "", "STEPFLEET_DATABASE_URL": "", "PYTHONUNBUFFERED": "", supervise.MarkVariable: "the-id",
		"STEPFLEET_URL": "http://127.0.0.1:2", "DAGSTER_DATABASE_URL": "",
	} {
		if got := value(s.plain("webserver"), name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	for who, environ := range map[string][]string{"Dagster": s.ofDagster("webserver"), "a worker": s.ofWorker("worker-1")} {
		if got := value(environ, "DAGSTER_DATABASE_URL"); got != "postgresql://dagster" {
			t.Errorf("Dagster's database of %s is %q", who, got)
		}
	}
	if got := value(s.ofServer("server"), "DAGSTER_DATABASE_URL"); got != "" {
		t.Errorf("the server is told Dagster's database %q", got)
	}
	if path := value(s.plain("webserver"), "PATH"); !strings.HasPrefix(path, "/venv/bin:") {
		t.Errorf("PATH = %s", path)
	}
	if got := value(s.ofServer("server"), "STEPFLEET_DATABASE_URL"); got != "postgres://server" {
		t.Errorf("the server's ledger is %q", got)
	}
	if got := value(s.ofWorker("worker-1"), "STEPFLEET_DATABASE_URL"); got != "postgres://worker" {
		t.Errorf("a worker's ledger is %q", got)
	}
	s.config.AWSEndpoint = "http://sqs.example"
	if got := value(s.ofWorker("worker-1"), "AWS_ENDPOINT_URL_SQS"); got != "http://sqs.example" {
		t.Errorf("AWS_ENDPOINT_URL_SQS = %q", got)
	}
	if got := value(s.ofWorker("worker-1"), "STEPFLEET_WITHHELD_ENV"); got != "AWS_ENDPOINT_URL_SQS" {
		t.Errorf("steps do not get %q, want what dev has set and nothing of the user's", got)
	}
}

// Steps use AWS as the user's other processes do: the local SQS, and the keys for it, are ours.
func TestStepsDoNotInheritTheLocalSQS(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_REGION"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	got := value(testStack(t).ofWorker("worker-1"), "STEPFLEET_WITHHELD_ENV")
	if want := "AWS_ENDPOINT_URL_SQS,AWS_ACCESS_KEY_ID,AWS_SECRET_ACCESS_KEY,AWS_REGION"; got != want {
		t.Errorf("steps do not get %q, want %q", got, want)
	}
}

func TestEveryLifeOfAWorkerIsAnInstance(t *testing.T) {
	s := testStack(t)
	command := s.workerCommand("worker-1", "127.0.0.1:5")
	first, second := command(0), command(1)
	if first.Tag == second.Tag || s.instances["worker-1"] != second.Tag {
		t.Errorf("instances %q, %q, recorded %q", first.Tag, second.Tag, s.instances["worker-1"])
	}
	line := strings.Join(first.Args, " ")
	for _, part := range []string{"worker --name worker-1 --instance " + first.Tag, "--queue default:4", "-m a.defs", "-f /b.py", "--python /venv/bin/python"} {
		if !strings.Contains(line, part) {
			t.Errorf("%s: lacks %q", line, part)
		}
	}
}

func TestTargets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "defs.py")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var project facts
	project.Project.Modules, project.Project.Name = []string{"p.definitions"}, "p"
	var none facts
	none.Project.Problem = "there is no pyproject.toml here"
	for name, test := range map[string]struct {
		config Config
		facts  facts
		want   []Target
		err    string
	}{
		"given":   {Config{Modules: []string{"m"}, Files: []string{file}}, project, []Target{{"m", "-m", "m"}, {"defs.py", "-f", file}}, ""},
		"project": {Config{}, project, []Target{{"p", "-m", "p.definitions"}}, ""},
		"none":    {Config{}, none, nil, "there is no pyproject.toml here"},
		"twice":   {Config{Modules: []string{"m", "m"}}, none, nil, `code location "m"`},
		"no file": {Config{Files: []string{"missing.py"}}, none, nil, "missing.py"},
	} {
		got, err := test.config.targets(test.facts)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: err = %v", name, err)
			}
			continue
		}
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestInspect runs inspect.py on whatever python3 is there; it needs the standard library only.
func TestInspect(t *testing.T) {
	dir := t.TempDir()
	text := "[tool.dagster]\nmodule_name = \"shop.definitions\"\ncode_location_name = \"shop\"\n"
	if err := os.WriteFile(filepath.Join(dir, "pyproject.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "dagster_webserver"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PYTHONPATH", "")
	t.Setenv("PYTHONNOUSERSITE", "1")
	wrapper := filepath.Join(dir, "python") // without site-packages, so that dagster is missing for certain
	if err := os.WriteFile(wrapper, []byte("#!/bin/sh\nexec python3 -S \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	found, err := inspect(t.Context(), Config{Python: wrapper, Project: dir})
	if err == nil || !strings.Contains(err.Error(), "pip install dagster dagster-postgres dagster-stepfleet") {
		t.Errorf("err = %v", err)
	}
	if !slices.Equal(found.Project.Modules, []string{"shop.definitions"}) || found.Project.Name != "shop" {
		t.Errorf("project = %+v", found.Project)
	}
	if _, err := inspect(t.Context(), Config{Python: "/no/such/python", Project: dir}); err == nil || !strings.Contains(err.Error(), "--python") {
		t.Errorf("a missing interpreter: %v", err)
	}
}

func TestDeathsAreReportedUntilTheServerHears(t *testing.T) {
	var mu sync.Mutex
	var calls []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		var sent struct {
			V      int
			Reason string
		}
		_ = json.Unmarshal(body, &sent)
		calls = append(calls, r.Header.Get("Authorization")+" "+r.URL.Path+" "+sent.Reason)
		if len(calls) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	d := newDeaths([]string{"http://127.0.0.1:1", server.URL}, "secret", testLog())
	d.report("life-1", "killed")
	d.finish(10 * time.Second)
	want := "Bearer secret /v1/instances/life-1/dead killed"
	if !slices.Equal(calls, []string{want, want}) {
		t.Errorf("calls = %q", calls)
	}
	d = newDeaths([]string{"http://127.0.0.1:1"}, "secret", testLog())
	d.report("life-2", "killed")
	began := time.Now()
	d.finish(50 * time.Millisecond)
	if time.Since(began) > 5*time.Second {
		t.Errorf("giving up took %s", time.Since(began))
	}
}

func TestAProcessGetsVariablesOfItsOwn(t *testing.T) {
	s := &Stack{config: Config{
		Python: "python3", AWSEndpoint: "http://elsewhere",
		Environment: func(process string, at Endpoints) []string {
			return []string{"STEPFLEET_URL=" + process + " " + strings.Join(at.Servers, ",") + " " + at.Database.Address}
		},
	}}
	s.ports.servers = []int{1, 2}
	s.setDatabase(&Database{Address: "127.0.0.1:3"})
	environ := s.ofWorker("worker-1")
	cmd := exec.Command("/bin/sh", "-c", "echo $STEPFLEET_URL")
	cmd.Env = environ
	out, err := cmd.Output()
	if want := "worker-1 127.0.0.1:1,127.0.0.1:2 127.0.0.1:3\n"; err != nil || string(out) != want {
		t.Errorf("%q, %v; want %q", out, err, want)
	}
}

func TestADeathIsNoProofWhereNoneIsAskedFor(t *testing.T) {
	heard := make(chan string, 2)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { heard <- r.URL.Path }))
	defer server.Close()
	s := &Stack{
		config: Config{ProofOfDeath: func(worker string) bool { return worker == "worker-1" }},
		deaths: newDeaths([]string{server.URL}, "secret", testLog()),
	}
	s.workerExited(supervise.Exit{Name: "worker-2", Tag: "two"})
	s.workerExited(supervise.Exit{Name: "worker-1", Tag: "one"})
	s.deaths.finish(10 * time.Second)
	if close(heard); len(heard) != 1 || <-heard != "/v1/instances/one/dead" {
		t.Errorf("%d reports, want that of worker-1 alone", len(heard)+1)
	}
}

// TestAFailedStartLeavesNothing starts a stack whose PostgreSQL cannot come up.
func TestAFailedStartLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	broken := errors.New("no PostgreSQL here")
	python := filepath.Join(t.TempDir(), "python")
	answer := `{"python":"3.12.0","missing":[],"versions":{"dagster":"1"},"project":{"modules":[],"problem":""}}`
	if err := os.WriteFile(python, []byte("#!/bin/sh\necho '"+answer+"'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	_, err := Start(t.Context(), Config{
		Modules: []string{"m"}, Dir: dir, Python: python, Workers: 1, Executable: "/bin/cat", AWSEndpoint: "http://127.0.0.1:1",
		StartPostgres: func(context.Context, string, int, string) (*Database, error) { return nil, broken },
		Out:           &out,
	})
	if !errors.Is(err, broken) {
		t.Errorf("err = %v\n%s", err, &out)
	}
	if _, err := ReadState(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("dev.json is left: %v", err)
	}
	lock, err := Layout{dir}.Lock()
	if err != nil {
		t.Fatalf("the lock is left: %v", err)
	}
	lock.Close()
	if os.Getenv(supervise.MarkVariable) != "" {
		t.Error("the mark is left")
	}
}

func testLog() *slog.Logger { return slog.New(slog.DiscardHandler) }
