package sqs

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Mode is how far the service goes in using what AWS permits it.
type Mode string

// The modes.
const (
	// Faithful delivers in order and once, as AWS nearly always does.
	Faithful Mode = "faithful"
	// Adversarial does all that AWS permits, often: standard queues deliver twice, out of order and
	// fewer messages than there are, short polls come back empty, and counters lag behind.
	Adversarial Mode = "adversarial"
)

// ParseMode returns the mode of that name; none is Faithful.
func ParseMode(name string) (Mode, error) {
	switch m := Mode(name); m {
	case "":
		return Faithful, nil
	case Faithful, Adversarial:
		return m, nil
	}
	return "", fmt.Errorf("mode %q: want %s or %s", name, Faithful, Adversarial)
}

// How often the adversarial mode does what; a consumer that retries gets on.
const (
	emptyShare     = 0.2
	fewerShare     = 0.5
	duplicateShare = 0.1
	shuffleDepth   = 16
	longestLag     = 3 * time.Second
)

// mischief is the adversarial mode; nil is the faithful one.
type mischief struct {
	mu     sync.Mutex
	random *rand.Rand
}

func newMischief(m Mode, seed uint64) *mischief {
	if m != Adversarial {
		return nil
	}
	return &mischief{random: rand.New(rand.NewPCG(seed, 0xbad))}
}

func (m *mischief) chance(share float64) bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.random.Float64() < share
}

func (m *mischief) below(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.random.IntN(n)
}

// empty reports whether a short poll finds nothing, whatever there is.
func (m *mischief) empty(q *queue, r receive) bool {
	return m != nil && !q.fifo && r.wait <= 0 && m.chance(emptyShare)
}

// fewer is how many of n messages a receive may take.
func (m *mischief) fewer(n int) int {
	if n > 1 && m.chance(fewerShare) {
		return 1 + m.below(n)
	}
	return n
}

// duplicate reports whether a message that is delivered stays visible to others.
func (m *mischief) duplicate() bool { return m.chance(duplicateShare) }

// shuffle puts another message in front of a standard queue's lane.
func (m *mischief) shuffle(l *lane) {
	if m == nil || l.fifo || l.ready.n < 2 {
		return
	}
	at := l.ready.head
	for range m.below(min(l.ready.n, shuffleDepth)) {
		at = at.links[linkLane].next
	}
	l.take(at)
	l.ready.insertAfter(nil, at)
}

// counts are the three counters of a queue's messages.
type counts struct{ visible, notVisible, delayed int }

// lagging is what the adversarial mode answers when asked for the counters: what was true when it
// was asked last, for a while.
type lagging struct {
	shown counts
	until time.Time
}

// counters returns what is to be shown: the truth, or in the adversarial mode an old one.
func (m *mischief) counters(l *lagging, truth counts, now time.Time) counts {
	if m == nil {
		return truth
	}
	if !now.Before(l.until) {
		l.shown, l.until = truth, now.Add(time.Duration(m.below(int(longestLag))))
	}
	return l.shown
}
