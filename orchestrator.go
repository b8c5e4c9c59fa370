package stepfleet

import "context"

// Orchestrator is Dagster as the server asks it: whether runs whose steps wait or run here have
// ended there.
type Orchestrator interface {
	// EndedRuns returns those of the runs that Dagster shows as ended. Runs it does not know are
	// not among them: it may be another installation that is asked. It returns ErrUnavailable
	// (wrapped) when it could not be asked.
	EndedRuns(ctx context.Context, runIDs []string) ([]string, error)
}
