//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/devstack"
)

const (
	startTimeout   = 180 * time.Second
	stopTimeout    = 30 * time.Second
	healthyTimeout = 60 * time.Second
	pollInterval   = 20 * time.Millisecond
	// tailBytes is how much of each log a failed test shows.
	tailBytes = 3 << 10
)

type stackOptions struct {
	workers int
	queues  []string // name:slots, for each worker
	// launcher is dev's --run-launcher, its default when empty.
	launcher string
	// dagsterYAML replaces keys of dev's dagster.yaml.
	dagsterYAML string
	environ     []string
}

// stack is a running `stepfleet dev`.
type stack struct {
	dir     string
	effects string // path of the effect log
	options stackOptions
	cmd     *exec.Cmd
	gone    chan struct{} // closed when dev has ended
	ended   error         // its reason, then

	dagster *dagster
	server  *server
}

// stackDir makes a directory for a stack. PostgreSQL refuses to run as root, so where the tests do,
// another user must be able to enter.
func stackDir() (string, error) {
	dir, err := os.MkdirTemp("", "stepfleet-e2e-stack-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o711)
}

// startStack starts a stack in dir and waits until everything in it is ready.
func startStack(dir string, options stackOptions) (*stack, error) {
	s := &stack{dir: dir, effects: filepath.Join(dir, "effects.jsonl"), options: options, gone: make(chan struct{})}
	if err := s.launch(); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(startTimeout)
	for !s.state().Ready {
		select {
		case <-s.gone:
			return nil, fmt.Errorf("stepfleet dev: %w\n%s", s.ended, s.logTails())
		case <-time.After(pollInterval):
		}
		if time.Now().After(deadline) {
			_ = s.stop()
			return nil, fmt.Errorf("stepfleet dev is not ready after %s\n%s", startTimeout, s.logTails())
		}
	}
	state := s.state()
	token, err := os.ReadFile(state.TokenFile)
	if err != nil {
		return nil, err
	}
	s.server = &server{url: state.URLs["server"], token: strings.TrimSpace(string(token))}
	s.dagster, err = connectDagster(state.URLs["dagster"])
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// maxRuns are more than a test has at once: those of all stages go on side by side.
const maxRuns = 20

// launch starts the process. It dies with this one, however this one ends: the kernel kills dev,
// and dev's warden kills everything else.
func (s *stack) launch() error {
	defs, err := filepath.Abs("testdata/e2e_defs.py")
	if err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(s.dir, "dev.out"))
	if err != nil {
		return err
	}
	defer out.Close()
	args := []string{
		"dev", "--dir", filepath.Join(s.dir, "dev"), "--python", python, "-f", defs,
		"--port-dagster", "0", "--port-server", "0", "--port-sqs", "0", "--port-postgres", "0",
		"--workers", strconv.Itoa(s.options.workers), "--max-runs", strconv.Itoa(maxRuns),
	}
	for _, queue := range s.options.queues {
		args = append(args, "--queue", queue)
	}
	if s.options.launcher != "" {
		args = append(args, "--run-launcher", s.options.launcher)
	}
	if s.options.dagsterYAML != "" {
		path := filepath.Join(s.dir, "dagster.yaml")
		if err := os.WriteFile(path, []byte(s.options.dagsterYAML), 0o600); err != nil {
			return err
		}
		args = append(args, "--dagster-yaml", path)
	}
	s.cmd = exec.Command(binary, args...)
	s.cmd.Env = append(append(os.Environ(), "STEPFLEET_EFFECT_LOG="+s.effects), s.options.environ...)
	s.cmd.Dir = s.dir
	s.cmd.Stdout, s.cmd.Stderr = out, out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the death signal comes when the starting thread ends
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			s.ended = s.cmd.Wait()
			close(s.gone)
		}
	}()
	return <-started
}

// stop ends the stack as Ctrl-C does, and says when it did not end well.
func (s *stack) stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGCONT)
	_ = s.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-s.gone:
	case <-time.After(stopTimeout):
		_ = s.cmd.Process.Kill()
		<-s.gone
		return fmt.Errorf("stepfleet dev did not stop within %s\n%s", stopTimeout, s.logTails())
	}
	if s.ended != nil {
		return fmt.Errorf("stepfleet dev: %w\n%s", s.ended, s.logTails())
	}
	return os.RemoveAll(s.dir)
}

// state reads dev.json: present process ids among others. Empty while there is none.
func (s *stack) state() devstack.State {
	state, _ := devstack.ReadState(filepath.Join(s.dir, "dev"))
	return state
}

// pid returns the process id of a part of the stack.
func (s *stack) pid(t *testing.T, name string) int {
	t.Helper()
	pid := s.state().PIDs[name]
	if pid == 0 {
		t.Fatalf("dev.json has no process %s", name)
	}
	return pid
}

// signal sends a signal to a part of the stack.
func (s *stack) signal(t *testing.T, name string, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(s.pid(t, name), sig); err != nil {
		t.Fatalf("signal %s to %s: %v", sig, name, err)
	}
}

// freeze stops a part of the stack until the returned function is called, or the test ends.
func (s *stack) freeze(t *testing.T, name string) (thaw func()) {
	t.Helper()
	pid := s.pid(t, name)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatalf("freeze %s: %v", name, err)
	}
	thaw = func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
	t.Cleanup(thaw)
	return thaw
}

// use makes the stack ready for a test, shows its logs when the test fails, and checks what holds
// after every test.
func (s *stack) use(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		for _, key := range s.beganTwice(t) {
			t.Errorf("attempt %s has begun twice", key)
		}
		if t.Failed() {
			t.Log(s.logTails())
		}
	})
	s.awaitHealthy(t)
}

// awaitHealthy waits until the server is ready and every worker has one living session.
func (s *stack) awaitHealthy(t *testing.T) {
	t.Helper()
	await(t, healthyTimeout, "the stack to be healthy", func() (bool, string) {
		if err := s.server.ready(); err != nil {
			return false, err.Error()
		}
		sessions, err := s.server.sessions()
		if err != nil {
			return false, err.Error()
		}
		alive := map[string]bool{}
		for _, session := range sessions {
			if session.State == stepfleet.SessionAlive && !session.Draining {
				alive[session.Worker] = true
			}
		}
		return len(alive) == s.options.workers, fmt.Sprintf("workers alive: %v", alive)
	})
}

// logTails returns the ends of all logs.
func (s *stack) logTails() string {
	logs, _ := filepath.Glob(filepath.Join(s.dir, "dev", "logs", "*.log"))
	var text strings.Builder
	for _, path := range append(logs, filepath.Join(s.dir, "dev.out")) {
		raw, err := os.ReadFile(path)
		if err != nil || len(raw) == 0 {
			continue
		}
		if len(raw) > tailBytes {
			raw = raw[len(raw)-tailBytes:]
		}
		fmt.Fprintf(&text, "--- the end of %s\n%s\n", path, raw)
	}
	return text.String()
}

// release returns the path of a file that ops wait for, and the function that creates it.
func release(t *testing.T) (path string, give func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "release")
	return path, func() {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Errorf("release: %v", err)
		}
	}
}

// await polls until the condition holds; what it says last is in the failure's message.
func await(t *testing.T, timeout time.Duration, what string, condition func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		ok, last := condition()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s; at last: %s", timeout, what, last)
		}
		time.Sleep(pollInterval)
	}
}
