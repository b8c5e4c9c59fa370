package localaws_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/clock"
)

// TestResetForgetsTheMetricsOfQueues has a queue that is made again by its name, with more sends
// than the one before had.
func TestResetForgetsTheMetricsOfQueues(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	now := clock.NewManual(start)
	local := localaws.New(localaws.Options{Clock: now, Metrics: true})
	send := func(n int) {
		post(local, "AmazonSQS.CreateQueue", `{"QueueName":"q"}`, nil)
		for range n {
			if w := post(local, "AmazonSQS.SendMessage", `{"QueueUrl":"q","MessageBody":"x"}`, nil); w.Code != 200 {
				t.Fatal(w.Body)
			}
		}
		now.Advance(time.Minute)
	}
	send(5)
	local.Reset()
	send(7)
	w := post(local, "GraniteServiceVersion20100801.GetMetricStatistics", fmt.Sprintf(`{"Namespace":"AWS/SQS","MetricName":"NumberOfMessagesSent",
		"Dimensions":[{"Name":"QueueName","Value":"q"}],"StartTime":%d,"EndTime":%d,"Period":60,"Statistics":["Sum"]}`, start.Unix()-3600, start.Unix()+3600), nil)
	if got := w.Body.String(); !strings.Contains(got, `"Sum":7,`) || strings.Count(got, `"Sum"`) != 1 {
		t.Error(got)
	}
}
