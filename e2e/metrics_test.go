//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// scraped are the series that each process has once a run has succeeded.
var scraped = map[string][]string{
	"server": {
		"task_queue_wait_seconds_count", "queue_oldest_age_seconds", "workers", "sqs_requests_total", "db_pool_connections",
		"db_pool_waits_total", "build_info",
	},
	"worker": {
		`tasks_total{outcome="succeeded",`, "task_claim_seconds_count", "step_start_overhead_seconds_count{mode=", "task_execution_seconds_count",
		`task_deliveries_total{kind="first",`, `lease_renewals_total{result="ok"}`, `python_children{state="idle"}`, "sqs_requests_total",
		"db_pool_connections", "db_pool_waits_total", "build_info",
	},
	"aws": {"aws_calls_total", "build_info"},
}

func testMetricsOfEveryProcess(t *testing.T, d *dev) {
	urls := map[string]string{"server": d.server.url, "worker": d.workerURL(t), "aws": d.state().URLs["aws"]}
	for process, names := range scraped {
		// After an outage the server's gauges of queues are there again with its next look at the ledger.
		await(t, healthyTimeout, "every series of "+process, func() (bool, string) {
			text, err := (&server{urls[process], d.server.token}).read("/metrics")
			if err != nil {
				t.Fatalf("%s: %v", process, err)
			}
			missing := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return strings.Contains(string(text), "\nstepfleet_"+name) })
			return len(missing) == 0, fmt.Sprint("missing: ", missing)
		})
	}
}
