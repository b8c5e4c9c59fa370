package crash_test

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// history is what was asked of the server and what it promised: an answer is a promise, a call
// without one may or may not have taken effect.
type history struct {
	mu       sync.Mutex
	life     int           // of the server
	ahead    time.Duration // of its clock
	events   int64         // a clock that ticks with every note
	messages map[string]*message
	groups   map[string]*group
	failures []string

	sends, receives, extensions, deletes, purges int // that were answered

	delays int // messages that were sent with a delay
	hidden int // how often a message was hidden when a life ended
}

// message is what is known of one message, which its body names.
type message struct {
	family   *family
	group    string
	n        int // in its group
	id       string
	accepted bool
	life     int       // in which it was accepted first
	deleting int       // deletions that were asked for and not refused
	deleted  int64     // when a deletion was answered; 0 for never
	until    time.Time // before this, on the server's clock, it is hidden
}

// group is a message group of a FIFO queue, with one sender.
type group struct {
	messages []*message // from the first
	first    int        // before this index all are deleted, as far as anybody knows
	pending  int        // messages at the end whose send was not answered
}

func newHistory() *history {
	return &history{messages: map[string]*message{}, groups: map[string]*group{}}
}

func (h *history) fail(format string, args ...any) {
	h.failures = append(h.failures, fmt.Sprintf(format, args...))
}

// failed notes an answer that should not have been.
func (h *history) failed(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail(format, args...)
}

// begin is the begin of a life.
func (h *history) begin(life int, ahead time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.life, h.ahead = life, ahead
}

// moment is a point between two notes, and what the server's clock says then.
type moment struct {
	event int64
	at    time.Time
}

func (h *history) now() moment {
	h.mu.Lock()
	defer h.mu.Unlock()
	return moment{h.events, h.clock()}
}

// clock is the server's.
func (h *history) clock() time.Time { return time.Now().Add(h.ahead) }

// next returns the bodies of up to n messages to send to the group: those whose send was not
// answered, or new ones.
func (h *history) next(f *family, name string, n int) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.groups[name]
	if g == nil {
		g = &group{}
		h.groups[name] = g
	}
	if !f.fifo || g.pending == 0 {
		for range n {
			m := &message{family: f, group: name, n: len(g.messages)}
			h.messages[m.body()] = m
			g.messages = append(g.messages, m)
		}
		g.pending = n
	}
	var bodies []string
	for _, m := range g.messages[len(g.messages)-g.pending:] {
		bodies = append(bodies, m.body())
	}
	return bodies
}

// isPending reports whether a send to the group had no answer.
func (h *history) isPending(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.groups[name]
	return g != nil && g.pending > 0
}

// repeat returns the last message of a group of a FIFO queue, if it was accepted so lately that
// sending it again must have no effect. A purge has the queue forget what was sent.
func (h *history) repeat(f *family, name string) (body string, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.groups[name]
	if g == nil || g.pending > 0 {
		return "", false
	}
	last := g.messages[len(g.messages)-1]
	return last.body(), last.accepted && last.life > f.lastPurge.life && h.life-last.life < livesRemembered
}

func (m *message) body() string { return fmt.Sprintf("%s/%06d", m.group, m.n) }

// accepted notes that the sends of these bodies were answered, with these ids.
func (h *history) accepted(bodies, ids []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events++
	for i, body := range bodies {
		m := h.messages[body]
		if !m.accepted {
			m.accepted, m.life = true, h.life
		}
		h.groups[m.group].pending = 0
		h.identify(m, ids[i])
		h.sends++
	}
}

// identify compares a message's id with the one that it had before. A redrive gives new ones.
func (h *history) identify(m *message, id string) {
	if m.family.redrives {
		return
	}
	if m.id != "" && m.id != id {
		h.fail("%s has the ids %s and %s: it is there twice", m.body(), m.id, id)
	}
	m.id = id
}

// received notes an answer to a receive that began at a time, and judges it.
func (h *history) received(f *family, began moment, visibility time.Duration, got []types.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.receives += len(got)
	inAnswer := map[*message]bool{}
	for _, r := range got {
		m := h.messages[*r.Body]
		if m == nil || m.family != f {
			h.fail("%s received %q, which nobody sent there", f.name, *r.Body)
			continue
		}
		if m.deleted != 0 && m.deleted <= began.event {
			h.fail("%s came back after its deletion was answered", m.body())
		}
		h.show(m)
		m.until = began.at.Add(visibility)
		h.identify(m, *r.MessageId)
		if f.fifo && !f.redrives {
			h.checkOrder(m, inAnswer)
		}
		inAnswer[m] = true
	}
}

// checkOrder refuses a message that overtook one of its group. The deletion of a message is noted
// before it is asked for, so a successor that the queue gives out has no predecessor without one.
func (h *history) checkOrder(m *message, inAnswer map[*message]bool) {
	g := h.groups[m.group]
	for g.first < len(g.messages) && g.messages[g.first].deleted != 0 {
		g.first++
	}
	for _, before := range g.messages[min(g.first, m.n):m.n] {
		if before.deleting == 0 && !inAnswer[before] {
			h.fail("%s was received before %s was deleted", m.body(), before.body())
			return
		}
	}
}

// deleting notes that deletions are about to be asked for.
func (h *history) deleting(got []types.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range got {
		if m := h.messages[*r.Body]; m != nil {
			m.deleting++
		}
	}
}

// deleted notes the answer to one of them.
func (h *history) deleted(r types.Message, done bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.messages[*r.Body]
	if m == nil {
		return
	}
	if !done {
		m.deleting--
		return
	}
	h.events++
	m.deleted = h.events
	h.deletes++
}

// missing compares what was left in the end with what was promised.
func (h *history) judgeEnd(left map[string]int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for body, m := range h.messages {
		switch n := left[body]; {
		case n == 0 && m.accepted && m.deleting == 0:
			h.fail("%s was accepted, nobody deleted it, and it is lost", body)
		case n > 1:
			h.fail("%s was there %d times in the end", body, n)
		}
	}
}

func (h *history) report() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.failures) > 20 {
		h.failures = append(h.failures[:20], fmt.Sprintf("... and %d more", len(h.failures)-20))
	}
	return strings.Join(h.failures, "\n")
}
