package pyhost

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/failpoint"
)

const (
	// lastWords is how long the frames of a process that has exited may take to be read. Its socket
	// stays open longer only in a grandchild that fled the process group.
	lastWords = 2 * time.Second
	// reapTime is how long the template may take to reap a child and say how it ended: it takes
	// milliseconds, unless the template is stopped.
	reapTime = 500 * time.Millisecond
)

// child is one step process: idle, then busy with one task, then gone.
type child struct {
	conn    *net.UnixConn
	reaper  int       // the template that reaps it; 0 when this process does
	since   time.Time // when it was put among those that wait
	warm    bool      // it waited ready when its task came
	log     *slog.Logger
	ready   chan struct{} // closed when it waits for a task
	ended   chan struct{} // closed when it has told its result, since its step's end is in the log
	lingers chan struct{} // closed when it has told its result, and goes on
	told    chan struct{} // closed when it has told its result as its last word
	done    chan struct{} // closed when it has exited and its frames are read

	life    context.Context // ends when it has exited
	endLife context.CancelFunc

	mu      sync.Mutex
	pid     int
	killed  bool
	hasExit bool
	exit    stepfleet.Exit
	gate    stepfleet.Gate
	result  *stepfleet.Result
	badEnd  func() // called when it has ended without success
}

func newChild(conn *net.UnixConn, reaper int, log *slog.Logger) *child {
	c := &child{
		conn: conn, reaper: reaper, log: log,
		ready: make(chan struct{}), ended: make(chan struct{}), lingers: make(chan struct{}),
		told: make(chan struct{}), done: make(chan struct{}),
	}
	c.life, c.endLife = context.WithCancel(context.Background())
	go c.read()
	return c
}

// begin hands the task over. An error means that the process has not seen all of it.
func (c *child) begin(job stepfleet.Job, gate stepfleet.Gate) error {
	c.mu.Lock()
	if c.hasExit {
		c.mu.Unlock()
		return errors.New("process has exited")
	}
	c.gate = gate
	c.log = c.log.With("task_id", job.TaskID, "pid", c.pid)
	c.mu.Unlock()
	if err := failpoint.Hit("hand_over.before"); err != nil {
		return err
	}
	if err := send(c.conn, runFrame{
		Op: "run", V: frameVersion, Task: job.Task, TaskID: job.TaskID, Fence: job.Fence,
		Payload: string(job.Payload), Env: job.Env,
	}); err != nil {
		return err
	}
	_ = failpoint.Hit("hand_over.after")
	return nil
}

// tell has f called once the process is gone, if its task did not succeed.
func (c *child) tell(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.badEnd = f
}

func (c *child) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gate != nil
}

// read takes the process's frames and answers its questions until the socket ends, then waits
// for word of its exit.
func (c *child) read() {
	for {
		f, err := receive(c.conn)
		if err != nil {
			break
		}
		if err := c.take(f); err != nil {
			c.log.Warn("step process", "op", f.Op, "err", err)
			break
		}
		if isClosed(c.told) && c.handOn() {
			return
		}
	}
	// Whoever closed its socket is done or lost to us; its group goes with it.
	select {
	case <-c.life.Done():
	case <-time.After(lastWords):
		c.Kill()
		<-c.life.Done()
	}
	c.conn.Close()
	c.mu.Lock()
	badEnd, succeeded := c.badEnd, c.result != nil && c.result.Success
	c.mu.Unlock()
	if badEnd != nil && !succeeded {
		badEnd()
	}
	close(c.done)
}

func (c *child) take(f frame) error {
	switch f.Op {
	case "ready":
		if !speaks(f.V) {
			return errors.New("it speaks another version of the host protocol: install the plugin of this release")
		}
		select {
		case <-c.ready:
			return errors.New("it says ready twice")
		default:
		}
		c.setPID(f.PID)
		close(c.ready)
	case "start":
		return c.answer(c.asked().Start(c.life))
	case "gate":
		return c.answer(c.asked().Event(c.life, f.Event))
	case "phase":
		c.log.Debug("phase", "name", f.Name)
	case "ended":
		return c.report(f.Result, c.ended)
	case "lingers":
		return c.report(f.Result, c.lingers)
	case "result":
		return c.report(f.Result, c.told)
	default:
		return errors.New("unknown op")
	}
	return nil
}

