package stepfleet

import "context"

// Dagster's events that end an attempt of a step, as its log calls them.
const (
	EventSuccess = "STEP_SUCCESS"
	EventFailure = "STEP_FAILURE"
	EventRetry   = "STEP_UP_FOR_RETRY"
)

// Ending is what Dagster's log shows of an orphan's end.
type Ending struct {
	// Event is the attempt's ending event; empty: there is none.
	Event string
	// Final says of an attempt without an event that none can come any more: what its process had
	// sent before it was gone is committed or never will be.
	Final bool
}

// EventLog is Dagster's event log as the sweep asks it.
type EventLog interface {
	// Endings returns how the orphans' attempts ended, in the order of the request. The n-th end of
	// a step in its run's log is that of its n-th attempt there. It returns ErrUnavailable
	// (wrapped) when the log could not be asked.
	Endings(ctx context.Context, orphans []Orphan) ([]Ending, error)
}

// EndingOf picks the orphan's among the ending events of its step in the run's log, oldest first.
func (o Orphan) EndingOf(events []string) string {
	if n := o.Attempt - o.FirstAttempt; n >= 0 && n < len(events) {
		return events[n]
	}
	return ""
}
