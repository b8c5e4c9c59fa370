//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// dagster speaks to Dagster's webserver as its UI does.
type dagster struct{ url, location string }

func connectDagster(url string) (*dagster, error) {
	locations, err := dagsterapi.New(url).Locations(context.Background())
	if err != nil {
		return nil, fmt.Errorf("code locations: %w", err)
	}
	if len(locations) != 1 || locations[0].Error != "" {
		return nil, fmt.Errorf("code locations: %+v", locations)
	}
	return &dagster{url: url, location: locations[0].Name}, nil
}

// ask makes one GraphQL call.
func (d *dagster) ask(query string, variables map[string]any, into any) error {
	body, err := json.Marshal(map[string]any{"query": query, "variables": variables})
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 60 * time.Second}
	response, err := client.Post(d.url+"/graphql", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	var answer struct {
		Data   json.RawMessage
		Errors json.RawMessage
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return fmt.Errorf("graphql answers %s: %.500s", response.Status, raw)
	}
	if len(answer.Errors) > 0 {
		return fmt.Errorf("graphql: %.1000s", answer.Errors)
	}
	return json.Unmarshal(answer.Data, into)
}

// version returns Dagster's own, major and minor.
func (d *dagster) version(t *testing.T) (major, minor int) {
	t.Helper()
	var data struct{ Version string }
	if err := d.ask(`query { version }`, nil, &data); err != nil {
		t.Fatalf("Dagster's version: %v", err)
	}
	if _, err := fmt.Sscanf(data.Version, "%d.%d.", &major, &minor); err != nil {
		t.Fatalf("Dagster's version is %q: %v", data.Version, err)
	}
	return major, minor
}

// config is a run's config: of the executor, and of each op and resource by its name in the job.
type config struct {
	executor  map[string]any
	ops       map[string]any // op name -> its config
	resources map[string]any // resource name -> its config
}

func (c config) json() map[string]any {
	configured := func(parts map[string]any) map[string]any {
		all := map[string]any{}
		for name, part := range parts {
			all[name] = map[string]any{"config": part}
		}
		return all
	}
	executor := c.executor
	if executor == nil {
		executor = map[string]any{}
	}
	whole := map[string]any{"ops": configured(c.ops), "execution": map[string]any{"config": executor}}
	if c.resources != nil {
		whole["resources"] = configured(c.resources)
	}
	return whole
}

// behaviour is an op's config; see Behaviour in e2e_defs.py.
type behaviour map[string]any

// numbered gives the ops NAME_0 to NAME_(n-1) one behaviour, and more ops theirs.
func numbered(name string, n int, b behaviour, more map[string]any) map[string]any {
	ops := map[string]any{}
	for i := range n {
		ops[fmt.Sprintf("%s_%d", name, i)] = b
	}
	for op, other := range more {
		ops[op] = other
	}
	return ops
}

// launch launches a run and returns its id.
func (d *dagster) launch(t *testing.T, job string, c config) string {
	t.Helper()
	var data struct {
		LaunchRun struct {
			Typename string `json:"__typename"`
			Message  string
			Errors   []struct{ Message string }
			Run      struct{ RunID string }
		}
	}
	err := d.ask(`mutation($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } }
  ... on PipelineNotFoundError { message } } }`, map[string]any{"params": map[string]any{
		"selector": map[string]any{
			"repositoryLocationName": d.location, "repositoryName": dagsterapi.Repository, "jobName": job,
		},
		"runConfigData": c.json(),
	}}, &data)
	if err != nil {
		t.Fatalf("launch %s: %v", job, err)
	}
	if data.LaunchRun.Typename != "LaunchRunSuccess" {
		t.Fatalf("launch %s: %+v", job, data.LaunchRun)
	}
	return data.LaunchRun.Run.RunID
}

// status returns a run's status.
func (d *dagster) status(run string) (dagsterapi.RunStatus, error) {
	var data struct {
		RunOrError struct{ Status dagsterapi.RunStatus }
	}
	err := d.ask(`query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }`, map[string]any{"run": run}, &data)
	return data.RunOrError.Status, err
}

