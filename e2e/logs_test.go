//go:build linux

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// logWithin bounds what a reader of logs waits for: Dagster asks a storage every few seconds, and
// a running step's log is uploaded as often.
const logWithin = 40 * time.Second

// logStack is a stack and where its logs are read.
type logStack struct {
	*stack
	local  string   // the directory that step processes write to
	reader *dagster // of cloud storage: a webserver that has not that directory
	// complete says whether Dagster can tell that a log is.
	complete func(t *testing.T, run, fileKey string) bool
}

func TestLogsOnTheMachine(t *testing.T) {
	s := shared(t)
	local := filepath.Join(s.dir, "dev", "dagster_home", "compute_logs")
	testLogs(t, logStack{stack: s, local: local, reader: s.dagster, complete: func(_ *testing.T, run, fileKey string) bool {
		_, err := os.Stat(filepath.Join(local, run, "compute_logs", fileKey+".complete"))
		return err == nil
	}})
}

func TestLogsOnS3(t *testing.T) {
	t.Parallel()
	dir, err := stackDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s3 := startS3(t, dir)
	s3.createBucket(t, "logs")
	yaml := filepath.Join(dir, "dagster.yaml")
	settings := fmt.Sprintf("compute_logs:\n  module: dagster_aws.s3.compute_log_manager\n  class: S3ComputeLogManager\n"+
		"  config:\n    bucket: logs\n    endpoint_url: %s\n    local_dir: {env: TEST_LOCAL_DIR}\n    upload_interval: 2\n", s3.url)
	if err := os.WriteFile(yaml, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	defs, err := filepath.Abs("testdata/e2e_defs.py")
	if err != nil {
		t.Fatal(err)
	}
	local := filepath.Join(dir, "worker-logs")
	d := startDev(t, dir, dir, []string{"TEST_LOCAL_DIR=" + local},
		"--python", python, "-f", defs, "--dagster-yaml", yaml)
	if d.dagster, err = connectDagster(d.state().URLs["dagster"]); err != nil {
		t.Fatal(err)
	}
	reader := d.startElsewhere(t, dir)
	testLogs(t, logStack{stack: &d.stack, local: local, reader: reader, complete: reader.showsWhereTheLogIs})
	if left, _ := filepath.Glob(filepath.Join(dir, "dev", "spool", "*.*")); len(left) != 1 { // the uploader's lock
		t.Errorf("the spool still has %v", left)
	}
}

func testLogs(t *testing.T, s logStack) {
	t.Run("shown while the step runs", func(t *testing.T) { testRunningLog(t, s) })
	t.Run("each attempt has its own", func(t *testing.T) { testLogsOfAttempts(t, s) })
	t.Run("complete after the step is killed", func(t *testing.T) { testKilledStepsLog(t, s) })
	t.Run("complete after the worker is killed", func(t *testing.T) { testKilledWorkersLogs(t, s) })
}

func testRunningLog(t *testing.T, s logStack) {
	file, give := release(t)
	run := s.dagster.launch(t, "one", config{ops: numbered("work", 1, behaviour{"release": file}, nil)})
	s.awaitLog(t, run, "work_0", 0)
	if running := s.server.tasks(t, run).in(stepfleet.StateRunning); len(running) != 1 {
		t.Errorf("ledger: %s: it was to run while its log was read", running)
	}
	if key := s.fileKeys(t, run, "work_0")[0]; s.complete(t, run, key) {
		t.Error("the log of a running step is called complete")
	}
	give()
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	s.awaitComplete(t, run, "work_0", 0)
}

func testLogsOfAttempts(t *testing.T, s logStack) {
	run := s.dagster.launch(t, "one_retried", config{ops: map[string]any{"retried_0": behaviour{"fail_attempts": 1}}})
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	// In this order a reader that took the first for the second's would be seen.
	for _, attempt := range []int{0, 1, 0} {
		s.awaitLog(t, run, "retried_0", attempt)
	}
	s.awaitComplete(t, run, "retried_0", 0)
	s.awaitComplete(t, run, "retried_0", 1)
}

func testKilledStepsLog(t *testing.T, s logStack) {
	file, _ := release(t)
	run := s.dagster.launch(t, "one", config{ops: numbered("work", 1, behaviour{"release": file}, nil)})
	for _, begin := range s.awaitBegins(t, runTimeout, 1, run) {
		s.awaitPrinted(t, run, "work_0", 0)
		if err := syscall.Kill(begin.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunFailure)
	s.awaitComplete(t, run, "work_0", 0)
	s.awaitLog(t, run, "work_0", 0)
}

func testKilledWorkersLogs(t *testing.T, s logStack) {
	file, give := release(t)
	run := s.dagster.launch(t, "six", config{
		executor: map[string]any{"lost_step_retries": 1}, ops: numbered("work", 6, behaviour{"release": file}, nil),
	})
	s.awaitBegins(t, runTimeout, 6, run)
	running := s.server.tasks(t, run).in(stepfleet.StateRunning)
	victim := running[0].Worker
	lost := running.on(victim)
	for _, task := range lost {
		s.awaitPrinted(t, run, task.StepKey, 0)
	}
	s.signal(t, victim, syscall.SIGKILL)
	await(t, recoverWithin, "the next attempts", func() (bool, string) {
		begins := s.begins(t, run)
		return len(begins) == 6+len(lost), fmt.Sprintf("%d of %d attempts have begun", len(begins), 6+len(lost))
	})
	for _, task := range lost {
		s.awaitLog(t, run, task.StepKey, 0)
		s.awaitComplete(t, run, task.StepKey, 0)
	}
	give()
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	for _, task := range lost {
		s.awaitLog(t, run, task.StepKey, 1)
		s.awaitComplete(t, run, task.StepKey, 1)
	}
	t.Logf("%d of 6 steps were on %s, which was killed", len(lost), victim)
}

// fileKeys returns what Dagster calls the logs of a step, one an attempt.
func (s logStack) fileKeys(t *testing.T, run, step string) []string {
	t.Helper()
	var keys []string
	for _, e := range s.dagster.events(t, run) {
		if e.Type == "LOGS_CAPTURED" && slices.Equal(e.StepKeys, []string{step}) {
			keys = append(keys, e.FileKey)
		}
	}
	return keys
}

// awaitPrinted waits until an attempt has printed what it prints at its begin.
func (s logStack) awaitPrinted(t *testing.T, run, step string, attempt int) {
	t.Helper()
	await(t, logWithin, "the step to print", func() (bool, string) {
		files, _ := filepath.Glob(filepath.Join(s.local, run, "compute_logs", "*.out"))
		for _, file := range files {
			if raw, _ := os.ReadFile(file); string(raw) == printed("stdout", step, attempt) {
				return true, ""
			}
		}
		return false, fmt.Sprint(files)
	})
}

// printed is what the ops of e2e_defs.py print.
func printed(stream, step string, attempt int) string {
	return fmt.Sprintf("%s of %s, attempt %d\n", stream, step, attempt)
}

// awaitLog waits until Dagster shows all that an attempt has printed, and nothing of any other.
func (s logStack) awaitLog(t *testing.T, run, step string, attempt int) {
	t.Helper()
	await(t, logWithin, fmt.Sprintf("the log of %s, attempt %d", step, attempt), func() (bool, string) {
		keys := s.fileKeys(t, run, step)
		if len(keys) <= attempt {
			return false, fmt.Sprintf("%d logs are captured", len(keys))
		}
		stdout, stderr := s.reader.logs(t, run, keys[attempt])
		ok := stdout == printed("stdout", step, attempt) && strings.Contains(stderr, printed("stderr", step, attempt))
		return ok, fmt.Sprintf("stdout %q, stderr %q", stdout, stderr)
	})
}

// awaitComplete waits until Dagster can tell that an attempt's log is complete.
func (s logStack) awaitComplete(t *testing.T, run, step string, attempt int) {
	t.Helper()
	key := s.fileKeys(t, run, step)[attempt]
	await(t, logWithin, "log "+key+" to be complete", func() (bool, string) { return s.complete(t, run, key), "" })
}

// startElsewhere starts a webserver on the stack's storage as another machine would: it shares no
// files with the workers.
func (d *dev) startElsewhere(t *testing.T, dir string) *dagster {
	t.Helper()
	state, port := d.state(), freePort(t)
	home := filepath.Join(dir, "dev", "dagster_home")
	p := launchCommand(t, dir, filepath.Join(dir, "elsewhere.out"), []string{
		"DAGSTER_HOME=" + home, "DAGSTER_DATABASE_URL=" + readLine(t, state.DagsterURL),
		"TEST_LOCAL_DIR=" + filepath.Join(dir, "webserver-logs"),
	}, python, "-m", "dagster_webserver", "--host", "127.0.0.1", "--port", strconv.Itoa(port), "--workspace", filepath.Join(home, "workspace.yaml"))
	stopAtEnd(t, p)
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	awaitAnswer(t, p, url+"/server_info")
	return &dagster{url: url, location: d.dagster.location}
}

// showsWhereTheLogIs says whether Dagster names the object with the log, which it does of a complete
// one in S3.
func (d *dagster) showsWhereTheLogIs(t *testing.T, run, fileKey string) bool {
	t.Helper()
	var data struct {
		CapturedLogsMetadata struct{ StderrLocation string }
	}
	err := d.ask(`query($key: [String!]!) { capturedLogsMetadata(logKey: $key) { stderrLocation } }`,
		map[string]any{"key": []string{run, "compute_logs", fileKey}}, &data)
	if err != nil {
		t.Fatalf("metadata of log %s: %v", fileKey, err)
	}
	return data.CapturedLogsMetadata.StderrLocation != ""
}

// s3 is a local S3 that keeps its objects in memory.
type s3 struct{ url string }

func startS3(t *testing.T, dir string) s3 {
	t.Helper()
	return s3{url: startMoto(t, dir, "-m", "moto.server")}
}

// startMoto starts an AWS in memory, by the interpreter's arguments, and returns its URL.
func startMoto(t *testing.T, dir string, program ...string) string {
	t.Helper()
	port := freePort(t)
	p := launchCommand(t, dir, filepath.Join(dir, "moto.out"), nil,
		python, slices.Concat(program, []string{"-H", "127.0.0.1", "-p", strconv.Itoa(port)})...)
	stopAtEnd(t, p)
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	awaitAnswer(t, p, url+"/moto-api/")
	return url
}

func (s s3) createBucket(t *testing.T, name string) {
	t.Helper()
	request, err := http.NewRequest(http.MethodPut, s.url+"/"+name, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("create bucket %s: %s", name, response.Status)
	}
}

func stopAtEnd(t *testing.T, p *program) {
	t.Helper()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.gone
		if t.Failed() {
			out := p.output(t)
			t.Logf("the end of %s:\n%s", p.out, out[max(0, len(out)-tailBytes):])
		}
	})
}

func awaitAnswer(t *testing.T, p *program, url string) {
	t.Helper()
	await(t, healthyTimeout, url, func() (bool, string) {
		response, err := http.Get(url)
		if err != nil {
			return false, fmt.Sprintf("%v\n%s", err, p.output(t))
		}
		defer response.Body.Close()
		return response.StatusCode == http.StatusOK, response.Status
	})
}

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}
