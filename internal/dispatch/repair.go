package dispatch

import (
	"context"
	"fmt"

	"github.com/stepfleet/stepfleet"
)

// decideOrphans ends the running tasks that nobody owns.
func (s *Server) decideOrphans(ctx context.Context) error {
	for after := stepfleet.TaskID(0); ; {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		page, err := s.ledger.Orphans(call, after, sweepMax)
		cancel()
		if err != nil {
			return fmt.Errorf("list tasks that nobody owns: %w", err)
		}
		if len(page) == 0 {
			return nil
		}
		var decisions []stepfleet.Decision
		for _, o := range page {
			decisions = append(decisions, o.Decide("", o.Reason))
		}
		call, cancel = context.WithTimeout(ctx, callTimeout)
		changes, err := s.ledger.Decide(call, decisions)
		cancel()
		if err != nil {
			return fmt.Errorf("decide tasks that nobody owns: %w", err)
		}
		for _, c := range changes {
			s.log.Warn("swept", KeyTask, c.TaskID, KeyRun, c.RunID, "step_key", c.StepKey, "from", c.From, "to", c.To)
		}
		s.publish(ctx, changes)
		if len(page) < sweepMax {
			return nil
		}
		after = page[len(page)-1].TaskID
	}
}
