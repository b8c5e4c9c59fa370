package clock

import (
	"sync"
	"sync/atomic"
	"time"
)

// Offset is a clock that runs with another and can be moved ahead of it, never back. Its timers
// fire when either reaches them: the other clock by running, or Advance.
type Offset struct {
	base  Clock
	ahead atomic.Int64 // nanoseconds; grows only

	moving sync.Mutex // held by Advance, which calls back without mu

	mu      sync.Mutex
	pending schedule
	wake    Timer     // of the base; nil until the first timer is set
	wakes   time.Time // when wake fires, on this clock; zero while it does not
}

// NewOffset returns a clock that shows the time of base until it is moved.
func NewOffset(base Clock) *Offset { return &Offset{base: base} }

// Now returns the time of the base and what Advance has added.
func (c *Offset) Now() time.Time { return c.base.Now().Add(c.Ahead()) }

// Ahead returns how far the clock has been moved.
func (c *Offset) Ahead() time.Duration { return time.Duration(c.ahead.Load()) }

// AfterFunc calls f in its own goroutine once d has passed on this clock; a call that falls due in
// Advance runs in Advance.
func (c *Offset) AfterFunc(d time.Duration, f func()) Timer {
	t := &offsetTimer{clock: c, entry: newEntry(f)}
	t.Reset(d)
	return t
}

// Advance moves the clock by d; a negative d is none. What falls due on the way runs in order, each
// call with the clock at its own time or just after, and has returned when Advance returns. Two
// Advances follow each other.
func (c *Offset) Advance(d time.Duration) {
	c.moving.Lock()
	defer c.moving.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	target := c.Ahead() + max(d, 0)
	for {
		end := c.base.Now().Add(target)
		e := c.pending.pop(end)
		if e == nil {
			break
		}
		c.moveTo(e.due)
		c.mu.Unlock()
		e.f()
		c.mu.Lock()
	}
	c.ahead.Store(int64(target))
	c.wakes = time.Time{} // whatever it was set for is nearer now
	c.arm()
}

// moveTo sets the clock to t unless it is past it already. The caller holds mu.
func (c *Offset) moveTo(t time.Time) {
	if missing := t.Sub(c.Now()); missing > 0 {
		c.ahead.Add(int64(missing))
	}
}

// arm has the base wake us for the first timer. The caller holds mu.
func (c *Offset) arm() {
	next := c.pending.next()
	if next == nil {
		return // a wake that is under way finds nothing to do
	}
	if next.due.Equal(c.wakes) {
		return
	}
	c.wakes = next.due
	d := max(next.due.Sub(c.Now()), 0)
	if c.wake == nil {
		c.wake = c.base.AfterFunc(d, c.fire)
		return
	}
	c.wake.Reset(d)
}

// fire starts what is due.
func (c *Offset) fire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wakes = time.Time{}
	for e := c.pending.pop(c.Now()); e != nil; e = c.pending.pop(c.Now()) {
		go e.f()
	}
	c.arm()
}

type offsetTimer struct {
	clock *Offset
	entry *entry
}

// Stop takes the timer out and reports whether it was pending.
func (t *offsetTimer) Stop() bool {
	c := t.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.pending.remove(t.entry)
	if c.pending.next() == nil && c.wake != nil {
		c.wake.Stop()
		c.wakes = time.Time{}
	}
	return was
}

// Reset sets the timer to d from now and reports whether it was pending.
func (t *offsetTimer) Reset(d time.Duration) bool {
	c := t.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.pending.set(t.entry, c.Now().Add(d))
	c.arm()
	return was
}
