package worker_test

import (
	"context"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/memory"
	"github.com/stepfleet/stepfleet/internal/worker"
)

// hungBells take a call and answer nothing, whatever wait they were given.
type hungBells struct{ *memory.Bells }

func (hungBells) Receive(ctx context.Context, _ string, _ int, _ time.Duration) ([]stepfleet.RungBell, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestWorkersLookOftenWhileTheBellsHang(t *testing.T) {
	inBubble(t, func(b *bench) {
		w, err := worker.New(b.cfg, worker.Ports{
			Claims: b.ledger, Renewals: b.ledger, Bells: hungBells{b.bells}, Host: b.host, Notifier: b.notes,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.ctx)
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		time.Sleep(10 * time.Minute)
		before := time.Now()
		b.submit(false, "a")
		b.next().end(stepfleet.Exit{})
		if waited := time.Since(before); waited > 6*time.Second {
			t.Errorf("found after %s", waited)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
