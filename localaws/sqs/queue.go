package sqs

import (
	"container/heap"
	"container/list"
	"context"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet/localaws/clock"
)

// maxVisibilitySeconds is how long a message may stay hidden after one receive: 12 hours.
const maxVisibilitySeconds = 43_200

// purgeEvery is how far apart two purges of a queue must be.
const purgeEvery = 60 * time.Second

// queue is the engine of one standard queue. A message is in byAge and, by its place, either in
// ready or in hidden; every step is O(1) or O(log n) of those, whatever the backlog.
type queue struct {
	key     queueKey
	uid     uint64
	clock   clock.Clock
	nonce   func() uint64
	maxHeld int

	mu         sync.Mutex
	attributes map[string]string
	settings   settings
	created    time.Time
	modified   time.Time
	purged     time.Time
	gone       bool

	seq      uint64
	messages map[uint64]*message
	byAge    chain    // every message, oldest first: retention takes from the front
	ready    chain    // visible messages, next first
	hidden   deadline // delayed and received messages, by when they become visible
	inFlight int      // how many of hidden were received

	waiters list.List // of *waiter, longest waiting first
	timer   clock.Timer
	armed   time.Time // when timer fires; zero when it is not set
}

// waiter is a long poll. It is out of the list once done is closed, and then never changes.
type waiter struct {
	request receive
	place   *list.Element
	timeout clock.Timer
	got     []delivery
	err     error
	done    chan struct{}
}

// receive is what a receiver asks for. A nil visibility is the queue's own.
type receive struct {
	max        int
	wait       time.Duration
	visibility *time.Duration
	// visible leaves what is returned visible to others: a duplicate delivery.
	visible bool
}

// delivery is a message as one receive returned it.
type delivery struct {
	*message
	handle        string
	count         int
	firstReceived time.Time
}

// outgoing is a message as it is sent. A nil delay is the queue's own.
type outgoing struct {
	content
	delay *time.Duration
}

func newQueue(s *Service, key queueKey, attributes map[string]string) *queue {
	now := s.clock.Now()
	return &queue{
		key: key, uid: s.ids.Uint64(), clock: s.clock, nonce: s.ids.Uint64, maxHeld: s.maxInFlight,
		attributes: attributes, settings: settingsOf(attributes), created: now, modified: now,
		messages: map[uint64]*message{}, byAge: chain{which: linkAge}, ready: chain{which: linkReady},
	}
}

// advance lets pass what fell due, hands what became visible to those who wait, and returns the
// time. Every operation calls it first, so whoever waits has no claim on what is ready after it.
func (q *queue) advance() time.Time {
	now := q.clock.Now()
	for len(q.hidden) > 0 && !q.hidden[0].due.After(now) {
		q.reveal(q.hidden[0])
	}
	for m := q.byAge.head; m != nil && !m.sent.Add(q.settings.retention).After(now); m = q.byAge.head {
		q.drop(m)
	}
	q.serve(now)
	return now
}

// settle serves who waits and sets the timer for the next message. Every operation that changed
// something calls it last.
func (q *queue) settle(now time.Time) {
	q.serve(now)
	q.arm(now)
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
	if q.waiters.Len() == 0 || len(q.hidden) == 0 {
		if q.timer != nil && !q.armed.IsZero() {
			q.timer.Stop()
			q.armed = time.Time{}
		}
		return
	}
	due := q.hidden[0].due
	if !q.armed.IsZero() && !due.Before(q.armed) {
		return // it fires in time, and sets itself again
	}
	q.armed = due
	if q.timer == nil {
		q.timer = q.clock.AfterFunc(due.Sub(now), q.onTimer)
		return
	}
	q.timer.Reset(due.Sub(now))
}

func (q *queue) onTimer() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.armed = time.Time{}
	q.settle(q.advance())
}

// send adds messages; copies > 1 doubles each under the same id.
func (q *queue) send(out []outgoing, copies int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return errNoQueue
	}
	now := q.advance()
	for _, o := range out {
		for range copies {
			q.add(now, o)
		}
	}
	q.settle(now)
	return nil
}

