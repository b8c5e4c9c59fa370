package dagsterlog_test

import (
	"maps"
	"slices"
	"testing"
	"time"
)

// It reads back past more ends than one statement returns, and takes what a step's process of stepfleet has
// written in the window.
func TestRunsOfAWindow(t *testing.T) {
	f := newFixture(t)
	until := time.Now().UTC().Truncate(time.Second)
	from := until.Add(-time.Hour)
	f.exec(`ALTER TABLE event_logs ADD COLUMN timestamp timestamp`)
	const mark = `{"logging_tags": {"stepfleet/attempt": "0"}}`
	write := func(run, event, kind string, at time.Time, times int) {
		f.exec(`INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key)
			SELECT $1, $2, $3, $4, 'a' FROM generate_series(1, $5)`, run, event, kind, at, times)
	}
	write("before", mark, "STEP_SUCCESS", from.Add(-time.Second), 1)
	write("first", mark, "STEP_FAILURE", from, 1)
	write("retried", mark, "STEP_UP_FOR_RETRY", from, 1)
	write("succeeded", mark, "STEP_SUCCESS", from, 1)
	write("theirs", `{"message": "\"stepfleet/attempt\": 0"}`, "STEP_SUCCESS", from, 1)
	write("started", mark, "STEP_START", from, 1)
	write("many", mark, "STEP_SUCCESS", until.Add(-time.Second), 4500)
	write("after", mark, "STEP_SUCCESS", until, 1)
	runs, err := f.log.RunsOf(t.Context(), from, until)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(runs)), []string{"first", "many", "retried", "succeeded"}; !slices.Equal(got, want) {
		t.Errorf("runs %v, want %v", got, want)
	}
}
