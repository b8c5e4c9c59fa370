package sqs

import (
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// remembered is for how long a FIFO queue knows a deduplication id, and an attempt id of a receive.
const remembered = 5 * time.Minute

// memory keeps values by key for a fixed time, oldest first; forgetting costs nothing until
// something is due.
type memory[V any] struct {
	entries map[string]remember[V]
	order   []aged
	from    int // order before it is spent
}

type remember[V any] struct {
	value V
	until time.Time
}

type aged struct {
	key   string
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

// put remembers the value until the time, and forgets what is over by now.
func (m *memory[V]) put(key string, value V, until, now time.Time) {
	m.forget(now)
	if m.entries == nil {
		m.entries = map[string]remember[V]{}
	}
	m.entries[key] = remember[V]{value, until}
	m.order = append(m.order, aged{key, until})
}

func (m *memory[V]) forget(now time.Time) {
	for m.from < len(m.order) && !m.order[m.from].until.After(now) {
		old := m.order[m.from]
		if r, ok := m.entries[old.key]; ok && !r.until.After(now) {
			delete(m.entries, old.key)
		}
		m.order[m.from] = aged{}
		m.from++
	}
	if m.from > len(m.order)/2 {
		m.order = append(m.order[:0], m.order[m.from:]...)
		m.from = 0
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
