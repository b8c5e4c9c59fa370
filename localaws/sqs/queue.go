package sqs

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet/localaws/clock"
)

// maxVisibilitySeconds is how long a message may stay hidden after one receive: 12 hours.
const maxVisibilitySeconds = 43_200

// purgeEvery is how far apart two purges of a queue must be.
const purgeEvery = 60 * time.Second

// scanned is how far into its backlog a FIFO queue looks for groups that are free. Behind that
// many messages of groups that are not, the others wait, as they do on AWS.
const scanned = 120_000

// queue is the engine of one queue. A message is in messages; by its age it is in arrivals or, if
// it came to a standard queue with an older date, in moved; by its state it is in its lane or in hidden.
// Every step is O(1) or O(log n) of those, whatever the backlog and however many the groups.
type queue struct {
	service *Service
	key     queueKey
	uid     uint64
	fifo    bool
	// perGroup is whether deduplication ids are per group. It is settled when the queue is made: a
	// later change to high throughput leaves it as it is.
	perGroup bool
	clock    clock.Clock

	mu         sync.Mutex
	attributes map[string]string
	tags       map[string]string
	settings   settings
	created    time.Time
	modified   time.Time
	purged     time.Time
	gone       bool

	seq      uint64
	messages index
	arrivals chain    // in the order of arrival and of age: the retention takes from the front
	horizon  *message // the last arrival that a FIFO queue looks at, if it has any
	moved    byTime
	lanes    map[string]*lane
	open     openLanes
	hidden   byTime // delayed and received messages, by when they become visible
	visible  int
	inFlight int // how many of hidden were received

	sends    memory[accepted]    // by deduplication key
	attempts memory[attempt]     // by ReceiveRequestAttemptId
	outbox   []departure         // what leaves for another queue when the mutex is free
	leaving  map[uint64]*message // what left and has not arrived, by its number here
	written  ticket              // of the last record in the journal
	counted  counters
	lagging  lagging

	delivering bool // somebody brings away what is in outbox

	waiters list.List // of *waiter, longest waiting first
	timer   clock.Timer
	armed   time.Time // when timer fires; zero when it is not set
}

// counters are how many messages ever passed.
type counters struct{ sent, sentBytes, received, deleted, emptyReceives, deduplicated uint64 }

// outgoing is a message as it is sent. A nil delay is the queue's own.
type outgoing struct {
	content
	delay *time.Duration
}

func newQueue(s *Service, uid uint64, key queueKey, attributes, tags map[string]string) *queue {
	now := s.clock.Now()
	q := &queue{
		service: s, key: key, uid: uid, clock: s.clock, fifo: attributes["FifoQueue"] == "true",
		perGroup:   attributes["DeduplicationScope"] == "messageGroup",
		attributes: attributes, tags: tags, settings: settingsOf(attributes), created: now, modified: now,
	}
	q.clear()
	return q
}

// clear forgets every message.
func (q *queue) clear() {
	q.messages, q.lanes, q.open = newIndex(), map[string]*lane{}, nil
	q.arrivals, q.horizon = chain{which: linkArrival}, nil
	q.hidden, q.moved = byTime{which: slotHidden}, byTime{which: slotMoved}
	q.visible, q.inFlight = 0, 0
	q.sends.clear()
	q.attempts.clear()
}

// enter locks the queue and lets pass what fell due. Every operation begins with it and, unless it
// returned an error, ends with leave.
func (q *queue) enter() (time.Time, error) {
	q.mu.Lock()
	if q.gone {
		q.mu.Unlock()
		return time.Time{}, errNoQueue
	}
	return q.advance(), nil
}

// leave serves who waits, sets the timer and unlocks, takes what the queue gave up to its
// dead-letter queue, and waits until the journal holds what was done.
func (q *queue) leave(now time.Time) {
	q.service.journal.wait(q.exit(now))
}

// exit is leave without the wait, and returns what is to be waited for. What departs must arrive in
// the same order, so one operation at a time brings it there, for those that come meanwhile too.
func (q *queue) exit(now time.Time) ticket {
	q.serve(now)
	q.arm(now)
	written := q.written
	if !q.delivering {
		q.delivering = true
		for len(q.outbox) > 0 {
			written = max(written, q.deliverOutbox())
		}
		q.delivering = false
	}
	q.mu.Unlock()
	return written
}

