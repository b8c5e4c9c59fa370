package pyhost

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet/internal/failpoint"
)

// template is a Python process that has imported the code locations and forks children on demand.
type template struct {
	conn *net.UnixConn
	proc *command
	log  *slog.Logger
	all  *children // of its host, from any template

	loaded chan frame
	idle   chan *child   // ready, not yet taken
	want   chan struct{} // one token for each child to fork; as many as idle has room
	gone   chan struct{} // closed when the connection and the process are
	leaves chan struct{} // closed when it is to stop, which may last as long as its steps

	reading sync.WaitGroup

	mu       sync.Mutex
	children map[int]*child
	next     int
	cause    error
}

var errTemplateGone = errors.New("the template is gone")

func startTemplate(cfg Config) (*template, error) {
	conn, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	proc, err := startPython(cfg, "template", theirs)
	if err != nil {
		conn.Close()
		return nil, err
	}
	t := &template{
		conn: conn, proc: proc, log: cfg.Logger, all: cfg.children,
		loaded:   make(chan frame, 1),
		idle:     make(chan *child, max(cfg.Idle, 1)),
		want:     make(chan struct{}, max(cfg.Idle, 1)),
		gone:     make(chan struct{}),
		leaves:   make(chan struct{}),
		children: map[int]*child{},
	}
	t.reading.Go(t.read)
	return t, nil
}

func (t *template) waitLoaded(ctx context.Context) (frame, error) {
	select {
	case f := <-t.loaded:
		if !speaks(f.V) {
			return f, fmt.Errorf("the template speaks version %d of the host protocol, this worker %d: install the plugin of this release", f.V, frameVersion)
		}
		return f, nil
	case <-t.gone:
		return frame{}, t.err()
	case <-time.After(loadTimeout):
		return frame{}, fmt.Errorf("the template has not loaded within %s", loadTimeout)
	case <-ctx.Done():
		return frame{}, ctx.Err()
	}
}

// read takes the template's frames until the connection ends.
func (t *template) read() {
	var err error
	for {
		var f frame
		if f, err = receive(t.conn); err != nil {
			break
		}
		switch f.Op {
		case "loaded":
			t.loaded <- f
		case "forked":
			if c := t.child(f.Child); c != nil {
				c.setPID(f.PID)
			}
		case "refused":
			t.log.Error("the template refuses to fork", "reason", f.Reason)
			if c := t.forget(f.Child); c != nil {
				c.orphaned()
			}
			err = fmt.Errorf("the template refuses to fork: %s", f.Reason)
		case "exited":
			if c := t.forget(f.Child); c != nil {
				c.exited(f.Status)
			}
		}
		if err != nil {
			break
		}
	}
	t.down(err)
}

// down tells everybody who waits that the template is gone. Its children die with it.
func (t *template) down(err error) {
	t.conn.Close()
	status := t.proc.wait()
	t.mu.Lock()
	t.cause = fmt.Errorf("the template ended with status %d: %w", status, err)
	children := t.children
	t.children = map[int]*child{}
	t.mu.Unlock()
	close(t.gone)
	for _, c := range children {
		c.orphaned()
	}
}

func (t *template) err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return cmp.Or(t.cause, errTemplateGone)
}

// keepIdle keeps n children forked and primed ahead of need, until the template is gone. A child
// that dies before it is ready is replaced after a pause that grows.
func (t *template) keepIdle(n int) {
	for range n {
		t.want <- struct{}{}
	}
	fails := 0
	for {
		select {
		case <-t.gone:
			return
		case <-t.leaves:
			return
		case <-t.want:
		}
		c, err := t.fork()
		if err != nil {
			t.log.Error("fork", "err", err)
			t.conn.Close()
			return
		}
		go t.offer(c)
		fails = t.pauseAfter(c, fails)
	}
}

// pauseAfter waits for the child to become ready, so that forks are made one at a time, and
// returns how many in a row did not.
func (t *template) pauseAfter(c *child, fails int) int {
	select {
	case <-c.ready:
		return 0
	case <-t.gone:
		return 0
	case <-c.Done():
		t.log.Error("a forked process died before it was ready", "status", c.Exit().Status)
	case <-time.After(readyTimeout):
		t.log.Error("a forked process does not become ready: killing it", "after", readyTimeout)
		c.Kill()
	}
	select {
	case <-t.gone:
	case <-time.After(min(time.Second<<min(fails, 4), restartMax)):
	}
	return fails + 1
}

// offer puts the child among the idle ones once it is ready.
func (t *template) offer(c *child) {
	select {
	case <-c.ready:
		c.since = time.Now()
		t.idle <- c // has room: there are no more children than tokens
	case <-c.Done():
		t.want <- struct{}{}
	}
}

// take returns an idle child and lets another one be forked in its place.
func (t *template) take(ctx context.Context) (*child, error) {
	asked := time.Now()
	select {
	case c := <-t.idle:
		t.want <- struct{}{}
		c.warm = c.since.Before(asked)
		return c, nil
	case <-t.gone:
		return nil, fmt.Errorf("%w: %w", errTemplateGone, t.err())
	case <-t.leaves:
		return nil, errTemplateGone
	case <-ctx.Done():
		return nil, fmt.Errorf("no idle process: %w", ctx.Err())
	}
}

func (t *template) fork() (*child, error) {
	conn, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	if err := failpoint.Hit("fork.before"); err != nil {
		conn.Close()
		return nil, err
	}
	t.mu.Lock()
	t.next++
	id := t.next
	c := newChild(conn, t.proc.cmd.Process.Pid, t.log)
	t.all.add(c)
	t.children[id] = c
	t.mu.Unlock()
	t.keep(c, id)
	err = sendWithFile(t.conn, forkFrame{Op: "fork", Child: id}, theirs)
	if err == nil {
		err = failpoint.Hit("fork.after")
	}
	if err != nil {
		t.forget(id)
		c.orphaned()
		return nil, fmt.Errorf("ask the template to fork: %w", err)
	}
	return c, nil
}

func (t *template) child(id int) *child {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.children[id]
}

func (t *template) forget(id int) *child {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.children[id]
	delete(t.children, id)
	return c
}

// stop asks the template to exit once its children have, drops the idle ones, and closes the
// connection when the busy ones are gone; a template that loses its parent kills what is left.
func (t *template) stop() {
	close(t.leaves)
	_ = send(t.conn, stopFrame{Op: "stop"}) // a template that is gone already needs no word
	for {
		select {
		case c := <-t.idle:
			c.Kill()
			continue
		default:
		}
		break
	}
	t.mu.Lock()
	busy := make([]*child, 0, len(t.children))
	for _, c := range t.children {
		busy = append(busy, c)
	}
	t.mu.Unlock()
	for _, c := range busy {
		if c.busy() {
			<-c.Done()
		} else {
			c.Kill()
		}
	}
	t.conn.Close()
	t.reading.Wait()
}
