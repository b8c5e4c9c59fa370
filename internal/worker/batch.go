package worker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet"
)

// maxBatch bounds one call of a batcher.
const maxBatch = 100

// batchTimeout bounds one call of a batcher, a little below what those wait who asked for it, so that
// they learn from the ledger's own error how to rest.
const batchTimeout = callTimeout - time.Second

// batcher lets writes that come at the same time share one commit. While one call is under way
// the next batch gathers, so a lone write never waits and many wait at most for one commit.
type batcher[T any] struct {
	in   chan wish[T]
	call func(context.Context, []T) ([]error, error)
}

type wish[T any] struct {
	item T
	done chan error
}

func newBatcher[T any](call func(context.Context, []T) ([]error, error)) *batcher[T] {
	return &batcher[T]{in: make(chan wish[T]), call: call}
}

// do writes one item and returns its own error. After an error that allows a retry the write may
// or may not have happened.
func (b *batcher[T]) do(ctx context.Context, item T) error {
	w := wish[T]{item: item, done: make(chan error, 1)}
	select {
	case b.in <- w:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", stepfleet.ErrUnavailable, ctx.Err())
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", stepfleet.ErrUnavailable, ctx.Err())
	}
}

// run works until ctx ends. Two calls are under way at once at most, so that a slow one does not
// hold up all that came after it.
func (b *batcher[T]) run(ctx context.Context) {
	const concurrent = 2
	tokens := make(chan struct{}, concurrent)
	for range concurrent {
		tokens <- struct{}{}
	}
	var flushes sync.WaitGroup
	defer flushes.Wait()
	for {
		var batch []wish[T]
		select {
		case <-ctx.Done():
			return
		case w := <-b.in:
			batch = append(batch, w)
		}
		for free := false; !free; {
			select {
			case <-ctx.Done():
				return
			case <-tokens:
				free = true
			case w := <-b.more(batch):
				batch = append(batch, w)
			}
		}
		flushes.Go(func() {
			b.flush(ctx, batch)
			tokens <- struct{}{}
		})
	}
}

// more is the input while the batch has room.
func (b *batcher[T]) more(batch []wish[T]) <-chan wish[T] {
	if len(batch) >= maxBatch {
		return nil
	}
	return b.in
}

func (b *batcher[T]) flush(ctx context.Context, batch []wish[T]) {
	items := make([]T, len(batch))
	for i, w := range batch {
		items[i] = w.item
	}
	ctx, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	errs, err := b.call(ctx, items)
	for i, w := range batch {
		if err != nil {
			w.done <- err
		} else {
			w.done <- errs[i]
		}
	}
}
