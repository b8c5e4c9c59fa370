// Package clock is time as the services of localaws see it: handed in, never taken from the
// package time directly, so that a test may pass days in milliseconds.
//
// System works as it stands inside testing/synctest, where the standard library's own time is
// virtual. Manual is for tests that must move time while real sockets are in use.
package clock

import (
	"container/heap"
	"sync"
	"time"
)

// Clock tells the time and calls back later.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f in its own goroutine once d has passed.
	AfterFunc(d time.Duration, f func()) Timer
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
	pending timers
	seq     uint64
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
	t := &manualTimer{clock: c, f: f, index: -1}
	t.Reset(d)
	return t
}

// Advance moves the clock by d. What falls due on the way runs in order, each call with the clock
// standing at its own time, and has returned when Advance returns.
func (c *Manual) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	end := c.now.Add(d)
	for len(c.pending) > 0 && !c.pending[0].due.After(end) {
		t := heap.Pop(&c.pending).(*manualTimer)
		if t.due.After(c.now) {
			c.now = t.due
		}
		c.mu.Unlock()
		t.f()
		c.mu.Lock()
	}
	c.now = end
}

type manualTimer struct {
	clock *Manual
	f     func()
	due   time.Time
	seq   uint64
	index int
}

// Stop takes the timer out and reports whether it was pending.
func (t *manualTimer) Stop() bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	return t.remove()
}

// Reset sets the timer to d from now and reports whether it was pending.
func (t *manualTimer) Reset(d time.Duration) bool {
	c := t.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	was := t.remove()
	c.seq++
	t.due, t.seq = c.now.Add(d), c.seq
	heap.Push(&c.pending, t)
	return was
}

func (t *manualTimer) remove() bool {
	if t.index < 0 {
		return false
	}
	heap.Remove(&t.clock.pending, t.index)
	return true
}

// timers is a heap by due time; timers due together fire in the order they were set.
type timers []*manualTimer

func (h timers) Len() int { return len(h) }

func (h timers) Less(i, j int) bool {
	if h[i].due.Equal(h[j].due) {
		return h[i].seq < h[j].seq
	}
	return h[i].due.Before(h[j].due)
}

func (h timers) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *timers) Push(x any) {
	t := x.(*manualTimer)
	t.index = len(*h)
	*h = append(*h, t)
}

func (h *timers) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	last.index = -1
	return last
}
