package stepfleet

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// backoffCeilings bound the pauses before the repeats of a call, one after the other; the last
// bounds all that follow.
var backoffCeilings = []time.Duration{
	1 * time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second,
}

// Backoff is the pause before the n-th repeat of a call, counted from 0: anything up to 1, 2, 4, 8
// and then 16 s. The jitter is full, so that those who failed together do not come back together.
func Backoff(n int) time.Duration {
	return rand.N(backoffCeilings[min(max(n, 0), len(backoffCeilings)-1)])
}

// Outage is what a call of a watched dependency returns when the dependency could not be asked
// (internal/outage). It wraps ErrUnavailable.
type Outage interface {
	error
	// Rest pauses before the n-th repeat, until the dependency answers somebody or the back-off is
	// over, and for longer where too much of what the dependency is asked are repeats. It reports
	// whether ctx is still on.
	Rest(ctx context.Context, n int) bool
}

// Rest pauses before the n-th repeat of a call, counted from 0, that ended with err, and reports
// whether ctx is still on.
func Rest(ctx context.Context, err error, n int) bool {
	var outage Outage
	if errors.As(err, &outage) {
		return outage.Rest(ctx, n)
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(Backoff(n)):
		return true
	}
}
