// Package clock is time as the services of localaws see it: handed in, never taken from the
// package time directly, so that a test may pass days in milliseconds.
//
// System works as it stands inside testing/synctest, where the standard library's own time is
// virtual. Manual is for tests that must move time while real sockets are in use. Offset runs with
// another clock and can be moved forward, for a server whose clients want to skip a wait.
package clock

import (
	"sync"
	"time"
)

// Clock tells the time and calls back later.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f in its own goroutine once d has passed.
	AfterFunc(d time.Duration, f func()) Timer
}

// Movable is a clock that can be moved forward.
type Movable interface {
	Clock
	// Advance moves the clock by d, which is not negative. What falls due on the way has run, in
	// order, when Advance returns.
	Advance(d time.Duration)
}

// Timer is a pending call of AfterFunc; its methods behave as those of time.Timer.
type Timer interface {
	Stop() bool
	Reset(d time.Duration) bool
}

// System returns the clock of the package time.
func System() Clock { return system{} }

type system struct{}

func (system) Now() time.Time { return time.Now() }

func (system) AfterFunc(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) }

// Manual is a clock that stands still until Advance moves it.
type Manual struct {
	mu      sync.Mutex
	now     time.Time
	pending schedule
}

// NewManual returns a clock that stands at start.
func NewManual(start time.Time) *Manual { return &Manual{now: start} }

// Now returns where the clock stands.
func (c *Manual) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// AfterFunc arranges for f to be called by the Advance that reaches d from now.
func (c *Manual) AfterFunc(d time.Duration, f func()) Timer {
	t := &manualTimer{clock: c, entry: newEntry(f)}
	t.Reset(d)
	return t
}

// Advance moves the clock by d. What falls due on the way runs in order, each call with the clock
// standing at its own time, and has returned when Advance returns.
func (c *Manual) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	end := c.now.Add(d)
	for {
		e := c.pending.pop(end)
		if e == nil {
			break
		}
		if e.due.After(c.now) {
			c.now = e.due
		}
		c.mu.Unlock()
		e.f()
		c.mu.Lock()
	}
	c.now = end
}

type manualTimer struct {
	clock *Manual
	entry *entry
}

// Stop takes the timer out and reports whether it was pending.
func (t *manualTimer) Stop() bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	return t.clock.pending.remove(t.entry)
}

// Reset sets the timer to d from now and reports whether it was pending.
func (t *manualTimer) Reset(d time.Duration) bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	return t.clock.pending.set(t.entry, t.clock.now.Add(d))
}
