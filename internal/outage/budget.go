package outage

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// callsPerRepeat is the retry budget: of all calls a tenth may be repeats, so that a dependency
	// that answers half of what it is asked is not asked twice as much.
	callsPerRepeat = 10
	// repeatsSaved bounds what is saved up.
	repeatsSaved = 10
	// trickle lets a process that makes few calls repeat them at all.
	trickle = time.Second
)

// budget is a token bucket that calls fill.
type budget struct {
	calls atomic.Int64 // that no repeat has used up

	mu       sync.Mutex
	trickled time.Time
}

func (b *budget) fill() { b.calls.Store(callsPerRepeat * repeatsSaved) }

// earn counts a call. Several at once may go over the bound by as many.
func (b *budget) earn() {
	if b.calls.Load() < callsPerRepeat*repeatsSaved {
		b.calls.Add(1)
	}
}

// spend says whether a call may be repeated now.
func (b *budget) spend(now time.Time) bool {
	for saved := b.calls.Load(); saved >= callsPerRepeat; saved = b.calls.Load() {
		if b.calls.CompareAndSwap(saved, saved-callsPerRepeat) {
			return true
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Sub(b.trickled) < trickle {
		return false
	}
	b.trickled = now
	return true
}
