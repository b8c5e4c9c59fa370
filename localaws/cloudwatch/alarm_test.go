package cloudwatch

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// TestMissingData is the two tables by which AWS documents the treatment of missing data: points
// from old to new, - missing, 0 well, X breaching.
func TestMissingData(t *testing.T) {
	const alarm, ok, insufficient, keep = stateAlarm, stateOK, stateInsufficient, ""
	for _, test := range []struct {
		points                                   string
		m                                        int
		missing, ignore, breaching, notBreaching string
	}{
		{"0-X-X", 3, ok, ok, ok, ok},
		{"0----", 3, ok, ok, ok, ok},
		{"-----", 3, insufficient, keep, alarm, ok},
		{"0XX-X", 3, alarm, alarm, alarm, alarm},
		{"--X--", 3, alarm, keep, alarm, ok},
		{"----X", 3, insufficient, keep, alarm, ok},
		{"0-X-X", 2, alarm, alarm, alarm, alarm},
		{"00X0X", 2, alarm, alarm, alarm, alarm},
		{"0-X--", 2, ok, ok, alarm, ok},
		{"----0", 2, ok, ok, alarm, ok},
		{"---X-", 2, alarm, keep, alarm, ok},
		{"00000", 3, ok, ok, ok, ok},
		{"XXX00", 1, alarm, alarm, alarm, alarm},
		{"XX000", 1, ok, ok, ok, ok},
	} {
		points := make([]point, len(test.points))
		for i, p := range test.points {
			points[len(points)-1-i] = point{missing: p == '-', breaching: p == 'X'}
		}
		for treat, want := range map[string]string{
			"": test.missing, "missing": test.missing, "ignore": test.ignore, "breaching": test.breaching, "notBreaching": test.notBreaching,
		} {
			if got := evaluate(points, 3, test.m, treat).state; got != want {
				t.Errorf("%s, %d of 3, missing is %q: %q, want %q", test.points, test.m, treat, got, want)
			}
		}
	}
}

// alarmNow returns the one alarm.
func (c *cloud) alarmNow() metricAlarm {
	c.t.Helper()
	var out describeAlarmsOutput
	if err := json.Unmarshal([]byte(c.do("DescribeAlarms", "{}")), &out); err != nil || len(out.MetricAlarms) != 1 {
		c.t.Fatalf("%v %v", out, err)
	}
	return out.MetricAlarms[0]
}

const plainAlarm = `"AlarmName":"a","Namespace":"N","MetricName":"m","Statistic":"Average","Period":60,"EvaluationPeriods":1,` +
	`"Threshold":2,"ComparisonOperator":"GreaterThanThreshold"`