// deliverOutbox lets go of the mutex meanwhile.
func (q *queue) deliverOutbox() (written ticket) {
	departed := q.outbox
	q.outbox = nil
	q.mu.Unlock()
	for _, d := range departed {
		written = d.to.accept(d)
	}
	q.mu.Lock()
	for _, d := range departed {
		delete(q.leaving, d.left)
	}
	return written
}

// advance lets pass what fell due, hands what became visible to those who wait, and returns the
// time: whoever waits has no claim on what is ready after it.
func (q *queue) advance() time.Time {
	now := q.clock.Now()
	for m := q.hidden.first(); m != nil && !m.due.After(now); m = q.hidden.first() {
		back := m.inFlight
		q.unhide(m)
		q.place(m, m.due, back)
	}
	q.expire(now)
	q.sends.forget(now)
	q.attempts.forget(now)
	q.serve(now)
	return now
}

// expire drops what is older than the retention allows. It is recorded, as the retention may be
// longer by the time that the journal is read.
func (q *queue) expire(now time.Time) {
	over := func(m *message) bool { return m != nil && !m.sent.Add(q.settings.retention).After(now) }
	var dropped []uint64
	for m := q.arrivals.head; over(m); m = q.arrivals.head {
		q.drop(m)
		dropped = append(dropped, m.seq)
	}
	for m := q.moved.first(); over(m); m = q.moved.first() {
		q.drop(m)
		dropped = append(dropped, m.seq)
	}
	if len(dropped) > 0 {
		q.logDeletes(dropped...)
	}
}

// serve hands ready messages to waiting receivers, the longest waiting first.
func (q *queue) serve(now time.Time) {
	for q.waiters.Len() > 0 {
		w := q.waiters.Front().Value.(*waiter)
		got := q.take(now, w.request)
		if len(got) == 0 {
			break
		}
		q.finish(w, got, nil)
	}
}

// arm sets the timer to the next message that becomes visible, while somebody waits for one.
func (q *queue) arm(now time.Time) {
	next := q.hidden.first()
	if q.waiters.Len() == 0 || next == nil {
		if q.timer != nil && !q.armed.IsZero() {
			q.timer.Stop()
			q.armed = time.Time{}
		}
		return
	}
	if !q.armed.IsZero() && !next.due.Before(q.armed) {
		return // it fires in time, and sets itself again
	}
	q.armed = next.due
	if q.timer == nil {
		q.timer = q.clock.AfterFunc(next.due.Sub(now), q.onTimer)
		return
	}
	q.timer.Reset(next.due.Sub(now))
}

func (q *queue) onTimer() {
	q.mu.Lock()
	q.armed = time.Time{}
	q.leave(q.advance())
}

// send adds messages and returns what it answers for each; copies > 1 sends each again under the
// same id. A FIFO queue answers a repeated deduplication id as it answered the first, and adds nothing.
func (q *queue) send(out []outgoing, copies int) ([]accepted, error) {
	now, err := q.enter()
	if err != nil {
		return nil, err
	}
	defer q.leave(now)
	answers := make([]accepted, 0, len(out))
	for i := range out {
		answers = append(answers, q.sendOne(now, &out[i], copies))
	}
	return answers, nil
}

func (q *queue) sendOne(now time.Time, o *outgoing, copies int) accepted {
	if q.fifo {
		key := q.dedupKey(&o.content)
		if before, ok := q.sends.get(key, now); ok {
			q.counted.deduplicated++
			return before
		}
		m := q.add(now, o)
		answer := accepted{m.id, m.seq}
		q.sends.put(key, answer, now.Add(remembered))
		q.logPut(m, &dedupRecord{Key: key, ID: m.id, Seq: m.seq, Until: now.Add(remembered)})
		return answer
	}
	var m *message
	for range copies {
		m = q.add(now, o)
		q.logPut(m, nil)
	}
	return accepted{m.id, m.seq}
}

func (q *queue) add(now time.Time, o *outgoing) *message {
	q.seq++
	m := &message{content: o.content, seq: q.seq, sent: now}
	delay := q.settings.delay
	if o.delay != nil && !q.fifo {
		delay = *o.delay
	}
	m.due = now.Add(delay)
	q.counted.sent++
	q.counted.sentBytes += uint64(m.size())
	q.insert(m, delay > 0)
	return m
}

