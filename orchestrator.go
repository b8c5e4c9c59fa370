package stepfleet

import "context"

// Orchestrator is Dagster as the server asks it: whether runs whose steps wait or run here have
// ended there, and which runs wait for an end.
type Orchestrator interface {
	// KnownRuns returns those of the runs that Dagster shows, and whether it shows each as ended. One
	// that it does not may have been deleted, or it is another installation that is asked. It returns
	// ErrUnavailable (wrapped) when it could not be asked.
	KnownRuns(ctx context.Context, runIDs []string) (ended map[string]bool, err error)
	// CancelingRuns returns the runs that were cancelled in Dagster and have not ended there yet,
	// whoever launched them; of very many the newest. It returns ErrUnavailable (wrapped).
	CancelingRuns(ctx context.Context) ([]string, error)
	// MarkCanceled ends the run in Dagster as canceled, whatever is left of it; one that has ended
	// meanwhile stays as it is. It returns ErrUnavailable (wrapped) when Dagster could not be
	// asked or refused.
	MarkCanceled(ctx context.Context, runID string) error
}

// RunWorkerGone is how the reason ends with which a run is closed that was cancelled in Dagster and has no
// run worker any more: from then on MarkCanceled may write its end, and nobody else should.
const RunWorkerGone = "and its run worker is gone"
