package sqs

import (
	"container/list"
	"slices"
	"time"

	"github.com/stepfleet/stepfleet/localaws/clock"
)

// receive is what a receiver asks for. A nil visibility is the queue's own.
type receive struct {
	max        int
	wait       time.Duration
	visibility *time.Duration
	attempt    string // the ReceiveRequestAttemptId
	// duplicate leaves what is returned visible to others: a standard queue delivers at least once.
	duplicate bool
	// reorder returns the messages of this receive in another order.
	reorder bool
}

// delivery is a message as one receive returned it.
type delivery struct {
	*message
	receipt       receipt
	handle        string // once it is signed
	count         int
	firstReceived time.Time
	deadline      time.Time
}

// attempt is what a receive with an attempt id returned. It keeps no message: those may be gone
// long before the id is forgotten.
type attempt struct {
	got        []attempted
	visibility time.Duration
}

type attempted struct {
	receipt
	deadline time.Time
}

// waiter is a long poll. It is out of the list once done is closed, and then never changes.
type waiter struct {
	request receive
	place   *list.Element
	timeout clock.Timer
	got     []delivery
	err     error
	written ticket
	done    chan struct{}
}

func (q *queue) deliver(m *message) delivery {
	return delivery{message: m, receipt: receipt{m.seq, m.nonce}, count: m.receives, firstReceived: m.firstReceived, deadline: m.due}
}

// takeOrWait returns messages, or the waiter that will get them.
func (q *queue) takeOrWait(r receive) (*waiter, []delivery, error) {
	now, err := q.enter()
	if err != nil {
		return nil, nil, err
	}
	defer q.leave(now)
	if got, ok := q.again(now, r.attempt); ok {
		return nil, got, nil
	}
	if q.service.mischief.empty(q, r) {
		return nil, nil, nil
	}
	got := q.take(now, r)
	if len(got) > 0 || r.wait <= 0 {
		if len(got) == 0 {
			q.counted.emptyReceives++
			if !q.fifo && q.inFlight >= q.service.maxInFlight {
				return nil, nil, errOverLimit
			}
		}
		return nil, got, nil
	}
	w := &waiter{request: r, done: make(chan struct{})}
	w.place = q.waiters.PushBack(w)
	w.timeout = q.clock.AfterFunc(r.wait, func() { q.giveUp(w, nil) })
	return w, nil, nil
}

// giveUp ends a long poll that got nothing; one that was served is left as it is.
func (q *queue) giveUp(w *waiter, err error) {
	q.mu.Lock()
	if w.place == nil {
		q.mu.Unlock()
		return
	}
	now := q.clock.Now()
	if err == nil {
		now = q.advance() // a message that falls due with the wait's end is still for it
	}
	if w.place != nil {
		q.counted.emptyReceives++
		q.finish(w, nil, err)
	}
	q.leave(now)
}

func (q *queue) finish(w *waiter, got []delivery, err error) {
	q.waiters.Remove(w.place)
	w.place = nil
	w.timeout.Stop()
	w.got, w.err, w.written = got, err, q.written
	close(w.done)
}

// take moves up to r.max messages from their lanes into flight: on a FIFO queue as many of the
// first group as it has to give, then those of the next.
func (q *queue) take(now time.Time, r receive) []delivery {
	picked := q.pick(now, min(r.max, q.service.maxInFlight-q.inFlight))
	if len(picked) == 0 {
		return nil
	}
	visibility := q.settings.visibility
	if r.visibility != nil {
		visibility = *r.visibility
	}
	got := make([]delivery, 0, len(picked))
	for _, m := range picked {
		m.receives++
		m.received, m.nonce = now, q.service.ids.Uint64()
		if m.receives == 1 {
			m.firstReceived = now
		}
		if visibility <= 0 || !q.fifo && (r.duplicate || q.service.mischief.duplicate()) {
			q.show(m, now)
		} else {
			q.fly(m, now.Add(visibility))
		}
		got = append(got, q.deliver(m))
	}
	q.counted.received += uint64(len(got))
	q.logUpdates(picked...)
	if r.reorder && !q.fifo {
		slices.Reverse(got)
	}
	if r.attempt != "" {
		q.attempts.put(r.attempt, attempt{attemptedOf(got), visibility}, now.Add(remembered))
	}
	return got
}

func attemptedOf(got []delivery) []attempted {
	all := make([]attempted, 0, len(got))
	for _, d := range got {
		all = append(all, attempted{d.receipt, d.deadline})
	}
	return all
}

// pick takes up to n messages out of their lanes. What was received too often leaves the queue.
func (q *queue) pick(now time.Time, n int) []*message {
	if n <= 0 || q.visible == 0 {
		return nil
	}
	if !q.fifo {
		n = q.service.mischief.fewer(n)
	}
	picked := make([]*message, 0, min(n, q.visible))
	var l *lane
	for len(picked) < n {
		if l == nil || !q.fifo || l.slot < 0 {
			l = q.open.first()
		}
		if l == nil {
			break
		}
		q.service.mischief.shuffle(l)
		m := q.pop(l)
		if to := q.deadLetters(m); to != nil {
			q.depart(now, m, to)
			continue
		}
		picked = append(picked, m)
	}
	return picked
}

// again answers a receive that is repeated with the id of one before: with the same messages and
// handles, and their visibility anew, unless one was deleted, changed or became visible meanwhile.
func (q *queue) again(now time.Time, id string) ([]delivery, bool) {
	if id == "" {
		return nil, false
	}
	before, ok := q.attempts.get(id, now)
	if !ok {
		return nil, false
	}
	for _, a := range before.got {
		m := q.messages.get(a.seq)
		if m == nil || !q.holds(m, a.receipt) || !m.due.Equal(a.deadline) {
			return nil, false
		}
	}
	got := make([]delivery, 0, len(before.got))
	for i := range before.got {
		m := q.messages.get(before.got[i].seq)
		m.due = now.Add(before.visibility)
		before.got[i].deadline = m.due
		q.hidden.fix(m)
		q.logUpdates(m)
		got = append(got, q.deliver(m))
	}
	return got, true
}
