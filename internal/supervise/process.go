package supervise

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// The back-off between lives doubles from the first to the last value; a life that lasted longer than
// steadyAfter starts it anew.
const (
	firstBackoff = time.Second
	lastBackoff  = 16 * time.Second
	steadyAfter  = time.Minute
)

// Process is a supervised child over all its lives.
type Process struct {
	spec Spec
	log  *slog.Logger

	stopOnce sync.Once
	stopping chan struct{} // closed by Stop
	gone     chan struct{} // closed when the last life is over

	mu  sync.Mutex
	now *life
}

// life is one process.
type life struct {
	number  int
	tag     string
	id      string // Command.Life
	pid     int
	started time.Time
	waited  chan struct{} // closed when the process has been reaped
	reason  string        // set before waited is closed
	exit    Exit          // set before over is closed
	over    chan struct{}
}

func newProcess(spec Spec, log *slog.Logger) *Process {
	return &Process{
		spec: spec, log: log.With("process", spec.Name),
		stopping: make(chan struct{}), gone: make(chan struct{}),
	}
}

// PID returns the child's process id, or 0 between lives and after the last.
func (p *Process) PID() int {
	l := p.current()
	select {
	case <-l.waited:
		return 0
	default:
		return l.pid
	}
}

// Name returns the child's name.
func (p *Process) Name() string { return p.spec.Name }

// LogPath returns where the child's output goes.
func (p *Process) LogPath() string { return p.spec.LogPath }

// Gone is closed when the child has ended for good.
func (p *Process) Gone() <-chan struct{} { return p.gone }

func (p *Process) current() *life {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

// Stop ends the child for good: SIGTERM, StopWait, SIGKILL to its group. It returns when the process
// has been reaped and reported, and may be called again and at the same time.
func (p *Process) Stop() {
	p.stopOnce.Do(func() { close(p.stopping) })
	<-p.gone
}

// keep waits for each life to end, reports it, and begins the next.
func (p *Process) keep(l *life) {
	defer close(p.gone)
	failures := 0
	for {
		stopped := p.await(l)
		if time.Since(l.started) > steadyAfter {
			failures = 0
		}
		failures++
		wait := p.end(l, stopped, failures)
		if wait == 0 || !p.pause(wait) {
			return
		}
		l = p.relaunch(l, &failures)
		if l == nil {
			return
		}
		if p.spec.Restarted != nil {
			p.spec.Restarted(p)
		}
	}
}

// await returns when the life is over; it ends it when asked to stop, and says whether it was.
func (p *Process) await(l *life) (stopped bool) {
	select {
	case <-l.waited:
		return false
	case <-p.stopping:
	}
	_ = syscall.Kill(l.pid, syscall.SIGTERM)
	select {
	case <-l.waited:
	case <-time.After(p.spec.StopWait):
		p.log.Info("has not ended after SIGTERM, killing its group", "pid", l.pid)
		_ = syscall.Kill(-l.pid, syscall.SIGKILL)
		<-l.waited
	}
	return true
}

// end reports the life's end and returns the wait before the next one, 0 for none.
func (p *Process) end(l *life, stopped bool, failures int) time.Duration {
	var wait time.Duration
	if p.spec.Restart && !stopped {
		wait = p.backoff(failures)
	}
	l.exit = Exit{
		Name: p.spec.Name, Tag: l.tag, PID: l.pid, Life: l.number,
		Reason: l.reason, Stopped: stopped, RestartIn: wait,
	}
	close(l.over)
	p.log.Debug("ended", "pid", l.pid, "reason", l.reason, "stopped", stopped)
	if p.spec.Exited != nil {
		p.spec.Exited(l.exit)
	}
	return wait
}

// pause waits for the back-off; false means that the child was stopped meanwhile.
func (p *Process) pause(wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.stopping:
		return false
	}
}

// relaunch begins the next life, however often that takes; nil means that the child was stopped.
func (p *Process) relaunch(last *life, failures *int) *life {
	for {
		next, err := p.launch(last.number + 1)
		if err == nil {
			return next
		}
		*failures++
		p.log.Error("start again", "error", err)
		if !p.pause(p.backoff(*failures)) {
			return nil
		}
	}
}

// backoff is the wait before the next life.
func (p *Process) backoff(failures int) time.Duration {
	if p.spec.RestartAfter > 0 {
		return p.spec.RestartAfter
	}
	return backoff(failures)
}

// backoff is 1, 2, 4, 8, 16, 16 ... seconds, each made up to a quarter shorter by chance.
func backoff(failures int) time.Duration {
	wait := lastBackoff
	if failures < 5 {
		wait = firstBackoff << max(failures-1, 0)
	}
	return wait - rand.N(wait/4)
}

// launch starts one life and makes it the present one.
func (p *Process) launch(number int) (*life, error) {
	command := p.spec.Command(number)
	log, err := os.OpenFile(p.spec.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(command.Args[0], command.Args[1:]...)
	cmd.Env, cmd.Dir = command.Env, command.Dir
	if command.Life != "" {
		cmd.Env = append(slices.Clone(cmd.Env), LifeVariable+"="+command.Life)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(cmd.SysProcAttr)

	l := &life{
		number: number, tag: command.Tag, id: command.Life, started: time.Now(),
		waited: make(chan struct{}), over: make(chan struct{}),
	}
	started := make(chan error)
	go p.hold(cmd, l, started)
	if err := <-started; err != nil {
		return nil, err
	}
	l.pid = cmd.Process.Pid
	p.mu.Lock()
	p.now = l
	p.mu.Unlock()
	p.log.Debug("started", "pid", l.pid, "args", command.Args)
	return l, nil
}

// hold starts the process and waits for it on one operating system thread, which it keeps for as
// long: the parent-death signal fires when the starting thread dies, not when the process does.
func (p *Process) hold(cmd *exec.Cmd, l *life, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	started <- err
	if err != nil {
		return
	}
	pid := cmd.Process.Pid
	awaitExit(pid)
	// Not reaped yet, so the group's number cannot have been given to anybody else.
	if !p.spec.KeepGroup || p.asked() {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
	_ = cmd.Wait()
	sweep(LifeVariable, l.id)
	l.reason = cmd.ProcessState.String()
	close(l.waited)
}

func (p *Process) asked() bool {
	select {
	case <-p.stopping:
		return true
	default:
		return false
	}
}
