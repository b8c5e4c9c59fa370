package dispatch

import (
	"context"
	"fmt"
	"time"
)

// sweep marks sessions whose workers have gone silent and takes what they held.
//
// It may expire sessions only while its own beats have gone through unbroken for a whole session
// TTL: after a database outage every worker's renewals are late, through no fault of theirs, and
// the sweeper that came back first must not kill the fleet. Sessions that are dead already, by
// proof or by their own word, are swept at every tick.
func (s *Server) sweep(ctx context.Context) error {
	var unbrokenSince time.Time
	for {
		sent := time.Now()
		err := s.beat(ctx)
		switch {
		case err != nil:
			unbrokenSince = time.Time{}
		case unbrokenSince.IsZero():
			unbrokenSince = sent
		}
		if err == nil && time.Since(unbrokenSince) >= s.cfg.Lifetimes.SessionTTL {
			err = s.expire(ctx)
		}
		if err == nil {
			err = s.sweepOnce(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("sweep", "err", err)
		}
		if !pause(ctx, sweepEvery) {
			return ctx.Err()
		}
	}
}

// beat must come back well within a TTL to count: a late one proves nothing about the time
// before it.
func (s *Server) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Lifetimes.Renew)
	defer cancel()
	if err := s.ledger.Beat(ctx, s.cfg.Name); err != nil {
		return fmt.Errorf("beat: %w", err)
	}
	return nil
}

func (s *Server) expire(ctx context.Context) error {
	changed, err := s.ledger.ExpireSessions(ctx, s.cfg.Lifetimes)
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
		changes, err := s.ledger.Sweep(ctx, s.cfg.Lifetimes.StartWithin, sweepMax)
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

// look re-reads the tasks of every run that has a stream here: a notify may have been lost.
func (s *Server) look(ctx context.Context) error {
	for {
		if !pause(ctx, lookEvery) {
			return ctx.Err()
		}
		for _, run := range s.hub.runs() {
			views, err := s.ledger.RunTasks(ctx, run)
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
