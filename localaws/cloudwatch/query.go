package cloudwatch

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/page"
)

// maxDatapoints is how many one GetMetricStatistics may ask for.
const maxDatapoints = 1440

type getMetricStatisticsInput struct {
	Namespace          string      `json:"Namespace"`
	MetricName         string      `json:"MetricName"`
	Dimensions         []Dimension `json:"Dimensions"`
	StartTime          *api.Time   `json:"StartTime"`
	EndTime            *api.Time   `json:"EndTime"`
	Period             int         `json:"Period"`
	Statistics         []string    `json:"Statistics"`
	ExtendedStatistics []string    `json:"ExtendedStatistics"`
	Unit               string      `json:"Unit"`
}

type datapoint struct {
	Timestamp          api.Time           `json:"Timestamp"`
	SampleCount        *float64           `json:"SampleCount,omitempty"`
	Average            *float64           `json:"Average,omitempty"`
	Sum                *float64           `json:"Sum,omitempty"`
	Minimum            *float64           `json:"Minimum,omitempty"`
	Maximum            *float64           `json:"Maximum,omitempty"`
	Unit               string             `json:"Unit"`
	ExtendedStatistics map[string]float64 `json:"ExtendedStatistics,omitempty"`
}

type getMetricStatisticsOutput struct {
	Label      string      `json:"Label"`
	Datapoints []datapoint `json:"Datapoints"`
}

func (s *Service) getMetricStatistics(ctx context.Context, in *getMetricStatisticsInput) (*getMetricStatisticsOutput, error) {
	statistics, err := in.check()
	if err != nil {
		return nil, err
	}
	c := api.CallOf(ctx)
	key := seriesKey{c.Region, c.Account, in.Namespace, in.MetricName, joinDimensions(in.Dimensions)}
	start, end := roundStart(in.StartTime.Time, in.Period), in.EndTime.Unix()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &getMetricStatisticsOutput{Label: in.MetricName, Datapoints: []datapoint{}}
	for _, b := range s.store.find(key, s.clock.Now()).periods(start, end, int64(in.Period), in.Unit) {
		d := datapoint{Timestamp: api.TimeOf(time.Unix(b.at, 0)), Unit: b.unit}
		if d.fill(statistics, &b.aggregate) {
			out.Datapoints = append(out.Datapoints, d)
		}
	}
	return out, nil
}

func (in *getMetricStatisticsInput) check() ([]statistic, error) {
	err := firstOf(checkNamespace(in.Namespace), checkMetric("", in.MetricName, in.Dimensions))
	switch {
	case err != nil:
		return nil, err
	case in.StartTime == nil:
		return nil, missing("StartTime")
	case in.EndTime == nil:
		return nil, missing("EndTime")
	case in.Period == 0:
		return nil, missing("Period")
	case !in.StartTime.Before(in.EndTime.Time):
		return nil, errInvalidValue.With("The parameter StartTime must be less than the parameter EndTime.")
	case len(in.Statistics) == 0 && len(in.ExtendedStatistics) == 0:
		return nil, errMissing.With("The parameter Statistics or the parameter ExtendedStatistics is required.")
	case len(in.Statistics) > 0 && len(in.ExtendedStatistics) > 0:
		return nil, errInvalidCombination.With("The parameters Statistics and ExtendedStatistics are mutually exclusive and you have specified both.")
	}
	if err := firstOf(checkPeriod(in.Period, "Period"), enum(in.Unit, "unit", units...)); err != nil {
		return nil, err
	}
	if n := int64(in.EndTime.Sub(in.StartTime.Time) / (time.Duration(in.Period) * time.Second)); n > maxDatapoints {
		return nil, errInvalidCombination.With("You have requested up to %s datapoints, which exceeds the limit of 1,440. "+
			"You may reduce the datapoints requested by increasing Period, or decreasing the time range.", thousands(n))
	}
	return in.parseStatistics()
}

func (in *getMetricStatisticsInput) parseStatistics() ([]statistic, error) {
	var out []statistic
	for _, name := range in.Statistics {
		if err := enum(name, "statistics", basicStatistics...); name == "" || err != nil {
			return nil, invalid(name, "Statistics")
		}
		out = append(out, statistic{name, -1})
	}
	for _, name := range in.ExtendedStatistics {
		parsed, ok := parseStatistic(name)
		if !ok || parsed.rank < 0 {
			return nil, errInvalidValue.With("The value %s for parameter ExtendedStatistics is not supported.", name)
		}
		out = append(out, parsed)
	}
	return out, nil
}

