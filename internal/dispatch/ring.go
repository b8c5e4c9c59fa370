package dispatch

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/failpoint"
)

// ringTimeout bounds one ring: a bell that takes longer is late enough to be made good by a look.
const ringTimeout = 10 * time.Second

// ringer sends bells, one goroutine a queue, so that a slow or broken queue delays neither the
// others nor a submit. Wishes that come while a ring is under way are one ring together.
type ringer struct {
	bells stepfleet.Ringer
	lanes map[string]*laneBell
	log   *slog.Logger
}

type laneBell struct {
	queue  string
	signal chan struct{}
	mu     sync.Mutex
	wanted int
	slots  int // of alive workers, at the last look; bounds one ring
}

func newRinger(bells stepfleet.Ringer, queues []string, log *slog.Logger) *ringer {
	r := &ringer{bells: bells, lanes: map[string]*laneBell{}, log: log}
	for _, q := range queues {
		r.lanes[q] = &laneBell{queue: q, signal: make(chan struct{}, 1)}
	}
	return r
}

func (r *ringer) knows(queue string) bool { return r.lanes[queue] != nil }

// want asks for n bells, soon. It never blocks.
func (r *ringer) want(queue string, n int) {
	lane := r.lanes[queue]
	if lane == nil || n <= 0 {
		return
	}
	lane.mu.Lock()
	lane.wanted += n
	lane.mu.Unlock()
	select {
	case lane.signal <- struct{}{}:
	default:
	}
}

// setSlots records how many slots the queue has, at the last look at the ledger.
func (r *ringer) setSlots(queue string, slots int) {
	if lane := r.lanes[queue]; lane != nil {
		lane.mu.Lock()
		lane.slots = slots
		lane.mu.Unlock()
	}
}

// take returns how many bells to ring now: never more than the queue has slots, and one when no
// slot is known, since a worker may just have come.
func (l *laneBell) take() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(l.wanted, max(l.slots, 1), stepfleet.MaxBellsPerRing)
	l.wanted = 0
	return n
}

func (r *ringer) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, lane := range r.lanes {
		g.Go(func() error { return r.runLane(ctx, lane) })
	}
	return g.Wait()
}

func (r *ringer) runLane(ctx context.Context, lane *laneBell) error {
	fails := 0
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-lane.signal:
		}
		n := lane.take()
		if n == 0 {
			continue
		}
		err := r.ring(ctx, lane.queue, n)
		if err == nil {
			if fails > 0 {
				r.log.Info("bells ring again", KeyQueue, lane.queue)
			}
			fails = 0
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if fails == 0 {
			r.log.Warn("bells do not ring; workers look at the ledger meanwhile", KeyQueue, lane.queue, "err", err)
		}
		// The rung bells are not owed: re-ringing looks at what waits by then.
		if !stepfleet.Rest(ctx, err, fails) {
			return ctx.Err()
		}
		fails++
	}
}

func (r *ringer) ring(ctx context.Context, queue string, n int) error {
	ctx, cancel := context.WithTimeout(ctx, ringTimeout)
	defer cancel()
	return r.bells.Ring(ctx, queue, n)
}

// rering rings again, per queue and never per task, while tasks wait and slots are free: a bell
// may have been lost, or answered by a worker that died.
func (s *Server) rering(ctx context.Context) error {
	for {
		if err := s.ReringTurn(ctx); err != nil && ctx.Err() == nil {
			s.log.Debug("look at the lanes", "err", err)
		}
		if !pause(ctx, reringEvery) {
			return ctx.Err()
		}
	}
}

// ReringTurn is one look at the lanes.
func (s *Server) ReringTurn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	lanes, err := s.ledger.Lanes(ctx)
	for _, lane := range lanes {
		s.bells.setSlots(lane.Queue, lane.Slots)
		if lane.OldestAge < reringEvery {
			continue
		}
		if err := failpoint.Hit("rering.before"); err != nil {
			return err
		}
		s.bells.want(lane.Queue, min(lane.Ready, lane.Slots-lane.Leased-lane.Running))
		if err := failpoint.Hit("rering.after"); err != nil {
			return err
		}
	}
	return err
}

// TakeBells returns how many bells the queue is owed now, as its ringer takes them.
func (s *Server) TakeBells(queue string) int {
	if lane := s.bells.lanes[queue]; lane != nil {
		return lane.take()
	}
	return 0
}

// pause waits for d and reports whether ctx is still on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
