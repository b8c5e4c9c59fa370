package dispatch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stepfleet/stepfleet"
)

// Bounds of the comparison with Dagster.
const (
	reconcileEvery = 10 * time.Second
	reconcilePage  = 100 // runs in one question
)

// reconcile closes runs that Dagster shows as ended and that nobody has closed here: their run
// worker was killed, or somebody ended them in Dagster by force, or deleted them. Without it their steps would go
// on, and their waiting ones would still start. It also ends again what a CloseRun that was cut
// short has left open.
func (s *Server) reconcile(ctx context.Context) error {
	failed := false
	for pause(ctx, reconcileEvery) {
		err := s.ReconcileTurn(ctx)
		failed = s.tellOutage(ctx, failed, err, "compare open runs with Dagster", "open runs are compared with Dagster again")
	}
	return ctx.Err()
}

// tellOutage logs the first of several failures and the success that ends them, and says whether
// this try has failed.
func (s *Server) tellOutage(ctx context.Context, failedBefore bool, err error, what, again string) (failed bool) {
	switch {
	case ctx.Err() != nil:
	case err != nil && !failedBefore:
		s.log.Warn(what, "err", err)
	case err == nil && failedBefore:
		s.log.Info(again)
	}
	return err != nil
}

// ReconcileTurn is one comparison of all open runs.
func (s *Server) ReconcileTurn(ctx context.Context) error {
	if mine, err := s.onDuty(ctx, dutyReconcile); err != nil || !mine {
		s.sightings.doubt()
		return err
	}
	open := map[string]bool{}
	for after := ""; ; {
		page, err := s.ledger.OpenRuns(ctx, after, reconcilePage)
		if err != nil {
			return fmt.Errorf("list open runs: %w", err)
		}
		var ask []string
		for _, run := range page {
			if !run.Closed {
				ask = append(ask, run.RunID)
				open[run.RunID] = true
			} else if _, err := s.CloseRun(ctx, run.RunID, run.ClosedBy, "the run is closed"); err != nil {
				return err
			}
		}
		if err := s.closeEnded(ctx, ask); err != nil {
			return err
		}
		if len(page) < reconcilePage {
			s.sightings.forget(open)
			return nil
		}
		after = page[len(page)-1].RunID
	}
}

func (s *Server) closeEnded(ctx context.Context, runIDs []string) error {
	if s.cfg.Dagster == nil || len(runIDs) == 0 {
		return nil
	}
	known, err := s.cfg.Dagster.KnownRuns(ctx, s.sightings.question(runIDs))
	if err != nil {
		s.sightings.doubt()
		return fmt.Errorf("ask Dagster for %d runs: %w", len(runIDs), err)
	}
	var errs []error
	for _, run := range runIDs {
		if known[run] {
			errs = append(errs, s.closeOver(ctx, run, "Dagster shows the run as ended"))
		}
	}
	for _, run := range s.sightings.hear(runIDs, known, s.cfg.Now()) {
		errs = append(errs, s.closeOver(ctx, run, "the run was deleted in Dagster"))
	}
	return errors.Join(errs...)
}

// closeOver closes a run that is over in Dagster.
func (s *Server) closeOver(ctx context.Context, run, reason string) error {
	changes, err := s.CloseRun(ctx, run, stepfleet.NoExecutor, reason)
	if len(changes) > 0 {
		s.log.Warn("closed a run that is over in Dagster", KeyRun, run, "reason", reason, "open_tasks", len(changes))
	}
	return err
}
