package sqs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/journal"
)

// TestJournalHoldsTheState runs random operations, writes snapshots among them, and now and then
// opens the journal anew: what comes out must be what was there.
func TestJournalHoldsTheState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "journal")
		if err != nil {
			t.Fatal(err)
		}
		m := &journaled{t: t, dir: dir, clock: clock.NewManual(time.Unix(1_000_000, 0))}
		defer func() { _ = m.service.Close(); _ = os.RemoveAll(dir) }()
		m.open(t)
		m.create(t)
		t.Repeat(map[string]func(*rapid.T){
			"send": m.send, "receive": m.receive, "delete": m.delete, "visibility": m.visibility, "purge": m.purge, "redrive": m.redrive,
			"set":      m.set,
			"snapshot": m.snapshot,
			"reopen":   m.reopen,
			"advance":  func(t *rapid.T) { m.clock.Advance(time.Duration(rapid.IntRange(0, 90).Draw(t, "s")) * time.Second) },
		})
	})
}

type journaled struct {
	t       *rapid.T
	dir     string
	clock   *clock.Manual
	service *Service
	sends   int
	handles []handleOf
}

type handleOf struct{ queue, handle string }

func (m *journaled) open(t *rapid.T) {
	s, err := New(Options{Clock: m.clock, IDs: api.NewIDs(1), Logger: slog.New(slog.DiscardHandler), Dir: m.dir, Journal: journal.Options{Sync: journal.SyncNever}})
	if err != nil {
		t.Fatal(err)
	}
	m.service = s
}

func (m *journaled) create(t *rapid.T) {
	for name, attributes := range map[string]map[string]string{
		"dlq": {}, "dlq.fifo": {"FifoQueue": "true"},
	} {
		m.createOne(t, name, attributes)
	}
	m.createOne(t, "q", map[string]string{"RedrivePolicy": `{"deadLetterTargetArn":"arn:aws:sqs:r:a:dlq","maxReceiveCount":2}`})
	m.createOne(t, "q.fifo", map[string]string{"FifoQueue": "true", "RedrivePolicy": `{"deadLetterTargetArn":"arn:aws:sqs:r:a:dlq.fifo","maxReceiveCount":2}`})
}

func (m *journaled) createOne(t *rapid.T, name string, attributes map[string]string) {
	ctx := api.WithCall(context.Background(), &api.Call{Region: "r", Account: "a"})
	if _, err := m.service.createQueue(ctx, &createQueueInput{QueueName: name, Attributes: attributes}); err != nil {
		t.Fatal(err)
	}
}

var journaledQueues = []string{"q", "q.fifo", "dlq", "dlq.fifo"}

func (m *journaled) queue(name string) *queue { return m.service.queues.get(queueKey{"r", "a", name}) }

func (m *journaled) draw(t *rapid.T) *queue {
	return m.queue(rapid.SampledFrom(journaledQueues).Draw(t, "queue"))
}

func (m *journaled) send(t *rapid.T) {
	q := m.draw(t)
	m.sends++
	o := outgoing{content: content{id: fmt.Sprint(m.sends), body: fmt.Sprint(m.sends), md5: md5Text(fmt.Sprint(m.sends))}}
	if q.fifo {
		o.group, o.dedup = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "group"), fmt.Sprint(rapid.IntRange(0, 50).Draw(t, "dedup"))
	} else {
		delay := time.Duration(rapid.IntRange(0, 60).Draw(t, "delay")) * time.Second
		o.delay = &delay
	}
	if _, err := q.send([]outgoing{o}, 1); err != nil {
		t.Fatal(err)
	}
}

func (m *journaled) receive(t *rapid.T) {
	q := m.draw(t)
	visibility := time.Duration(rapid.IntRange(0, 60).Draw(t, "visibility")) * time.Second
	got, err := q.receive(context.Background(), receive{max: rapid.IntRange(1, 10).Draw(t, "max"), visibility: &visibility})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range got {
		m.handles = append(m.handles, handleOf{q.key.name, d.handle})
	}
}

func (m *journaled) handle(t *rapid.T) (*queue, string) {
	if len(m.handles) == 0 {
		t.Skip("nothing received yet")
	}
	h := rapid.SampledFrom(m.handles).Draw(t, "handle")
	return m.queue(h.queue), h.handle
}

