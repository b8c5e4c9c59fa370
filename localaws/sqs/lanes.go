package sqs

import "container/heap"

// lane is one message group of a queue: its visible messages in the order they are delivered, and
// how many are in flight. A standard queue's messages without a group share the lane with no name.
type lane struct {
	name   string
	fifo   bool
	ready  chain
	back   *message // of a standard queue: the last in front of ready that came back by itself
	hidden chain    // of a FIFO group: what is delayed or in flight, in order
	total  int      // visible, delayed and in flight
	flying int
	slot   int // place among the open lanes, or -1
}

// open reports whether the lane has something to deliver. A FIFO group gives its messages in order
// up to the first that is hidden; a standard queue holds nothing back.
func (l *lane) open() bool {
	return l.ready.n > 0 && (l.hidden.n == 0 || l.ready.head.seq < l.hidden.head.seq)
}

// load is what the fairness of a standard queue goes by: the group with the fewest messages in
// flight is served first, so that a noisy one does not keep the others waiting. Messages without
// a group belong to nobody and are never held back.
func (l *lane) load() int {
	if l.fifo || l.name == "" {
		return 0
	}
	return l.flying
}

// put makes m visible in its lane: in its old place on a FIFO queue. On a standard one what comes back
// because its receiver let the time pass is before what was never received, and all else is last.
func (l *lane) put(m *message, back bool) {
	switch {
	case l.fifo:
		l.ready.insertInOrder(m)
	case back:
		l.ready.insertAfter(l.back, m)
		l.back = m
	default:
		l.ready.push(m)
	}
}

// take takes m, which is visible, out.
func (l *lane) take(m *message) {
	if m == l.back {
		l.back = m.links[linkLane].prev
	}
	l.ready.remove(m)
}

// openLanes is a heap of the lanes that a receive may take from, next first: on a FIFO queue the one
// whose first message has been visible for longest, so that a group that is given back again and
// again starves no other; on a standard one the one with the least in flight and then the earliest.
type openLanes []*lane

func (h openLanes) first() *lane {
	if len(h) == 0 {
		return nil
	}
	return h[0]
}

// update puts the lane in, takes it out or moves it, after anything about it changed.
func (h *openLanes) update(l *lane, open bool) {
	switch {
	case open && l.slot < 0:
		heap.Push(h, l)
	case open:
		if len(*h) > 1 { // a queue without groups has one lane
			heap.Fix(h, l.slot)
		}
	case l.slot >= 0:
		heap.Remove(h, l.slot)
	}
}

func (h openLanes) Len() int { return len(h) }

func (h openLanes) Less(i, j int) bool {
	if a, b := h[i].load(), h[j].load(); a != b {
		return a < b
	}
	a, b := h[i].ready.head, h[j].ready.head
	if h[i].fifo && !a.due.Equal(b.due) {
		return a.due.Before(b.due)
	}
	return a.seq < b.seq
}

func (h openLanes) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].slot, h[j].slot = i, j
}

func (h *openLanes) Push(x any) {
	l := x.(*lane)
	l.slot = len(*h)
	*h = append(*h, l)
}

func (h *openLanes) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	last.slot = -1
	return last
}
