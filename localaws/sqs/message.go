package sqs

import "time"

// content is a message as its sender made it; it never changes once sent.
type content struct {
	id         string
	body       string
	md5        string
	attributes map[string]AttributeValue
	trace      string // the AWSTraceHeader
	group      string
	sender     string
}

// message is a message in a queue. Its fields below content belong to the queue's mutex.
type message struct {
	content
	seq           uint64
	sent          time.Time
	due           time.Time // when it becomes visible, while hidden
	slot          int       // its place in the heap of hidden messages, or -1
	inFlight      bool      // hidden because it was received
	receives      int
	received      time.Time // the last receive
	firstReceived time.Time
	links         [2]link
}

// link is a message's neighbours in a chain.
type link struct{ prev, next *message }

// The chains a message may be in.
const (
	linkAge = iota
	linkReady
)

// chain is a doubly linked list through the messages themselves: taking one out of the middle, as
// a delete by an old handle does, costs as much in a backlog of a million as in one of ten.
type chain struct {
	which      int
	head, tail *message
	n          int
}

func (c *chain) push(m *message) {
	m.links[c.which] = link{prev: c.tail}
	if c.tail == nil {
		c.head = m
	} else {
		c.tail.links[c.which].next = m
	}
	c.tail = m
	c.n++
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

// deadline is a heap of hidden messages; those due together come in the order they were sent.
type deadline []*message

func (h deadline) Len() int { return len(h) }

func (h deadline) Less(i, j int) bool {
	if h[i].due.Equal(h[j].due) {
		return h[i].seq < h[j].seq
	}
	return h[i].due.Before(h[j].due)
}

func (h deadline) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].slot, h[j].slot = i, j
}

func (h *deadline) Push(x any) {
	m := x.(*message)
	m.slot = len(*h)
	*h = append(*h, m)
}

func (h *deadline) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	last.slot = -1
	return last
}
