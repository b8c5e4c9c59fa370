package dagsterlog_test

import (
	"maps"
	"slices"
	"testing"
	"time"
)

const mark = `{"logging_tags": {"stepfleet/attempt": "0"}}`

// Of a start nobody says whose it is, also where it has a mark.
func TestOnlyEndsAreOurs(t *testing.T) {
	f := newFixture(t)
	f.exec(`ALTER TABLE event_logs ADD COLUMN timestamp timestamp`)
	for _, kind := range []string{"STEP_START", "STEP_UP_FOR_RETRY", "STEP_SUCCESS"} {
		for _, event := range []string{mark, "{}"} {
			f.exec(`INSERT INTO event_logs (run_id, step_key, dagster_event_type, event) VALUES ('r', 'a', $1, $2)`, kind, event)
		}
	}
	var ours []bool
	for e, err := range f.log.Events(t.Context(), []string{"r"}, []string{"STEP_START", "STEP_UP_FOR_RETRY", "STEP_SUCCESS"}) {
		if err != nil {
			t.Fatal(err)
		}
		ours = append(ours, e.Ours)
	}
	if want := []bool{false, false, true, false, true, false}; !slices.Equal(ours, want) {
		t.Errorf("ours %v, want %v", ours, want)
	}
}

// It reads back past more ends than one statement returns, and takes what a step's process of stepfleet has
// written in the window. The text of what is outside is not read.
func TestRunsOfAWindow(t *testing.T) {
	f := newFixture(t)
	until := time.Now().UTC().Truncate(time.Second)
	from := until.Add(-time.Hour)
	f.exec(`ALTER TABLE event_logs ADD COLUMN timestamp timestamp`)
	const unread = "whoever reads it fails"
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
	write("after", unread, "STEP_FAILURE", until, 1)
	write("before", unread, "STEP_FAILURE", from.Add(-time.Second), 1)
	f.exec(`ALTER TABLE event_logs RENAME TO written`)
	f.exec(`CREATE VIEW event_logs AS SELECT id, run_id, dagster_event_type, timestamp, step_key,
		CASE event WHEN '` + unread + `' THEN (1 / (id - id))::text ELSE event END AS event FROM written`)
	runs, err := f.log.RunsOf(t.Context(), from, until)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(runs)), []string{"first", "many", "retried", "succeeded"}; !slices.Equal(got, want) {
		t.Errorf("runs %v, want %v", got, want)
	}
}
