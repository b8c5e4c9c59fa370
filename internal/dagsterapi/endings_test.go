package dagsterapi_test

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
)

func TestEndingsAreReadFromTheRunsLog(t *testing.T) {
	client, asked := answering(t, http.StatusOK, `{"data": {"logsForRun": {"__typename": "EventConnection", "cursor": "c", "hasMore": false, "events": [
		{"stepKey": "a", "eventType": "STEP_START"}, {"stepKey": "a", "eventType": "STEP_UP_FOR_RETRY"}, {},
		{"stepKey": "b", "eventType": "STEP_SUCCESS"}, {"stepKey": "a", "eventType": "STEP_FAILURE"}]}}}`)
	var orphans []stepfleet.Orphan
	for _, step := range []string{"a", "b"} {
		for attempt := range 2 {
			orphans = append(orphans, stepfleet.Orphan{
				Key: stepfleet.Key{RunID: "r", StepKey: step, Attempt: attempt}, Gone: time.Duration(attempt) * 4 * time.Second,
			})
		}
	}
	got, err := client.Endings(t.Context(), orphans)
	if err != nil {
		t.Fatal(err)
	}
	want := []stepfleet.Ending{
		{Event: stepfleet.EventRetry},
		{Event: stepfleet.EventFailure, Final: true},
		{Event: stepfleet.EventSuccess},
		{Final: true},
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%s: %+v, want %+v", orphans[i].Key, got[i], want[i])
		}
	}
	if _, variables := asked(); variables["run"] != "r" {
		t.Errorf("asked of %v", variables)
	}
}

func TestARunThatDagsterForgotHasNoEndings(t *testing.T) {
	orphans := []stepfleet.Orphan{{Key: stepfleet.Key{RunID: "r", StepKey: "a"}, Gone: time.Minute}}
	client, _ := answering(t, http.StatusOK, `{"data": {"logsForRun": {"__typename": "RunNotFoundError", "message": "no"}}}`)
	if got, err := client.Endings(t.Context(), orphans); err != nil || got[0] != (stepfleet.Ending{Final: true}) {
		t.Errorf("%+v %v", got, err)
	}
	client, _ = answering(t, http.StatusOK, `{"data": {"logsForRun": {"__typename": "PythonError", "message": "no"}}}`)
	if _, err := client.Endings(t.Context(), orphans); !errors.Is(err, stepfleet.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}
