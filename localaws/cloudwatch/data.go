package cloudwatch

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
)

// AWS's limits of one GetMetricData.
const (
	maxQueries         = 500
	maxQueryDatapoints = 100_800
)

type metricStat struct {
	Metric *metricName `json:"Metric"`
	Period int         `json:"Period"`
	Stat   string      `json:"Stat"`
	Unit   string      `json:"Unit"`
}

// metricName is a metric as a query names it.
type metricName struct {
	Namespace  string      `json:"Namespace"`
	MetricName string      `json:"MetricName"`
	Dimensions []Dimension `json:"Dimensions"`
}

type metricDataQuery struct {
	ID         string      `json:"Id"`
	MetricStat *metricStat `json:"MetricStat"`
	Expression string      `json:"Expression"`
	Label      string      `json:"Label"`
	ReturnData *bool       `json:"ReturnData"`
	Period     *int        `json:"Period"`
	AccountID  string      `json:"AccountId"`
}

type labelOptions struct {
	Timezone string `json:"Timezone"`
}

type getMetricDataInput struct {
	MetricDataQueries []metricDataQuery `json:"MetricDataQueries"`
	StartTime         *api.Time         `json:"StartTime"`
	EndTime           *api.Time         `json:"EndTime"`
	NextToken         string            `json:"NextToken"`
	ScanBy            string            `json:"ScanBy"`
	MaxDatapoints     int               `json:"MaxDatapoints"`
	LabelOptions      *labelOptions     `json:"LabelOptions"`
}

type messageData struct {
	Code  string `json:"Code"`
	Value string `json:"Value"`
}

type metricDataResult struct {
	ID         string        `json:"Id"`
	Label      string        `json:"Label"`
	Timestamps []api.Time    `json:"Timestamps"`
	Values     []float64     `json:"Values"`
	StatusCode string        `json:"StatusCode"`
	Messages   []messageData `json:"Messages,omitempty"`
}

type getMetricDataOutput struct {
	MetricDataResults []metricDataResult `json:"MetricDataResults"`
	NextToken         string             `json:"NextToken,omitempty"`
	Messages          []messageData      `json:"Messages"`
}

func (s *Service) getMetricData(ctx context.Context, in *getMetricDataInput) (*getMetricDataOutput, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	c := api.CallOf(ctx)
	list := in.list(c)
	skip, err := s.skipped(list, in.NextToken)
	if err != nil {
		return nil, err
	}
	label := in.labels()
	var results []metricDataResult
	s.mu.Lock()
	now := s.clock.Now()
	for i := range in.MetricDataQueries {
		q := &in.MetricDataQueries[i]
		if q.ReturnData != nil && !*q.ReturnData {
			continue
		}
		r := s.query(c, q.MetricStat, in, now)
		r.ID, r.Label = q.ID, label(q)
		results = append(results, r)
	}
	s.mu.Unlock()
	out, next := in.page(results, skip)
	if next > 0 {
		out.NextToken = s.tokens.Make(list, strconv.Itoa(next))
	}
	return out, nil
}

func (in *getMetricDataInput) check() error {
	switch {
	case len(in.MetricDataQueries) == 0:
		return missing("MetricDataQueries")
	case len(in.MetricDataQueries) > maxQueries:
		return errValidation.With("The collection MetricDataQueries must not have a size greater than %d.", maxQueries)
	case in.StartTime == nil:
		return missing("StartTime")
	case in.EndTime == nil:
		return missing("EndTime")
	case in.StartTime.After(in.EndTime.Time):
		return errValidation.With("The parameter EndTime must be greater than StartTime.")
	case in.StartTime.Equal(in.EndTime.Time):
		return errValidation.With("The parameter StartTime must not equal parameter EndTime.")
	case in.MaxDatapoints < 0 || in.MaxDatapoints > maxQueryDatapoints:
		return errValidation.With("The value %d for parameter MaxDatapoints is invalid: it must be from 1 to %d.", in.MaxDatapoints, maxQueryDatapoints)
	}
	if err := enum(in.ScanBy, "scanBy", "TimestampDescending", "TimestampAscending"); err != nil {
		return err
	}
	seen, returned := map[string]bool{}, false
	for i := range in.MetricDataQueries {
		q := &in.MetricDataQueries[i]
		if err := q.check(fmt.Sprintf("MetricDataQueries.member.%d.", i+1)); err != nil {
			return err
		}
		if seen[q.ID] {
			return errValidation.With("The values for parameter id in MetricDataQueries are not unique.")
		}
		seen[q.ID] = true
		returned = returned || q.ReturnData == nil || *q.ReturnData
	}
	if !returned {
		return errValidation.With("At least one of the MetricDataQueries must return data.")
	}
	return nil
}

var queryID = regexp.MustCompile(`^[a-z][a-zA-Z0-9_]{0,254}$`)

