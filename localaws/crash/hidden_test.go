package crash_test

import "time"

// clockSlack is how far the clocks of two processes on one machine may be apart.
const clockSlack = 20 * time.Millisecond

// A message is hidden while it is delayed and while it is in flight. What is known is a time before
// which it must be: from when the call that hid it began, so that it is too early rather than too
// late. After a call without an answer it is the earlier of what both outcomes promise.

// sending notes that messages are about to be sent with a delay. Of several sends of one message the
// first may be the one that counts.
func (h *history) sending(bodies []string, delay time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, body := range bodies {
		if m := h.messages[body]; m.until.IsZero() {
			m.until = h.clock().Add(delay)
			if delay > 0 {
				h.delays++
			}
		}
	}
}

// show refuses a message that was received before its time. The caller holds mu.
func (h *history) show(m *message) {
	if early := m.until.Sub(h.clock()); early > clockSlack {
		h.fail("%s was received %v before it was to be visible", m.body(), early)
	}
}

// change is a change of a message's visibility that is under way.
type change struct {
	message *message
	before  time.Time // until when it was hidden
	after   time.Time // until when it will be
}

// changing notes that a change is about to be asked for.
func (h *history) changing(body string, visibility time.Duration) change {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.messages[body]
	if m == nil {
		m = &message{} // which nobody sent; that has been noted
	}
	c := change{m, m.until, h.clock().Add(visibility)}
	if c.after.Before(m.until) {
		m.until = c.after
	}
	return c
}

// changed notes that it was answered. It has changed nothing, answered all the same, if the message
// was no longer in flight.
func (h *history) changed(c change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.after.After(c.before) && h.clock().Before(c.before) {
		c.message.until = c.after
		h.extensions++
	}
}

// countHidden counts what a life that has ended left hidden.
func (h *history) countHidden() {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.clock()
	for _, m := range h.messages {
		if m.accepted && m.deleting == 0 && m.until.After(now) {
			h.hidden++
		}
	}
}
