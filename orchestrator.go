package stepfleet

import "context"

// Orchestrator is Dagster as the server asks it: whether runs whose steps wait or run here have
// ended there, and which runs wait for an end.
type Orchestrator interface {
	// EndedRuns returns those of the runs that Dagster shows as ended. Runs it does not know are
	// not among them: it may be another installation that is asked. It returns ErrUnavailable
	// (wrapped) when it could not be asked.
	EndedRuns(ctx context.Context, runIDs []string) ([]string, error)
	// CancelingRuns returns the runs that were cancelled in Dagster and have not ended there yet,
	// whoever launched them; of very many the newest. It returns ErrUnavailable (wrapped).
	CancelingRuns(ctx context.Context) ([]string, error)
	// MarkCanceled ends the run in Dagster as canceled, whatever is left of it; one that has ended
	// meanwhile stays as it is. It returns ErrUnavailable (wrapped) when Dagster could not be
	// asked or refused.
	MarkCanceled(ctx context.Context, runID string) error
}