// awaitEnd waits until the run has ended, and fails the test when it ended otherwise than wanted.
func (d *dagster) awaitEnd(t *testing.T, timeout time.Duration, run string, want dagsterapi.RunStatus) {
	t.Helper()
	var status dagsterapi.RunStatus
	await(t, timeout, fmt.Sprintf("run %s to end", run), func() (bool, string) {
		var err error
		if status, err = d.status(run); err != nil {
			return false, err.Error()
		}
		return status.Ended(), string(status)
	})
	if status != want {
		for _, e := range d.events(t, run) {
			t.Logf("%s %s %s %s %s", e.Timestamp, e.Type, e.Step, e.Message, e.reason())
		}
		t.Fatalf("run %s ended %s, want %s", run, status, want)
	}
}

// terminate asks Dagster to cancel a run, as the button in its UI does.
func (d *dagster) terminate(t *testing.T, run string) {
	t.Helper()
	d.terminateBy(t, run, "SAFE_TERMINATE")
}

func (d *dagster) terminateBy(t *testing.T, run, policy string) {
	t.Helper()
	var data struct {
		TerminateRun struct {
			Typename string `json:"__typename"`
			Message  string
		}
	}
	err := d.ask(`mutation($run: String!, $policy: TerminateRunPolicy!) { terminateRun(runId: $run, terminatePolicy: $policy) { __typename
  ... on TerminateRunFailure { message }
  ... on RunNotFoundError { message }
  ... on PythonError { message } } }`, map[string]any{"run": run, "policy": policy}, &data)
	if err != nil || data.TerminateRun.Typename != "TerminateRunSuccess" {
		t.Fatalf("terminate run %s: %v %+v", run, err, data.TerminateRun)
	}
}

// event is one event of Dagster's event log.
type event struct {
	Type      string `json:"eventType"`
	Step      string `json:"stepKey"`
	Message   string
	Timestamp string
	Error     *dagsterError
	// Of LOGS_CAPTURED.
	FileKey  string
	StepKeys []string
}

type dagsterError struct {
	Message string
	Causes  []dagsterError
}

// reason is the event's error with its causes.
func (e event) reason() string {
	if e.Error == nil {
		return ""
	}
	text := e.Error.Message
	for _, cause := range e.Error.Causes {
		text += " " + cause.Message
	}
	return text
}

// events returns the run's whole event log.
func (d *dagster) events(t *testing.T, run string) []event {
	t.Helper()
	var events []event
	cursor := ""
	for {
		var data struct {
			LogsForRun struct {
				Typename string `json:"__typename"`
				Message  string
				Events   []event
				Cursor   string
				HasMore  bool
			}
		}
		variables := map[string]any{"run": run}
		if cursor != "" {
			variables["cursor"] = cursor
		}
		ask := func() error {
			return d.ask(`query($run: ID!, $cursor: String) { logsForRun(runId: $run, afterCursor: $cursor, limit: 1000) { __typename
  ... on EventConnection { cursor hasMore events { __typename
    ... on MessageEvent { eventType stepKey message timestamp }
    ... on ErrorEvent { error { message causes { message } } }
    ... on LogsCapturedEvent { fileKey stepKeys } } }
  ... on PythonError { message } } }`, variables, &data)
		}
		// The webserver tries a connection that PostgreSQL's restart has cut, and answers with its error.
		await(t, healthyTimeout, "the event log of run "+run, func() (bool, string) {
			err := ask()
			return err == nil && data.LogsForRun.Typename == "EventConnection", fmt.Sprint(err, data.LogsForRun.Message)
		})
		events = append(events, data.LogsForRun.Events...)
		if !data.LogsForRun.HasMore {
			return events
		}
		cursor = data.LogsForRun.Cursor
	}
}

// logs returns what a step wrote, as Dagster's UI shows it.
func (d *dagster) logs(t *testing.T, run, fileKey string) (stdout, stderr string) {
	t.Helper()
	var data struct {
		CapturedLogs struct{ Stdout, Stderr string }
	}
	err := d.ask(`query($key: [String!]!) { capturedLogs(logKey: $key) { stdout stderr } }`,
		map[string]any{"key": []string{run, "compute_logs", fileKey}}, &data)
	if err != nil {
		t.Fatalf("captured logs of run %s, %s: %v", run, fileKey, err)
	}
	return data.CapturedLogs.Stdout, data.CapturedLogs.Stderr
}
