package cloudwatch

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestQueueSamplesAreDifferences(t *testing.T) {
	q := func(name string, sent, bytes uint64) QueueStats {
		return QueueStats{
			Region: "r", Account: "a", Name: name, Visible: 3, NotVisible: 2, Delayed: 1, OldestAge: 90*time.Second + time.Millisecond,
			Sent: sent, Received: sent / 2, Deleted: sent / 4, EmptyReceives: 1, SentBytes: bytes,
		}
	}
	show := func(samples []Sample) (all []string) {
		for _, s := range samples {
			if s.Region != "r" || s.Account != "a" || len(s.Dimensions) != 1 || s.Dimensions[0].Name != "QueueName" {
				t.Errorf("%+v", s)
			}
			all = append(all, fmt.Sprint(s.Dimensions[0].Value, " ", s.Name, " ", s.Value, " ", s.Unit, " ", s.Count))
		}
		return all
	}
	got := show(QueueSamples([]QueueStats{q("q", 4, 100)}, []QueueStats{q("q", 12, 180)}))
	want := []string{
		"q ApproximateNumberOfMessagesVisible 3 Count 0", "q ApproximateNumberOfMessagesNotVisible 2 Count 0", "q ApproximateNumberOfMessagesDelayed 1 Count 0",
		"q ApproximateAgeOfOldestMessage 90 Seconds 0", "q NumberOfMessagesSent 8 Count 0", "q NumberOfMessagesReceived 4 Count 0",
		"q NumberOfMessagesDeleted 2 Count 0", "q NumberOfEmptyReceives 0 Count 0", "q SentMessageSize 10 Bytes 8",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for what, before := range map[string][]QueueStats{
		"new": {q("other", 4, 100)}, "made again": {q("q", 50, 1000)}, "of another region": {{Region: "r2", Account: "a", Name: "q", Sent: 1}},
	} {
		got := show(QueueSamples(before, []QueueStats{q("q", 12, 180)}))
		if !slices.Contains(got, "q NumberOfMessagesSent 12 Count 0") || !slices.Contains(got, "q SentMessageSize 15 Bytes 12") {
			t.Errorf("a queue that is %s: %q", what, got)
		}
	}
	if got := show(QueueSamples([]QueueStats{q("q", 4, 100)}, []QueueStats{q("q", 4, 100)})); len(got) != 8 {
		t.Errorf("nothing was sent, and there is a size: %q", got)
	}
}

func TestFeedPutsOneDatapointAMinute(t *testing.T) {
	c := newCloud(t)
	c.clock.Advance(20 * time.Second)
	sent := uint64(0)
	stop := c.Feed(QueueNamespace, time.Minute, QueueFeed(func() []QueueStats {
		sent += 5
		return []QueueStats{{Region: "eu-west-1", Account: "000000000000", Name: "q", Visible: int(sent), Sent: sent, SentBytes: 10 * sent}}
	}))
	get := func(name, stat string) string {
		out := c.do("GetMetricData", `{"MetricDataQueries":[{"Id":"a","MetricStat":{"Metric":{"Namespace":"AWS/SQS","MetricName":%q,
			"Dimensions":[{"Name":"QueueName","Value":"q"}]},"Period":60,"Stat":%q}}],"StartTime":%s,"EndTime":%s,"ScanBy":"TimestampAscending"}`,
			name, stat, at(0), at(time.Hour))
		_, out, _ = strings.Cut(out, `"Timestamps":`)
		out, _, _ = strings.Cut(out, `,"StatusCode"`)
		return out
	}
	c.clock.Advance(39 * time.Second)
	if got := get("NumberOfMessagesSent", "Sum"); got != `[],"Values":[]` {
		t.Errorf("before the minute is over: %s", got)
	}
	c.clock.Advance(2*time.Minute + time.Second)
	stop()
	c.clock.Advance(10 * time.Minute)
	times := "[" + at(0) + "," + at(time.Minute) + "," + at(2*time.Minute) + "]"
	for name, want := range map[string]string{
		"NumberOfMessagesSent Sum": "[5,5,5]", "ApproximateNumberOfMessagesVisible Average": "[5,10,15]",
		"SentMessageSize Sum": "[50,50,50]", "SentMessageSize SampleCount": "[5,5,5]",
	} {
		name, stat, _ := strings.Cut(name, " ")
		if got := get(name, stat); got != times+`,"Values":`+want {
			t.Errorf("%s of %s: %s, want %s at %s", stat, name, got, want, times)
		}
	}
}

// TestResetForgetsWhatAFeedHasSeen has a queue that is there, reset, and there again with more.
func TestResetForgetsWhatAFeedHasSeen(t *testing.T) {
	c := newCloud(t)
	sent := uint64(5)
	defer c.Feed(QueueNamespace, time.Minute, QueueFeed(func() []QueueStats {
		return []QueueStats{{Region: "eu-west-1", Account: "000000000000", Name: "q", Sent: sent, SentBytes: sent}}
	}))()
	c.clock.Advance(time.Minute)
	c.Reset()
	sent = 7
	c.clock.Advance(time.Minute)
	got := c.do("GetMetricStatistics", `{"Namespace":"AWS/SQS","MetricName":"NumberOfMessagesSent","Dimensions":[{"Name":"QueueName","Value":"q"}],
		"StartTime":%s,"EndTime":%s,"Period":60,"Statistics":["Sum"]}`, at(0), at(time.Hour))
	if !strings.Contains(got, `"Sum":7,`) || strings.Contains(got, `"Sum":5,`) {
		t.Errorf("after a reset: %s", got)
	}
}

func TestAStoppedFeedIsOver(t *testing.T) {
	c := newCloud(t)
	sampled := 0
	stop := c.Feed(QueueNamespace, time.Minute, QueueFeed(func() []QueueStats { sampled++; return nil }))
	c.clock.Advance(time.Minute)
	stop()
	c.clock.Advance(time.Hour)
	if sampled != 1 || len(c.feeds) != 0 {
		t.Errorf("%d samplings, %d feeds", sampled, len(c.feeds))
	}
}

// TestAnAlarmOnAQueueSeesTheMinuteThatHasJustEnded has feed and alarm fall due together.
func TestAnAlarmOnAQueueSeesTheMinuteThatHasJustEnded(t *testing.T) {
	c := newCloud(t)
	c.do("PutMetricAlarm", `{"AlarmName":"a","Namespace":"AWS/SQS","MetricName":"ApproximateNumberOfMessagesVisible","Dimensions":[{"Name":"QueueName","Value":"q"}],
		"Statistic":"Maximum","Period":60,"EvaluationPeriods":1,"Threshold":10,"ComparisonOperator":"GreaterThanOrEqualToThreshold"}`)
	visible := 0
	defer c.Feed(QueueNamespace, time.Minute, QueueFeed(func() []QueueStats {
		visible += 10
		return []QueueStats{{Region: "eu-west-1", Account: "000000000000", Name: "q", Visible: visible}}
	}))()
	c.clock.Advance(time.Minute + evaluationLag)
	if got := c.alarmNow(); got.StateReason != "Threshold Crossed: 1 datapoint [10.0 (14/03/26 12:00:00)] was greater than or equal to the threshold (10.0)." {
		t.Errorf("%s: %s", got.StateValue, got.StateReason)
	}
}
