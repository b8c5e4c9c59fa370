//go:build linux

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// scheduleTimeout is a whole minute to the next tick, and the time of the run.
const scheduleTimeout = 60*time.Second + inputTimeout

// exampleSchedules has the example project's schedules tick every minute, and their steps be instant.
var exampleSchedules = []string{
	"STEPFLEET_EXAMPLE_SCHEDULES=on", "STEPFLEET_EXAMPLE_CRON=* * * * *", "STEPFLEET_TIME_SCALE=0.001",
	"STEPFLEET_EXAMPLE_FAST_OPS=2", "STEPFLEET_EXAMPLE_SLOW_OPS=1",
}

// testScheduleTicks is a part of TestStackStopsCleanlyAndGoesOn: nobody but Dagster's daemon
// launches the run.
func testScheduleTicks(t *testing.T, d *dev) {
	client := dagsterapi.New(d.dagster.url)
	var run dagsterapi.Run
	await(t, scheduleTimeout, "a run of the schedule to end", func() (bool, string) {
		runs, err := client.Runs(t.Context(), "dagster/schedule_name", "mixed_schedule")
		if err != nil {
			return false, err.Error()
		}
		for _, run = range runs {
			if run.Status.Ended() {
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v", runs)
	})
	d.dagster.awaitEnd(t, inputTimeout, run.ID, dagsterapi.RunSuccess)
	wantTasks(t, d, run.ID, 3)
}
