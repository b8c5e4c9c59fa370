package pyhost

import (
	"context"
	"sync"
)

// children are the step processes of a host that live, wherever they came from.
type children struct {
	mu  sync.Mutex
	all map[*child]struct{}
}

// add counts a process until it has exited.
func (cs *children) add(c *child) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.all[c] = struct{}{}
	context.AfterFunc(c.life, func() {
		cs.mu.Lock()
		defer cs.mu.Unlock()
		delete(cs.all, c)
	})
}

// Children returns how many step processes there are in each of their states: starting, idle while they
// wait for a task, and busy with one until they are gone.
func (h *Host) Children() map[string]int {
	h.cfg.children.mu.Lock()
	defer h.cfg.children.mu.Unlock()
	n := map[string]int{"starting": 0, "idle": 0, "busy": 0}
	for c := range h.cfg.children.all {
		n[c.state()]++
	}
	return n
}

func (c *child) state() string {
	switch {
	case c.busy():
		return "busy"
	case isClosed(c.ready):
		return "idle"
	}
	return "starting"
}
