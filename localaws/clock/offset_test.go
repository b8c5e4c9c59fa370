package clock

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestOffsetRunsWithItsBase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewOffset(System())
		start := c.Now()
		fired := make(chan time.Time, 3)
		note := func() { fired <- c.Now() }
		c.AfterFunc(3*time.Second, note)
		c.AfterFunc(time.Second, note)
		if stopped := c.AfterFunc(2*time.Second, note); !stopped.Stop() || stopped.Stop() {
			t.Error("Stop must report whether the timer was pending")
		}
		for _, want := range []time.Duration{time.Second, 3 * time.Second} {
			if got := (<-fired).Sub(start); got != want {
				t.Errorf("fired after %v, want %v", got, want)
			}
		}
		synctest.Wait()
		if len(fired) != 0 {
			t.Error("a stopped timer fired")
		}
	})
}

func TestOffsetAdvanceRunsWhatFallsDueAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewOffset(System())
		start, real := c.Now(), time.Now()
		var at []time.Duration
		var timer Timer
		timer = c.AfterFunc(time.Minute, func() { // a tick that sets itself again
			at = append(at, c.Now().Sub(start))
			timer.Reset(time.Minute)
		})
		late := make(chan time.Duration, 1)
		c.AfterFunc(time.Hour+time.Second, func() { late <- c.Now().Sub(start) })
		c.Advance(time.Hour)
		if len(at) != 60 || at[0] != time.Minute || at[59] != time.Hour {
			t.Errorf("the tick ran %d times, first and last %v", len(at), at)
		}
		if c.Now().Sub(start) != time.Hour || c.Ahead() != time.Hour || time.Since(real) != 0 {
			t.Errorf("now is %v after the start, and %v passed", c.Now().Sub(start), time.Since(real))
		}
		timer.Stop()
		if got := <-late; got != time.Hour+time.Second || time.Since(real) != time.Second {
			t.Errorf("the timer beyond the end fired at %v after %v", got, time.Since(real))
		}
	})
}

// TestOffsetWakesForAnEarlierTimer has a timer set before the one that the base waits for.
func TestOffsetWakesForAnEarlierTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewOffset(System())
		start := c.Now()
		fired := make(chan time.Duration, 2)
		c.AfterFunc(time.Hour, func() { fired <- c.Now().Sub(start) })
		c.AfterFunc(time.Second, func() { fired <- c.Now().Sub(start) })
		if got := <-fired; got != time.Second {
			t.Errorf("the earlier timer fired after %v", got)
		}
		c.Advance(30 * time.Minute)
		if got := <-fired; got != time.Hour {
			t.Errorf("the later timer fired after %v", got)
		}
	})
}

func TestOffsetNeverGoesBack(t *testing.T) {
	c := NewOffset(NewManual(time.Unix(0, 0)))
	c.Advance(time.Minute)
	c.Advance(-time.Hour)
	if got := c.Now(); !got.Equal(time.Unix(60, 0)) {
		t.Errorf("now is %v", got)
	}
	var done atomic.Bool
	c.AfterFunc(-time.Second, func() { done.Store(true) })
	c.Advance(0)
	if !done.Load() {
		t.Error("a timer that is due already did not run")
	}
}
