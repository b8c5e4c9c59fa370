package pyhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// command is a Python process that this process started and reaps.
type command struct {
	cmd    *exec.Cmd
	gone   chan struct{}
	status int
}

// startPython starts one of the host's entry points with its socket as file 3, leader of its
// own process group. The thread that starts it lives as long as the process does: Linux sends the
// parent-death signal when the parent's *thread* ends.
func startPython(cfg Config, role string, socket *os.File, more ...*os.File) (*command, error) {
	env, err := environment(cfg)
	if err != nil {
		return nil, err
	}
	// Unbuffered by the option and not by the variable, which what user code starts would inherit.
	cmd := exec.Command(cfg.Python, "-u", "-m", "dagster_stepfleet.host", role)
	cmd.Env = env
	cmd.ExtraFiles = append([]*os.File{socket}, more...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if role != "template" { // which outlives its parent for as long as it takes to kill its children
		setDeathSignal(cmd.SysProcAttr)
	}
	c := &command{cmd: cmd, gone: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := cmd.Start()
		started <- err
		if err == nil {
			c.status = exitStatus(cmd.Wait())
		}
		close(c.gone)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s -m dagster_stepfleet.host %s: %w", cfg.Python, role, err)
	}
	return c, nil
}

// wait returns the exit status once the process is gone; one that ignores the loss of its socket
// is killed.
func (c *command) wait() int {
	select {
	case <-c.gone:
	case <-time.After(lastWords):
		_ = c.cmd.Process.Kill() // gone in between: what was wanted
		<-c.gone
	}
	return c.status
}

// exitStatus is the exit status, or minus the signal.
func exitStatus(err error) int {
	var exit *exec.ExitError
	if err == nil {
		return 0
	}
	if !errors.As(err, &exit) {
		return -1
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok {
		return waitStatus(ws)
	}
	return exit.ExitCode()
}

// waitStatus is the exit status, or minus the signal.
func waitStatus(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return -int(ws.Signal())
	}
	return ws.ExitStatus()
}

// startCold starts a fresh interpreter for one task and waits until it is ready.
func startCold(ctx context.Context, cfg Config) (*child, error) {
	conn, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	proc, err := startPython(cfg, "child", theirs)
	theirs.Close()
	if err != nil {
		conn.Close()
		return nil, err
	}
	c := newChild(conn, 0, cfg.Logger)
	cfg.children.add(c)
	c.setPID(proc.cmd.Process.Pid)
	go func() {
		<-proc.gone
		c.exited(proc.status)
	}()
	select {
	case <-c.ready:
		return c, nil
	case <-c.Done():
		return nil, fmt.Errorf("a cold process ended with status %d before it was ready: see the worker's log", c.Exit().Status)
	case <-ctx.Done():
		c.Kill()
		return nil, fmt.Errorf("a cold process did not become ready: %w", ctx.Err())
	}
}
