package sqs

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/clock"
)

// testQueue returns a queue that keeps the clock's time.
func testQueue(c clock.Clock) *queue {
	return newQueue(testService(c, Faithful), 1, queueKey{"r", "a", "q"}, defaults(false), nil)
}

func testService(c clock.Clock, m Mode) *Service {
	s, err := New(Options{Clock: c, IDs: api.NewIDs(1), Logger: slog.New(slog.DiscardHandler), Mode: m})
	if err != nil {
		panic(err)
	}
	return s
}

func fill(t testing.TB, q *queue, n int) {
	t.Helper()
	for range n {
		if _, err := q.send([]outgoing{{content: content{body: "x"}}}, 1); err != nil {
			t.Fatal(err)
		}
	}
}

// check asserts what must hold between any two operations.
func (q *queue) check() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	flying, visible, total := 0, 0, 0
	for i, m := range q.hidden.items {
		if int(m.slots[slotHidden]) != i {
			return errors.New("a hidden message does not know its place")
		}
		if m.inFlight {
			flying++
		}
	}
	for name, l := range q.lanes {
		visible, total = visible+l.ready.n, total+l.total
		back := l.back == nil
		for m := l.ready.head; m != nil; m = m.links[linkLane].next {
			back = back || m == l.back
		}
		switch {
		case !back:
			return errors.New("a lane's last message that came back is not in it")
		case l.name != name, l.total == 0 && name != "":
			return errors.New("a lane is left over")
		case q.fifo && l.ready.n+l.hidden.n != l.total:
			return errors.New("a message of a group is neither visible nor hidden, or both")
		case (l.open() && (!q.fifo || l.ready.head.seq <= q.horizon.seq)) != (l.slot >= 0):
			return errors.New("a lane is open and not among the open ones, or the other way round")
		case l.slot >= 0 && q.open[l.slot] != l:
			return errors.New("an open lane does not know its place")
		}
	}
	next := q.hidden.first()
	switch {
	case q.visible+len(q.hidden.items) != q.messages.n, visible != q.visible, total != q.messages.n:
		return errors.New("a message is in no place, or in two")
	case q.arrivals.n+len(q.moved.items) != q.messages.n:
		return errors.New("a message has no age, or two")
	case flying != q.inFlight:
		return errors.New("the count of messages in flight is wrong")
	case q.waiters.Len() > 0 && len(q.open) > 0 && q.inFlight < q.service.maxInFlight:
		return errors.New("somebody waits while a message is ready")
	case q.waiters.Len() > 0 && next != nil && (q.armed.IsZero() || q.armed.After(next.due)):
		return errors.New("somebody waits and no timer is set for the next message")
	case q.waiters.Len() == 0 && !q.armed.IsZero() && next == nil:
		return errors.New("a timer is set for nobody")
	}
	return nil
}

// TestEngineAgainstModel runs random operations against a list of messages with their deadlines,
// which is all that a standard queue is.
func TestEngineAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := clock.NewManual(time.Unix(1_000_000, 0))
		q := testQueue(c)
		m := &model{t: t, clock: c, q: q, due: map[uint64]time.Time{}, flying: map[uint64]bool{}}
		t.Repeat(map[string]func(*rapid.T){
			"":           m.compare,
			"send":       m.send,
			"receive":    m.receive,
			"delete":     m.delete,
			"visibility": m.visibility,
			"advance":    func(t *rapid.T) { c.Advance(time.Duration(rapid.IntRange(0, 90).Draw(t, "s")) * time.Second) },
		})
	})
}

type model struct {
	t       *rapid.T
	clock   *clock.Manual
	q       *queue
	due     map[uint64]time.Time // of every message; one is visible from then on
	flying  map[uint64]bool      // was received since it was last visible
	handles []string
}

func (m *model) visible(seq uint64) bool { return !m.due[seq].After(m.clock.Now()) }

func (m *model) send(t *rapid.T) {
	delay := time.Duration(rapid.IntRange(0, 60).Draw(t, "delay")) * time.Second
	if _, err := m.q.send([]outgoing{{delay: &delay}}, 1); err != nil {
		t.Fatal(err)
	}
	m.due[m.q.seq] = m.clock.Now().Add(delay)
}

func (m *model) receive(t *rapid.T) {
	r := receive{max: rapid.IntRange(1, 10).Draw(t, "max")}
	visible := 0
	for seq := range m.due {
		if m.visible(seq) {
			visible++
		}
	}
	got, err := m.q.receive(context.Background(), r)
	if err != nil || len(got) != min(r.max, visible) {
		t.Fatalf("received %d, %v; want %d of %d", len(got), err, r.max, visible)
	}
	for _, d := range got {
		if !m.visible(d.seq) {
			t.Fatalf("received %d, which is hidden", d.seq)
		}
		m.due[d.seq] = m.clock.Now().Add(30 * time.Second)
		m.flying[d.seq] = true
		m.handles = append(m.handles, d.handle)
	}
}

