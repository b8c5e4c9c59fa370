package pglocal

import (
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
)

// process is a child that dies with this process.
type process struct {
	pid  int
	done chan struct{}
	err  error // how it ended; read after done
}

// startProcess starts cmd from a goroutine that owns its thread until the child ends: the kernel
// sends the parent-death signal when the *thread* that forked dies, and Go ends idle threads.
func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// signal reaches the server process, which tells its own children. Only SIGKILL goes to the
// whole group: nobody would be left to tell them.
func (p *process) signal(sig syscall.Signal) {
	select {
	case <-p.done:
		return
	default:
	}
	if sig == syscall.SIGKILL {
		_ = syscall.Kill(-p.pid, sig)
	}
	_ = syscall.Kill(p.pid, sig)
}

// choosePort takes the configured port if it is free, or any.
func (s *Server) choosePort() error {
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(s.cfg.Port))
	if err != nil {
		return fmt.Errorf("port %d of 127.0.0.1 is taken: choose another or stop what listens there (%w)", s.cfg.Port, err)
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	return l.Close()
}
