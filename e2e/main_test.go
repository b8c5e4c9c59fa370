//go:build linux

// Package e2e runs real Dagster jobs through built binaries: `stepfleet dev` with its server,
// workers, local AWS and PostgreSQL, driven over Dagster's GraphQL API. Tests use signals, not
// sleeps: an op of testdata/e2e_defs.py waits for a file that the test creates, and notes what it
// does in the effect log.
//
// Most tests share one stack and run one after another; each waits for it to be healthy before it
// begins. Those with a stack of their own run two at a time after them. Environment: STEPFLEET_BIN (the binary; built when unset), STEPFLEET_PYTHON (the
// interpreter; .venv of the repository when unset).
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var (
	binary string // of stepfleet
	python string // with Dagster, dagster_stepfleet and stepfleet_examples

	sharedStack = sharedBy{options: stackOptions{
		workers: 2, queues: []string{"default:20", "small:2"}, environ: []string{"STEPFLEET_DRAIN_TIMEOUT=8s"},
	}}
	// Its run workers are Dagster's own, below the code server, so that they outlive a worker.
	defaultLauncherStack = sharedBy{options: stackOptions{
		workers: 2, queues: []string{"default:20", "small:2"}, launcher: "default",
	}}
)

// sharedBy is a stack that several tests use, started by the first.
type sharedBy struct {
	options stackOptions

	once  sync.Once
	stack *stack
	err   error
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(holdVariable); dir != "" {
		hold(dir)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "stepfleet-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := findPrograms(dir); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	code := m.Run()
	for _, s := range []*sharedBy{&sharedStack, &defaultLauncherStack, &unmonitoredStack} {
		if s.stack == nil {
			continue
		}
		if err := s.stack.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: stop a shared stack:", err)
			code = 1
		}
	}
	return code
}

// findPrograms finds the binary, or builds it into dir, and the interpreter.
func findPrograms(dir string) error {
	root, err := filepath.Abs("..")
	if err != nil {
		return err
	}
	python = os.Getenv("STEPFLEET_PYTHON")
	if python == "" {
		python = filepath.Join(root, ".venv", "bin", "python")
	}
	if out, err := exec.Command(python, "-c", "import dagster_webserver, dagster_stepfleet, stepfleet_examples").CombinedOutput(); err != nil {
		return fmt.Errorf("%s cannot import what the tests need (make setup): %w\n%s", python, err, out)
	}
	if binary = os.Getenv("STEPFLEET_BIN"); binary != "" {
		binary, err = filepath.Abs(binary)
		return err
	}
	binary = filepath.Join(dir, "stepfleet")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "./cmd/stepfleet")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// shared returns the stack that most tests use, healthy. When the test ends it checks that no
// attempt of any run has begun twice.
func shared(t *testing.T) *stack {
	t.Helper()
	return sharedStack.use(t)
}

// defaultLauncher returns the stack with Dagster's own run launcher, in the same way.
func defaultLauncher(t *testing.T) *stack {
	t.Helper()
	return defaultLauncherStack.use(t)
}

func (s *sharedBy) use(t *testing.T) *stack {
	t.Helper()
	s.once.Do(func() {
		var dir string
		if dir, s.err = stackDir(); s.err == nil {
			s.stack, s.err = startStack(dir, s.options)
		}
	})
	if s.err != nil {
		t.Fatalf("start a shared stack: %v", s.err)
	}
	s.stack.use(t)
	return s.stack
}
