package memory

import (
	"container/list"
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet"
)

// Bells is stepfleet.Ringer and stepfleet.Listener in memory. It waits on channels and timers
// only, so it keeps virtual time in testing/synctest.
type Bells struct {
	mu     sync.Mutex
	queues map[string]*bellQueue
	fail   func(op, queue string) error
	seq    uint64
}

var (
	_ stepfleet.Ringer   = (*Bells)(nil)
	_ stepfleet.Listener = (*Bells)(nil)
)

// bellQueue is one queue. A bell is in bells until it is answered, and visible when it is also in ready.
type bellQueue struct {
	bells   map[uint64]*bell
	ready   list.List // of *bell
	waiters list.List // of *bellWaiter, longest waiting first
}

type bell struct {
	id       uint64
	place    *list.Element // in ready; nil while hidden
	receives int
	comeBack *time.Timer // makes it visible again
}

// bellWaiter is a Receive that waits; got is buffered, so handing over never blocks.
type bellWaiter struct {
	max   int
	place *list.Element
	got   chan []stepfleet.RungBell
}

// maxReceive is how many bells one Receive returns at most, as on SQS.
const maxReceive = 10

// NewBells returns bells for these queues and no others.
func NewBells(queues ...string) *Bells {
	b := &Bells{queues: map[string]*bellQueue{}}
	for _, name := range queues {
		b.queues[name] = &bellQueue{bells: map[uint64]*bell{}}
	}
	return b
}

// Fail sets a hook that every call asks first; op is "ring", "receive", "answer" or "return". An
// error is returned to the caller, wrapped, and nothing happens; nil ends the failing.
func (b *Bells) Fail(f func(op, queue string) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = f
}

// Pending returns how many bells the queue holds, the hidden ones included.
func (b *Bells) Pending(queue string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q := b.queues[queue]; q != nil {
		return len(q.bells)
	}
	return 0
}

// Ring implements stepfleet.Ringer.
func (b *Bells) Ring(ctx context.Context, queue string, n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	q, err := b.begin(ctx, "ring", queue)
	if err != nil {
		return err
	}
	for range min(n, stepfleet.MaxBellsPerRing) {
		b.seq++
		x := &bell{id: b.seq}
		q.bells[x.id] = x
		x.place = q.ready.PushBack(x)
	}
	b.serve(queue, q)
	return nil
}

// Receive implements stepfleet.Listener.
func (b *Bells) Receive(ctx context.Context, queue string, max int, wait time.Duration) ([]stepfleet.RungBell, error) {
	w, got, err := b.takeOrWait(ctx, queue, max, wait)
	if w == nil {
		return got, err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case got := <-w.got:
		return got, nil
	case <-timer.C:
		return b.leave(queue, w), nil
	case <-ctx.Done():
		b.giveBack(queue, b.leave(queue, w))
		return nil, ctx.Err()
	}
}

// takeOrWait returns bells, or the waiter that will get them.
func (b *Bells) takeOrWait(ctx context.Context, queue string, max int, wait time.Duration) (*bellWaiter, []stepfleet.RungBell, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q, err := b.begin(ctx, "receive", queue)
	if err != nil {
		return nil, nil, err
	}
	got := b.take(queue, q, max)
	if len(got) > 0 || wait <= 0 {
		return nil, got, nil
	}
	w := &bellWaiter{max: max, got: make(chan []stepfleet.RungBell, 1)}
	w.place = q.waiters.PushBack(w)
	return w, nil, nil
}

// leave takes the waiter out and returns what was handed to it meanwhile.
func (b *Bells) leave(queue string, w *bellWaiter) []stepfleet.RungBell {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.place != nil {
		b.queues[queue].waiters.Remove(w.place)
		w.place = nil
		return nil
	}
	return <-w.got
}

// giveBack returns bells whose receiver has gone; the hook has no say in it.
func (b *Bells) giveBack(queue string, bells []stepfleet.RungBell) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range bells {
		if x := b.queues[queue].find(r.Handle); x != nil {
			b.show(queue, x)
		}
	}
}

// Answer implements stepfleet.Listener.
func (b *Bells) Answer(ctx context.Context, queue string, bells []stepfleet.RungBell) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	q, err := b.begin(ctx, "answer", queue)
	if err != nil {
		return err
	}
	for _, r := range bells {
		x := q.find(r.Handle)
		if x == nil {
			continue
		}
		if x.place != nil {
			q.ready.Remove(x.place)
		}
		if x.comeBack != nil {
			x.comeBack.Stop()
		}
		delete(q.bells, x.id)
	}
	return nil
}

// Return implements stepfleet.Listener.
func (b *Bells) Return(ctx context.Context, queue string, bells []stepfleet.RungBell) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	q, err := b.begin(ctx, "return", queue)
	if err != nil {
		return err
	}
	for _, r := range bells {
		if x := q.find(r.Handle); x != nil {
			b.show(queue, x)
		}
	}
	return nil
}

// begin is the start of every call, under the mutex.
func (b *Bells) begin(ctx context.Context, op, queue string) (*bellQueue, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if b.fail != nil {
		if err := b.fail(op, queue); err != nil {
			return nil, fmt.Errorf("%s bells of queue %s: %w", op, queue, err)
		}
	}
	q := b.queues[queue]
	if q == nil {
		return nil, fmt.Errorf("%s bells of queue %s: %w", op, queue, stepfleet.ErrUnknownQueue)
	}
	return q, nil
}

// serve hands visible bells to those who wait.
func (b *Bells) serve(queue string, q *bellQueue) {
	for q.waiters.Len() > 0 && q.ready.Len() > 0 {
		w := q.waiters.Remove(q.waiters.Front()).(*bellWaiter)
		w.place = nil
		w.got <- b.take(queue, q, w.max)
	}
}

// take hides up to max visible bells, and sets each to come back.
func (b *Bells) take(queue string, q *bellQueue, max int) []stepfleet.RungBell {
	var got []stepfleet.RungBell
	for range min(max, maxReceive, q.ready.Len()) {
		x := q.ready.Remove(q.ready.Front()).(*bell)
		x.place = nil
		x.receives++
		receive := x.receives
		x.comeBack = time.AfterFunc(stepfleet.BellVisibility, func() { b.expire(queue, x, receive) })
		got = append(got, stepfleet.RungBell{
			Bell:   stepfleet.Bell{V: stepfleet.BellVersion, Queue: queue},
			Handle: strconv.FormatUint(x.id, 10),
		})
	}
	return got
}

// expire ends one receive's visibility; a timer that a later receive has overtaken does nothing.
func (b *Bells) expire(queue string, x *bell, receive int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if x.receives == receive && b.queues[queue].bells[x.id] == x {
		b.show(queue, x)
	}
}

// show makes a hidden bell visible.
func (b *Bells) show(queue string, x *bell) {
	if x.place != nil {
		return
	}
	q := b.queues[queue]
	x.comeBack.Stop()
	x.place = q.ready.PushBack(x)
	b.serve(queue, q)
}

// find returns the bell of a handle that is not answered yet, or nil.
func (q *bellQueue) find(handle string) *bell {
	id, err := strconv.ParseUint(handle, 10, 64)
	if err != nil {
		return nil
	}
	return q.bells[id]
}
