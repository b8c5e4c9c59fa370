package sqs

import "container/heap"

// lane is one message group of a queue: its visible messages in the order they are delivered, and
// how many are in flight. A standard queue's messages without a group share the lane with no name.
type lane struct {
	name   string
	fifo   bool
	ready  chain
	total  int // visible, delayed and in flight
	flying int
	slot   int // place among the open lanes, or -1
}

// open reports whether a receive may take from the lane. A FIFO group is closed while any of its
// messages is in flight; a standard queue closes nothing.
func (l *lane) open() bool { return l.ready.n > 0 && !(l.fifo && l.flying > 0) }

// load is what the fairness of a standard queue goes by: the group with the fewest messages in
// flight is served first, so that a noisy one does not keep the others waiting. Messages without
// a group belong to nobody and are never held back.
func (l *lane) load() int {
	if l.fifo || l.name == "" {
		return 0
	}
	return l.flying
}

// put makes m visible in its lane: in its old place on a FIFO queue, last on a standard one.
func (l *lane) put(m *message) {
	if l.fifo {
		l.ready.insertInOrder(m)
		return
	}
	l.ready.push(m)
}

// openLanes is a heap of the lanes that are open, next first: on a FIFO queue the one with the
// earliest message, on a standard one the one with the least in flight and then the earliest.
type openLanes []*lane

func (h openLanes) first() *lane {
	if len(h) == 0 {
		return nil
	}
	return h[0]
}

// update puts the lane in, takes it out or moves it, after anything about it changed.
func (h *openLanes) update(l *lane) {
	switch open := l.open(); {
	case open && l.slot < 0:
		heap.Push(h, l)
	case open:
		heap.Fix(h, l.slot)
	case l.slot >= 0:
		heap.Remove(h, l.slot)
	}
}

func (h openLanes) Len() int { return len(h) }

func (h openLanes) Less(i, j int) bool {
	if a, b := h[i].load(), h[j].load(); a != b {
		return a < b
	}
	return h[i].ready.head.seq < h[j].ready.head.seq
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
