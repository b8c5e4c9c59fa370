package cloudwatch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/page"
	"github.com/stepfleet/stepfleet/localaws/seal"
)

// noon is when the tests begin.
var noon = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)

// cloud is a CloudWatch whose time stands still.
type cloud struct {
	*Service
	t     *testing.T
	clock *clock.Manual
	api   api.Service
}

func newCloud(t *testing.T) *cloud {
	c := clock.NewManual(noon)
	s := New(Options{Clock: c, Logger: slog.New(slog.DiscardHandler), Tokens: page.NewTokens(seal.NewKey(1))})
	return &cloud{Service: s, t: t, clock: c, api: s.API()}
}

// try makes a call as JSON, with words in the place of %v, and returns the answer as JSON.
func (c *cloud) try(op, format string, args ...any) (string, error) {
	c.t.Helper()
	return c.as("eu-west-1", "000000000000", op, fmt.Sprintf(format, args...))
}

func (c *cloud) as(region, account, op, body string) (string, error) {
	c.t.Helper()
	operation, ok := c.api.Ops[op]
	if !ok {
		c.t.Fatalf("no operation %s", op)
	}
	in := operation.NewIn()
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(in); err != nil {
		c.t.Fatalf("%s %s: %v", op, body, err)
	}
	ctx := api.WithCall(context.Background(), &api.Call{Service: "monitoring", Op: op, Region: region, Account: account})
	out, err := operation.Call(ctx, in)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(out); err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(b.String()), nil
}

// do is a call that must succeed.
func (c *cloud) do(op, format string, args ...any) string {
	c.t.Helper()
	out, err := c.try(op, format, args...)
	if err != nil {
		c.t.Fatalf("%s: %v", op, err)
	}
	return out
}

// refused is a call that must fail with that code, and a text that holds words.
func (c *cloud) refused(code, words, op, format string, args ...any) {
	c.t.Helper()
	out, err := c.try(op, format, args...)
	var e *api.Error
	if !errors.As(err, &e) || e.QueryCode() != code || !strings.Contains(e.Message, words) {
		c.t.Errorf("%s %.200s: %s %v, want %s: %s", op, fmt.Sprintf(format, args...), out, err, code, words)
	}
}

// refusedTo expects that a token is not taken from that caller.
func (c *cloud) refusedTo(region, account, op, token string) {
	c.t.Helper()
	if out, err := c.as(region, account, op, fmt.Sprintf(`{"NextToken":%q}`, token)); err == nil {
		c.t.Errorf("%s took a token of another caller: %.200s", op, out)
	}
}

// at is a time of day that much after noon, as JSON.
func at(d time.Duration) string {
	b, err := api.TimeOf(noon.Add(d)).MarshalJSON()
	if err != nil {
		panic(err)
	}
	return string(b)
}

// put puts one value at a time after noon.
func (c *cloud) put(name string, value float64, after time.Duration) {
	c.t.Helper()
	c.do("PutMetricData", `{"Namespace":"N","MetricData":[{"MetricName":%q,"Value":%v,"Timestamp":%s}]}`, name, value, at(after))
}

