package cloudwatch

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/page"
	"github.com/stepfleet/stepfleet/localaws/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// FuzzOperations feeds nonsense to every operation, twice, with alarms looking at what it left: no
// error is anything but the service's own, and every answer can be written.
func FuzzOperations(f *testing.F) {
	for _, body := range []string{
		"{}", `{"Namespace":"N","MetricData":[{"MetricName":"m","Values":[1,-1e108],"Counts":[1e100,2],"StorageResolution":1}]}`,
		`{"Namespace":"N","MetricData":[{"MetricName":"m","StatisticValues":{"SampleCount":1e-300,"Sum":1,"Minimum":1,"Maximum":1}}],"EntityMetricData":[{}]}`,
		`{"Namespace":"N","MetricData":[{"MetricName":"m","StatisticValues":{"SampleCount":1e-300,"Sum":1e108,"Minimum":1,"Maximum":2}}]}`,
		`{"Namespace":"N","MetricData":[{"MetricName":"m","StatisticValues":{"SampleCount":1e-108,"Sum":1e0,"Minimum":1,"Maximum":2}},{"MetricName":"m","Value":2e108}]}`,
		`{"Namespace":"N","MetricName":"m","StartTime":0,"EndTime":253402300799,"Period":86400,"Statistics":["Sum"]}`,
		`{"Namespace":"N","MetricName":"m","StartTime":1773489000,"EndTime":1773490000,"Period":1,"ExtendedStatistics":["p0","p100","p99.99"]}`,
		`{"MetricDataQueries":[{"Id":"a","MetricStat":{"Metric":{"Namespace":"N","MetricName":"m"},"Period":60,"Stat":"p50"}}],"StartTime":-1e9,"EndTime":1.8e9,"MaxDatapoints":1}`,
		`{"AlarmName":"b","Namespace":"N","MetricName":"m","Statistic":"Sum","Period":10,"EvaluationPeriods":8640,"Threshold":-0,"ComparisonOperator":"LessThanThreshold","TreatMissingData":"breaching"}`,
		`{"AlarmNames":["a",""],"MaxRecords":1,"NextToken":"YQ"}`, `{"AlarmName":"a","StateValue":"OK","StateReason":"x","StateReasonData":"0"}`,
		`{"ResourceARN":"arn:aws:cloudwatch:r:a:alarm:a","Tags":[{"Key":"k"}],"TagKeys":["k"]}`, `{"NextToken":"AAAA","Dimensions":[{}],"RecentlyActive":"PT3H"}`,
	} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		c := clock.NewManual(noon)
		s := New(Options{Clock: c, Logger: slog.New(slog.DiscardHandler), Tokens: page.NewTokens(seal.NewKey(1))})
		ctx := api.WithCall(context.Background(), &api.Call{Region: "r", Account: "a"})
		call := func(op, body string) {
			operation := s.API().Ops[op]
			in := operation.NewIn()
			if json.Unmarshal([]byte(body), in) != nil {
				return
			}
			out, err := operation.Call(ctx, in)
			var e *api.Error
			if err != nil && !errors.As(err, &e) {
				t.Errorf("%s %s: %v", op, body, err)
			}
			if _, err := json.Marshal(out); err != nil {
				t.Errorf("%s %s: %v", op, body, err)
			}
		}
		call("PutMetricAlarm", "{"+plainAlarm+"}")
		for range 2 {
			for op := range s.API().Ops {
				call(op, body)
			}
			c.Advance(2 * time.Minute)
		}
	})
}
