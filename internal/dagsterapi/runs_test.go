package dagsterapi_test

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// answering is a webserver that gives one answer, and the question that it was asked last.
func answering(t *testing.T, status int, answer string) (client *dagsterapi.Client, asked func() (query string, variables map[string]any)) {
	t.Helper()
	var question struct {
		Query     string
		Variables map[string]any
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&question); err != nil || r.URL.Path != "/graphql" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(server.Close)
	return dagsterapi.New(server.URL + "/"), func() (string, map[string]any) { return question.Query, question.Variables }
}

func TestCancelingRunsAreThoseOfDagstersStatus(t *testing.T) {
	client, asked := answering(t, http.StatusOK, `{"data": {"runsOrError": {"__typename": "Runs", "results": [
		{"runId": "a", "jobName": "j", "status": "CANCELING", "startTime": 1.5, "endTime": null},
		{"runId": "b", "jobName": "j", "status": "CANCELED", "startTime": null, "endTime": 2}]}}}`)
	runs, err := client.CancelingRuns(t.Context())
	if err != nil || !slices.Equal(runs, []string{"a"}) {
		t.Errorf("%v %v, want the one that is CANCELING", runs, err)
	}
	_, variables := asked()
	filter, _ := json.Marshal(variables["filter"])
	if string(filter) != `{"statuses":["CANCELING"]}` {
		t.Errorf("asked for runs by %s", filter)
	}
}

func TestKnownRunsAreAllThatDagsterShows(t *testing.T) {
	client, asked := answering(t, http.StatusOK, `{"data": {"runsOrError": {"__typename": "Runs", "results": [
		{"runId": "a", "status": "STARTED"}, {"runId": "b", "status": "FAILURE"}]}}}`)
	known, err := client.KnownRuns(t.Context(), []string{"a", "b", "c"})
	if want := map[string]bool{"a": false, "b": true}; err != nil || !maps.Equal(known, want) {
		t.Errorf("%v %v, want %v", known, err, want)
	}
	_, variables := asked()
	if filter, _ := json.Marshal(variables["filter"]); string(filter) != `{"runIds":["a","b","c"]}` {
		t.Errorf("asked for runs by %s", filter)
	}
	for _, answer := range []string{
		`{"data": {"runsOrError": {"__typename": "PythonError", "message": "no database"}}}`,
		`{"data": {"runsOrError": null}}`, `{"data": null}`, `{}`,
	} {
		client, _ := answering(t, http.StatusOK, answer)
		if known, err := client.KnownRuns(t.Context(), []string{"a"}); !errors.Is(err, stepfleet.ErrUnavailable) {
			t.Errorf("%s: %v %v, which is no answer", answer, known, err)
		}
	}
}

func TestARunIsMarkedWithoutAskingItsLauncher(t *testing.T) {
	client, asked := answering(t, http.StatusOK, `{"data": {"terminateRun": {"__typename": "TerminateRunSuccess"}}}`)
	if err := client.MarkCanceled(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	query, variables := asked()
	if variables["run"] != "a" || !strings.Contains(query, "terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY") {
		t.Errorf("asked %s of %v", query, variables)
	}
}

func TestAnAnswerThatLeavesTheRunAsItIsIsAnError(t *testing.T) {
	failure := func(status string) string {
		return `{"data": {"terminateRun": {"__typename": "TerminateRunFailure", "message": "no", "run": {"status": "` + status + `"}}}}`
	}
	for name, c := range map[string]struct {
		status int
		answer string
		ok     bool
	}{
		"it has ended meanwhile": {http.StatusOK, failure("CANCELED"), true},
		"it has succeeded":       {http.StatusOK, failure("SUCCESS"), true},
		"no permission":          {http.StatusOK, failure("CANCELING"), false},
		"read-only webserver":    {http.StatusOK, `{"data": {"terminateRun": {"__typename": "UnauthorizedError", "message": "no"}}}`, false},
		"unknown":                {http.StatusOK, `{"data": {"terminateRun": {"__typename": "RunNotFoundError", "message": "no"}}}`, false},
		"an error of Dagster's":  {http.StatusOK, `{"data": {"terminateRun": {"__typename": "PythonError", "message": "no"}}}`, false},
		"another schema":         {http.StatusBadRequest, `{"errors": [{"message": "no such field"}]}`, false},
		"no Dagster":             {http.StatusBadGateway, `<html>`, false},
	} {
		t.Run(name, func(t *testing.T) {
			client, _ := answering(t, c.status, c.answer)
			err := client.MarkCanceled(t.Context(), "a")
			if (err == nil) != c.ok || err != nil && !errors.Is(err, stepfleet.ErrUnavailable) {
				t.Errorf("%v", err)
			}
		})
	}
}
