package fault

import (
	"context"
	"sync"
	"time"
)

// hold is one call that waits for another.
type hold struct {
	free chan struct{}
	once sync.Once
}

func newHold() *hold { return &hold{free: make(chan struct{})} }

// release lets the call go; nil holds nothing.
func (h *hold) release() {
	if h != nil {
		h.once.Do(func() { close(h.free) })
	}
}

// Wait acts out what comes before the operation and takes time: it lets the Delay of Kind Delay
// pass on the clock of the services, or holds the call that Kind Reorder swaps with the next. It
// returns at once for other kinds, and with ctx's error when that ends first.
func (s *Set) Wait(ctx context.Context, r Rule) error {
	switch {
	case r.Kind == Delay:
		return s.wait(ctx, nil, r.Delay)
	case r.hold != nil:
		defer s.letGo(r.hold)
		return s.wait(ctx, r.hold.free, r.Delay)
	}
	return nil
}

// wait returns when free is closed or d has passed.
func (s *Set) wait(ctx context.Context, free <-chan struct{}, d time.Duration) error {
	s.mu.Lock()
	c := s.time()
	s.mu.Unlock()
	over := make(chan struct{})
	timer := c.AfterFunc(d, func() { close(over) })
	defer timer.Stop()
	select {
	case <-over:
	case <-free:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// letGo says that the call waits no longer: the next one is held in its turn.
func (s *Set) letGo(h *hold) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.rules {
		if a.held != h {
			continue
		}
		a.held = nil
		if a.rule.Times > 0 && a.hits >= a.rule.Times {
			s.end(a)
		}
		return
	}
}
