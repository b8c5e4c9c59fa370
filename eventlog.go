package stepfleet

import "context"

// Dagster's events that end an attempt of a step, as its log calls them.
const (
	EventSuccess = "STEP_SUCCESS"
	EventFailure = "STEP_FAILURE"
	EventRetry   = "STEP_UP_FOR_RETRY"
	// EventResources ends what the step's process does; the run worker then writes one of the others.
	EventResources = "RESOURCE_INIT_FAILURE"
)

// Endings are the events that end an attempt.
var Endings = []string{EventSuccess, EventFailure, EventRetry, EventResources}

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
// A failure of the resources and what follows it are of one attempt.
func (o Orphan) EndingOf(events []string) string {
	n := o.Attempt - o.FirstAttempt
	for i, event := range events {
		if event == EventResources && i+1 < len(events) {
			continue
		}
		if n == 0 {
			return event
		}
		n--
	}
	return ""
}