// insert takes m in as new, hidden until it is due or visible since then. On a FIFO queue only
// arrivals, which is what it looks through, may hold it, whatever its date.
func (q *queue) insert(m *message, hidden bool) {
	m.slots = [2]int32{-1, -1}
	q.messages.put(m)
	if last := q.arrivals.tail; !q.fifo && last != nil && m.sent.Before(last.sent) {
		q.moved.add(m)
	} else {
		q.arrivals.push(m)
		if q.arrivals.n <= scanned {
			q.horizon = m
		}
	}
	m.lane = q.laneOf(m.group)
	m.lane.total++
	if hidden {
		q.hide(m, m.due)
		return
	}
	q.show(m, m.due)
}

func (q *queue) laneOf(group string) *lane {
	l := q.lanes[group]
	if l == nil {
		l = &lane{name: group, fifo: q.fifo, ready: chain{which: linkLane}, hidden: chain{which: linkLane}, slot: -1}
		q.lanes[group] = l
	}
	return l
}

// update finds the lane's place among those to take from. A FIFO queue looks no further than its
// horizon.
func (q *queue) update(l *lane) {
	q.open.update(l, l.open() && (!q.fifo || l.ready.head.seq <= q.horizon.seq))
}

// show makes m visible; it counts as such since the time.
func (q *queue) show(m *message, since time.Time) { q.place(m, since, false) }

// place is show of a message that may have come back by itself.
func (q *queue) place(m *message, since time.Time, back bool) {
	m.due = since
	m.lane.put(m, back)
	q.visible++
	q.update(m.lane)
}

// pop takes the next visible message out of the lane.
func (q *queue) pop(l *lane) *message {
	m := l.ready.head
	l.take(m)
	q.visible--
	q.update(l)
	return m
}

// fly marks m as received and hides it until the time.
func (q *queue) fly(m *message, until time.Time) {
	m.inFlight = true
	m.lane.flying++
	q.inFlight++
	q.hide(m, until)
}

// hide keeps m, which is not visible any more, until the time.
func (q *queue) hide(m *message, until time.Time) {
	m.due = until
	q.hidden.add(m)
	if q.fifo {
		m.lane.hidden.insertInOrder(m)
	}
	q.update(m.lane)
}

// reveal makes m visible that was hidden; it counts as such since the time.
func (q *queue) reveal(m *message, since time.Time) {
	q.unhide(m)
	q.show(m, since)
}

func (q *queue) unhide(m *message) {
	q.hidden.remove(m)
	if q.fifo {
		m.lane.hidden.remove(m)
	}
	if m.inFlight {
		m.inFlight = false
		m.lane.flying--
		q.inFlight--
	}
}

// drop removes m for good, wherever it is.
func (q *queue) drop(m *message) {
	if q.hidden.has(m) {
		q.unhide(m)
	} else {
		m.lane.take(m)
		q.visible--
	}
	q.forget(m)
}

// forget removes a message that is neither visible nor hidden.
func (q *queue) forget(m *message) {
	q.messages.remove(m)
	if q.moved.has(m) {
		q.moved.remove(m)
	} else {
		q.retreat(m)
		q.arrivals.remove(m)
	}
	m.lane.total--
	q.update(m.lane)
	if m.lane.total == 0 && m.lane.name != "" {
		delete(q.lanes, m.lane.name)
	}
}

// retreat keeps the horizon in place when m leaves.
func (q *queue) retreat(m *message) {
	if m.seq > q.horizon.seq {
		return
	}
	if next := q.horizon.links[linkArrival].next; next != nil {
		q.horizon = next
		q.update(next.lane)
	} else if m == q.horizon {
		q.horizon = m.links[linkArrival].prev
	}
}

// delete removes the message of a handle; one that is already gone is no error. A standard queue
// takes any handle of the message, a FIFO queue only the last one, and only while it holds.
func (q *queue) delete(handle string) error {
	now, err := q.enter()
	if err != nil {
		return err
	}
	defer q.leave(now) // room in flight may let a waiting receiver go on
	return q.deleteOne(handle)
}

func (q *queue) deleteOne(handle string) error {
	r, err := q.parseHandle(handle)
	if err != nil {
		return err
	}
	m := q.messages.get(r.seq)
	if m == nil {
		return nil
	}
	if q.fifo && !q.holds(m, r) {
		return invalid(handle, "ReceiptHandle", "The receipt handle has expired.")
	}
	q.drop(m)
	q.counted.deleted++
	q.logDeletes(m.seq)
	return nil
}

// holds reports whether the receipt is of the receive that has the message now.
func (q *queue) holds(m *message, r receipt) bool { return m.inFlight && m.nonce == r.nonce }

