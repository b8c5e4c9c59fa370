//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/internal/proctable"
	"github.com/stepfleet/stepfleet/internal/supervise"
)

// holdVariable makes the test binary start a stack in a directory and hold it, for a test that
// kills such a process.
const holdVariable = "STEPFLEET_E2E_HOLD"

func hold(dir string) {
	err := findPrograms(dir)
	if err == nil {
		_, err = startStack(dir, stackOptions{workers: 1, queues: []string{"default:2"}})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	select {}
}

func TestNothingOutlivesAKilledTestProcess(t *testing.T) {
	t.Parallel()
	dir, err := stackDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	holder := exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), holdVariable+"="+dir, "STEPFLEET_BIN="+binary, "STEPFLEET_PYTHON="+python)
	holder.Stderr = os.Stderr
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- holder.Wait() }()
	t.Cleanup(func() { _ = holder.Process.Kill() })
	s := stack{dir: dir}
	await(t, startTimeout, "the stack of another test process", func() (bool, string) {
		select {
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		default:
		}
		return s.state().Ready, "not ready"
	})
	state := s.state()
	var all []proctable.Process
	for _, pid := range append(supervise.Marked(state.ID), state.PIDs["dev"], state.PIDs["warden"]) {
		if p, ok := proctable.Read(pid); ok {
			all = append(all, p)
		}
	}
	if len(all) < 10 {
		t.Fatalf("only %d processes are marked", len(all))
	}
	killed := time.Now()
	if err := holder.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone := awaitGone(t, 10*time.Second, killed, all)
	t.Logf("%d processes were gone %.1f s after the test process was killed", len(all), gone.Seconds())
	if left := supervise.Marked(state.ID); len(left) > 0 {
		t.Errorf("processes %v still carry the mark; logs in %s", left, filepath.Join(dir, "dev", "logs"))
	}
}