func (q *queue) add(now time.Time, o outgoing) {
	q.seq++
	m := &message{content: o.content, seq: q.seq, sent: now, slot: -1}
	q.messages[m.seq] = m
	q.byAge.push(m)
	delay := q.settings.delay
	if o.delay != nil {
		delay = *o.delay
	}
	if delay > 0 {
		q.hide(m, now.Add(delay))
		return
	}
	q.ready.push(m)
}

// receive returns messages at once, or waits for the first. Messages that were handed to a
// receiver whose connection is gone stay in flight until their visibility ends, as on AWS.
func (q *queue) receive(ctx context.Context, r receive) ([]delivery, error) {
	w, got, err := q.takeOrWait(r)
	if w == nil {
		return got, err
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		q.giveUp(w, ctx.Err())
		<-w.done
	}
	return w.got, w.err
}

// takeOrWait returns messages, or the waiter that will get them.
func (q *queue) takeOrWait(r receive) (*waiter, []delivery, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return nil, nil, errNoQueue
	}
	now := q.advance()
	got := q.take(now, r)
	if len(got) == 0 && r.wait <= 0 && q.inFlight >= q.maxHeld {
		return nil, nil, errOverLimit
	}
	if len(got) > 0 || r.wait <= 0 {
		return nil, got, nil
	}
	w := &waiter{request: r, done: make(chan struct{})}
	w.place = q.waiters.PushBack(w)
	w.timeout = q.clock.AfterFunc(r.wait, func() { q.giveUp(w, nil) })
	q.arm(now)
	return w, nil, nil
}

// giveUp ends a long poll that got nothing; one that was served is left as it is.
func (q *queue) giveUp(w *waiter, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.place == nil {
		return
	}
	now := q.clock.Now()
	if err == nil {
		now = q.advance() // a message that falls due with the wait's end is still for it
	}
	if w.place != nil {
		q.finish(w, nil, err)
	}
	q.arm(now)
}

func (q *queue) finish(w *waiter, got []delivery, err error) {
	q.waiters.Remove(w.place)
	w.place = nil
	w.timeout.Stop()
	w.got, w.err = got, err
	close(w.done)
}

// take moves up to r.max messages from ready into flight.
func (q *queue) take(now time.Time, r receive) []delivery {
	n := min(r.max, q.ready.n, q.maxHeld-q.inFlight)
	if n <= 0 {
		return nil
	}
	visibility := q.settings.visibility
	if r.visibility != nil {
		visibility = *r.visibility
	}
	got := make([]delivery, 0, n)
	for range n {
		m := q.ready.head
		q.ready.remove(m)
		m.receives++
		m.received = now
		if m.receives == 1 {
			m.firstReceived = now
		}
		got = append(got, delivery{m, q.handle(m), m.receives, m.firstReceived})
		if visibility <= 0 || r.visible {
			q.ready.push(m)
			continue
		}
		m.inFlight = true
		q.inFlight++
		q.hide(m, now.Add(visibility))
	}
	return got
}

// delete removes the message of a handle, old or new; one that is already gone is no error.
func (q *queue) delete(handle string) error {
	seq, err := q.parseHandle(handle)
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return errNoQueue
	}
	now := q.advance()
	if m := q.messages[seq]; m != nil {
		q.drop(m)
		q.settle(now) // room in flight may let a waiting receiver go on
	}
	return nil
}

// changeVisibility hides the message of a handle for d from now. A message that is visible again is
// left so, without an error, as AWS does on a standard queue.
func (q *queue) changeVisibility(handle string, d time.Duration) error {
	seq, err := q.parseHandle(handle)
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return errNoQueue
	}
	now := q.advance()
	m := q.messages[seq]
	if m == nil {
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
		q.reveal(m)
	} else {
		m.due = now.Add(d)
		heap.Fix(&q.hidden, m.slot)
	}
	q.settle(now)
	return nil
}