// changeVisibility hides the message of a handle for d from now. On a standard queue a message
// that is visible again is left so, without an error, as AWS does.
func (q *queue) changeVisibility(handle string, d time.Duration) error {
	now, err := q.enter()
	if err != nil {
		return err
	}
	defer q.leave(now)
	return q.changeOne(now, handle, d)
}

func (q *queue) changeOne(now time.Time, handle string, d time.Duration) error {
	r, err := q.parseHandle(handle)
	if err != nil {
		return err
	}
	m := q.messages.get(r.seq)
	if m == nil || q.fifo && !q.holds(m, r) {
		return invalid(handle, "ReceiptHandle", "Message does not exist or is not available for visibility timeout change.")
	}
	if !m.inFlight {
		return nil
	}
	// AWS counts whole seconds here: 12 hours right after a receive are allowed.
	if now.Sub(m.received).Truncate(time.Second)+d > maxVisibilitySeconds*time.Second {
		return invalid(seconds(d), "VisibilityTimeout", "Total VisibilityTimeout for the message is beyond the limit [43200 seconds]")
	}
	if d == 0 {
		q.reveal(m, now)
	} else {
		m.due = now.Add(d)
		q.hidden.fix(m)
	}
	q.logUpdates(m)
	return nil
}

// purge removes every message, those in flight and delayed included, and on a FIFO queue the
// memory of what was sent.
func (q *queue) purge() error {
	now, err := q.enter()
	if err != nil {
		return err
	}
	defer q.leave(now)
	if !q.purged.IsZero() && now.Sub(q.purged) < purgeEvery {
		return errPurging.With("Only one PurgeQueue operation on %s is allowed every 60 seconds.", q.key.name)
	}
	q.purged = now
	q.clear()
	q.log(record{Queue: q.describe(), Purge: true})
	return nil
}

// close ends the queue and every long poll on it. It reports whether this call did.
func (q *queue) close() bool {
	now, err := q.enter()
	if err != nil {
		return false
	}
	defer q.leave(now)
	q.gone = true
	q.clear()
	for q.waiters.Len() > 0 {
		q.finish(q.waiters.Front().Value.(*waiter), nil, errNoQueue)
	}
	q.log(record{Gone: true})
	return true
}

// change alters what is kept about the queue and records it.
func (q *queue) change(f func(now time.Time) error) error {
	now, err := q.enter()
	if err != nil {
		return err
	}
	defer q.leave(now)
	if err := f(now); err != nil {
		return err
	}
	q.logQueue()
	return nil
}

// set changes attributes. A new retention holds for all messages. A new delay holds on a standard
// queue for messages sent from now on, on a FIFO queue also for those that were never received.
func (q *queue) set(merged map[string]string, now time.Time) {
	before := q.settings.delay
	q.attributes, q.settings, q.modified = merged, settingsOf(merged), now
	if q.fifo && before != q.settings.delay {
		q.delayAnew(now)
		q.log(record{Queue: q.describe(), Delayed: true})
	}
	q.expire(now)
}

// delayAnew delays what was never received as if it had been sent with the delay of now; whoever
// reads the journal does the same. It goes by order of arrival, in which each message is the last
// of its group.
func (q *queue) delayAnew(now time.Time) {
	for m := q.arrivals.head; m != nil; m = m.links[linkArrival].next {
		if m.receives == 0 {
			q.delayOne(m, now)
		}
	}
}

func (q *queue) delayOne(m *message, now time.Time) {
	due := m.sent.Add(q.settings.delay)
	switch hidden := q.hidden.has(m); {
	case hidden && due.After(now):
		m.due = due
		q.hidden.fix(m)
	case hidden:
		q.reveal(m, due)
	case due.After(now):
		m.lane.take(m)
		q.visible--
		q.hide(m, due)
	default:
		m.due = due
		q.update(m.lane)
	}
}

// current returns the settings, for defaults and checks outside the engine.
func (q *queue) current() settings {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.settings
}

// receive returns messages at once, or waits for the first. Messages that were handed to a
// receiver whose connection is gone stay in flight until their visibility ends, as on AWS.
func (q *queue) receive(ctx context.Context, r receive) ([]delivery, error) {
	w, got, err := q.takeOrWait(r)
	if w == nil {
		q.sign(got)
		return got, err
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		q.giveUp(w, ctx.Err())
		<-w.done
	}
	q.service.journal.wait(w.written)
	q.sign(w.got)
	return w.got, w.err
}
