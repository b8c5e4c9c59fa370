package stepfleet_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stepfleet/stepfleet"
)

func TestBackoffIsFullJitterBelowItsCeilings(t *testing.T) {
	for n, ceiling := range []time.Duration{1, 2, 4, 8, 16, 16, 16} {
		ceiling *= time.Second
		var least, most, sum time.Duration = time.Hour, 0, 0
		const draws = 2000
		for range draws {
			d := stepfleet.Backoff(n)
			least, most, sum = min(least, d), max(most, d), sum+d
		}
		if least < 0 || most >= ceiling {
			t.Errorf("repeat %d pauses %s to %s, want 0 to %s", n, least, most, ceiling)
		}
		if mean := sum / draws; least > ceiling/20 || most < ceiling*19/20 || mean < ceiling*9/20 || mean > ceiling*11/20 {
			t.Errorf("repeat %d pauses %s to %s, %s in the mean: that is not full jitter below %s", n, least, most, mean, ceiling)
		}
	}
}

// patient is an error that decides itself how to rest.
type patient struct{ asked *int }

func (p patient) Error() string { return "out" }

func (p patient) Rest(_ context.Context, n int) bool { *p.asked = n; return true }

func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if !stepfleet.Rest(t.Context(), stepfleet.ErrUnavailable, 0) || time.Since(began) >= time.Second {
			t.Errorf("a first rest took %s", time.Since(began))
		}
		asked := -1
		if !stepfleet.Rest(t.Context(), fmt.Errorf("claim: %w", patient{&asked}), 3) || asked != 3 {
			t.Errorf("an outage was asked to rest %d times, want 3", asked)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if stepfleet.Rest(ctx, errors.New("x"), 4) {
			t.Error("a rest outlasts its context")
		}
	})
}