// report keeps the result and closes what says how it was told.
func (c *child) report(r *stepfleet.Result, how chan struct{}) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r == nil || isClosed(how) || isClosed(c.told) {
		return errors.New("one result is expected of it")
	}
	if err := failpoint.Hit("report.before"); err != nil {
		return err
	}
	c.result = r
	close(how)
	return failpoint.Hit("report.after")
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (c *child) answer(err error) error {
	if err == nil {
		return send(c.conn, verdictFrame{Op: "granted"})
	}
	v := verdictFrame{Op: "refused", Code: "internal", Message: err.Error()}
	if refusal := stepfleet.RefusalOf(err); refusal != nil {
		v.Code = refusal.Code
	}
	return send(c.conn, v)
}

func (c *child) asked() stepfleet.Gate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gate == nil {
		return noTask{}
	}
	return c.gate
}

// noTask is the gate of a process that asks before it was given anything.
type noTask struct{}

func (noTask) Start(context.Context) error         { return stepfleet.ErrNotFound }
func (noTask) Event(context.Context, string) error { return stepfleet.ErrNotFound }

func (c *child) setPID(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reaper != 0 && c.pid == 0 {
		go c.watchDeath(pid)
	}
	c.pid = pid
	if c.killed {
		c.killGroup()
	}
}

// watchDeath sees to a child that is gone and whose template does not say so: one that is stopped
// reaps nobody, and who has killed the child must know that it is dead.
func (c *child) watchDeath(pid int) {
	if err := awaitDeath(pid); err != nil {
		c.log.Debug("only the template knows when its children die", "err", err)
		return
	}
	if c.goneWithin(reapTime) {
		return
	}
	if status, ok := unreaped(pid, c.reaper); ok {
		c.log.Warn("the template does not reap its children: is it stopped?", "pid", pid, "status", status)
		c.exited(status)
		return
	}
	if !c.goneWithin(lastWords) {
		c.orphaned() // the template has reaped it, and was stopped before it could say how it had ended
	}
}

func (c *child) goneWithin(d time.Duration) bool {
	select {
	case <-c.life.Done():
		return true
	case <-time.After(d):
		return false
	}
}

// exited records the exit status and kills what is left of the group. It is called by those who
// reap the process, or have seen that who should do so does not.
func (c *child) exited(status int) { c.end(stepfleet.Exit{Status: status}) }

// orphaned is exited for a process whose template is gone: it dies with it.
func (c *child) orphaned() {
	c.end(stepfleet.Exit{Status: -int(syscall.SIGKILL), HostDied: true})
}

func (c *child) end(exit stepfleet.Exit) {
	c.mu.Lock()
	if c.hasExit {
		c.mu.Unlock()
		return
	}
	c.killGroup()
	c.hasExit, c.exit = true, exit
	c.mu.Unlock()
	_ = c.conn.SetReadDeadline(time.Now().Add(lastWords)) // fails only on a closed connection
	c.endLife()
}

// killGroup is called with mu held, and never after the process was reported gone: its number
// may be another's by then.
func (c *child) killGroup() {
	if c.pid > 1 && !c.hasExit {
		_ = syscall.Kill(-c.pid, syscall.SIGKILL) // no such group: nothing left to kill
	}
}

// Warm implements stepfleet.Process.
func (c *child) Warm() bool { return c.warm }

// Terminate implements stepfleet.Process.
func (c *child) Terminate() { c.signal(syscall.SIGTERM) }

// Interrupt implements stepfleet.Process.
func (c *child) Interrupt() { c.signal(syscall.SIGINT) }

func (c *child) signal(sig syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid > 1 && !c.hasExit {
		_ = syscall.Kill(c.pid, sig) // gone already: its exit is on the way
	}
}

// Kill implements stepfleet.Process.
func (c *child) Kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed = true
	c.killGroup()
}

// Ended implements stepfleet.Process.
func (c *child) Ended() <-chan struct{} { return c.ended }

// Lingers implements stepfleet.Process.
func (c *child) Lingers() <-chan struct{} { return c.lingers }

// Reported implements stepfleet.Process.
func (c *child) Reported() <-chan struct{} { return c.told }

// Done implements stepfleet.Process.
func (c *child) Done() <-chan struct{} { return c.done }

// Exit implements stepfleet.Process.
func (c *child) Exit() stepfleet.Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	exit := c.exit
	exit.Result, exit.PID = c.result, c.pid
	return exit
}