// fill sets what is asked for and reports whether there is any of it.
func (d *datapoint) fill(statistics []statistic, a *aggregate) bool {
	some := false
	for _, s := range statistics {
		value, ok := s.of(a)
		if !ok {
			continue
		}
		some = true
		switch s.name {
		case "SampleCount":
			d.SampleCount = &value
		case "Average":
			d.Average = &value
		case "Sum":
			d.Sum = &value
		case "Minimum":
			d.Minimum = &value
		case "Maximum":
			d.Maximum = &value
		default:
			if d.ExtendedStatistics == nil {
				d.ExtendedStatistics = map[string]float64{}
			}
			d.ExtendedStatistics[s.name] = value
		}
	}
	return some
}

// roundStart rounds the start of a query down as AWS does: to the minute, or to the period if that
// is shorter. Periods are counted from there.
func roundStart(t time.Time, period int) int64 {
	return t.Unix() - mod(t.Unix(), int64(min(period, 60)))
}

// thousands writes a number with commas.
func thousands(n int64) string {
	if n < 1000 {
		return strconv.FormatInt(n, 10)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

// metricsPage is how many metrics ListMetrics returns at once.
const metricsPage = 500

// recently is what RecentlyActive means.
const recently = 3 * time.Hour

type dimensionFilter struct {
	Name  string `json:"Name"`
	Value string `json:"Value"` // empty is any
}

type listMetricsInput struct {
	Namespace      string            `json:"Namespace"`
	MetricName     string            `json:"MetricName"`
	Dimensions     []dimensionFilter `json:"Dimensions"`
	NextToken      string            `json:"NextToken"`
	RecentlyActive string            `json:"RecentlyActive"`
}

type metric struct {
	Namespace  string      `json:"Namespace"`
	MetricName string      `json:"MetricName"`
	Dimensions []Dimension `json:"Dimensions"`
}

type listMetricsOutput struct {
	Metrics   []metric `json:"Metrics"`
	NextToken string   `json:"NextToken,omitempty"`
}

// list names what the request lists.
func (in listMetricsInput) list(c *api.Call) string {
	in.NextToken = ""
	return listOf(c, in)
}

// listMetrics returns the metrics that have data, in order.
func (s *Service) listMetrics(ctx context.Context, in *listMetricsInput) (*listMetricsOutput, error) {
	if err := firstOf(enum(in.RecentlyActive, "recentlyActive", "PT3H"), length(in.MetricName, "MetricName", 255, false)); err != nil {
		return nil, err
	}
	c := api.CallOf(ctx)
	list := in.list(c)
	after, err := s.tokens.Read(list, in.NextToken)
	if err != nil {
		return nil, errInvalidValue.With("Request parameter NextToken is invalid")
	}
	found, last := page.Cut(s.findMetrics(c, in), func(m listed) string { return m.place }, after, metricsPage)
	out := &listMetricsOutput{Metrics: []metric{}}
	if last != "" {
		out.NextToken = s.tokens.Make(list, last)
	}
	for _, m := range found {
		out.Metrics = append(out.Metrics, metric{m.namespace, m.name, m.split()})
	}
	return out, nil
}

// listed is a metric and its place among those of its account and region.
type listed struct {
	seriesKey
	place string
}

// findMetrics returns the metrics that are asked for, in order.
func (s *Service) findMetrics(c *api.Call, in *listMetricsInput) []listed {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Now()
	s.store.sweep(now)
	var found []listed
	for key, m := range s.store.series {
		mine := key.region == c.Region && key.account == c.Account
		stale := in.RecentlyActive != "" && m.touched.Before(now.Add(-recently))
		if mine && !stale && in.matches(key) {
			found = append(found, listed{key, key.namespace + "\x00" + key.name + "\x00" + key.dimensions})
		}
	}
	slices.SortFunc(found, func(a, b listed) int { return strings.Compare(a.place, b.place) })
	return found
}

func (in *listMetricsInput) matches(key seriesKey) bool {
	if in.Namespace != "" && in.Namespace != key.namespace || in.MetricName != "" && in.MetricName != key.name {
		return false
	}
	has := key.split()
	for _, want := range in.Dimensions {
		if !slices.ContainsFunc(has, func(d Dimension) bool {
			return d.Name == want.Name && (want.Value == "" || d.Value == want.Value)
		}) {
			return false
		}
	}
	return true
}
