package sqs

import "iter"

// stretchSize is how many numbers are found together.
const stretchSize = 64

// index finds the messages of a queue by their numbers. Those rise, so that neighbours are looked
// for together: they lie together too, and a stretch takes less room than as many entries of a map.
type index struct {
	stretches map[uint64]*stretch
	n         int
}

// stretch is the messages of some neighbouring numbers.
type stretch struct {
	messages [stretchSize]*message
	n        int
}

func newIndex() index { return index{stretches: map[uint64]*stretch{}} }

// get returns the message with the number, or nil.
func (x *index) get(seq uint64) *message {
	p := x.stretches[seq/stretchSize]
	if p == nil {
		return nil
	}
	return p.messages[seq%stretchSize]
}

// put adds a message whose number is not in the index.
func (x *index) put(m *message) {
	p := x.stretches[m.seq/stretchSize]
	if p == nil {
		p = &stretch{}
		x.stretches[m.seq/stretchSize] = p
	}
	p.messages[m.seq%stretchSize] = m
	p.n++
	x.n++
}

// remove takes out a message that is in the index.
func (x *index) remove(m *message) {
	p := x.stretches[m.seq/stretchSize]
	p.messages[m.seq%stretchSize] = nil
	p.n--
	x.n--
	if p.n == 0 {
		delete(x.stretches, m.seq/stretchSize)
	}
}

// all returns the messages in no particular order.
func (x *index) all() iter.Seq[*message] {
	return func(yield func(*message) bool) {
		for _, p := range x.stretches {
			for _, m := range p.messages {
				if m != nil && !yield(m) {
					return
				}
			}
		}
	}
}
