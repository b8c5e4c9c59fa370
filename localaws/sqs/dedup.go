package sqs

import (
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// remembered is for how long a FIFO queue knows a deduplication id, and an attempt id of a receive.
const remembered = 5 * time.Minute

// memory keeps values by key for a fixed time, oldest first; forgetting costs nothing until
// something is due, and never much at a time. What is remembered is behind pointers: a map that
// grows moves those only.
type memory[V any] struct {
	entries map[string]*remember[V]
	order   []*remember[V]
	from    int // order before it is spent
}

type remember[V any] struct {
	key   string
	value V
	until time.Time
}

// get returns what is remembered of the key at the time.
func (m *memory[V]) get(key string, now time.Time) (V, bool) {
	r, ok := m.entries[key]
	if !ok || !r.until.After(now) {
		var none V
		return none, false
	}
	return r.value, true
}

// put remembers the value until the time.
func (m *memory[V]) put(key string, value V, until time.Time) {
	if m.entries == nil {
		m.entries = map[string]*remember[V]{}
	}
	r := &remember[V]{key, value, until}
	m.entries[key] = r
	m.order = append(m.order, r)
}

// forgetAtOnce is how much one operation forgets; none remembers nearly as much.
const forgetAtOnce = 100

// forget forgets of what is over by now, oldest first.
func (m *memory[V]) forget(now time.Time) {
	for n := 0; n < forgetAtOnce && m.from < len(m.order) && !m.order[m.from].until.After(now); n++ {
		old := m.order[m.from]
		if m.entries[old.key] == old { // and not a later one of the same key
			delete(m.entries, old.key)
		}
		m.order[m.from] = nil
		m.from++
	}
	if m.from > len(m.order)/2 {
		left := copy(m.order, m.order[m.from:])
		clear(m.order[left:])
		m.order, m.from = m.order[:left], 0
	}
}

func (m *memory[V]) clear() { *m = memory[V]{} }

// accepted is what a FIFO queue answered to a send, and answers again to a repeated one.
type accepted struct {
	id  string
	seq uint64
}

// dedupKey is under which key a send is remembered: the id in the whole queue, or in its group.
func (q *queue) dedupKey(c *content) string {
	if q.perGroup {
		return c.group + "\x00" + c.dedup
	}
	return c.dedup
}

// bodyDigest is the deduplication id of a body: attributes do not count.
func bodyDigest(body string) string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:])
}
