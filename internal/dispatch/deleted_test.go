package dispatch_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
)

func TestARunThatWasDeletedInDagsterIsClosed(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.submit("run-1", "waits")
		b.submit("run-2", "waits")
		time.Sleep(30 * time.Second)
		b.lack("run-1")
		time.Sleep(59 * time.Second)
		if s := b.state("run-1", "waits").State; s != stepfleet.StateQueued {
			t.Errorf("a run that is missing for less than a minute: %s", s)
		}
		time.Sleep(31 * time.Second)
		if s := b.state("run-1", "waits").State; s != stepfleet.StateCancelled {
			t.Errorf("the waiting task of a deleted run: %s", s)
		}
		if _, err := b.server.Submit(b.ctx, batchOf("run-1", "late")); !errors.Is(err, stepfleet.ErrRunClosed) {
			t.Errorf("a late submit: %v", err)
		}
		if s := b.state("run-2", "waits").State; s != stepfleet.StateQueued {
			t.Errorf("the task of the other run: %s", s)
		}
	})
}

// A run that was the only open one is told by those that were there before it.
func TestTheLastOpenRunIsClosedWhenItWasDeleted(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.submit("run-1", "waits")
		time.Sleep(30 * time.Second)
		b.end("run-1")
		b.submit("run-2", "waits")
		time.Sleep(30 * time.Second)
		b.lack("run-2")
		time.Sleep(2 * time.Minute)
		if s := b.state("run-2", "waits").State; s != stepfleet.StateCancelled {
			t.Errorf("its waiting task: %s", s)
		}
	})
}

func TestARunThatMayNotBeDeletedStaysOpen(t *testing.T) {
	for name, happens := range map[string]func(b *bench){
		"Dagster never showed it": func(b *bench) {
			b.lack("run-3")
			b.submit("run-3", "waits")
			time.Sleep(10 * time.Minute)
		},
		"another installation answers": func(b *bench) {
			b.swap(true)
			time.Sleep(10 * time.Minute)
			b.swap(false)
			time.Sleep(time.Minute)
		},
		"a replica lags": func(b *bench) {
			for range 20 {
				b.lack("run-1")
				time.Sleep(40 * time.Second)
				b.lack()
				time.Sleep(20 * time.Second)
			}
		},
		"answers are missing in between": func(b *bench) {
			b.lack("run-1")
			for range 20 {
				time.Sleep(30 * time.Second)
				b.leave(true)
				time.Sleep(15 * time.Second)
				b.leave(false)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(b *bench) {
				b.t = t
				b.submit("run-1", "waits")
				b.submit("run-2", "waits")
				time.Sleep(30 * time.Second)
				happens(b)
				for _, run := range []string{"run-1", "run-2"} {
					if s := b.state(run, "waits").State; s != stepfleet.StateQueued {
						t.Errorf("the waiting task of %s: %s", run, s)
					}
				}
			})
		})
	}
}
