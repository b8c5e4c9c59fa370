// Package conformance holds the suites that every adapter of a port must pass, one file a port.
package conformance

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stepfleet/stepfleet"
)

// BellEnv is what a bell adapter brings to RunBells.
type BellEnv struct {
	Ringer   stepfleet.Ringer
	Listener stepfleet.Listener
	// Queue and Other exist and are empty; Missing does not exist.
	Queue, Other, Missing string
	// Break makes the bell unreachable until it is called with false.
	Break func(broken bool)
	// RefusesLate is set where a bell that came back is not taken away by its first receiver, as on
	// FIFO queues: it rings once more.
	RefusesLate bool
}

// RunBells is the contract of stepfleet.Ringer and stepfleet.Listener. Every test runs in a
// testing/synctest bubble, so that waits and BellVisibility are exact and take no time; open is
// called inside it and must use no sockets.
func RunBells(t *testing.T, open func(t *testing.T) BellEnv) {
	tests := []struct {
		name string
		run  func(*bellSuite)
	}{
		{"a bell rings once and is gone when answered", (*bellSuite).ringAnswer},
		{"Receive returns no more than max", (*bellSuite).max},
		{"Ring rings many, and no more than MaxBellsPerRing", (*bellSuite).many},
		{"Receive waits as long as told, and not at all for 0", (*bellSuite).wait},
		{"a waiting Receive gets a bell at once", (*bellSuite).handOff},
		{"a returned bell rings at once", (*bellSuite).giveBack},
		{"an unanswered bell comes back after BellVisibility", (*bellSuite).comesBack},
		{"a bell that came back may be answered by its first receiver", (*bellSuite).lateAnswer},
		{"each of many waiting receivers gets a bell", (*bellSuite).manyWaiters},
		{"a Receive whose context ends takes no bell along", (*bellSuite).cancel},
		{"queues do not hear each other", (*bellSuite).apart},
		{"an unknown queue is refused", (*bellSuite).unknown},
		{"an unreachable bell is ErrUnavailable and heals", (*bellSuite).broken},
		{"nothing is a fine number of bells", (*bellSuite).nothing},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test.run(&bellSuite{t, open(t), t.Context()}) })
		})
	}
}

type bellSuite struct {
	t   *testing.T
	env BellEnv
	ctx context.Context
}

func (s *bellSuite) ring(n int) {
	s.t.Helper()
	if err := s.env.Ringer.Ring(s.ctx, s.env.Queue, n); err != nil {
		s.t.Fatalf("ring %d: %v", n, err)
	}
}

func (s *bellSuite) receive(max int, wait time.Duration) []stepfleet.RungBell {
	s.t.Helper()
	got, err := s.env.Listener.Receive(s.ctx, s.env.Queue, max, wait)
	if err != nil {
		s.t.Fatalf("receive: %v", err)
	}
	return got
}

func (s *bellSuite) want(got []stepfleet.RungBell, n int) {
	s.t.Helper()
	if len(got) != n {
		s.t.Fatalf("got %d bells, want %d: %v", len(got), n, got)
	}
}

func (s *bellSuite) answer(bells []stepfleet.RungBell) {
	s.t.Helper()
	if err := s.env.Listener.Answer(s.ctx, s.env.Queue, bells); err != nil {
		s.t.Fatalf("answer: %v", err)
	}
}

func (s *bellSuite) ringAnswer() {
	s.ring(1)
	got := s.receive(10, 0)
	s.want(got, 1)
	if diff := cmp.Diff(stepfleet.Bell{V: stepfleet.BellVersion, Queue: s.env.Queue}, got[0].Bell); diff != "" {
		s.t.Errorf("bell (-want +got):\n%s", diff)
	}
	s.want(s.receive(10, 0), 0)
	s.answer(got)
	time.Sleep(2 * stepfleet.BellVisibility)
	s.want(s.receive(10, 0), 0)
	s.answer(got) // answering again is no error
}

func (s *bellSuite) max() {
	s.ring(12)
	s.want(s.receive(3, 0), 3)
	s.want(s.receive(1, 0), 1)
	s.want(s.receive(10, 0), 8)
}

func (s *bellSuite) many() {
	s.ring(stepfleet.MaxBellsPerRing + 5)
	seen := map[string]bool{}
	for range stepfleet.MaxBellsPerRing/10 + 1 {
		got := s.receive(10, 0)
		for _, b := range got {
			seen[b.Handle] = true
		}
		if len(got) > 0 {
			s.answer(got)
		}
	}
	if len(seen) != stepfleet.MaxBellsPerRing {
		s.t.Errorf("received %d bells, want %d", len(seen), stepfleet.MaxBellsPerRing)
	}
}

func (s *bellSuite) wait() {
	for _, wait := range []time.Duration{0, time.Second, 20 * time.Second} {
		started := time.Now()
		s.want(s.receive(1, wait), 0)
		if took := time.Since(started); took != wait {
			s.t.Errorf("Receive with wait %v returned after %v", wait, took)
		}
	}
}

func (s *bellSuite) handOff() {
	const after = 3 * time.Second
	rung := make(chan error, 1)
	go func() {
		time.Sleep(after)
		rung <- s.env.Ringer.Ring(s.ctx, s.env.Queue, 1)
	}()
	started := time.Now()
	s.want(s.receive(10, 20*time.Second), 1)
	if took := time.Since(started); took != after {
		s.t.Errorf("the bell rung after %v arrived after %v", after, took)
	}
	if err := <-rung; err != nil {
		s.t.Errorf("ring: %v", err)
	}
}