func (q *metricDataQuery) check(at string) error {
	if !queryID.MatchString(q.ID) {
		return errValidation.With("The value %s for parameter %sId is not matching the expected pattern ^[a-z][a-zA-Z0-9_]*$.", q.ID, at)
	}
	if q.Expression != "" {
		return notEmulated("metric math: the query "+q.ID+" has an Expression", "ask for each metric with a MetricStat and calculate from the values")
	}
	stat := q.MetricStat
	if stat == nil {
		return errValidation.With("The parameter %sMetricStat or the parameter %sExpression is required.", at, at)
	}
	at += "MetricStat."
	switch {
	case stat.Metric == nil:
		return missing(at + "Metric")
	case stat.Period == 0:
		return missing(at + "Period")
	case stat.Stat == "":
		return missing(at + "Stat")
	}
	if _, ok := parseStatistic(stat.Stat); !ok {
		return errValidation.With("The value %s for parameter %sStat is not supported.", stat.Stat, at)
	}
	return firstOf(
		checkNamespace(stat.Metric.Namespace), checkMetric(at+"Metric.", stat.Metric.MetricName, stat.Metric.Dimensions),
		checkPeriod(stat.Period, at+"Period"), enum(stat.Unit, "unit", units...),
	)
}

// query returns the whole answer to one query. Without a unit, and with data in several, the first
// by name is the answer.
func (s *Service) query(c *api.Call, q *metricStat, in *getMetricDataInput, now time.Time) metricDataResult {
	key := seriesKey{c.Region, c.Account, q.Metric.Namespace, q.Metric.MetricName, joinDimensions(q.Metric.Dimensions)}
	buckets := s.store.find(key, now).periods(roundStart(in.StartTime.Time, q.Period), in.EndTime.Unix(), int64(q.Period), q.Unit)
	out := metricDataResult{StatusCode: "Complete", Timestamps: []api.Time{}, Values: []float64{}}
	has := unitsOf(buckets)
	if len(has) > 1 {
		out.Messages = []messageData{{"MultipleUnits", "Multiple units returned: '[" + strings.Join(has, ", ") + "]'"}}
	}
	stat, _ := parseStatistic(q.Stat)
	for _, b := range buckets {
		if value, ok := stat.of(&b.aggregate); ok && b.unit == has[0] {
			out.Timestamps = append(out.Timestamps, api.TimeOf(time.Unix(b.at, 0)))
			out.Values = append(out.Values, value)
		}
	}
	if in.ScanBy != "TimestampAscending" {
		slices.Reverse(out.Timestamps)
		slices.Reverse(out.Values)
	}
	return out
}

// unitsOf returns the units of the buckets by name.
func unitsOf(buckets []bucket) []string {
	var out []string
	for _, b := range buckets {
		if !slices.Contains(out, b.unit) {
			out = append(out, b.unit)
		}
	}
	slices.Sort(out)
	return out
}

// labels returns how a query without a label is called: by its metric, and by the statistic and
// the period where the queries of the call differ in them.
func (in *getMetricDataInput) labels() func(*metricDataQuery) string {
	first := in.MetricDataQueries[0].MetricStat
	stats, periods := false, false
	for i := range in.MetricDataQueries {
		q := in.MetricDataQueries[i].MetricStat
		stats, periods = stats || q.Stat != first.Stat, periods || q.Period != first.Period
	}
	return func(q *metricDataQuery) string {
		if q.Label != "" {
			return q.Label
		}
		label := q.MetricStat.Metric.MetricName
		if stats {
			label += " " + q.MetricStat.Stat
		}
		if periods {
			label += " " + strconv.Itoa(q.MetricStat.Period)
		}
		return label
	}
}

// page returns the results without the first skip datapoints, and with no more than may be
// returned at once. A result that the page does not finish is PartialData; those before the page
// are left out. Next is how many datapoints the next page skips, 0 when there is none.
func (in *getMetricDataInput) page(results []metricDataResult, skip int) (out *getMetricDataOutput, next int) {
	room := in.MaxDatapoints
	if room == 0 {
		room = maxQueryDatapoints
	}
	out = &getMetricDataOutput{MetricDataResults: []metricDataResult{}, Messages: []messageData{}}
	end, left := skip+room, 0
	for _, r := range results {
		n := len(r.Values)
		if skip > 0 && n <= skip {
			skip -= n
			continue
		}
		from, to := skip, min(n, skip+room)
		skip, room, left = 0, room-(to-from), left+n-to
		r.Timestamps, r.Values = r.Timestamps[from:to], r.Values[from:to]
		if to < n {
			r.StatusCode = "PartialData"
		}
		out.MetricDataResults = append(out.MetricDataResults, r)
	}
	if left > 0 {
		next = end
	}
	return out, next
}

// list names what the request lists: the answer to this very request.
func (in getMetricDataInput) list(c *api.Call) string {
	in.NextToken = ""
	return listOf(c, in)
}

// skipped returns how many datapoints came before the page of a token.
func (s *Service) skipped(list, token string) (int, error) {
	after, err := s.tokens.Read(list, token)
	if err != nil {
		return 0, errInvalidToken
	}
	if after == "" {
		return 0, nil
	}
	return strconv.Atoi(after)
}