func (m *model) handle(t *rapid.T) (string, uint64) {
	if len(m.handles) == 0 {
		t.Skip("nothing received yet")
	}
	h := rapid.SampledFrom(m.handles).Draw(t, "handle")
	r, err := m.q.parseHandle(h)
	if err != nil {
		t.Fatal(err)
	}
	return h, r.seq
}

func (m *model) delete(t *rapid.T) {
	h, seq := m.handle(t)
	if err := m.q.delete(h); err != nil {
		t.Fatal(err)
	}
	delete(m.due, seq)
}

func (m *model) visibility(t *rapid.T) {
	h, seq := m.handle(t)
	d := time.Duration(rapid.IntRange(0, 100).Draw(t, "seconds")) * time.Second
	_, exists := m.due[seq]
	if err := m.q.changeVisibility(h, d); (err == nil) != exists {
		t.Fatalf("message there: %v, error: %v", exists, err)
	}
	if exists && !m.visible(seq) {
		m.due[seq] = m.clock.Now().Add(d)
	}
}

func (m *model) compare(t *rapid.T) {
	all := m.q.snapshot()
	ready, hidden := 0, 0
	for seq := range m.due {
		if m.visible(seq) {
			ready++
		} else {
			hidden++
		}
	}
	if m.q.visible != ready || len(m.q.hidden.items) != hidden {
		t.Fatalf("ready %d, hidden %d; the model has %d, %d (%v)", m.q.visible, len(m.q.hidden.items), ready, hidden, all)
	}
	if err := m.q.check(); err != nil {
		t.Fatal(err)
	}
}

// TestWhatExpiresIsBeforeWhatWasNeverReceived is what AWS answers in LocalStack's
// test_inflight_message_requeue: a message that a consumer let go is next, before a younger one. One
// that is given back waits behind the others, so that a consumer sees them too.
func TestWhatExpiresIsBeforeWhatWasNeverReceived(t *testing.T) {
	c := clock.NewManual(time.Unix(0, 0))
	q := testQueue(c)
	next := func() delivery {
		t.Helper()
		got, err := q.receive(t.Context(), receive{max: 1})
		if err != nil || len(got) != 1 {
			t.Fatal(len(got), err)
		}
		return got[0]
	}
	fill(t, q, 4)
	next()
	c.Advance(time.Second)
	next()
	if err := q.changeVisibility(next().handle, 0); err != nil {
		t.Fatal(err)
	}
	c.Advance(30 * time.Second) // 1 and 2 are over
	var order []uint64
	for range 2 {
		order = append(order, next().seq)
	}
	fill(t, q, 1)
	c.Advance(30 * time.Second) // and again
	for range 5 {
		m := next()
		order = append(order, m.seq)
		if err := q.delete(m.handle); err != nil {
			t.Fatal(err)
		}
	}
	if want := []uint64{1, 2, 1, 2, 4, 3, 5}; !slices.Equal(order, want) {
		t.Errorf("received %v, want %v", order, want)
	}
	if err := q.check(); err != nil {
		t.Error(err)
	}
}

// TestABatchIsOneStep counts how often the queue asks for the time, which it does when it is entered:
// a batch that were ten steps would wait for the journal ten times.
func TestABatchIsOneStep(t *testing.T) {
	c := &countingClock{Clock: clock.NewManual(time.Unix(0, 0))}
	s := testService(c, Faithful)
	ctx := api.WithCall(context.Background(), &api.Call{Region: "r", Account: "a"})
	if _, err := s.createQueue(ctx, &createQueueInput{QueueName: "q"}); err != nil {
		t.Fatal(err)
	}
	q := s.queues.get(queueKey{"r", "a", "q"})
	fill(t, q, 10)
	got, err := q.receive(ctx, receive{max: 10})
	if err != nil || len(got) != 10 {
		t.Fatal(len(got), err)
	}
	changes, deletes := &visibilityBatchInput{QueueURL: "q"}, &deleteMessageBatchInput{QueueURL: "q"}
	seconds := 60
	for i, d := range got {
		changes.Entries = append(changes.Entries, visibilityBatchEntry{strconv.Itoa(i), d.handle, &seconds})
		deletes.Entries = append(deletes.Entries, deleteBatchEntry{strconv.Itoa(i), d.handle})
	}
	c.asked.Store(0)
	if out, err := s.changeMessageVisibilityBatch(ctx, changes); err != nil || len(out.Successful) != 10 || c.asked.Load() != 1 {
		t.Errorf("a batch of visibilities: %+v, %v, in %d steps", out, err, c.asked.Load())
	}
	c.asked.Store(0)
	if out, err := s.deleteMessageBatch(ctx, deletes); err != nil || len(out.Successful) != 10 || c.asked.Load() != 1 {
		t.Errorf("a batch of deletes: %+v, %v, in %d steps", out, err, c.asked.Load())
	}
}

