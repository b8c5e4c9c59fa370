//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net/http"
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
			text := scrape(t, urls[process], d.server.token)
			missing := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return strings.Contains(text, "\nstepfleet_"+name) })
			return len(missing) == 0, fmt.Sprint("missing: ", missing)
		})
	}
}

func scrape(t *testing.T, url, token string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s answers %s, %v: %s", url, answer.Status, err, text)
	}
	return string(text)
}
