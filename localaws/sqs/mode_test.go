package sqs

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/localaws/clock"
)

// TestAdversarialDoesWhatAWSMay has a consumer that does its part: it deletes what it received and
// asks again. It must get every message, some of them twice, out of order and in small portions.
func TestAdversarialDoesWhatAWSMay(t *testing.T) {
	c := clock.NewManual(time.Unix(0, 0))
	q := newQueue(testService(c, Adversarial), 1, queueKey{"r", "a", "q"}, defaults(false), nil)
	const n = 500
	fill(t, q, n)
	var order []uint64
	short, empty := 0, 0
	seen := map[uint64]int{}
	for len(seen) < n || q.messages.n > 0 {
		left := q.visible
		got, err := q.receive(context.Background(), receive{max: 10})
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			empty++
		} else if len(got) < min(10, left) {
			short++
		}
		for i, d := range got {
			seen[d.seq]++
			order = append(order, d.seq)
			if i%4 != 3 { // some are forgotten and come back by themselves
				if err := q.delete(d.handle); err != nil {
					t.Fatal(err)
				}
			}
		}
		c.Advance(10 * time.Second)
		if err := q.check(); err != nil {
			t.Fatal(err)
		}
	}
	if short == 0 || empty == 0 || slices.IsSorted(order) {
		t.Errorf("%d short and %d empty answers, in order: %v; want some of each, out of order", short, empty, slices.IsSorted(order))
	}
}

func TestAdversarialDeliversTwiceAtATime(t *testing.T) {
	q := newQueue(testService(clock.NewManual(time.Unix(0, 0)), Adversarial), 1, queueKey{"r", "a", "q"}, defaults(false), nil)
	fill(t, q, 200)
	seen, twice := map[uint64]bool{}, 0
	for range 500 {
		got, err := q.receive(context.Background(), receive{max: 10})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range got {
			if seen[d.seq] {
				twice++
			}
			seen[d.seq] = true
		}
	}
	if len(seen) != 200 || twice == 0 {
		t.Errorf("%d of 200 messages came, %d of them again before their visibility ended", len(seen), twice)
	}
}

func TestAdversarialCountersLag(t *testing.T) {
	c := clock.NewManual(time.Unix(0, 0))
	q := newQueue(testService(c, Adversarial), 1, queueKey{"r", "a", "q"}, defaults(false), nil)
	q.snapshot()
	fill(t, q, 5)
	if n := q.snapshot()["ApproximateNumberOfMessages"]; n != "0" {
		t.Errorf("the counter says %s at once", n)
	}
	for range 3 { // however seldom anybody asks
		c.Advance(longestLag)
		if n := q.snapshot()["ApproximateNumberOfMessages"]; n != fmt.Sprint(q.visible) {
			t.Errorf("the counter says %s of %d %v after the sends", n, q.visible, longestLag)
		}
		fill(t, q, 5)
	}
}

// TestAdversarialCountersAreTrueWhenAskedFirst asks an hour after the sends, as a slow autoscaler does.
func TestAdversarialCountersAreTrueWhenAskedFirst(t *testing.T) {
	c := clock.NewManual(time.Unix(0, 0))
	q := newQueue(testService(c, Adversarial), 1, queueKey{"r", "a", "q"}, defaults(false), nil)
	fill(t, q, 5)
	c.Advance(time.Hour)
	if n := q.snapshot()["ApproximateNumberOfMessages"]; n != "5" {
		t.Errorf("the counter says %s an hour after 5 sends", n)
	}
}

// TestAdversarialFIFOStaysFIFO: what a FIFO queue promises, AWS keeps.
func TestAdversarialFIFOStaysFIFO(t *testing.T) {
	q := newQueue(testService(clock.NewManual(time.Unix(0, 0)), Adversarial), 1, queueKey{"r", "a", "q.fifo"}, defaults(true), nil)
	for i := range 100 {
		if _, err := q.send([]outgoing{{content: content{group: "g", dedup: string(rune('a' + i))}}}, 1); err != nil {
			t.Fatal(err)
		}
	}
	var last uint64
	for range 100 {
		got, err := q.receive(context.Background(), receive{max: 1})
		if err != nil || len(got) != 1 || got[0].seq <= last {
			t.Fatalf("received %v after %d, %v", got, last, err)
		}
		last = got[0].seq
		if err := q.delete(got[0].handle); err != nil {
			t.Fatal(err)
		}
	}
}
