package proxy

import (
	"errors"
	"fmt"
	"time"
)

// Mode is a way in which an edge misbehaves.
type Mode string

// The modes.
const (
	// Cut resets the connections that are open, and every new one.
	Cut Mode = "cut"
	// Stall holds every byte, both ways, until the fault is healed; new connections are accepted
	// and hear nothing. This is a partition as TCP shows it.
	Stall Mode = "stall"
	// HalfOpen lets the client's bytes through and swallows the replies. Connections that have lost
	// bytes are reset when the fault is healed.
	HalfOpen Mode = "half-open"
	// Reset lets the first Byte bytes of a reply through and resets the connection: the client cannot
	// know what became of its request. It hits Times replies.
	Reset Mode = "reset"
	// Delay holds every piece of data for the time Delay, each way.
	Delay Mode = "delay"
)

// Modes are all of them.
var Modes = []Mode{Cut, Stall, HalfOpen, Reset, Delay}

// Fault is a mode with its figures.
type Fault struct {
	Mode  Mode
	Byte  int           // of Reset
	Times int           // of Reset
	Delay time.Duration // of Delay
}

// ErrBusy says that another fault is in force on the edge.
var ErrBusy = errors.New("another fault is in force on this edge")

// Injection is a fault in force on an edge.
type Injection struct {
	Fault
	edge *Edge
	// The edge's mutex guards what follows.
	left int
	hits int
}

// Inject puts a fault in force. It returns ErrBusy while there is one.
func (e *Edge) Inject(f Fault) (*Injection, error) {
	if f.Mode == Reset && (f.Byte < 0 || f.Times < 1) || f.Mode == Delay && f.Delay <= 0 {
		return nil, fmt.Errorf("fault %+v: a reset needs Times and a Byte of 0 or more, a delay its time", f)
	}
	i := &Injection{Fault: f, edge: e, left: f.Times}
	e.mu.Lock()
	if e.fault != nil {
		e.mu.Unlock()
		return nil, fmt.Errorf("edge %s: %w", e.Name, ErrBusy)
	}
	e.fault = i
	if f.Mode == Cut {
		i.hits = len(e.conns)
	}
	e.change()
	e.mu.Unlock()
	if f.Mode == Cut {
		e.reset(func(*conn) bool { return true })
	}
	return i, nil
}

// Heal ends the fault. The bytes that a stall held go on their way.
func (i *Injection) Heal() {
	e := i.edge
	e.mu.Lock()
	if e.fault == i {
		e.fault = nil
		e.change()
	}
	e.mu.Unlock()
	if i.Mode == HalfOpen {
		e.reset(func(c *conn) bool { return c.lossy.Load() })
	}
}

// Hits returns how many connections the fault has acted on; of a reset, how many replies.
func (i *Injection) Hits() int {
	i.edge.mu.Lock()
	defer i.edge.mu.Unlock()
	return i.hits
}

// change wakes whatever waits for another fault, or for none. The caller holds the mutex.
func (e *Edge) change() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// present returns the fault in force and a channel that is closed when another one is.
func (e *Edge) present() (*Injection, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.fault, e.changed
}

// hit counts a connection once for each fault.
func (e *Edge) hit(i *Injection, c *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.hitBy != i {
		c.hitBy = i
		i.hits++
	}
}

// spend takes one of the replies that a reset is for; false when they are used up.
func (e *Edge) spend(i *Injection) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if i.left == 0 {
		return false
	}
	i.left--
	i.hits++
	return true
}

func (e *Edge) add(c *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conns[c] = struct{}{}
}

func (e *Edge) remove(c *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, c)
}

// reset resets the connections that are chosen.
func (e *Edge) reset(chosen func(*conn) bool) {
	e.mu.Lock()
	var victims []*conn
	for c := range e.conns {
		if chosen(c) {
			victims = append(victims, c)
		}
	}
	e.mu.Unlock()
	for _, c := range victims {
		c.reset()
	}
}