func (s *bellSuite) giveBack() {
	s.ring(2)
	got := s.receive(2, 0)
	s.want(got, 2)
	if err := s.env.Listener.Return(s.ctx, s.env.Queue, got[:1]); err != nil {
		s.t.Fatalf("return: %v", err)
	}
	started := time.Now()
	s.want(s.receive(10, 20*time.Second), 1)
	if took := time.Since(started); took != 0 {
		s.t.Errorf("the returned bell arrived after %v", took)
	}
}

func (s *bellSuite) comesBack() {
	s.ring(1)
	s.want(s.receive(1, 0), 1)
	started := time.Now()
	again := s.receive(1, 20*time.Second)
	s.want(again, 1)
	if took := time.Since(started); took != stepfleet.BellVisibility {
		s.t.Errorf("came back after %v, want %v", took, stepfleet.BellVisibility)
	}
	s.answer(again)
	time.Sleep(2 * stepfleet.BellVisibility)
	s.want(s.receive(1, 0), 0)
}

func (s *bellSuite) lateAnswer() {
	s.ring(1)
	got, received := s.receive(1, 0), time.Now()
	s.want(got, 1)
	time.Sleep(stepfleet.BellVisibility + time.Millisecond)
	s.answer(got)
	s.want(s.receive(1, 0), s.late(received))
}

// late returns how many of one bell, received then and answered now, ring once more.
func (s *bellSuite) late(received time.Time) int {
	if s.env.RefusesLate && time.Since(received) >= stepfleet.BellVisibility {
		return 1
	}
	return 0
}

func (s *bellSuite) manyWaiters() {
	const waiters = 20
	counts := make(chan int, waiters)
	for range waiters {
		go func() {
			got, err := s.env.Listener.Receive(s.ctx, s.env.Queue, 1, 20*time.Second)
			if err != nil {
				s.t.Errorf("receive: %v", err)
			}
			counts <- len(got)
		}()
	}
	synctest.Wait()
	started := time.Now()
	s.ring(waiters - 1)
	total := 0
	for range waiters - 1 {
		total += <-counts
	}
	if took := time.Since(started); took != 0 {
		s.t.Errorf("the last bell arrived after %v", took)
	}
	s.ring(1)
	if total += <-counts; total != waiters {
		s.t.Errorf("%d receivers got %d bells", waiters, total)
	}
}

func (s *bellSuite) cancel() {
	ctx, cancel := context.WithCancel(s.ctx)
	failed := make(chan error, 1)
	go func() {
		_, err := s.env.Listener.Receive(ctx, s.env.Queue, 1, 20*time.Second)
		failed <- err
	}()
	synctest.Wait()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		s.t.Errorf("cancelled receive: %v, want context.Canceled", err)
	}
	if _, err := s.env.Listener.Receive(ctx, s.env.Queue, 1, 0); !errors.Is(err, context.Canceled) {
		s.t.Errorf("receive with an ended context: %v, want context.Canceled", err)
	}
	s.ring(1)
	s.want(s.receive(1, 0), 1)
}

func (s *bellSuite) apart() {
	s.ring(1)
	got, err := s.env.Listener.Receive(s.ctx, s.env.Other, 10, time.Second)
	if err != nil {
		s.t.Fatalf("receive: %v", err)
	}
	s.want(got, 0)
	s.want(s.receive(10, 0), 1)
}

// calls is every method, with a bell to answer where one is needed.
func (s *bellSuite) calls(queue string, bells []stepfleet.RungBell) map[string]error {
	_, received := s.env.Listener.Receive(s.ctx, queue, 1, 0)
	return map[string]error{
		"Ring":    s.env.Ringer.Ring(s.ctx, queue, 1),
		"Receive": received,
		"Answer":  s.env.Listener.Answer(s.ctx, queue, bells),
		"Return":  s.env.Listener.Return(s.ctx, queue, bells),
	}
}

func (s *bellSuite) unknown() {
	s.ring(1)
	bells := s.receive(1, 0)
	for _, name := range []string{s.env.Missing, "Not a name!"} {
		for call, err := range s.calls(name, bells) {
			if !errors.Is(err, stepfleet.ErrUnknownQueue) {
				s.t.Errorf("%s of queue %q: %v, want ErrUnknownQueue", call, name, err)
			}
		}
	}
}

func (s *bellSuite) broken() {
	s.ring(2)
	bells, received := s.receive(1, 0), time.Now()
	s.env.Break(true)
	for call, err := range s.calls(s.env.Queue, bells) {
		if !errors.Is(err, stepfleet.ErrUnavailable) || errors.Is(err, stepfleet.ErrUnknownQueue) {
			s.t.Errorf("%s of an unreachable bell: %v, want ErrUnavailable", call, err)
		}
	}
	s.env.Break(false)
	s.answer(bells)
	s.want(s.receive(10, 0), 1+s.late(received)) // the calls that failed took time
}

func (s *bellSuite) nothing() {
	s.ring(0)
	s.want(s.receive(10, 0), 0)
	for call, err := range map[string]error{
		"Answer": s.env.Listener.Answer(s.ctx, s.env.Queue, nil),
		"Return": s.env.Listener.Return(s.ctx, s.env.Queue, nil),
	} {
		if err != nil {
			s.t.Errorf("%s of no bells: %v", call, err)
		}
	}
}

// ErrBroken is what an in-memory BellEnv.Break may fail with.
var ErrBroken = fmt.Errorf("broken by the test: %w", stepfleet.ErrUnavailable)
