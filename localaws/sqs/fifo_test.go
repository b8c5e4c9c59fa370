package sqs

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"weak"

	"pgregory.net/rapid"

	"github.com/stepfleet/stepfleet/localaws/clock"
)

func fifoQueue(c clock.Clock) *queue {
	return newQueue(testService(c, Faithful), 1, queueKey{"r", "a", "q.fifo"}, defaults(true), nil)
}

// TestFIFOAgainstModel runs random operations against a list of messages in the order they were
// sent, which is all that a FIFO queue is.
func TestFIFOAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := clock.NewManual(time.Unix(1_000_000, 0))
		m := &fifoModel{clock: c, q: fifoQueue(c), handles: map[string]*fifoMessage{}}
		t.Repeat(map[string]func(*rapid.T){
			"":           m.compare,
			"send":       m.send,
			"receive":    m.receive,
			"delete":     m.delete,
			"visibility": m.visibility,
			"delay":      m.delay,
			"advance":    func(t *rapid.T) { c.Advance(time.Duration(rapid.IntRange(0, 40).Draw(t, "s")) * time.Second) },
		})
	})
}

type fifoMessage struct {
	seq      uint64
	group    string
	sent     time.Time
	due      time.Time // hidden until then, visible since then
	received bool
	handle   string // of the last receive
}

type fifoModel struct {
	clock    *clock.Manual
	q        *queue
	delayed  time.Duration
	messages []*fifoMessage
	handles  map[string]*fifoMessage
	sends    int
}

func (m *fifoModel) hidden(x *fifoMessage) bool { return x.due.After(m.clock.Now()) }

func (m *fifoModel) send(t *rapid.T) {
	group := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "group")
	m.sends++
	answers, err := m.q.send([]outgoing{{content: content{group: group, dedup: fmt.Sprint(m.sends)}}}, 1)
	if err != nil {
		t.Fatal(err)
	}
	now := m.clock.Now()
	m.messages = append(m.messages, &fifoMessage{seq: answers[0].seq, group: group, sent: now, due: now.Add(m.delayed)})
}

// expected is what a receive must return: of every group its messages in order up to the first that
// is hidden, and of the groups the one first whose first message has been visible for longest.
func (m *fifoModel) expected(n int) []*fifoMessage {
	var groups [][]*fifoMessage
	for _, name := range []string{"a", "b", "c"} {
		var open []*fifoMessage
		for _, x := range m.messages {
			if x.group == name && m.hidden(x) {
				break
			}
			if x.group == name {
				open = append(open, x)
			}
		}
		if len(open) > 0 {
			groups = append(groups, open)
		}
	}
	slices.SortFunc(groups, func(a, b []*fifoMessage) int {
		return cmp.Or(a[0].due.Compare(b[0].due), cmp.Compare(a[0].seq, b[0].seq))
	})
	all := slices.Concat(groups...)
	return all[:min(n, len(all))]
}

func (m *fifoModel) receive(t *rapid.T) {
	n := rapid.IntRange(1, 10).Draw(t, "max")
	visibility := time.Duration(rapid.IntRange(0, 30).Draw(t, "visibility")) * time.Second
	want := m.expected(n)
	got, err := m.q.receive(context.Background(), receive{max: n, visibility: &visibility})
	if err != nil || len(got) != len(want) {
		t.Fatalf("received %d, %v; want %d", len(got), err, len(want))
	}
	for i, d := range got {
		if d.seq != want[i].seq {
			t.Fatalf("message %d of the receive is %d, want %d", i, d.seq, want[i].seq)
		}
		x := want[i]
		x.received, x.due, x.handle = true, m.clock.Now().Add(visibility), d.handle
		m.handles[d.handle] = x
	}
}

func (m *fifoModel) handle(t *rapid.T) (string, *fifoMessage) {
	if len(m.handles) == 0 {
		t.Skip("nothing received yet")
	}
	all := make([]string, 0, len(m.handles))
	for h := range m.handles {
		all = append(all, h)
	}
	slices.Sort(all)
	h := rapid.SampledFrom(all).Draw(t, "handle")
	return h, m.handles[h]
}

