package sqs

import (
	"container/heap"
	"time"
)

// content is a message as its sender made it; it never changes once sent.
type content struct {
	id         string
	body       string
	md5        digest
	attributes map[string]AttributeValue
	trace      string // the AWSTraceHeader
	group      string
	dedup      string // as given, or the digest of the body
	sender     string
	// deadFrom is the ARN of the queue that gave the message up; empty unless it was dead-lettered.
	deadFrom string
}

// size is what AWS counts: the body and every attribute's name, type and value.
func (c *content) size() int { return len(c.body) + sizeOf(c.attributes) }

// message is a message in a queue. Its fields below content belong to the queue's mutex.
type message struct {
	content
	seq           uint64
	nonce         uint64    // of the last receive; a FIFO queue takes no other handle
	sent          time.Time // SentTimestamp; the retention counts from it
	due           time.Time // when it becomes visible or, while it is, since when
	received      time.Time // the last receive
	firstReceived time.Time
	receives      int
	elsewhere     int  // how many of receives were in the queue that it came from
	inFlight      bool // hidden because it was received
	lane          *lane
	slots         [2]int32 // its places in the heaps, or -1
	links         [2]link
}

// link is a message's neighbours in a chain.
type link struct{ prev, next *message }

// The chains a message may be in.
const (
	linkArrival = iota
	linkLane
)

// chain is a doubly linked list through the messages themselves: taking one out of the middle, as
// a delete by an old handle does, costs as much in a backlog of a million as in one of ten.
type chain struct {
	which      int
	head, tail *message
	n          int
}

func (c *chain) push(m *message) { c.insertAfter(c.tail, m) }

// insertAfter puts m behind place, or first if place is nil.
func (c *chain) insertAfter(place, m *message) {
	l := link{prev: place, next: c.head}
	if place != nil {
		l.next = place.links[c.which].next
		place.links[c.which].next = m
	} else {
		c.head = m
	}
	if l.next != nil {
		l.next.links[c.which].prev = m
	} else {
		c.tail = m
	}
	m.links[c.which] = l
	c.n++
}

// insertInOrder puts m where its sequence number belongs, looking from both ends. What is received
// of a FIFO group, and what comes back to it, is of its front, so the way is never longer than one
// receive.
func (c *chain) insertInOrder(m *message) {
	if c.tail == nil || c.tail.seq < m.seq {
		c.push(m)
		return
	}
	var place *message
	for at := c.head; at.seq < m.seq; at = at.links[c.which].next {
		place = at
	}
	c.insertAfter(place, m)
}

func (c *chain) remove(m *message) {
	l := m.links[c.which]
	if l.prev == nil {
		c.head = l.next
	} else {
		l.prev.links[c.which].next = l.next
	}
	if l.next == nil {
		c.tail = l.prev
	} else {
		l.next.links[c.which].prev = l.prev
	}
	m.links[c.which] = link{}
	c.n--
}

// The heaps a message may be in.
const (
	slotHidden = iota
	slotMoved
)

// byTime is a heap of messages: the hidden ones by when they become visible, or those that came
// with an older date by when they were sent. Equal times come in the order of arrival.
type byTime struct {
	which int
	items []*message
}

func (h *byTime) first() *message {
	if len(h.items) == 0 {
		return nil
	}
	return h.items[0]
}

func (h *byTime) add(m *message) { heap.Push(h, m) }

func (h *byTime) has(m *message) bool { return m.slots[h.which] >= 0 }

func (h *byTime) remove(m *message) { heap.Remove(h, int(m.slots[h.which])) }

func (h *byTime) fix(m *message) { heap.Fix(h, int(m.slots[h.which])) }

func (h *byTime) key(m *message) time.Time {
	if h.which == slotHidden {
		return m.due
	}
	return m.sent
}

func (h *byTime) Len() int { return len(h.items) }

func (h *byTime) Less(i, j int) bool {
	a, b := h.items[i], h.items[j]
	if ta, tb := h.key(a), h.key(b); !ta.Equal(tb) {
		return ta.Before(tb)
	}
	return a.seq < b.seq
}

func (h *byTime) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].slots[h.which], h.items[j].slots[h.which] = int32(i), int32(j)
}

func (h *byTime) Push(x any) {
	m := x.(*message)
	m.slots[h.which] = int32(len(h.items))
	h.items = append(h.items, m)
}

func (h *byTime) Pop() any {
	last := h.items[len(h.items)-1]
	h.items[len(h.items)-1] = nil
	h.items = h.items[:len(h.items)-1]
	last.slots[h.which] = -1
	return last
}
