package clock

import (
	"container/heap"
	"time"
)

// entry is a function that waits for its time.
type entry struct {
	f     func()
	due   time.Time
	seq   uint64
	index int // in the heap; -1 outside of it
}

func newEntry(f func()) *entry { return &entry{f: f, index: -1} }

// schedule is what waits, in the order in which it falls due; what falls due together does so in
// the order in which it was set. Its owner's mutex guards it.
type schedule struct {
	entries entries
	seq     uint64
}

// set puts the entry at due and reports whether it was waiting before.
func (s *schedule) set(e *entry, due time.Time) bool {
	was := s.remove(e)
	s.seq++
	e.due, e.seq = due, s.seq
	heap.Push(&s.entries, e)
	return was
}

func (s *schedule) remove(e *entry) bool {
	if e.index < 0 {
		return false
	}
	heap.Remove(&s.entries, e.index)
	return true
}

// next returns the first entry, or nil.
func (s *schedule) next() *entry {
	if len(s.entries) == 0 {
		return nil
	}
	return s.entries[0]
}

// pop takes out and returns the first entry if it is due at now, or returns nil.
func (s *schedule) pop(now time.Time) *entry {
	e := s.next()
	if e == nil || e.due.After(now) {
		return nil
	}
	heap.Pop(&s.entries)
	return e
}

// entries is a heap by due time.
type entries []*entry

func (h entries) Len() int { return len(h) }

func (h entries) Less(i, j int) bool {
	if h[i].due.Equal(h[j].due) {
		return h[i].seq < h[j].seq
	}
	return h[i].due.Before(h[j].due)
}

func (h entries) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *entries) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *entries) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	last.index = -1
	return last
}
