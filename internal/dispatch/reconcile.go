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
// worker was killed, or somebody ended them in Dagster by force. Without it their steps would go
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
		return err
	}
	for after := ""; ; {
		page, err := s.ledger.OpenRuns(ctx, after, reconcilePage)
		if err != nil {
			return fmt.Errorf("list open runs: %w", err)
		}
		var ask []string
		for _, run := range page {
			if !run.Closed {
				ask = append(ask, run.RunID)
			} else if _, err := s.CloseRun(ctx, run.RunID, run.ClosedBy, "the run is closed"); err != nil {
				return err
			}
		}
		if err := s.closeEnded(ctx, ask); err != nil {
			return err
		}
		if len(page) < reconcilePage {
			return nil
		}
		after = page[len(page)-1].RunID
	}
}

func (s *Server) closeEnded(ctx context.Context, runIDs []string) error {
	if s.cfg.Dagster == nil || len(runIDs) == 0 {
		return nil
	}
	ended, err := s.cfg.Dagster.EndedRuns(ctx, runIDs)
	if err != nil {
		return fmt.Errorf("ask Dagster for %d runs: %w", len(runIDs), err)
	}
	var errs []error
	for _, run := range ended {
		changes, err := s.CloseRun(ctx, run, stepfleet.NoExecutor, "Dagster shows the run as ended")
		errs = append(errs, err)
		if len(changes) > 0 {
			s.log.Warn("closed a run that had ended in Dagster", KeyRun, run, "open_tasks", len(changes))
		}
	}
	return errors.Join(errs...)
}