// TestEngineUnderRandomLoad has receivers that wait, give up, return and delete, and senders, all
// at once in virtual time; every message must be deleted in the end.
func TestEngineUnderRandomLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := testQueue(clock.System())
		const senders, each, receivers = 4, 250, 16
		left := make(chan struct{}, senders*each)
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for i := range senders {
			running.Go(func() {
				r := rand.New(rand.NewPCG(uint64(i), 1))
				for range each {
					delay := time.Duration(r.IntN(3)) * time.Second
					_, _ = q.send([]outgoing{{delay: &delay}}, 1)
					time.Sleep(time.Duration(r.IntN(1000)) * time.Millisecond)
				}
			})
		}
		for i := range receivers {
			running.Go(func() { receiver(ctx, q, rand.New(rand.NewPCG(uint64(i), 2)), left) })
		}
		for range senders * each {
			<-left
		}
		stop()
		running.Wait()
		if err := q.check(); err != nil {
			t.Error(err)
		}
		if n := q.messages.n; n != 0 {
			t.Errorf("%d messages left", n)
		}
		if q.waiters.Len() != 0 || !q.armed.IsZero() {
			t.Error("an idle queue has a waiter or a timer")
		}
	})
}

func receiver(ctx context.Context, q *queue, r *rand.Rand, deleted chan<- struct{}) {
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, time.Duration(1+r.IntN(4000))*time.Millisecond)
		visibility := time.Duration(1+r.IntN(3)) * time.Second
		got, _ := q.receive(call, receive{max: 1 + r.IntN(10), wait: time.Duration(r.IntN(5)) * time.Second, visibility: &visibility})
		cancel()
		if len(got) == 0 {
			time.Sleep(time.Millisecond) // a receive without a wait must not spin in virtual time
		}
		for _, d := range got {
			switch r.IntN(3) {
			case 0:
				_ = q.changeVisibility(d.handle, 0)
			case 1: // forgotten: comes back by itself
			default:
				_ = q.delete(d.handle)
				deleted <- struct{}{}
			}
		}
	}
}

// TestBacklogCostsNothing compares the same work on a short and on a long queue. Only the ratio
// counts, and it is generous: a scan would be a thousand times slower, not three.
func TestBacklogCostsNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a large queue")
	}
	const short, long = 1_000, 300_000
	const times = 5 // as slow as this on the long queue is still no scan
	cycle := func(backlog int) time.Duration {
		q := testQueue(clock.System())
		fill(t, q, backlog)
		best := time.Duration(1<<63 - 1)
		for range 5 {
			started := time.Now()
			for range 200 {
				got, err := q.receive(t.Context(), receive{max: 2})
				if err != nil || len(got) != 2 {
					t.Fatal(len(got), err)
				}
				_ = q.delete(got[0].handle)
				_ = q.changeVisibility(got[1].handle, 0)
				fill(t, q, 1)
			}
			best = min(best, time.Since(started))
		}
		return best
	}
	small, large := cycle(short), cycle(long)
	if large > times*small {
		t.Errorf("a backlog of %d takes %v, one of %d takes %v", long, large, short, small)
	}
}

func BenchmarkReceiveDelete(b *testing.B) {
	for _, backlog := range []int{1_000, 1_000_000} {
		b.Run("backlog="+map[int]string{1_000: "1k", 1_000_000: "1M"}[backlog], func(b *testing.B) {
			q := testQueue(clock.System())
			fill(b, q, backlog)
			for b.Loop() {
				got, _ := q.receive(context.Background(), receive{max: 10})
				for _, d := range got {
					_ = q.delete(d.handle)
				}
				fill(b, q, len(got))
			}
		})
	}
}

// countingClock counts how often anything asked for the time or to be called back, and how often it was.
type countingClock struct {
	clock.Clock
	asked, set, fired atomic.Int64
}

func (c *countingClock) Now() time.Time {
	c.asked.Add(1)
	return c.Clock.Now()
}

func (c *countingClock) AfterFunc(d time.Duration, f func()) clock.Timer {
	c.set.Add(1)
	return c.Clock.AfterFunc(d, func() { c.fired.Add(1); f() })
}

// TestWaitingCostsNothing has long polls wait on a queue with nothing due: between their start and
// their end nothing may run.
func TestWaitingCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &countingClock{Clock: clock.System()}
		q := testQueue(c)
		const waiters = 100
		var running sync.WaitGroup
		for range waiters {
			running.Go(func() { _, _ = q.receive(t.Context(), receive{max: 1, wait: 20 * time.Second}) })
		}
		time.Sleep(19 * time.Second)
		if set, fired := c.set.Load(), c.fired.Load(); set != waiters || fired != 0 {
			t.Errorf("%d long polls set %d timers, of which %d fired before the end", waiters, set, fired)
		}
		running.Wait()
		if fired := c.fired.Load(); fired != waiters {
			t.Errorf("%d timers fired for %d long polls", fired, waiters)
		}
	})
}
