package dagsterapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stepfleet/stepfleet"
)

// RunStatus is Dagster's status of a run.
type RunStatus string

// The statuses in which a run stays.
const (
	RunSuccess  RunStatus = "SUCCESS"
	RunFailure  RunStatus = "FAILURE"
	RunCanceled RunStatus = "CANCELED"
)

// RunCanceling is the status of a run that was cancelled and has yet to end.
const RunCanceling RunStatus = "CANCELING"

// Ended reports whether the status is final.
func (s RunStatus) Ended() bool { return s == RunSuccess || s == RunFailure || s == RunCanceled }

// Run is a run as Dagster sees it.
type Run struct {
	ID     string    `json:"runId"`
	Job    string    `json:"jobName"`
	Status RunStatus `json:"status"`
	// StartTime and EndTime are Unix seconds, 0 while there is none.
	StartTime float64 `json:"startTime"`
	EndTime   float64 `json:"endTime"`
}

// Launch says what to launch. Key is this launch's own: it is put on the run as a tag, so that a
// launch whose answer was lost can be found instead of made again.
type Launch struct {
	Location string
	Job      string
	Tags     map[string]string
	Key      string
}

// LaunchTag is the tag that carries Launch.Key.
const LaunchTag = "stepfleet/launch_key"

// A launch is looked up and tried again this often, this far apart.
const (
	launchTries    = 4
	launchInterval = time.Second
)

const launchMutation = `mutation($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
  ... on LaunchRunSuccess { run { runId jobName status } }
  ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } }
  ... on PipelineNotFoundError { message }
  ... on InvalidSubsetError { message }
  ... on UnauthorizedError { message } } }`

// LaunchRun launches a run once. When the answer is lost it looks the run up by its key before it
// launches again.
func (c *Client) LaunchRun(ctx context.Context, l Launch) (Run, error) {
	var last error
	for try := range launchTries {
		if try > 0 {
			select {
			case <-ctx.Done():
				return Run{}, errors.Join(last, ctx.Err())
			case <-time.After(launchInterval):
			}
			runs, err := c.Runs(ctx, LaunchTag, l.Key)
			if err != nil {
				last = err
				continue
			}
			if len(runs) > 0 {
				return runs[0], nil
			}
		}
		run, refused, err := c.launch(ctx, l)
		if err == nil {
			return run, nil
		}
		if last = err; refused {
			break
		}
	}
	return Run{}, fmt.Errorf("launch %s: %w", l.Job, last)
}

// launch asks once. Refused says that Dagster answered, and asking again is no use.
func (c *Client) launch(ctx context.Context, l Launch) (run Run, refused bool, err error) {
	tags := []map[string]string{{"key": LaunchTag, "value": l.Key}}
	for key, value := range l.Tags {
		tags = append(tags, map[string]string{"key": key, "value": value})
	}
	params := map[string]any{
		"selector": map[string]any{
			"repositoryLocationName": l.Location, "repositoryName": Repository, "jobName": l.Job,
		},
		"runConfigData":     map[string]any{},
		"executionMetadata": map[string]any{"tags": tags},
	}
	var data struct {
		Launch struct {
			typed
			Run Run `json:"run"`
		} `json:"launchRun"`
	}
	if err := c.call(ctx, launchMutation, map[string]any{"params": params}, &data); err != nil {
		return Run{}, false, err
	}
	return data.Launch.Run, true, data.Launch.want("LaunchRunSuccess")
}

// maxRuns bounds one list of runs.
const maxRuns = 1000

const (
	runsQuery   = runsBegin + `runId jobName status startTime endTime` + runsEnd
	statusQuery = runsBegin + `runId status` + runsEnd // its cost does not grow with what a run has done

	runsBegin = `query($filter: RunsFilter!, $limit: Int!) { runsOrError(filter: $filter, limit: $limit) { __typename
  ... on PythonError { message }
  ... on InvalidPipelineRunsFilterError { message }
  ... on Runs { results { `
	runsEnd = ` } } } }`
)

// KnownRuns implements stepfleet.Orchestrator.
func (c *Client) KnownRuns(ctx context.Context, runIDs []string) (map[string]bool, error) {
	runs, err := c.list(ctx, statusQuery, map[string]any{"runIds": runIDs})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", stepfleet.ErrUnavailable, err)
	}
	ended := map[string]bool{}
	for _, run := range runs {
		ended[run.ID] = run.Status.Ended()
	}
	return ended, nil
}

// CancelingRuns implements stepfleet.Orchestrator.
func (c *Client) CancelingRuns(ctx context.Context) ([]string, error) {
	runs, err := c.runs(ctx, map[string]any{"statuses": []RunStatus{RunCanceling}})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", stepfleet.ErrUnavailable, err)
	}
	canceling := make([]string, 0, len(runs))
	for _, run := range runs {
		if run.Status == RunCanceling {
			canceling = append(canceling, run.ID)
		}
	}
	return canceling, nil
}

// Of a run that is CANCELING this policy asks no launcher: Dagster reads the run's status again and
// writes RUN_CANCELED if the run still has no end.
const markMutation = `mutation($run: String!) { terminateRun(runId: $run, terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) { __typename
  ... on TerminateRunFailure { message run { status } }
  ... on RunNotFoundError { message }
  ... on UnauthorizedError { message }
  ... on PythonError { message } } }`

// MarkCanceled implements stepfleet.Orchestrator.
func (c *Client) MarkCanceled(ctx context.Context, runID string) error {
	var data struct {
		Terminate struct {
			typed
			Run Run `json:"run"`
		} `json:"terminateRun"`
	}
	err := c.call(ctx, markMutation, map[string]any{"run": runID}, &data)
	if err == nil && !data.Terminate.Run.Status.Ended() {
		err = data.Terminate.want("TerminateRunSuccess")
	}
	if err != nil {
		return fmt.Errorf("%w: mark run %s as canceled: %w", stepfleet.ErrUnavailable, runID, err)
	}
	return nil
}

// Runs returns the runs that carry the tag, newest first.
func (c *Client) Runs(ctx context.Context, tag, value string) ([]Run, error) {
	return c.runs(ctx, map[string]any{"tags": []map[string]string{{"key": tag, "value": value}}})
}

func (c *Client) runs(ctx context.Context, filter map[string]any) ([]Run, error) {
	return c.list(ctx, runsQuery, filter)
}

func (c *Client) list(ctx context.Context, query string, filter map[string]any) ([]Run, error) {
	var data struct {
		Runs struct {
			typed
			Results []Run `json:"results"`
		} `json:"runsOrError"`
	}
	if err := c.call(ctx, query, map[string]any{"filter": filter, "limit": maxRuns}, &data); err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	return data.Runs.Results, data.Runs.want("Runs")
}

const terminateMutation = `mutation($run: String!) { terminateRun(runId: $run, terminatePolicy: SAFE_TERMINATE) { __typename
  ... on TerminateRunFailure { message }
  ... on RunNotFoundError { message }
  ... on UnauthorizedError { message }
  ... on PythonError { message } } }`

// TerminateRun asks for a run's end as Dagster's UI does: its launcher is asked, and the run is
// CANCELING until its run worker has ended it.
func (c *Client) TerminateRun(ctx context.Context, runID string) error {
	var data struct {
		Terminate typed `json:"terminateRun"`
	}
	if err := c.call(ctx, terminateMutation, map[string]any{"run": runID}, &data); err != nil {
		return fmt.Errorf("terminate run %s: %w", runID, err)
	}
	return data.Terminate.want("TerminateRunSuccess")
}