func (m *fifoModel) holds(h string, x *fifoMessage) bool {
	return slices.Contains(m.messages, x) && x.handle == h && m.hidden(x)
}

func (m *fifoModel) delete(t *rapid.T) {
	h, x := m.handle(t)
	there := slices.Contains(m.messages, x)
	if err := m.q.delete(h); (err == nil) != (!there || m.holds(h, x)) {
		t.Fatalf("message there: %v, handle holds: %v, error: %v", there, m.holds(h, x), err)
	}
	if m.holds(h, x) {
		m.messages = slices.DeleteFunc(m.messages, func(y *fifoMessage) bool { return y == x })
	}
}

func (m *fifoModel) visibility(t *rapid.T) {
	h, x := m.handle(t)
	d := time.Duration(rapid.IntRange(0, 60).Draw(t, "seconds")) * time.Second
	if err := m.q.changeVisibility(h, d); (err == nil) != m.holds(h, x) {
		t.Fatalf("handle holds: %v, error: %v", m.holds(h, x), err)
	}
	if m.holds(h, x) {
		x.due = m.clock.Now().Add(d)
	}
}

// delay changes the queue's delay, which on a FIFO queue holds for what is already there.
func (m *fifoModel) delay(t *rapid.T) {
	m.delayed = time.Duration(rapid.IntRange(0, 30).Draw(t, "delay")) * time.Second
	err := m.q.change(func(now time.Time) error {
		merged, err := merge(m.q.attributes, map[string]string{"DelaySeconds": fmt.Sprint(seconds(m.delayed))}, true)
		m.q.set(merged, now)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range m.messages {
		if !x.received {
			x.due = x.sent.Add(m.delayed)
		}
	}
}

func (m *fifoModel) compare(t *rapid.T) {
	m.q.snapshot()
	visible := 0
	for _, x := range m.messages {
		if !m.hidden(x) {
			visible++
		}
	}
	if m.q.visible != visible || m.q.messages.n != len(m.messages) {
		t.Fatalf("%d of %d visible; the model has %d of %d", m.q.visible, m.q.messages.n, visible, len(m.messages))
	}
	if err := m.q.check(); err != nil {
		t.Fatal(err)
	}
}

// TestFIFOLooksOnlySoFar has one group fill the queue further than AWS looks for other groups.
func TestFIFOLooksOnlySoFar(t *testing.T) {
	q := fifoQueue(clock.NewManual(time.Unix(0, 0)))
	send := func(group string, n int) {
		for range n {
			q.seq++ // the deduplication id
			if _, err := q.send([]outgoing{{content: content{group: group, dedup: fmt.Sprint(q.seq)}}}, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	send("fat", scanned)
	send("late", 1)
	fat, err := q.receive(t.Context(), receive{max: 1})
	if err != nil || len(fat) != 1 {
		t.Fatal(len(fat), err)
	}
	if got, _ := q.receive(t.Context(), receive{max: 1}); len(got) != 0 {
		t.Errorf("received of group %s, which is behind %d messages of a locked group", got[0].group, scanned)
	}
	if err := q.delete(fat[0].handle); err != nil {
		t.Fatal(err)
	}
	if _, err := q.receive(t.Context(), receive{max: 1}); err != nil { // lock the fat group again
		t.Fatal(err)
	}
	if got, _ := q.receive(t.Context(), receive{max: 1}); len(got) != 1 || got[0].group != "late" {
		t.Errorf("received %d after the late group came near enough", len(got))
	}
	if err := q.check(); err != nil {
		t.Error(err)
	}
}

// TestFIFOLooksSoFarWhateverTheOrder has the group that was visible first wait behind those that AWS
// looks for, while one that came back later is among them.
func TestFIFOLooksSoFarWhateverTheOrder(t *testing.T) {
	c := clock.NewManual(time.Unix(0, 0))
	q := fifoQueue(c)
	for i := range scanned + 1 {
		group := "fat"
		switch i {
		case 0:
			group = "early"
		case scanned:
			group = "late"
		}
		if _, err := q.send([]outgoing{{content: content{group: group, dedup: fmt.Sprint(i)}}}, 1); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // early, then the first of fat
		if got, err := q.receive(t.Context(), receive{max: 1}); err != nil || len(got) != 1 {
			t.Fatal(len(got), err)
		}
	}
	c.Advance(time.Minute)
	got, err := q.receive(t.Context(), receive{max: 1})
	if err != nil || len(got) != 1 || got[0].group != "early" {
		t.Fatalf("received %v, %v; want the early group, which came back", got, err)
	}
	if err := q.delete(got[0].handle); err != nil {
		t.Fatal(err)
	}
	if got, err := q.receive(t.Context(), receive{max: 1}); err != nil || len(got) != 1 || got[0].group != "late" {
		t.Errorf("received %v, %v; want the late group, visible for longest and now near enough", got, err)
	}
	if err := q.check(); err != nil {
		t.Error(err)
	}
}

// TestFIFODeliversWhateverTheClock sets the clock back between two messages: with two in the queue
// nothing is too far behind.
func TestFIFODeliversWhateverTheClock(t *testing.T) {
	dir := t.TempDir()
	open := func(at int64) *Service { return openKept(t, dir, time.Unix(at, 0)) }
	s := open(7200)
	createKept(t, s, "q.fifo", map[string]string{"FifoQueue": "true"})
	send := func(s *Service, group string) {
		q := s.queues.get(queueKey{"r", "a", "q.fifo"})
		if _, err := q.send([]outgoing{{content: content{group: group, dedup: group}}}, 1); err != nil {
			t.Fatal(err)
		}
	}
	send(s, "a")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(3600)
	send(s, "b")
	q := s.queues.get(queueKey{"r", "a", "q.fifo"})
	got, err := q.receive(t.Context(), receive{max: 10})
	if err != nil || len(got) != 2 {
		t.Errorf("received %d of 2 messages, %v", len(got), err)
	}
	if err := q.check(); err != nil {
		t.Error(err)
	}
}

// TestDelayOfALargeGroupIsChangedInOrder has the delay of many messages of one group changed, which
// must not be a walk through the group for each.
func TestDelayOfALargeGroupIsChangedInOrder(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a large queue")
	}
	const few, many, times = 2_000, 200_000, 20 // a walk for each would be a hundred times slower a message
	perMessage := func(n int) time.Duration {
		q := fifoQueue(clock.System())
		for i := range n {
			if _, err := q.send([]outgoing{{content: content{group: "g", dedup: fmt.Sprint(i)}}}, 1); err != nil {
				t.Fatal(err)
			}
		}
		started := time.Now()
		for _, delay := range []string{"900", "0"} {
			if err := q.change(func(now time.Time) error {
				merged, err := merge(q.attributes, map[string]string{"DelaySeconds": delay}, true)
				q.set(merged, now)
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		if err := q.check(); err != nil || q.visible != n {
			t.Fatalf("%d of %d are visible, %v", q.visible, n, err)
		}
		return time.Since(started) / time.Duration(n)
	}
	if one, other := perMessage(few), perMessage(many); other > times*one {
		t.Errorf("a message takes %v in a group of %d, and %v in one of %d", other, many, one, few)
	}
}

// TestAnAttemptKeepsNoMessage deletes what was received by an attempt id: its body must not stay in
// memory for as long as the id does.
func TestAnAttemptKeepsNoMessage(t *testing.T) {
	c := clock.NewManual(time.Unix(0, 0))
	q := fifoQueue(c)
	if _, err := q.send([]outgoing{{content: content{group: "g", dedup: "1", body: "large"}}}, 1); err != nil {
		t.Fatal(err)
	}
	message := weak.Make(q.messages.get(1))
	if got, err := q.receive(t.Context(), receive{max: 1, attempt: "a"}); err != nil || len(got) != 1 || q.delete(got[0].handle) != nil {
		t.Fatal(len(got), err)
	}
	runtime.GC()
	if message.Value() != nil {
		t.Error("a message that was deleted is still in memory")
	}
	c.Advance(remembered)
	q.snapshot()
	if a, s := len(q.attempts.entries), len(q.sends.entries); a != 0 || s != 0 {
		t.Errorf("%d attempt ids and %d deduplication ids are remembered after five minutes", a, s)
	}
}

func TestMemoryLetsGo(t *testing.T) {
	var m memory[int]
	const n = 3 * forgetAtOnce
	for i := range n {
		m.put(fmt.Sprint(i), i, time.Unix(int64(i), 0))
	}
	now := time.Unix(n-2, 0)
	for i := range 3 {
		if left := len(m.entries); left != n-i*forgetAtOnce {
			t.Errorf("%d are left after %d steps", left, i)
		}
		m.forget(now)
	}
	if v, ok := m.get(fmt.Sprint(n-1), now); !ok || v != n-1 || len(m.entries) != 1 {
		t.Errorf("%d entries are left; the last is %d, %v", len(m.entries), v, ok)
	}
	held := 0
	for _, r := range m.order[:cap(m.order)] {
		if r != nil {
			held++
		}
	}
	if held != 1 {
		t.Errorf("%d entries are held for one that is remembered", held)
	}
}

// TestDepartedMessagesKeepTheirOrder has several operations at once give up messages of one group.
func TestDepartedMessagesKeepTheirOrder(t *testing.T) {
	s := openKept(t, t.TempDir(), time.Unix(1_000_000, 0))
	from := createKept(t, s, "dlq.fifo", map[string]string{"FifoQueue": "true"})
	to := createKept(t, s, "to.fifo", map[string]string{"FifoQueue": "true"})
	const n = 2000
	for i := range n {
		if _, err := from.send([]outgoing{{content: content{group: "g", dedup: fmt.Sprint(i)}}}, 1); err != nil {
			t.Fatal(err)
		}
	}
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for empty := false; !empty; {
				_, empty, _ = from.redrive(1, to)
			}
		})
	}
	running.Wait()
	if to.messages.n != n || from.messages.n != 0 || len(from.leaving) != 0 {
		t.Fatalf("%d of %d arrived, %d and %d are left", to.messages.n, n, from.messages.n, len(from.leaving))
	}
	for m, i := to.arrivals.head, 0; m != nil; m, i = m.links[linkArrival].next, i+1 {
		if m.dedup != fmt.Sprint(i) {
			t.Fatalf("message %s arrived in place of %d", m.dedup, i)
		}
	}
}

// TestGroupsCostNothing compares the same work over one group and over a hundred thousand.
func TestGroupsCostNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a large queue")
	}
	const messages, times = 100_000, 5
	cycle := func(groups int) time.Duration {
		q := fifoQueue(clock.System())
		n := 0
		send := func(count int) {
			for range count {
				n++
				_, _ = q.send([]outgoing{{content: content{group: fmt.Sprint(n % groups), dedup: fmt.Sprint(n)}}}, 1)
			}
		}
		send(messages)
		best := time.Duration(1<<63 - 1)
		for range 5 {
			started := time.Now()
			for range 200 {
				got, err := q.receive(t.Context(), receive{max: 10})
				if err != nil || len(got) == 0 {
					t.Fatal(len(got), err)
				}
				for _, d := range got {
					if err := q.delete(d.handle); err != nil {
						t.Fatal(err)
					}
				}
				send(len(got))
			}
			best = min(best, time.Since(started))
		}
		return best
	}
	if one, many := cycle(1), cycle(100_000); many > times*one {
		t.Errorf("100,000 groups take %v, one takes %v", many, one)
	}
}

// TestFairTurns has a noisy group with a long backlog, and a quiet one that comes after it.
func TestFairTurns(t *testing.T) {
	q := testQueue(clock.NewManual(time.Unix(0, 0)))
	for _, group := range []string{"noisy", "noisy", "noisy", "noisy", "quiet", ""} {
		if _, err := q.send([]outgoing{{content: content{group: group}}}, 1); err != nil {
			t.Fatal(err)
		}
	}
	var order []string
	for range 6 {
		got, err := q.receive(t.Context(), receive{max: 1})
		if err != nil || len(got) != 1 {
			t.Fatal(len(got), err)
		}
		order = append(order, got[0].group)
	}
	if want := []string{"noisy", "quiet", "", "noisy", "noisy", "noisy"}; !slices.Equal(order, want) {
		t.Errorf("order %q, want %q", order, want)
	}
}
