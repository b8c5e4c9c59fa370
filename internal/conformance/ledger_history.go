package conformance

import (
	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
)

// CheckHistory checks a run's audit rows against the state machine, and against where the run's
// tasks stand.
func CheckHistory(rows []stepfleet.AuditRow, views []stepfleet.View) error {
	return audit.CheckRun(rows, views)
}
