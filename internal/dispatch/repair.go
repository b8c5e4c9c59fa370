package dispatch

import (
	"context"
	"fmt"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/mutant"
)

// Bounds of how tasks end that have lost their owner while they ran.
const (
	repairEvery = time.Second            // looking for some
	repairSoon  = 100 * time.Millisecond // the same while writes to Dagster's log may be under way
	// inFlightMargin is how much longer than a statement may take such writes are waited for: one that
	// is still there is stuck, and its task must end.
	inFlightMargin = 5 * time.Second
)

// Duties that one server has at a time. The holder prolongs its hold as long as there is something
// to do; a holder that dies is followed within dutyHold.
const (
	dutyRepair    = "repair"
	dutyReconcile = "reconcile"
	dutyConclude  = "conclude"
	dutyHold      = 5 * time.Second
)

// onDuty says whether this replica is the one that acts.
func (s *Server) onDuty(ctx context.Context, duty string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	taken, err := s.ledger.TakeDuty(ctx, duty, s.cfg.Name, dutyHold)
	if err != nil {
		return false, fmt.Errorf("take duty %s: %w", duty, err)
	}
	return taken, nil
}

// repair decides how running tasks ended that nobody owns: their worker's session is dead, or their
// worker does not know. Dagster's log has the last word: an attempt whose end it shows takes that
// outcome, and only one of which it shows, and can show, nothing is lost.
func (s *Server) repair(ctx context.Context) error {
	var log LogOutage
	failed := false
	for every := repairEvery; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		case <-s.orphaned: // some are there for certain
		}
		waiting, err := s.RepairTurn(ctx, &log)
		failed = s.tellOutage(ctx, failed, err, "decide how tasks ended that nobody owns", "tasks that nobody owns are decided again")
		if every = repairEvery; waiting && !failed {
			every = repairSoon
		}
	}
}

// RepairTurn decides what can be decided, and says whether some wait for writes under way.
func (s *Server) RepairTurn(ctx context.Context, log *LogOutage) (waiting bool, err error) {
	for after := stepfleet.TaskID(0); ; {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		page, err := s.ledger.Orphans(call, after, sweepMax)
		cancel()
		if err != nil || len(page) == 0 {
			return waiting, err
		}
		if mine, err := s.onDuty(ctx, dutyRepair); err != nil || !mine {
			return false, err
		}
		decisions, wait, logErr := s.judge(ctx, page, log)
		waiting = waiting || wait
		if err := s.decide(ctx, decisions); err != nil {
			return waiting, err
		}
		if logErr != nil || len(page) < sweepMax {
			return waiting, logErr
		}
		after = page[len(page)-1].TaskID
	}
}

func (s *Server) decide(ctx context.Context, decisions []stepfleet.Decision) error {
	if len(decisions) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	changes, err := s.ledger.Decide(ctx, decisions)
	if err != nil {
		return err
	}
	for _, c := range changes {
		s.log.Warn("ended a task that nobody owned", KeyTask, c.TaskID, KeyRun, c.RunID, "step_key", c.StepKey, "to", c.To)
	}
	s.publish(ctx, changes)
	return nil
}

// judge asks the log about the steps among the orphans. A run worker is no step of the log's.
func (s *Server) judge(ctx context.Context, page []stepfleet.Orphan, log *LogOutage) (out []stepfleet.Decision, waiting bool, err error) {
	var steps []stepfleet.Orphan
	for _, o := range page {
		if o.Kind == stepfleet.KindStep && s.cfg.EventLog != nil && !mutant.RepairIgnoresLog {
			steps = append(steps, o)
		} else {
			out = append(out, o.Decide("", o.Reason))
		}
	}
	if len(steps) == 0 {
		return out, false, nil
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	endings, err := s.cfg.EventLog.Endings(call, steps)
	cancel()
	log.note(err, s.cfg.Now())
	if err != nil {
		for _, o := range steps {
			if log.over(o, s.cfg.EventLogPatience, s.cfg.Now()) {
				out = append(out, o.Decide("", o.Reason+"; whether Dagster's log has the attempt's end is not known: it could not be asked"))
			}
		}
		return out, false, fmt.Errorf("ask Dagster's log how %d attempts ended: %w", len(steps), err)
	}
	for i, o := range steps {
		switch end := endings[i]; {
		case end.Event != "":
			out = append(out, o.Decide(end.Event, "Dagster's log has its "+end.Event+"; "+o.Reason))
		case end.Final:
			out = append(out, o.Decide("", o.Reason))
		case o.Gone >= o.InFlight+inFlightMargin:
			out = append(out, o.Decide("", o.Reason+"; Dagster's log has no end of it, with writes still under way"))
		default:
			waiting = true
		}
	}
	return out, waiting, nil
}

// LogOutage is since when the log could not be asked.
type LogOutage struct{ began time.Time }

func (l *LogOutage) note(err error, now time.Time) {
	switch {
	case err == nil:
		*l = LogOutage{}
	case l.began.IsZero():
		l.began = now
	}
}

// over says whether the orphan has waited for the log long enough; without a limit it never has.
func (l *LogOutage) over(o stepfleet.Orphan, patience time.Duration, now time.Time) bool {
	return patience > 0 && o.Gone >= patience && now.Sub(l.began) >= patience
}