// purge removes every message, those in flight and delayed included.
func (q *queue) purge() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return errNoQueue
	}
	now := q.advance()
	if !q.purged.IsZero() && now.Sub(q.purged) < purgeEvery {
		return errPurging.With("Only one PurgeQueue operation on %s is allowed every 60 seconds.", q.key.name)
	}
	q.purged = now
	q.clear()
	q.arm(now)
	return nil
}

// close ends the queue and every long poll on it.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gone = true
	q.clear()
	for q.waiters.Len() > 0 {
		q.finish(q.waiters.Front().Value.(*waiter), nil, errNoQueue)
	}
	q.arm(q.clock.Now())
}

func (q *queue) clear() {
	q.messages = map[uint64]*message{}
	q.byAge, q.ready = chain{which: linkAge}, chain{which: linkReady}
	q.hidden, q.inFlight = nil, 0
}

// set changes attributes. A new delay holds for messages sent from now on, a new retention for all.
func (q *queue) set(changes map[string]string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return errNoQueue
	}
	merged, err := merge(q.attributes, changes)
	if err != nil {
		return err
	}
	q.attributes, q.settings = merged, settingsOf(merged)
	q.modified = q.advance()
	return nil
}

// snapshot returns every attribute, the computed ones included.
func (q *queue) snapshot() map[string]string {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.advance()
	all := maps.Clone(q.attributes)
	all["QueueArn"] = q.key.arn()
	all["CreatedTimestamp"] = strconv.FormatInt(q.created.Unix(), 10)
	all["LastModifiedTimestamp"] = strconv.FormatInt(q.modified.Unix(), 10)
	all["ApproximateNumberOfMessages"] = strconv.Itoa(q.ready.n)
	all["ApproximateNumberOfMessagesNotVisible"] = strconv.Itoa(q.inFlight)
	all["ApproximateNumberOfMessagesDelayed"] = strconv.Itoa(len(q.hidden) - q.inFlight)
	return all
}

// current returns the settings, for defaults and checks outside the engine.
func (q *queue) current() settings {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.settings
}

func (q *queue) hide(m *message, until time.Time) {
	m.due = until
	heap.Push(&q.hidden, m)
}

func (q *queue) reveal(m *message) {
	q.unhide(m)
	q.ready.push(m)
}

func (q *queue) unhide(m *message) {
	heap.Remove(&q.hidden, m.slot)
	if m.inFlight {
		m.inFlight = false
		q.inFlight--
	}
}

func (q *queue) drop(m *message) {
	if m.slot >= 0 {
		q.unhide(m)
	} else {
		q.ready.remove(m)
	}
	q.byAge.remove(m)
	delete(q.messages, m.seq)
}

// handleBytes is a receipt handle: queue, message, nonce, checksum. The nonce makes the handle of
// every receive its own.
const handleBytes = 8 + 8 + 8 + 4

func (q *queue) handle(m *message) string {
	var b [handleBytes]byte
	binary.BigEndian.PutUint64(b[0:], q.uid)
	binary.BigEndian.PutUint64(b[8:], m.seq)
	binary.BigEndian.PutUint64(b[16:], q.nonce())
	binary.BigEndian.PutUint32(b[24:], crc32.ChecksumIEEE(b[:24]))
	return base64.StdEncoding.EncodeToString(b[:])
}

func (q *queue) parseHandle(handle string) (seq uint64, err error) {
	if handle == "" {
		return 0, missing("ReceiptHandle")
	}
	b, err := base64.StdEncoding.DecodeString(handle)
	if err != nil || len(b) != handleBytes || binary.BigEndian.Uint32(b[24:]) != crc32.ChecksumIEEE(b[:24]) ||
		binary.BigEndian.Uint64(b) != q.uid {
		return 0, errBadHandle.With("The input receipt handle %q is not a valid receipt handle.", handle)
	}
	return binary.BigEndian.Uint64(b[8:]), nil
}