func TestStatisticsOfWhatWasPut(t *testing.T) {
	c := newCloud(t)
	c.do("PutMetricData", `{"Namespace":"N","MetricData":[
		{"MetricName":"m","Values":[1,10],"Counts":[2,4],"Unit":"Count","Timestamp":%[1]s},
		{"MetricName":"m","Value":11,"Unit":"Seconds","Timestamp":%[1]s},
		{"MetricName":"m","StatisticValues":{"SampleCount":10,"Sum":55,"Minimum":1,"Maximum":10},"Unit":"Seconds","Timestamp":%[1]s},
		{"MetricName":"m","Value":7,"Timestamp":%[2]s}]}`, at(-3*time.Minute+20*time.Second), at(-time.Second))
	got := c.do("GetMetricStatistics", `{"Namespace":"N","MetricName":"m","StartTime":%s,"EndTime":%s,"Period":60,
		"Statistics":["SampleCount","Average","Sum","Minimum","Maximum"]}`, at(-time.Hour), at(0))
	want := fmt.Sprintf(`{"Label":"m","Datapoints":[`+
		`{"Timestamp":%[1]s,"SampleCount":6,"Average":7,"Sum":42,"Minimum":1,"Maximum":10,"Unit":"Count"},`+
		`{"Timestamp":%[1]s,"SampleCount":11,"Average":6,"Sum":66,"Minimum":1,"Maximum":11,"Unit":"Seconds"},`+
		`{"Timestamp":%[2]s,"SampleCount":1,"Average":7,"Sum":7,"Minimum":7,"Maximum":7,"Unit":"None"}]}`, at(-3*time.Minute), at(-time.Minute))
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	got = c.do("GetMetricStatistics", `{"Namespace":"N","MetricName":"m","StartTime":%s,"EndTime":%s,"Period":300,"Unit":"Count","Statistics":["Sum"]}`,
		at(-4*time.Minute-59*time.Second), at(time.Minute))
	want = fmt.Sprintf(`{"Label":"m","Datapoints":[{"Timestamp":%s,"Sum":42,"Unit":"Count"}]}`, at(-5*time.Minute))
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestPercentiles(t *testing.T) {
	c := newCloud(t)
	for i := range 100 {
		c.put("m", float64(i+1), -time.Minute)
	}
	stats := func(name string) string {
		return c.do("GetMetricStatistics", `{"Namespace":"N","MetricName":%q,"StartTime":%s,"EndTime":%s,"Period":60,"ExtendedStatistics":["p0","p50","p99","p99.9","p100"]}`,
			name, at(-time.Hour), at(0))
	}
	if got := stats("m"); !strings.Contains(got, `"ExtendedStatistics":{"p0":1,"p100":100,"p50":50,"p99":99,"p99.9":100}`) {
		t.Errorf("%s", got)
	}
	c.put("negative", -1, -time.Minute)
	c.do("PutMetricData", `{"Namespace":"N","MetricData":[{"MetricName":"set","StatisticValues":{"SampleCount":2,"Sum":3,"Minimum":1,"Maximum":2}},
		{"MetricName":"equal","StatisticValues":{"SampleCount":2,"Sum":4,"Minimum":2,"Maximum":2},"Timestamp":%s}]}`, at(-time.Minute))
	for name, has := range map[string]bool{"negative": false, "set": false, "equal": true} {
		if got := stats(name); strings.Contains(got, "ExtendedStatistics") != has {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestPercentilesOfACrowdStayWithinHalfAPercent(t *testing.T) {
	var a aggregate
	const n = 20 * maxDistinct
	for i := range n {
		a.add(float64(1+(i*7919)%n), 1)
	}
	if len(a.values) > maxDistinct {
		t.Fatalf("%d values are kept", len(a.values))
	}
	for _, rank := range []float64{0.01, 0.5, 0.9, 0.99} {
		got, ok := a.percentile(rank)
		if want := rank * n; !ok || got < want*0.994 || got > want*1.006 {
			t.Errorf("p%v is %v, want about %v", 100*rank, got, want)
		}
	}
	if a.sum != float64(n)*(n+1)/2 || a.count != n {
		t.Errorf("sum %v of %v values", a.sum, a.count)
	}
}

func TestMetricData(t *testing.T) {
	c := newCloud(t)
	for i := range 5 {
		c.put("m", float64(i), time.Duration(i-5)*time.Minute)
	}
	query := func(id, name, stat string, period int) string {
		return fmt.Sprintf(`{"Id":%q,"MetricStat":{"Metric":{"Namespace":"N","MetricName":%q},"Period":%d,"Stat":%q}}`, id, name, period, stat)
	}
	got := c.do("GetMetricData", `{"MetricDataQueries":[%s,%s],"StartTime":%s,"EndTime":%s}`,
		query("a", "m", "Sum", 120), query("b", "none", "Sum", 120), at(-6*time.Minute), at(0))
	want := fmt.Sprintf(`{"MetricDataResults":[{"Id":"a","Label":"m","Timestamps":[%s,%s,%s],"Values":[7,3,0],"StatusCode":"Complete"},`+
		`{"Id":"b","Label":"none","Timestamps":[],"Values":[],"StatusCode":"Complete"}],"Messages":[]}`,
		at(-2*time.Minute), at(-4*time.Minute), at(-6*time.Minute))
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for queries, labels := range map[string][2]string{
		query("a", "m", "Sum", 60) + "," + query("b", "m", "Minimum", 30):  {"m Sum 60", "m Minimum 30"},
		query("a", "m", "Sum", 60) + "," + query("b", "m", "Minimum", 60):  {"m Sum", "m Minimum"},
		query("a", "m", "Sum", 60) + "," + query("b", "m", "Sum", 30):      {"m 60", "m 30"},
		query("a", "m", "Sum", 60) + "," + query("b", "other", "Sum", 60):  {"m", "other"},
		query("a", "m", "Sum", 60) + "," + query("b", "m", "p99", 60):      {"m Sum", "m p99"},
		query("a", "m", "Sum", 60) + "," + query("b", "other", "Sum", 300): {"m 60", "other 300"},
	} {
		got := c.do("GetMetricData", `{"MetricDataQueries":[%s],"StartTime":%s,"EndTime":%s,"ScanBy":"TimestampAscending"}`, queries, at(-6*time.Minute), at(0))
		for _, label := range labels {
			if !strings.Contains(got, fmt.Sprintf(`"Label":%q`, label)) {
				t.Errorf("%s: no label %q in %s", queries, label, got)
			}
		}
	}
}

func TestMetricDataOfSeveralUnits(t *testing.T) {
	c := newCloud(t)
	c.do("PutMetricData", `{"Namespace":"N","MetricData":[{"MetricName":"m","Value":60,"Unit":"Seconds"},{"MetricName":"m","Value":60000,"Unit":"Milliseconds"}]}`)
	got := c.do("GetMetricData", `{"MetricDataQueries":[{"Id":"a","MetricStat":{"Metric":{"Namespace":"N","MetricName":"m"},"Period":60,"Stat":"Sum"}},
		{"Id":"b","MetricStat":{"Metric":{"Namespace":"N","MetricName":"m"},"Period":60,"Stat":"Sum","Unit":"Seconds"}}],"StartTime":%s,"EndTime":%s}`, at(0), at(time.Minute))
	if !strings.Contains(got, `"Values":[60000],"StatusCode":"Complete","Messages":[{"Code":"MultipleUnits","Value":"Multiple units returned: '[Milliseconds, Seconds]'"}]`) ||
		!strings.Contains(got, `"Values":[60],"StatusCode":"Complete"}`) {
		t.Errorf("%s", got)
	}
}

func TestMetricDataInPages(t *testing.T) {
	c := newCloud(t)
	for i := range 5 {
		c.put("a", float64(i), time.Duration(i-9)*time.Minute)
		c.put("b", float64(10+i), time.Duration(i-9)*time.Minute)
	}
	request := func(token string, limit int) string {
		return fmt.Sprintf(`{"MetricDataQueries":[{"Id":"a","MetricStat":{"Metric":{"Namespace":"N","MetricName":"a"},"Period":60,"Stat":"Sum"}},
			{"Id":"b","MetricStat":{"Metric":{"Namespace":"N","MetricName":"b"},"Period":60,"Stat":"Sum"}}],"StartTime":%s,"EndTime":%s,
			"ScanBy":"TimestampAscending","MaxDatapoints":%d,"NextToken":%q}`, at(-time.Hour), at(0), limit, token)
	}
	var values []float64
	var codes []string
	token := ""
	for range 4 {
		var out getMetricDataOutput
		if err := json.Unmarshal([]byte(c.do("GetMetricData", "%s", request(token, 3))), &out); err != nil {
			t.Fatal(err)
		}
		for _, r := range out.MetricDataResults {
			values = append(values, r.Values...)
			codes = append(codes, r.ID+" "+r.StatusCode)
		}
		token = out.NextToken
		if token == "" {
			break
		}
		c.refused("InvalidNextToken", "", "GetMetricData", "%s", request(token, 4))
	}
	// A token as it was before: text that anybody could write.
	c.refused("InvalidNextToken", "", "GetMetricData", "%s", request("Njow", 3))
	if fmt.Sprint(values) != "[0 1 2 3 4 10 11 12 13 14]" || token != "" {
		t.Errorf("%v, then %q", values, token)
	}
	if got := strings.Join(codes, ", "); got != "a PartialData, b PartialData, a Complete, b PartialData, b PartialData, b Complete" {
		t.Errorf("%s", got)
	}
	c.refused("InvalidNextToken", "", "GetMetricData", "%s", request("%%%", 3))
}

func TestHighResolution(t *testing.T) {
	c := newCloud(t)
	c.do("PutMetricData", `{"Namespace":"N","MetricData":[{"MetricName":"m","Value":1,"Timestamp":%s,"StorageResolution":1},
		{"MetricName":"m","Value":2,"Timestamp":%s,"StorageResolution":1}]}`, at(-9*time.Second), at(-2*time.Second))
	sums := func(period int) string {
		return c.do("GetMetricData", `{"MetricDataQueries":[{"Id":"a","MetricStat":{"Metric":{"Namespace":"N","MetricName":"m"},"Period":%d,"Stat":"Sum"}}],
			"StartTime":%s,"EndTime":%s,"ScanBy":"TimestampAscending"}`, period, at(-12*time.Minute), at(0))
	}
	for period, want := range map[int]string{1: "[1,2]", 5: "[1,2]", 10: "[3]", 60: "[3]"} {
		if got := sums(period); !strings.Contains(got, `"Values":`+want) {
			t.Errorf("period %d: %s, want %s", period, got, want)
		}
	}
	c.clock.Advance(keepFine)
	if got := sums(1); !strings.Contains(got, `"Values":[3]`) {
		t.Errorf("after three hours only the minute is left: %s", got)
	}
}

func TestMetricsAreListedInPages(t *testing.T) {
	c := newCloud(t)
	for i := range metricsPage + 1 {
		c.do("PutMetricData", `{"Namespace":"N","MetricData":[{"MetricName":"m","Value":1,"Dimensions":[{"Name":"Z","Value":"1"},{"Name":"A","Value":"%d"}]}]}`, i)
	}
	c.do("PutMetricData", `{"Namespace":"N2","MetricData":[{"MetricName":"m","Value":1},{"MetricName":"m","Value":2}]}`)
	var all []metric
	token, pages := "", 0
	for {
		if token != "" {
			c.refused("InvalidParameterValue", "NextToken", "ListMetrics", `{"NextToken":%q,"Namespace":"N"}`, token)
			c.refusedTo("us-east-1", "000000000000", "ListMetrics", token)
			c.refusedTo("eu-west-1", "111111111111", "ListMetrics", token)
		}
		var out listMetricsOutput
		if err := json.Unmarshal([]byte(c.do("ListMetrics", `{"NextToken":%q}`, token)), &out); err != nil {
			t.Fatal(err)
		}
		all = append(all, out.Metrics...)
		pages++
		if token = out.NextToken; token == "" {
			break
		}
	}
	if len(all) != metricsPage+2 || pages != 2 {
		t.Errorf("%d metrics in %d pages", len(all), pages)
	}
	for filter, want := range map[string]string{
		`{"Namespace":"N2"}`:                                                     `{"Metrics":[{"Namespace":"N2","MetricName":"m","Dimensions":[]}]}`,
		`{"MetricName":"m2"}`:                                                    `{"Metrics":[]}`,
		`{"Dimensions":[{"Name":"A","Value":"7"}]}`:                              `{"Metrics":[{"Namespace":"N","MetricName":"m","Dimensions":[{"Name":"A","Value":"7"},{"Name":"Z","Value":"1"}]}]}`,
		`{"Dimensions":[{"Name":"A","Value":"7"},{"Name":"Z"}]}`:                 `{"Metrics":[{"Namespace":"N","MetricName":"m","Dimensions":[{"Name":"A","Value":"7"},{"Name":"Z","Value":"1"}]}]}`,
		`{"Dimensions":[{"Name":"A","Value":"7"},{"Name":"Z","Value":"other"}]}`: `{"Metrics":[]}`,
	} {
		if got := c.do("ListMetrics", "%s", filter); got != want {
			t.Errorf("%s: %.300s", filter, got)
		}
	}
	for _, other := range [][2]string{{"us-east-1", "000000000000"}, {"eu-west-1", "111111111111"}} {
		if got, err := c.as(other[0], other[1], "ListMetrics", "{}"); err != nil || got != `{"Metrics":[]}` {
			t.Errorf("%v sees %.200s %v", other, got, err)
		}
	}
	c.clock.Advance(recently + time.Second)
	if got := c.do("ListMetrics", `{"Namespace":"N2","RecentlyActive":"PT3H"}`); got != `{"Metrics":[]}` {
		t.Errorf("%s", got)
	}
	c.clock.Advance(keepCoarse)
	if got := c.do("ListMetrics", `{}`); got != `{"Metrics":[]}` || len(c.store.series) != 0 || c.store.weight != 0 {
		t.Errorf("after 15 days: %.200s, %d metrics of weight %d", got, len(c.store.series), c.store.weight)
	}
	c.refused("InvalidParameterValue", "NextToken", "ListMetrics", `{"NextToken":"x"}`)
}

// TestATokenBehindTheLongestName has a page end at a metric with as many and as long dimensions as
// there may be.
func TestATokenBehindTheLongestName(t *testing.T) {
	c := newCloud(t)
	for i := range metricsPage - 1 {
		c.put(fmt.Sprintf("a%03d", i), 1, 0)
	}
	var dimensions []string
	for i := range maxDimensions {
		dimensions = append(dimensions, fmt.Sprintf(`{"Name":"%0255d","Value":%q}`, i, strings.Repeat("v", 1024)))
	}
	c.do("PutMetricData", `{"Namespace":"N","MetricData":[{"MetricName":%q,"Value":1,"Dimensions":[%s]}]}`, strings.Repeat("b", 255), strings.Join(dimensions, ","))
	c.put("c", 1, 0)
	var out listMetricsOutput
	if err := json.Unmarshal([]byte(c.do("ListMetrics", "{}")), &out); err != nil || out.NextToken == "" {
		t.Fatal(err)
	}
	if got := c.do("ListMetrics", `{"NextToken":%q}`, out.NextToken); got != `{"Metrics":[{"Namespace":"N","MetricName":"c","Dimensions":[]}]}` {
		t.Errorf("%.300s", got)
	}
}

func TestWhatPutMetricDataRefuses(t *testing.T) {
	c := newCloud(t)
	datum := func(rest string) string { return `{"Namespace":"N","MetricData":[{"MetricName":"m",` + rest + `}]}` }
	for _, test := range []struct{ code, words, body string }{
		{"MissingParameter", "Namespace", `{"MetricData":[{"MetricName":"m","Value":1}]}`},
		{"MissingParameter", "MetricData", `{"Namespace":"N"}`},
		{"InvalidParameterValue", "The value AWS/ for parameter Namespace is invalid.", `{"Namespace":"AWS/SQS","MetricData":[{"MetricName":"m","Value":1}]}`},
		{"MissingParameter", "MetricData.member.1.MetricName", `{"Namespace":"N","MetricData":[{"Value":1}]}`},
		{"MissingParameter", "MetricData.member.1.Value", datum(`"Unit":"Count"`)},
		{"InvalidParameterCombination", "The parameters MetricData.member.1.Value and MetricData.member.1.Values are mutually exclusive", datum(`"Value":1.5,"Values":[1,10]`)},
		{"InvalidParameterCombination", "MetricData.member.1.StatisticValues are mutually exclusive", datum(`"Value":1,"StatisticValues":{}`)},
		{"InvalidParameterValue", "The parameters MetricData.member.1.Values and MetricData.member.1.Counts must be of the same size.", datum(`"Values":[1,10],"Counts":[2,4,5]`)},
		{"InvalidParameterValue", "Counts", datum(`"Values":[1],"Counts":[0]`)},
		{"InvalidParameterValue", "MetricData.member.1.Value ", datum(`"Value":1e200`)},
		{"MissingParameter", "StatisticValues.Sum", datum(`"StatisticValues":{"SampleCount":1}`)},
		{"InvalidParameterValue", "Maximum must be greater", datum(`"StatisticValues":{"SampleCount":1,"Sum":1,"Minimum":2,"Maximum":1}`)},
		{"InvalidParameterValue", "StatisticValues.SampleCount", datum(`"StatisticValues":{"SampleCount":1e-300,"Sum":1e108,"Minimum":1,"Maximum":2}`)},
		{"InvalidParameterValue", "StatisticValues.SampleCount", datum(`"StatisticValues":{"SampleCount":5e-324,"Sum":-1,"Minimum":1,"Maximum":2}`)},
		{"ValidationError", "'metricData.1.member.unit'", datum(`"Value":1,"Unit":"Furlongs"`)},
		{"InvalidParameterValue", "two weeks", datum(`"Value":1,"Timestamp":` + at(-15*24*time.Hour))},
		{"InvalidParameterValue", "two hours", datum(`"Value":1,"Timestamp":` + at(3*time.Hour))},
		{"InvalidParameterValue", "StorageResolution", datum(`"Value":1,"StorageResolution":5`)},
		{"InvalidParameterValue", "more than one value", datum(`"Value":1,"Dimensions":[{"Name":"a","Value":"1"},{"Name":"a","Value":"2"}]`)},
		{"MissingParameter", "Dimensions.member.1.Value", datum(`"Value":1,"Dimensions":[{"Name":"a"}]`)},
		{"InvalidParameterValue", "size greater than 1000", `{"Namespace":"N","MetricData":[` + strings.Repeat(`{"MetricName":"m","Value":1},`, 1000) + `{"MetricName":"m","Value":1}]}`},
	} {
		c.refused(test.code, test.words, "PutMetricData", "%s", test.body)
	}
	c.refused("ValidationError", "", "PutMetricData", `{"Namespace":"N","MetricData":[{"MetricName":"good","Value":1},{"MetricName":"bad","Value":1,"Unit":"x"}]}`)
	if len(c.store.series) != 0 {
		t.Errorf("what was refused left %d metrics", len(c.store.series))
	}
}

func TestWhatQueriesRefuse(t *testing.T) {
	c := newCloud(t)
	statistics := func(rest string) string {
		return fmt.Sprintf(`{"Namespace":"N","MetricName":"m","StartTime":%s,"EndTime":%s,%s}`, at(-48*time.Hour), at(0), rest)
	}
	for _, test := range []struct{ code, words, body string }{
		{"InvalidParameterCombination", "You have requested up to 2,880 datapoints, which exceeds the limit of 1,440.", statistics(`"Period":60,"Statistics":["Sum"]`)},
		{"InvalidParameterValue", "45", statistics(`"Period":45,"Statistics":["Sum"]`)},
		{"MissingParameter", "Statistics", statistics(`"Period":3600`)},
		{"InvalidParameterCombination", "mutually exclusive", statistics(`"Period":3600,"Statistics":["Sum"],"ExtendedStatistics":["p9"]`)},
		{"InvalidParameterValue", "p101", statistics(`"Period":3600,"ExtendedStatistics":["p101"]`)},
		{"InvalidParameterValue", "tm90", statistics(`"Period":3600,"ExtendedStatistics":["tm90"]`)},
		{"InvalidParameterValue", "Median", statistics(`"Period":3600,"Statistics":["Median"]`)},
		{"InvalidParameterValue", "StartTime must be less", `{"Namespace":"N","MetricName":"m","StartTime":2,"EndTime":1,"Period":60,"Statistics":["Sum"]}`},
		{"MissingParameter", "EndTime", `{"Namespace":"N","MetricName":"m","StartTime":2,"Period":60,"Statistics":["Sum"]}`},
	} {
		c.refused(test.code, test.words, "GetMetricStatistics", "%s", test.body)
	}
	data := func(queries string) string {
		return fmt.Sprintf(`{"MetricDataQueries":[%s],"StartTime":%s,"EndTime":%s}`, queries, at(-time.Hour), at(0))
	}
	const stat = `"MetricStat":{"Metric":{"Namespace":"N","MetricName":"m"},"Period":60,"Stat":"Sum"}`
	for _, test := range []struct{ code, words, body string }{
		{"ValidationError", "does not emulate metric math: the query e has an Expression", data(`{"Id":"m",` + stat + `},{"Id":"e","Expression":"m*2"}`)},
		{"ValidationError", "not unique", data(`{"Id":"m",` + stat + `},{"Id":"m",` + stat + `}`)},
		{"ValidationError", "not matching the expected pattern", data(`{"Id":"M",` + stat + `}`)},
		{"ValidationError", "must return data", data(`{"Id":"m","ReturnData":false,` + stat + `}`)},
		{"ValidationError", "MetricStat", data(`{"Id":"m"}`)},
		{"ValidationError", "Wrong", data(`{"Id":"m",` + strings.Replace(stat, "Sum", "Wrong", 1) + `}`)},
		{"MissingParameter", "MetricDataQueries", data("")},
		{"ValidationError", "EndTime must be greater", `{"MetricDataQueries":[{"Id":"m",` + stat + `}],"StartTime":2,"EndTime":1}`},
		{"ValidationError", "must not equal", `{"MetricDataQueries":[{"Id":"m",` + stat + `}],"StartTime":2,"EndTime":2}`},
	} {
		c.refused(test.code, test.words, "GetMetricData", "%s", test.body)
	}
}

func TestTheStoreIsBounded(t *testing.T) {
	s := newStore(slog.New(slog.DiscardHandler))
	s.maxSeries, s.maxWeight = 100, 20_000
	key := func(i int) seriesKey { return seriesKey{name: fmt.Sprint(i)} }
	one := func(a *aggregate) { a.add(1, 1) }
	for i := range s.maxSeries + 10 {
		s.put(key(i), noon.Add(time.Duration(i)), noon, "None", false, one)
	}
	if len(s.series) != s.maxSeries || s.series[key(9)] != nil || s.series[key(10)] == nil || s.weight != 2*s.maxSeries {
		t.Errorf("%d metrics of weight %d", len(s.series), s.weight)
	}
	now := noon
	for i := range 2 * s.maxWeight { // a value a minute, in ten metrics
		now = noon.Add(time.Duration(i/10) * time.Minute)
		s.put(key(i%10), now, now, "None", i%2 == 0, one)
		if s.weight > s.maxWeight {
			t.Fatalf("after %d values the weight is %d", i, s.weight)
		}
	}
	if m := s.find(key(0), now); len(m.minutes) < 300 || m.minutes[0].at < now.Add(-keepCoarse).Unix() {
		t.Errorf("%d minutes are left", len(m.minutes))
	}
	weight := 0
	for _, m := range s.series {
		for _, b := range slices.Concat(m.minutes, m.seconds) {
			weight += b.weight()
		}
	}
	if weight != s.weight {
		t.Errorf("the weight is %d, counted as %d", s.weight, weight)
	}
}
