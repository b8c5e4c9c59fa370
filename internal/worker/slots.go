package worker

import (
	"context"
	"sync"
)

// slots counts the tasks that a lane may run at once. One goroutine takes and waits, any may put.
type slots struct {
	all   int
	mu    sync.Mutex
	left  int
	freed chan struct{}
}

func newSlots(n int) *slots { return &slots{all: n, left: n, freed: make(chan struct{}, 1)} }

// waitFree waits for a free slot and returns how many there are; 0 when ctx has ended.
func (s *slots) waitFree(ctx context.Context) int {
	for {
		if n := s.free(); n > 0 {
			return n
		}
		select {
		case <-ctx.Done():
			return 0
		case <-s.freed:
		}
	}
}

func (s *slots) free() int  { s.mu.Lock(); defer s.mu.Unlock(); return s.left }
func (s *slots) taken() int { return s.all - s.free() }
func (s *slots) take()      { s.mu.Lock(); defer s.mu.Unlock(); s.left-- }

func (s *slots) put() {
	s.mu.Lock()
	s.left++
	s.mu.Unlock()
	select {
	case s.freed <- struct{}{}:
	default:
	}
}
