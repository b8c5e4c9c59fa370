package pyhost

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
)

const testWait = 60 * time.Second

// scriptedChild is a child whose process is the test.
func scriptedChild(t *testing.T) (*child, *net.UnixConn) {
	t.Helper()
	ours, file, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	c := newChild(ours, 0, slog.New(slog.NewTextHandler(t.Output(), nil)))
	t.Cleanup(func() {
		conn.Close()
		c.exited(0)
		<-c.Done()
	})
	return c, conn.(*net.UnixConn)
}

func say(t *testing.T, conn *net.UnixConn, frames ...frame) {
	t.Helper()
	for _, f := range frames {
		if err := send(conn, f); err != nil {
			t.Fatal(err)
		}
	}
}

func closedWithin(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(testWait):
		t.Fatal(what)
	}
}

func TestProcessesOfTheProtocolsTwoVersionsAreUnderstood(t *testing.T) {
	for version, understood := range map[int]bool{1: true, 2: true, 3: false} {
		c, conn := scriptedChild(t)
		say(t, conn, frame{Op: "ready", V: version})
		if understood {
			closedWithin(t, c.ready, "a process of a version that is understood is not ready")
			continue
		}
		c.exited(0) // its socket is no longer read
		closedWithin(t, c.Done(), "a process that is not understood is not given up")
		if isClosed(c.ready) {
			t.Errorf("a process of version %d is ready", version)
		}
	}
}

func TestWhatAProcessTellsOfItsEndStands(t *testing.T) {
	c, conn := scriptedChild(t)
	success := &stepfleet.Result{Outcome: stepfleet.StateSucceeded, Event: "STEP_SUCCESS"}
	say(t, conn, frame{Op: "ready", V: 2}, frame{Op: "ended", Result: success})
	closedWithin(t, c.Ended(), "the end is not heard")
	if isClosed(c.Lingers()) || isClosed(c.Reported()) {
		t.Error("the step's end is not the process's last word")
	}
	c.exited(-int(syscall.SIGKILL))
	conn.Close()
	closedWithin(t, c.Done(), "the process is not gone")
	if exit := c.Exit(); exit.Result == nil || exit.Result.Event != "STEP_SUCCESS" || exit.Status != -int(syscall.SIGKILL) {
		t.Errorf("exit %+v with result %+v", exit, exit.Result)
	}
}

func interpreter(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../.venv/bin/python")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// A payload that does not fit into the socket must not hold up a worker that has to end what it runs.
func TestAStoppedProcessDoesNotHoldUpItsLaunch(t *testing.T) {
	h := New(Config{Python: interpreter(t), Mode: ModeFork, Idle: 1, Preload: []Preload{}, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	running, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(running) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	closedWithin(t, h.Available(), "no template")
	template, _, err := h.source(t.Context())
	if err != nil || template == nil {
		t.Fatalf("template %v, %v", template, err)
	}
	idle := <-template.idle
	if err := syscall.Kill(idle.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	template.idle <- idle
	over, end := context.WithTimeout(t.Context(), time.Second)
	defer end()
	failed := make(chan error, 1)
	go func() {
		_, err := h.Launch(over, stepfleet.Job{Payload: make([]byte, 4<<20)}, noTask{})
		failed <- err
	}()
	select {
	case err := <-failed:
		if err == nil {
			t.Error("a process that is stopped took its task")
		}
	case <-time.After(testWait):
		idle.Kill()
		t.Fatal("the launch goes on")
	}
}
