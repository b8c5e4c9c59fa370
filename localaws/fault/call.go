package fault

import (
	"context"
	"sync/atomic"
)

// Call is a call between Begin and End, and the context to run its operation in: it ends when an
// outage takes the call away. Most calls never wait for that, so the channel is made for the first
// that asks.
type Call struct {
	context.Context // the caller's
	set             *Set
	service, op     string
	rule            *Rule
	by              *Active // the rule's, nil without one
	ending          atomic.Pointer[ending]
	previous, next  *Call // of those under way

	// The set's mutex guards what follows.
	hold    *hold   // what the call waits for
	behind  []*hold // calls that wait for the end of this one
	pending bool    // marked, and the service has not asked yet
	dropped bool    // by an outage
	over    bool
}

// ending is a context that Done is asked of.
type ending struct {
	context.Context
	cancel context.CancelFunc
}

type callKey struct{}

// noRule is what most calls have to act out.
var noRule Rule

// Rule returns the fault to act out, or the zero Rule.
func (c *Call) Rule() Rule { return *c.rule }

// Done returns a channel that is closed when the caller is gone, an outage takes the call away or
// the call is over.
func (c *Call) Done() <-chan struct{} {
	if own := c.ending.Load(); own != nil {
		return own.Done()
	}
	c.set.mu.Lock()
	defer c.set.mu.Unlock()
	if c.ending.Load() == nil {
		own := &ending{}
		own.Context, own.cancel = context.WithCancel(c.Context)
		c.ending.Store(own)
		if c.dropped || c.over {
			own.cancel()
		}
	}
	return c.ending.Load().Done()
}

// Err returns why Done is closed, or nil.
func (c *Call) Err() error {
	if own := c.ending.Load(); own != nil {
		return own.Err()
	}
	c.set.mu.Lock()
	defer c.set.mu.Unlock()
	if c.dropped || c.over {
		return context.Canceled
	}
	return c.Context.Err()
}

// Value returns what the caller's context has for the key.
func (c *Call) Value(key any) any {
	if key == (callKey{}) {
		return c
	}
	if own := c.ending.Load(); own != nil {
		return own.Value(key) // which context.WithCancel looks for
	}
	return c.Context.Value(key)
}

// cancel closes Done. The caller holds the set's mutex.
func (c *Call) cancel() {
	if own := c.ending.Load(); own != nil {
		own.cancel()
	}
}

// Wait acts out what comes before the operation and takes time: it lets the Delay of Kind Delay
// pass on the clock of the services, or holds the call that Kind Reorder swaps with the next. When
// the rule is removed it returns at once. It returns an error for a call that must not run any more:
// the context's, or the answer to a call that was held when the set was cleared.
func (c *Call) Wait() error {
	if c.by == nil {
		return nil
	}
	s := c.set
	s.mu.Lock()
	h, clock := c.hold, s.time()
	s.mu.Unlock()
	if h == nil {
		return nil
	}
	over := make(chan struct{})
	timer := clock.AfterFunc(c.rule.Delay, func() { close(over) })
	defer timer.Stop()
	select {
	case <-over:
	case <-h.free:
	case <-c.Done():
	}
	return c.letGo(h)
}

// letGo says that the call waits no longer: the next one is held in its turn.
func (c *Call) letGo(h *hold) error {
	err := c.Err()
	s := c.set
	s.mu.Lock()
	defer s.mu.Unlock()
	c.hold = nil
	if c.by.held == h {
		c.by.held = nil
		s.endSpent(c.by)
	}
	if h.err != nil {
		return h.err
	}
	return err
}

// End says that the call is over. It reports whether an outage has taken it away, so that it must
// have no answer.
func (c *Call) End() (down bool) {
	s := c.set
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unlink(c)
	for _, h := range c.behind {
		h.release(nil)
	}
	if c.pending {
		c.by.hits-- // the service had no use for the mark
		c.settle()
	}
	c.over = true
	c.cancel()
	return c.dropped
}

// isMarked reports whether the service is to act out the kind. That it asks makes the call a hit.
func isMarked(ctx context.Context, kind Kind) bool {
	c, ok := ctx.Value(callKey{}).(*Call)
	if !ok || c.rule.Kind != kind {
		return false
	}
	c.set.mu.Lock()
	defer c.set.mu.Unlock()
	if c.pending {
		c.settle()
	}
	return true
}

// settle says that the call's hit counts as it stands.
func (c *Call) settle() {
	c.pending = false
	c.by.pending--
	c.set.endSpent(c.by)
}

// hold is what a call waits for besides time.
type hold struct {
	free chan struct{}
	done bool
	err  error // for a call that must not run
}

func newHold() *hold { return &hold{free: make(chan struct{})} }

// release lets the call go, to run or with an error; nil holds nothing. The caller holds the set's
// mutex.
func (h *hold) release(err error) {
	if h == nil || h.done {
		return
	}
	h.done, h.err = true, err
	close(h.free)
}
