package dispatch

import (
	"context"
	"fmt"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/mutant"
)

// callTimeout bounds one call of the ledger in a loop: a connection that a failover has cut may
// otherwise stay silent for a quarter of an hour.
const callTimeout = 10 * time.Second

// sweep marks sessions whose workers have gone silent and takes what they held.
//
// It may expire sessions only while its own beats have gone through unbroken for their whole session
// TTL: after a database outage every worker's renewals are late, through no fault of theirs, and
// the sweeper that came back first must not kill the fleet. Sessions that are dead already, by
// proof or by their own word, are swept at every tick.
func (s *Server) sweep(ctx context.Context) error {
	var beats Streak
	for {
		if err := s.SweepTurn(ctx, &beats); err != nil && ctx.Err() == nil {
			s.log.Warn("sweep", "err", err)
		}
		if !pause(ctx, sweepEvery) {
			return ctx.Err()
		}
	}
}

// SweepTurn is one turn of the sweep.
func (s *Server) SweepTurn(ctx context.Context, beats *Streak) error {
	at, err := s.beat(ctx)
	if mutant.ServersClock {
		at = s.cfg.Now()
	}
	unbroken := beats.note(at, err == nil, s.cfg.Lifetimes.SessionTTL/2)
	if mutant.SweepWithoutHeartbeat {
		unbroken = time.Hour
	}
	if err == nil && unbroken > 0 {
		err = s.expire(ctx, stepfleet.Beats{Last: at, Unbroken: unbroken})
	}
	if err == nil {
		err = s.sweepOnce(ctx)
	}
	return err
}

// Streak is a row of beats without a failure or a gap, by the time that the ledger gave them: a step
// of this machine's clock neither makes one longer nor ends it. A gap without a beat that failed
// comes from a sweep that hung through an outage, or from a sweeper that was stopped.
type Streak struct{ began, last time.Time }

// note takes a beat and returns how long the streak is that it ends, 0 for one that failed.
func (k *Streak) note(at time.Time, ok bool, maxGap time.Duration) time.Duration {
	if !ok {
		*k = Streak{}
		return 0
	}
	if gap := at.Sub(k.last); k.began.IsZero() || gap > maxGap || gap < 0 {
		k.began = at
	}
	k.last = at
	return at.Sub(k.began)
}

// beat must come back well within a TTL to count: a late one proves nothing about the time
// before it.
func (s *Server) beat(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Lifetimes.Renew)
	defer cancel()
	at, err := s.ledger.Beat(ctx, s.cfg.Name)
	if err != nil {
		return at, fmt.Errorf("beat: %w", err)
	}
	return at, nil
}

func (s *Server) expire(ctx context.Context, beats stepfleet.Beats) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	changed, err := s.ledger.ExpireSessions(ctx, beats)
	if err != nil {
		return fmt.Errorf("expire sessions: %w", err)
	}
	for _, c := range changed {
		s.log.Warn("session expired", KeySession, c.ID, "worker", c.Worker, "state", c.State)
	}
	return nil
}

func (s *Server) sweepOnce(ctx context.Context) error {
	for {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		changes, err := s.ledger.Sweep(call, s.cfg.Lifetimes.StartWithin, sweepMax)
		cancel()
		if err != nil {
			return fmt.Errorf("sweep tasks: %w", err)
		}
		for _, c := range changes {
			s.log.Warn("swept", KeyTask, c.TaskID, KeyRun, c.RunID, "step_key", c.StepKey, "from", c.From, "to", c.To)
		}
		s.publish(ctx, changes)
		if len(changes) < sweepMax {
			return nil
		}
	}
}

// look re-reads the tasks of every run that has a stream here: a notify may have been lost, or the
// run taken over at another replica.
func (s *Server) look(ctx context.Context) error {
	for {
		if !pause(ctx, lookEvery) {
			return ctx.Err()
		}
		runs := s.hub.runs()
		if len(runs) == 0 {
			continue
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		epochs, err := s.ledger.Epochs(call, runs)
		cancel()
		if err != nil {
			s.log.Debug("look at epochs", "err", err)
			continue
		}
		s.hub.supersede(epochs)
		for _, run := range runs {
			call, cancel := context.WithTimeout(ctx, callTimeout)
			views, err := s.ledger.RunTasks(call, run)
			cancel()
			if err != nil {
				s.log.Debug("look at run", KeyRun, run, "err", err)
				break
			}
			s.hub.publish(views)
		}
	}
}

// Ready says why this replica should not be sent work; nothing when it should.
func (s *Server) Ready(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := s.ledger.Check(ctx); err != nil {
		return []string{"ledger: " + err.Error()}
	}
	return nil
}
