package localaws_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/clock"
)

// TestMetricsOfFIFOQueues has two groups in flight, and sends that are repeated.
func TestMetricsOfFIFOQueues(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	now := clock.NewManual(start)
	local := localaws.New(localaws.Options{Clock: now, Metrics: true})
	post(local, "AmazonSQS.CreateQueue", `{"QueueName":"q.fifo","Attributes":{"FifoQueue":"true"}}`, nil)
	for _, send := range []string{"a 1", "a 1", "a 2", "b 3", "b 3", "b 3", "c 4"} {
		group, id, _ := strings.Cut(send, " ")
		post(local, "AmazonSQS.SendMessage", fmt.Sprintf(`{"QueueUrl":"q.fifo","MessageBody":"x","MessageGroupId":%q,"MessageDeduplicationId":%q}`, group, id), nil)
	}
	post(local, "AmazonSQS.ReceiveMessage", `{"QueueUrl":"q.fifo","MaxNumberOfMessages":3,"VisibilityTimeout":300}`, nil)
	now.Advance(time.Minute)
	for name, want := range map[string]string{
		"NumberOfMessagesSent": "4", "NumberOfDeduplicatedSentMessages": "3", "ApproximateNumberOfGroupsWithInflightMessages": "2",
	} {
		w := post(local, "GraniteServiceVersion20100801.GetMetricStatistics", fmt.Sprintf(`{"Namespace":"AWS/SQS","MetricName":%q,
			"Dimensions":[{"Name":"QueueName","Value":"q.fifo"}],"StartTime":%d,"EndTime":%d,"Period":60,"Statistics":["Sum"]}`, name, start.Unix()-3600, start.Unix()+3600), nil)
		if got := w.Body.String(); !strings.Contains(got, `"Sum":`+want+`,`) {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

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

// TestTagsAnswerWithAResult is about the Query protocol, in which the AWS command line 2.9 dies of an
// answer that has none.
func TestTagsAnswerWithAResult(t *testing.T) {
	local := localaws.New(localaws.Options{})
	post(local, "GraniteServiceVersion20100801.PutMetricAlarm", `{"AlarmName":"a","Namespace":"N","MetricName":"m","Statistic":"Sum","Period":60,
		"EvaluationPeriods":1,"Threshold":1,"ComparisonOperator":"GreaterThanThreshold"}`, nil)
	const resource = "&ResourceARN=arn:aws:cloudwatch:us-east-1:000000000000:alarm:a"
	for op, rest := range map[string]string{"TagResource": "&Tags.member.1.Key=k&Tags.member.1.Value=v", "UntagResource": "&TagKeys.member.1=k"} {
		r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/", strings.NewReader("Version=2010-08-01&Action="+op+resource+rest))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		local.ServeHTTP(w, r)
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "<"+op+"Result/>") {
			t.Errorf("%s: %d %s", op, w.Code, w.Body)
		}
	}
}
