package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/stepfleet/stepfleet"
)

// bells is a queue service that loses, doubles, delays and disorders bells.
type bells struct {
	s      *simulation
	queued []*bell
	rung   signal
}

type bell struct{ visible time.Duration }

// ring puts bells into the queue.
func (b *bells) ring(n int) error {
	w := b.s.world
	if !b.s.healed && w.chance(0.1) {
		return fmt.Errorf("ring: %w", stepfleet.ErrUnavailable)
	}
	for range n {
		copies := 1
		if !b.s.healed {
			copies = pick(w, 0, 1, 1, 1, 1, 1, 2)
		}
		for range copies {
			late := w.between(0, 5*time.Millisecond)
			if !b.s.healed && w.chance(0.1) {
				late = w.between(0, 20*time.Second)
			}
			w.after(late, func() {
				at := w.rng.IntN(len(b.queued) + 1)
				b.queued = slices.Insert(b.queued, at, &bell{})
				b.rung.send()
			})
		}
	}
	return nil
}

// receive waits for up to max bells; an error is an outage.
func (b *bells) receive(max int, wait time.Duration, over *signal) ([]*bell, error) {
	w := b.s.world
	if !b.s.healed && w.chance(0.05) {
		return nil, fmt.Errorf("receive: %w", stepfleet.ErrUnavailable)
	}
	got := b.take(max)
	if len(got) == 0 {
		w.await(wait, &b.rung, over)
		got = b.take(max)
	}
	return got, nil
}

func (b *bells) take(max int) (got []*bell) {
	for _, one := range b.queued {
		if len(got) < max && one.visible <= b.s.world.now {
			one.visible = b.s.world.now + stepfleet.BellVisibility
			got = append(got, one)
		}
	}
	return got
}

// answer deletes bells; now and then it does not arrive.
func (b *bells) answer(done []*bell) {
	if b.s.healed || !b.s.world.chance(0.1) {
		b.queued = slices.DeleteFunc(b.queued, func(one *bell) bool { return slices.Contains(done, one) })
	}
}

func (b *bells) giveBack(back []*bell) {
	for _, one := range back {
		one.visible = 0
	}
	b.rung.send()
}

// purge loses all bells.
func (b *bells) purge() {
	b.s.world.say(nil, "all %d bells are lost", len(b.queued))
	b.queued = nil
}
