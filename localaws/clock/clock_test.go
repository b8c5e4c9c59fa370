package clock

import (
	"testing"
	"time"
)

func TestManualRunsInOrder(t *testing.T) {
	c := NewManual(time.Unix(0, 0))
	var got []string
	note := func(s string) func() { return func() { got = append(got, s+"@"+c.Now().UTC().Format("05")) } }
	c.AfterFunc(3*time.Second, note("c"))
	c.AfterFunc(time.Second, note("a"))
	stopped := c.AfterFunc(2*time.Second, note("never"))
	c.AfterFunc(time.Second, note("b"))
	if !stopped.Stop() || stopped.Stop() {
		t.Error("Stop must report whether the timer was pending")
	}
	c.Advance(2 * time.Second)
	c.AfterFunc(-time.Second, note("late"))
	c.Advance(time.Second)
	want := []string{"a@01", "b@01", "late@02", "c@03"}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
}

func TestManualTimerMaySetItselfAgain(t *testing.T) {
	c := NewManual(time.Unix(0, 0))
	n := 0
	var timer Timer
	timer = c.AfterFunc(time.Second, func() {
		if n++; n < 5 {
			timer.Reset(time.Second)
		}
	})
	c.Advance(time.Minute)
	if n != 5 {
		t.Fatalf("fired %d times, want 5", n)
	}
}
