// Package supervise keeps child processes alive and, above all, makes sure that none outlives
// its supervisor. It is what `stepfleet dev` stands on.
//
// A child is started in its own process group (so Ctrl-C reaches the supervisor alone), with its
// output in a log file. Three things end it, each covering for the one before:
//
//   - Supervisor.Stop: SIGTERM, a wait, SIGKILL to the group;
//   - the parent-death signal (Linux): the kernel kills it when the supervisor dies;
//   - the warden (warden.go): a process of its own that outlives the supervisor just long enough to
//     kill everything that carries the supervisor's mark, grandchildren too.
//
// Every end of a child is reported once, with its process id and the reason, after the process has been
// reaped. That report is a proof of death: nothing that ran under that id can write any more.
package supervise

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"syscall"
	"time"
)

// Command is one life of a child: what to execute, and a tag that its end is reported with.
type Command struct {
	Args []string // Args[0] is the program, by path or found in the supervisor's PATH
	Env  []string // the whole environment
	Dir  string
	Tag  string
	// Life, when set, is an id of this life alone. Every process of the life carries it, also those
	// in groups and sessions of their own, and all of them are killed before the end is reported.
	Life string
}

// Spec says how a child is kept.
type Spec struct {
	Name string
	// Command is asked before every life, with the number of lives before it.
	Command func(life int) Command
	// LogPath receives stdout and stderr of all lives, appended.
	LogPath string
	// Restart starts the child again when it ends by itself, with a back-off.
	Restart bool
	// RestartAfter is that wait, always the same; 0 means one that grows from 1 s to 16 s.
	RestartAfter time.Duration
	// KeepGroup leaves the rest of the child's process group alone when the child ends by itself:
	// what it started may finish. Stop kills the group in any case.
	KeepGroup bool
	// Ready probes the child; nil means ready as soon as started.
	Ready Probe
	// StopWait is how long Stop waits between SIGTERM and SIGKILL; 0 means DefaultStopWait.
	StopWait time.Duration
	// Exited is called once after every life, before the next begins. It must not block for long.
	Exited func(Exit)
	// Restarted is called once after every life but the first has begun. It must not block for long.
	Restarted func(*Process)
}

// Exit is how one life of a child ended. The process has been reaped.
type Exit struct {
	Name string
	Tag  string
	PID  int
	// Life is the number of lives before this one.
	Life int
	// Reason is for people: "exit status 1", "signal: killed".
	Reason string
	// Stopped says that the supervisor asked for it.
	Stopped bool
	// RestartIn is the back-off before the next life; 0 when there is none.
	RestartIn time.Duration
}

// DefaultStopWait is how long a child may take to end after SIGTERM.
const DefaultStopWait = 3 * time.Second

// Supervisor owns a set of children.
type Supervisor struct {
	log   *slog.Logger
	procs sync.WaitGroup

	mu       sync.Mutex
	children []*Process
	stopped  bool
}

// New returns a supervisor without children.
func New(log *slog.Logger) *Supervisor {
	if log == nil {
		log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return &Supervisor{log: log}
}

// Start starts a child and returns when its process exists, or with the reason why it could not be
// started. The child is then the supervisor's until it ends for good.
func (s *Supervisor) Start(spec Spec) (*Process, error) {
	if spec.StopWait == 0 {
		spec.StopWait = DefaultStopWait
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, fmt.Errorf("start %s: the supervisor has been stopped", spec.Name)
	}
	p := newProcess(spec, s.log)
	first, err := p.launch(0)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	s.children = append(s.children, p)
	s.procs.Go(func() { p.keep(first) })
	return p, nil
}

// PIDs returns the process ids of the children that run now, by name.
func (s *Supervisor) PIDs() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	pids := make(map[string]int, len(s.children))
	for _, p := range s.children {
		if pid := p.PID(); pid > 0 {
			pids[p.spec.Name] = pid
		}
	}
	return pids
}

// Stop ends all children that are left, all at once, and returns when every one has been reaped.
// Children that must end in an order are stopped one by one before, with Process.Stop.
func (s *Supervisor) Stop() {
	s.mu.Lock()
	s.stopped = true
	children := s.children
	s.mu.Unlock()
	StopAll(children...)
	s.procs.Wait()
}

// StopAll stops the processes at the same time and waits for all of them.
func StopAll(children ...*Process) {
	var all sync.WaitGroup
	for _, p := range children {
		all.Go(p.Stop)
	}
	all.Wait()
}

// ExitedError is what waiting for a child's readiness ends with when the child ended first.
type ExitedError struct{ Exit Exit }

func (e *ExitedError) Error() string {
	return fmt.Sprintf("%s ended before it was ready: %s", e.Exit.Name, e.Exit.Reason)
}

// WaitReady waits until the child's probe answers. It returns an *ExitedError when the child's
// present life ends first, and otherwise the context's error together with the probe's last one.
func (p *Process) WaitReady(ctx context.Context) error {
	if p.spec.Ready == nil {
		return nil
	}
	life := p.current()
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	var last error
	for {
		if last = p.spec.Ready(ctx); last == nil {
			return nil
		}
		select {
		case <-life.over:
			return &ExitedError{life.exit}
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w (%w)", p.spec.Name, last, ctx.Err())
		case <-tick.C:
		}
	}
}

// Signal sends a signal to the child's process, not to its group.
func (p *Process) Signal(sig syscall.Signal) error {
	if pid := p.PID(); pid > 0 {
		return syscall.Kill(pid, sig)
	}
	return syscall.ESRCH
}
