package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stepfleet/stepfleet"
)

// Bounds of how runs end that were cancelled in Dagster.
const (
	cancelingEvery = 10 * time.Second // asking Dagster for runs that are being cancelled
	cancelingSoon  = time.Second      // the same while one of ours is among them, and after a cancel
	// cancelingGrace is how long a run with nobody left to end it keeps its status. What the run
	// worker or the launcher wrote last may not be visible yet.
	cancelingGrace = 3 * time.Second
)

// concludeCancels ends runs that were cancelled in Dagster and have nobody left who would: their
// run worker was killed, has died or was frozen before it could write RUN_CANCELED. Only runs whose
// run worker is a task here are touched, since of another the ledger does not know that its process
// is gone. A cancel that comes through this replica is looked after soon. Of several replicas one acts,
// or Dagster's log could have two RUN_CANCELED of a run.
func (s *Server) concludeCancels(ctx context.Context) error {
	if s.cfg.Dagster == nil {
		return nil
	}
	bereft := map[string]time.Time{} // runs with nobody left, and since when
	failed := false
	for every := cancelingEvery; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		case <-s.canceled: // and maybe those of many runs at once
			pause(ctx, cancelingSoon)
		}
		busy, err := s.concludeOnce(ctx, bereft)
		failed = s.tellOutage(ctx, failed, err,
			"end runs that were cancelled in Dagster; it is tried again", "runs that were cancelled in Dagster are ended again")
		if every = cancelingEvery; busy && !failed {
			every = cancelingSoon
		}
	}
}

// concludeOnce says whether runs of ours are being cancelled.
func (s *Server) concludeOnce(ctx context.Context, bereft map[string]time.Time) (busy bool, err error) {
	canceling, err := s.cfg.Dagster.CancelingRuns(ctx)
	if err != nil {
		return false, fmt.Errorf("ask Dagster for runs that are being cancelled: %w", err)
	}
	waiting := map[string]bool{}
	var errs []error
	for page := range slices.Chunk(canceling, reconcilePage) {
		runs, err := s.ledger.CarriedRuns(ctx, page)
		errs = append(errs, err)
		if len(runs) > 0 {
			mine, err := s.onDuty(ctx, dutyConclude)
			if errs = append(errs, err); !mine {
				clear(bereft)
				return true, errors.Join(errs...)
			}
		}
		for _, run := range runs {
			waiting[run.RunID] = true
			errs = append(errs, s.conclude(ctx, run, bereft))
		}
	}
	for run := range bereft {
		if !waiting[run] {
			delete(bereft, run)
		}
	}
	return len(waiting) > 0, errors.Join(errs...)
}

// conclude takes one run a step nearer to its end: its run workers are told to stop, if the launcher
// could not; once they are gone its steps are; and once those are gone, too, so is the run.
func (s *Server) conclude(ctx context.Context, run stepfleet.CarriedRun, bereft map[string]time.Time) error {
	const reason = "the run was cancelled in Dagster"
	if run.RunWorkers > 0 {
		delete(bereft, run.RunID)
		if len(run.Untold) == 0 {
			return nil
		}
		var keys []stepfleet.Key
		for _, attempt := range run.Untold {
			keys = append(keys, stepfleet.Key{RunID: run.RunID, StepKey: stepfleet.RunStepKey, Attempt: attempt})
		}
		_, err := s.Cancel(ctx, run.RunID, stepfleet.NoExecutor, keys, reason)
		return err
	}
	changes, err := s.CloseRun(ctx, run.RunID, stepfleet.NoExecutor, reason+" "+stepfleet.RunWorkerGone)
	if err != nil {
		return err
	}
	if run.Steps > 0 || len(changes) > 0 {
		delete(bereft, run.RunID)
		return nil
	}
	since, known := bereft[run.RunID]
	if !known {
		bereft[run.RunID] = time.Now()
	}
	if !known || time.Since(since) < cancelingGrace {
		return nil
	}
	if err := s.cfg.Dagster.MarkCanceled(ctx, run.RunID); err != nil {
		return err
	}
	s.log.Warn("ended a run in Dagster that was cancelled and whose run worker is gone", KeyRun, run.RunID)
	return nil
}