func TestAnAlarmAsDescribed(t *testing.T) {
	c := newCloud(t)
	c.do("PutMetricAlarm", "{%s}", plainAlarm)
	got := c.do("DescribeAlarms", "{}")
	want := fmt.Sprintf(`{"CompositeAlarms":[],"MetricAlarms":[{"AlarmName":"a","AlarmArn":"arn:aws:cloudwatch:eu-west-1:000000000000:alarm:a",`+
		`"AlarmConfigurationUpdatedTimestamp":%[1]s,"ActionsEnabled":true,"OKActions":[],"AlarmActions":[],"InsufficientDataActions":[],`+
		`"StateValue":"INSUFFICIENT_DATA","StateReason":"Unchecked: Initial alarm creation","StateUpdatedTimestamp":%[1]s,"StateTransitionedTimestamp":%[1]s,`+
		`"MetricName":"m","Namespace":"N","Statistic":"Average","Dimensions":[],"Period":60,"EvaluationPeriods":1,"Threshold":2,`+
		`"ComparisonOperator":"GreaterThanThreshold"}]}`, at(0))
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestAnAlarmGoesThroughItsStates(t *testing.T) {
	c := newCloud(t)
	c.do("PutMetricAlarm", `{%s,"TreatMissingData":"notBreaching","Unit":"Seconds"}`, plainAlarm)
	c.do("PutMetricData", `{"Namespace":"N","MetricData":[{"MetricName":"m","Values":[21,22],"Unit":"Seconds"},{"MetricName":"m","Value":1,"Unit":"Count"}]}`)
	c.clock.Advance(time.Minute)
	if got := c.alarmNow(); got.StateValue != stateInsufficient {
		t.Errorf("before the minute has been looked at: %s", got.StateValue)
	}
	c.clock.Advance(evaluationLag)
	got := c.alarmNow()
	if got.StateValue != stateAlarm || got.StateReason != "Threshold Crossed: 1 datapoint [21.5 (14/03/26 12:00:00)] was greater than the threshold (2.0)." {
		t.Errorf("%s: %s", got.StateValue, got.StateReason)
	}
	wantData := `{"version":"1.0","queryDate":"2026-03-14T12:01:01.000+0000","startDate":"2026-03-14T12:00:00.000+0000","unit":"Seconds","statistic":"Average",` +
		`"period":60,"recentDatapoints":[21.5],"threshold":2,"evaluatedDatapoints":[{"timestamp":"2026-03-14T12:00:00.000+0000","sampleCount":2,"value":21.5}]}`
	if got.StateReasonData != wantData {
		t.Errorf("%s", got.StateReasonData)
	}
	c.clock.Advance(3 * time.Minute)
	got = c.alarmNow()
	if got.StateValue != stateOK ||
		got.StateReason != "Threshold Crossed: no datapoints were received for 1 period and 1 missing datapoint was treated as [NonBreaching]." {
		t.Errorf("%s: %s", got.StateValue, got.StateReason)
	}
	if !got.StateUpdatedTimestamp.Equal(noon.Add(4*time.Minute + evaluationLag)) {
		t.Errorf("in this state since %v", got.StateUpdatedTimestamp)
	}
}

func TestReasons(t *testing.T) {
	for _, test := range []struct {
		settings string // besides those of plainAlarm, which they override
		values   string // one a minute; - is none
		state    string
		reason   string
	}{
		{`"EvaluationPeriods":2`, "1 3 4", stateAlarm, "2 datapoints [4.0 (14/03/26 12:02:00), 3.0 (14/03/26 12:01:00)] were greater than the threshold (2.0)."},
		{
			`"EvaluationPeriods":3,"DatapointsToAlarm":2`, "3 1 12345678.9", stateAlarm,
			"2 out of the last 3 datapoints [1.23456789E7 (14/03/26 12:02:00), 3.0 (14/03/26 12:00:00)] were greater than the threshold (2.0) " +
				"(minimum 2 datapoints for OK -> ALARM transition).",
		},
		{
			`"EvaluationPeriods":3,"DatapointsToAlarm":3`, "3 1 3", stateOK,
			"1 out of the last 3 datapoints [1.0 (14/03/26 12:01:00)] was not greater than the threshold (2.0) (minimum 1 datapoint for ALARM -> OK transition).",
		},
		{`"EvaluationPeriods":2,"TreatMissingData":"breaching"`, "- - -", stateAlarm, "no datapoints were received for 2 periods and 2 missing datapoints were treated as [Breaching]."},
		{`"EvaluationPeriods":2,"TreatMissingData":"breaching"`, "3 - -", stateAlarm, "1 datapoint [3.0 (14/03/26 12:00:00)] was greater than the threshold (2.0) and 1 missing datapoint was treated as [Breaching]."},
		{`"ComparisonOperator":"LessThanOrEqualToThreshold"`, "- - 2", stateAlarm, "1 datapoint [2.0 (14/03/26 12:02:00)] was less than or equal to the threshold (2.0)."},
		{`"Statistic":"SampleCount","ComparisonOperator":"LessThanThreshold"`, "1 1 1", stateAlarm, "1 datapoint [1.0 (14/03/26 12:00:00)] was less than the threshold (2.0)."},
	} {
		c := newCloud(t)
		c.do("PutMetricAlarm", "{%s,%s}", plainAlarm, test.settings)
		for i, v := range strings.Fields(test.values) {
			if v != "-" {
				c.do("PutMetricData", `{"Namespace":"N","MetricData":[{"MetricName":"m","Value":%s,"Timestamp":%s}]}`, v, at(time.Duration(i)*time.Minute))
			}
		}
		c.clock.Advance(3*time.Minute + evaluationLag)
		if got := c.alarmNow(); got.StateValue != test.state || got.StateReason != "Threshold Crossed: "+test.reason {
			t.Errorf("%s of %s: %s: %s\nwant %s: %s", test.settings, test.values, got.StateValue, got.StateReason, test.state, test.reason)
		}
	}
}

func TestAnAlarmThatHasLostItsMetric(t *testing.T) {
	c := newCloud(t)
	c.do("PutMetricAlarm", "{%s}", plainAlarm)
	c.put("m", 3, 0)
	c.clock.Advance(time.Minute + evaluationLag)
	if got := c.alarmNow().StateValue; got != stateAlarm {
		t.Fatalf("%s", got)
	}
	c.clock.Advance(extraPeriods * time.Minute) // as long as the datapoint is in its range
	if got := c.alarmNow().StateValue; got != stateAlarm {
		t.Errorf("%s while the datapoint is in its range", got)
	}
	c.clock.Advance(time.Minute)
	if got := c.alarmNow(); got.StateValue != stateInsufficient || got.StateReason != "Insufficient Data: 1 datapoint was unknown." {
		t.Errorf("%s: %s", got.StateValue, got.StateReason)
	}
}

func TestWindowsSlideByTheMinute(t *testing.T) {
	c := newCloud(t)
	c.do("PutMetricAlarm", `{%s,"Period":300,"Statistic":"Sum"}`, plainAlarm)
	c.put("m", 2, time.Minute)
	c.put("m", 2, 5*time.Minute)
	c.clock.Advance(5*time.Minute + evaluationLag)
	if got := c.alarmNow(); got.StateValue != stateOK { // 12:00 to 12:05 has one of them
		t.Errorf("%s: %s", got.StateValue, got.StateReason)
	}
	c.clock.Advance(time.Minute)
	if got := c.alarmNow(); got.StateReason != "Threshold Crossed: 1 datapoint [4.0 (14/03/26 12:01:00)] was greater than the threshold (2.0)." {
		t.Errorf("%s: %s", got.StateValue, got.StateReason)
	}
}

func TestSetAlarmStateLastsUntilTheNextEvaluation(t *testing.T) {
	c := newCloud(t)
	c.do("PutMetricAlarm", "{%s}", plainAlarm)
	c.put("m", 1, 0)
	c.do("SetAlarmState", `{"AlarmName":"a","StateValue":"ALARM","StateReason":"testing","StateReasonData":"{\"a\":1}"}`)
	if got := c.alarmNow(); got.StateValue != stateAlarm || got.StateReason != "testing" || got.StateReasonData != `{"a":1}` {
		t.Errorf("%+v", got)
	}
	c.clock.Advance(time.Minute + evaluationLag)
	if got := c.alarmNow(); got.StateValue != stateOK {
		t.Errorf("%+v", got)
	}
	c.refused("ValidationError", "1 validation error detected: Value 'INVALID' at 'stateValue' failed to satisfy constraint: Member must satisfy enum value set: [INSUFFICIENT_DATA, ALARM, OK]",
		"SetAlarmState", `{"AlarmName":"a","StateValue":"INVALID","StateReason":"x"}`)
	c.refused("ResourceNotFound", "", "SetAlarmState", `{"AlarmName":"none","StateValue":"OK","StateReason":"x"}`)
	c.refused("InvalidFormat", "JSON", "SetAlarmState", `{"AlarmName":"a","StateValue":"OK","StateReason":"x","StateReasonData":"{"}`)
}

func TestPutMetricAlarmAgainKeepsTheState(t *testing.T) {
	c := newCloud(t)
	c.do("PutMetricAlarm", `{%s,"AlarmDescription":"first","Tags":[{"Key":"k","Value":"v"}]}`, plainAlarm)
	c.do("SetAlarmState", `{"AlarmName":"a","StateValue":"OK","StateReason":"x"}`)
	c.clock.Advance(time.Second)
	c.do("PutMetricAlarm", `{%s,"ActionsEnabled":false,"DatapointsToAlarm":1}`, plainAlarm)
	got := c.alarmNow()
	if got.StateValue != stateOK || got.AlarmDescription != "" || got.ActionsEnabled || got.DatapointsToAlarm == nil || !got.StateUpdatedTimestamp.Equal(noon) {
		t.Errorf("%+v", got)
	}
	c.do("EnableAlarmActions", `{"AlarmNames":["a","none"]}`)
	if !c.alarmNow().ActionsEnabled {
		t.Error("actions stay off")
	}
	c.do("DisableAlarmActions", `{"AlarmNames":["a"]}`)
	if c.alarmNow().ActionsEnabled {
		t.Error("actions stay on")
	}
	tags := func() string { return c.do("ListTagsForResource", `{"ResourceARN":%q}`, got.AlarmArn) }
	if tags() != `{"Tags":[{"Key":"k","Value":"v"}]}` {
		t.Errorf("%s", tags())
	}
	c.do("TagResource", `{"ResourceARN":%q,"Tags":[{"Key":"a","Value":"b"}]}`, got.AlarmArn)
	c.do("UntagResource", `{"ResourceARN":%q,"TagKeys":["k"]}`, got.AlarmArn)
	if tags() != `{"Tags":[{"Key":"a","Value":"b"}]}` {
		t.Errorf("%s", tags())
	}
	c.refused("ResourceNotFoundException", "", "ListTagsForResource", `{"ResourceARN":"arn:aws:cloudwatch:eu-west-1:1:alarm:a"}`)
}

func TestAlarmsAreFilteredAndPaged(t *testing.T) {
	c := newCloud(t)
	for i := range defaultAlarmsPage + 1 {
		c.do("PutMetricAlarm", "{%s}", strings.Replace(plainAlarm, `"a"`, fmt.Sprintf(`"a%02d"`, i), 1))
	}
	c.do("PutMetricAlarm", `{%s,"AlarmActions":["arn:aws:sns:x"]}`, strings.Replace(plainAlarm, `"a"`, `"z"`, 1))
	c.do("SetAlarmState", `{"AlarmName":"a07","StateValue":"ALARM","StateReason":"x"}`)
	for request, want := range map[string]int{
		`{}`: defaultAlarmsPage, `{"MaxRecords":100}`: defaultAlarmsPage + 2, `{"AlarmNames":["z","a01","none"]}`: 2, `{"AlarmNamePrefix":"a1"}`: 10,
		`{"StateValue":"ALARM"}`: 1, `{"ActionPrefix":"arn:aws:sns"}`: 1, `{"AlarmTypes":["CompositeAlarm"]}`: 0, `{"AlarmTypes":["MetricAlarm"],"MaxRecords":3}`: 3,
	} {
		if got := strings.Count(c.do("DescribeAlarms", "%s", request), `"AlarmName"`); got != want {
			t.Errorf("%s: %d alarms, want %d", request, got, want)
		}
	}
	var out describeAlarmsOutput
	if err := json.Unmarshal([]byte(c.do("DescribeAlarms", "{}")), &out); err != nil {
		t.Fatal(err)
	}
	if got := c.do("DescribeAlarms", `{"NextToken":%q}`, out.NextToken); strings.Count(got, `"AlarmName"`) != 2 || strings.Contains(got, "NextToken") {
		t.Errorf("the second page: %s", got)
	}
	c.do("DescribeAlarms", `{"NextToken":%q,"MaxRecords":1}`, out.NextToken)
	c.refused("InvalidNextToken", "", "DescribeAlarms", `{"NextToken":%q,"StateValue":"OK"}`, out.NextToken)
	c.refusedTo("us-east-1", "000000000000", "DescribeAlarms", out.NextToken)
	c.refusedTo("eu-west-1", "111111111111", "DescribeAlarms", out.NextToken)
	for _, token := range []string{"%%%%", "YTA3" /* a name in base64 */} {
		c.refused("InvalidNextToken", "", "DescribeAlarms", `{"NextToken":"%s"}`, token)
	}
	if got, err := c.as("us-east-1", "000000000000", "DescribeAlarms", "{}"); err != nil || strings.Contains(got, `"AlarmName"`) {
		t.Errorf("another region sees %s %v", got, err)
	}
}

func TestTheTimerRunsOnlyWhileThereAreAlarms(t *testing.T) {
	c := newCloud(t)
	if c.wake != nil {
		t.Error("a timer without an alarm")
	}
	c.do("PutMetricAlarm", "{%s}", plainAlarm)
	c.refused("ResourceNotFound", "", "DeleteAlarms", `{"AlarmNames":["a","none"]}`)
	c.alarmNow() // it is still there
	c.do("DeleteAlarms", `{"AlarmNames":["a"]}`)
	if c.wake.Stop() {
		t.Error("the timer runs on after the last alarm")
	}
	c.do("PutMetricAlarm", "{%s}", plainAlarm)
	c.put("m", 3, 0)
	c.clock.Advance(time.Minute + evaluationLag)
	if got := c.alarmNow().StateValue; got != stateAlarm {
		t.Errorf("an alarm after the timer has stopped is not looked at: %s", got)
	}
	c.Reset()
	if c.wake.Stop() || c.do("ListMetrics", "{}") != `{"Metrics":[]}` {
		t.Error("Reset left something")
	}
}

func TestWhatPutMetricAlarmRefuses(t *testing.T) {
	c := newCloud(t)
	for _, test := range []struct{ code, words, settings string }{
		{"ValidationError", "does not emulate alarms on metric math", `"Metrics":[{"Id":"a","Expression":"1"}]`},
		{"ValidationError", "does not emulate the comparison", `"ComparisonOperator":"LessThanLowerThreshold"`},
		{"ValidationError", "comparisonOperator", `"ComparisonOperator":"Equal"`},
		{"MissingParameter", "Threshold", `"Threshold":null`},
		{"ValidationError", "Exactly one", `"Statistic":""`},
		{"InvalidParameterCombination", "exclusive", `"ExtendedStatistic":"p9"`},
		{"InvalidParameterValue", "not supported", `"Statistic":"","ExtendedStatistic":"x"`},
		{"ValidationError", "Period", `"Period":45`},
		{"ValidationError", "more than a day", `"EvaluationPeriods":1441`},
		{"ValidationError", "more than a week", `"Period":3600,"EvaluationPeriods":169`},
		{"ValidationError", "DatapointsToAlarm (2) must be from 1 to EvaluationPeriods (1).", `"DatapointsToAlarm":2`},
		{"ValidationError", "Option maybe is not supported", `"TreatMissingData":"maybe"`},
		{"ValidationError", "Option maybe is not supported", `"EvaluateLowSampleCountPercentile":"maybe"`},
		{"ValidationError", "arn syntax", `"OKActions":["x"]`},
		{"MissingParameter", "AlarmName", `"AlarmName":""`},
	} {
		c.refused(test.code, test.words, "PutMetricAlarm", "{%s,%s}", plainAlarm, test.settings)
	}
}

// TestATimerOutlivesAReasonThatHasNoForm has a value in the store that no call can put there.
func TestATimerOutlivesAReasonThatHasNoForm(t *testing.T) {
	c := newCloud(t)
	c.do("PutMetricAlarm", "{%s}", plainAlarm)
	c.put("m", 3, 0)
	for _, m := range c.store.series {
		m.minutes[0].sum = math.Inf(1)
	}
	c.clock.Advance(time.Minute + evaluationLag)
	if got := c.alarmNow(); got.StateValue != stateAlarm || got.StateReason == "" || got.StateReasonData != "" {
		t.Errorf("%s: %s; %s", got.StateValue, got.StateReason, got.StateReasonData)
	}
}

// TestAlarmsLookAtWhateverWasPut puts the most extreme sets that are taken.
func TestAlarmsLookAtWhateverWasPut(t *testing.T) {
	c := newCloud(t)
	c.do("PutMetricAlarm", "{%s}", plainAlarm)
	for _, set := range []string{"1e-300,1e-200", "1e-108,1", "2e108,2e108", "1,-2e108", "5e-324,0"} {
		count, sum, _ := strings.Cut(set, ",")
		c.do("PutMetricData", `{"Namespace":"N","MetricData":[{"MetricName":"m","StatisticValues":{"SampleCount":%s,"Sum":%s,"Minimum":1,"Maximum":2},"Timestamp":%s}]}`, count, sum, at(0))
	}
	c.clock.Advance(time.Minute + evaluationLag)
	if got := c.alarmNow(); got.StateReasonData == "" {
		t.Errorf("%s: %s", got.StateValue, got.StateReason)
	}
}

func TestARNsAreOfTheRegionsPartition(t *testing.T) {
	c := newCloud(t)
	const account = "000000000000"
	for region, partition := range map[string]string{"eu-west-1": "aws", "cn-north-1": "aws-cn", "us-gov-west-1": "aws-us-gov"} {
		if _, err := c.as(region, account, "PutMetricAlarm", "{"+plainAlarm+"}"); err != nil {
			t.Fatal(err)
		}
		arn := "arn:" + partition + ":cloudwatch:" + region + ":" + account + ":alarm:a"
		if got, err := c.as(region, account, "DescribeAlarms", "{}"); err != nil || !strings.Contains(got, `"AlarmArn":"`+arn+`"`) {
			t.Errorf("%s: %s %v", region, got, err)
		}
		if _, err := c.as(region, account, "TagResource", fmt.Sprintf(`{"ResourceARN":%q,"Tags":[{"Key":"k","Value":"v"}]}`, arn)); err != nil {
			t.Errorf("%s: %v", arn, err)
		}
		if _, err := c.as(region, account, "ListTagsForResource", fmt.Sprintf(`{"ResourceARN":%q}`, strings.Replace(arn, partition+":", "aws-iso:", 1))); err == nil {
			t.Errorf("%s: an ARN of another partition is taken", region)
		}
	}
}

func TestJavaDouble(t *testing.T) {
	for want, v := range map[string]float64{"0.0": 0, "2.0": 2, "-21.5": -21.5, "9999999.0": 9999999, "1.0E7": 1e7, "1.25E-4": 0.000125, "0.001": 0.001} {
		if got := javaDouble(v); got != want {
			t.Errorf("%v is written %s, want %s", v, got, want)
		}
	}
}
