package conformance

import (
	"fmt"

	"github.com/stepfleet/stepfleet"
)

// CheckHistory checks a run's audit rows against the state machine, and against where the run's
// tasks stand: each row is a line of stepfleet.Transitions that continues the one before, the
// fence follows its rule, no task starts twice, a terminal state never changes, and the rows
// alone give each task's state and fence.
func CheckHistory(rows []stepfleet.AuditRow, views []stepfleet.View) error {
	type life struct {
		state  stepfleet.State
		fence  stepfleet.Fence
		starts int
	}
	lives := map[stepfleet.TaskID]life{}
	var lastID int64
	for _, row := range rows {
		if row.ID <= lastID {
			return fmt.Errorf("audit row %d comes after %d", row.ID, lastID)
		}
		lastID = row.ID
		if row.Refused != "" || row.TaskID == 0 {
			continue
		}
		was := lives[row.TaskID]
		if row.From != was.state {
			return fmt.Errorf("task %d was %q, audit row %+v begins at another state", row.TaskID, was.state, row)
		}
		rule, ok := ruleOf(row)
		if !ok {
			return fmt.Errorf("task %d: audit row %+v is no transition", row.TaskID, row)
		}
		if want := map[stepfleet.FenceRule]stepfleet.Fence{
			stepfleet.FenceZero: 0, stepfleet.FenceKeep: was.fence, stepfleet.FenceRaise: was.fence + 1,
		}[rule.Fence]; row.Fence != want {
			return fmt.Errorf("task %d: audit row %+v should have fence %d", row.TaskID, row, want)
		}
		if row.Verb == stepfleet.VerbStart {
			was.starts++
		}
		if was.starts > 1 {
			return fmt.Errorf("task %d started twice", row.TaskID)
		}
		lives[row.TaskID] = life{row.To, row.Fence, was.starts}
	}
	for _, v := range views {
		if l := lives[v.ID]; l.state != v.State || l.fence != v.Fence {
			return fmt.Errorf("task %d is %s with fence %d, its audit says %s with %d", v.ID, v.State, v.Fence, l.state, l.fence)
		}
		delete(lives, v.ID)
	}
	if len(lives) > 0 {
		return fmt.Errorf("the audit knows %d tasks that the run does not have", len(lives))
	}
	return nil
}

func ruleOf(row stepfleet.AuditRow) (stepfleet.Transition, bool) {
	for _, rule := range stepfleet.Transitions {
		if rule.Verb == row.Verb && rule.From == row.From && rule.To == row.To {
			return rule, true
		}
	}
	return stepfleet.Transition{}, false
}