func (m *journaled) delete(t *rapid.T) {
	q, h := m.handle(t)
	_ = q.delete(h)
}

func (m *journaled) visibility(t *rapid.T) {
	q, h := m.handle(t)
	_ = q.changeVisibility(h, time.Duration(rapid.IntRange(0, 60).Draw(t, "seconds"))*time.Second)
}

// snapshot has operations come between the records of it.
func (m *journaled) snapshot(t *rapid.T) {
	meanwhile := []func(*rapid.T){m.send, m.receive, m.redrive, m.set}
	err := m.service.journal.log.Rotate(func(emit func([]byte) error) error {
		return m.service.emit(func(r []byte) error {
			if n := rapid.IntRange(0, 3*len(meanwhile)).Draw(t, "meanwhile"); n < len(meanwhile) {
				meanwhile[n](t)
			}
			return emit(r)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (m *journaled) set(t *rapid.T) {
	name := rapid.SampledFrom([]string{"DelaySeconds", "MessageRetentionPeriod"}).Draw(t, "attribute")
	value := rapid.IntRange(0, 60).Draw(t, "value")
	if name == "MessageRetentionPeriod" {
		value = 60 + 10*value
	}
	ctx := api.WithCall(context.Background(), &api.Call{Region: "r", Account: "a"})
	in := &setQueueAttributesInput{QueueURL: m.draw(t).key.name, Attributes: map[string]string{name: fmt.Sprint(value)}}
	if _, err := m.service.setQueueAttributes(ctx, in); err != nil {
		t.Fatal(err)
	}
}

func (m *journaled) purge(t *rapid.T) { _ = m.draw(t).purge() }

func (m *journaled) redrive(t *rapid.T) {
	m.queue(rapid.SampledFrom([]string{"dlq", "dlq.fifo"}).Draw(t, "from")).redrive(rapid.IntRange(1, 5).Draw(t, "n"), nil)
}

func (m *journaled) reopen(t *rapid.T) {
	before := m.dump()
	if err := m.service.Close(); err != nil {
		t.Fatal(err)
	}
	m.open(t)
	if diff := cmp.Diff(before, m.dump()); diff != "" {
		t.Fatalf("after opening anew (-before +after):\n%s", diff)
	}
	for _, name := range journaledQueues {
		if err := m.queue(name).check(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

// dump is everything that must outlive the process.
func (m *journaled) dump() map[string][]string {
	all := map[string][]string{}
	for _, name := range journaledQueues {
		q := m.queue(name)
		lines := []string{fmt.Sprint(q.snapshot(), q.seq, q.uid)}
		inOrder := func(a, b *message) int { return int(a.seq) - int(b.seq) }
		for _, x := range slices.SortedFunc(q.messages.all(), inOrder) {
			lines = append(lines, fmt.Sprint(x.seq, x.id, x.body, x.group, x.dedup, x.deadFrom, x.sent.Unix(), q.hidden.has(x), x.due.Unix(), x.inFlight, x.receives, x.elsewhere, x.nonce))
		}
		now := m.clock.Now()
		for _, key := range slices.Sorted(maps.Keys(q.sends.entries)) {
			if a, ok := q.sends.get(key, now); ok {
				lines = append(lines, fmt.Sprint(key, a))
			}
		}
		all[name] = lines
	}
	return all
}

// openKept opens the service of a directory, always with the same ids.
func openKept(t *testing.T, dir string, now time.Time) *Service {
	t.Helper()
	s, err := New(Options{
		Clock: clock.NewManual(now), IDs: api.NewIDs(1), Logger: slog.New(slog.DiscardHandler), Dir: dir,
		Journal: journal.Options{Sync: journal.SyncNever},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func createKept(t *testing.T, s *Service, name string, attributes map[string]string) *queue {
	t.Helper()
	ctx := api.WithCall(context.Background(), &api.Call{Region: "r", Account: "a"})
	if _, err := s.createQueue(ctx, &createQueueInput{QueueName: name, Attributes: attributes}); err != nil {
		t.Fatal(err)
	}
	return s.queues.get(queueKey{"r", "a", name})
}

// TestASeedThatIsGivenAgainMakesNoIDAgain restarts with the same seed, as "stepfleet aws --seed 7"
// does: no queue, message or receipt handle may get the name of one before.
func TestASeedThatIsGivenAgainMakesNoIDAgain(t *testing.T) {
	dir := t.TempDir()
	seen := map[string]bool{}
	note := func(what any) {
		if id := fmt.Sprintf("%T %v", what, what); seen[id] {
			t.Errorf("%s was given out twice", id)
		} else {
			seen[id] = true
		}
	}
	for round := range 5 {
		s := openKept(t, dir, time.Unix(1_000_000, 0))
		q := createKept(t, s, fmt.Sprint("q", round), nil)
		note(q.uid)
		for range 5 {
			m := s.message(&api.Call{}, &sendEntry{MessageBody: "x"}, false)
			note(m.id)
			if _, err := q.send([]outgoing{m}, 1); err != nil {
				t.Fatal(err)
			}
		}
		got, err := q.receive(t.Context(), receive{max: 10})
		if err != nil || len(got) != 5 {
			t.Fatal(len(got), err)
		}
		for _, d := range got {
			note(d.nonce)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(openKept(t, dir, time.Unix(1_000_000, 0)).queues.all()); n != 5 {
		t.Errorf("%d queues are left of 5", n)
	}
}

// TestASnapshotHoldsNobodyUp: while a record is written, the queue is free.
func TestASnapshotHoldsNobodyUp(t *testing.T) {
	s := openKept(t, t.TempDir(), time.Unix(1_000_000, 0))
	q := createKept(t, s, "q", nil)
	fill(t, q, 3)
	records := 0
	err := s.emit(func([]byte) error {
		records++
		if !q.mu.TryLock() {
			return errors.New("the queue is locked while a record of it is written")
		}
		q.mu.Unlock()
		return nil
	})
	if err != nil || records != 4 {
		t.Errorf("%d records, %v; want the queue and its three messages", records, err)
	}
}

// TestResetAndCreateAgree creates queues while the service is reset: the journal knows of a queue
// what the service does, and no long poll is left behind.
func TestResetAndCreateAgree(t *testing.T) {
	dir := t.TempDir()
	s := openKept(t, dir, time.Unix(1_000_000, 0))
	const creators, each = 4, 500
	var running sync.WaitGroup
	for i := range creators {
		running.Go(func() {
			for j := range each {
				ctx := api.WithCall(context.Background(), &api.Call{Region: "r", Account: "a"})
				if _, err := s.createQueue(ctx, &createQueueInput{QueueName: fmt.Sprint(i, "-", j)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	created := make(chan struct{})
	go func() { running.Wait(); close(created) }()
	for done := false; !done; {
		s.Reset()
		select {
		case <-created:
			done = true
		default:
		}
	}
	there := len(s.queues.all())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(openKept(t, dir, time.Unix(1_000_000, 0)).queues.all()); n != there {
		t.Errorf("%d queues after a restart, %d before it", n, there)
	}
}

// TestASnapshotHasWhatIsBetweenTwoQueues kills the service between the moment at which a message
// has left its queue and the one at which its dead-letter queue has it, after a snapshot.
func TestASnapshotHasWhatIsBetweenTwoQueues(t *testing.T) {
	open := func(dir string) *Service { return openKept(t, dir, time.Unix(1_000_000, 0)) }
	dir := t.TempDir()
	s := open(dir)
	for _, name := range []string{"q", "dlq"} {
		createKept(t, s, name, nil)
	}
	q, dlq := s.queues.get(queueKey{"r", "a", "q"}), s.queues.get(queueKey{"r", "a", "dlq"})
	if _, err := q.send([]outgoing{{content: content{id: "1", body: "1"}}}, 1); err != nil {
		t.Fatal(err)
	}
	now, err := q.enter()
	if err != nil {
		t.Fatal(err)
	}
	l := q.open.first()
	m := l.ready.head
	q.pop(l)
	q.depart(now, m, dlq)
	q.mu.Unlock() // and not q.leave, which would bring it there
	if err := s.journal.log.Rotate(s.emit); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := open(dir).queues.get(queueKey{"r", "a", "q"}).messages.n; n != 1 {
		t.Errorf("%d messages after the kill, want the one that had not arrived", n)
	}
}
