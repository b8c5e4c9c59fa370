//go:build mutant

package pyhost

import (
	"context"
	"sync"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/mutant"
)

// kept are the templates of children, and the numbers by which they know these.
var kept sync.Map

type place struct {
	t  *template
	id int
}

// keep remembers where a child belongs, for the mutant child-reused.
func (t *template) keep(c *child, id int) {
	if mutant.ChildReused {
		kept.Store(c, place{t, id})
	}
}

// handOn makes a process that has told its result an idle one, as another child.
func (c *child) handOn() bool {
	at, ok := kept.LoadAndDelete(c)
	if !ok {
		return false
	}
	t, id := at.(place).t, at.(place).id
	next := &child{
		conn: c.conn, reaper: c.reaper, log: t.log, pid: c.pid, ready: make(chan struct{}), ended: make(chan struct{}),
		lingers: make(chan struct{}), told: make(chan struct{}), done: make(chan struct{}),
	}
	close(next.ready)
	next.life, next.endLife = context.WithCancel(context.Background())
	t.mu.Lock()
	t.children[id] = next
	t.mu.Unlock()
	t.keep(next, id)
	c.mu.Lock()
	c.hasExit, c.exit = true, stepfleet.Exit{}
	c.mu.Unlock()
	c.endLife()
	close(c.done)
	go next.read()
	go func() {
		select {
		case t.idle <- next:
		case <-next.Done():
		}
	}()
	return true
}
