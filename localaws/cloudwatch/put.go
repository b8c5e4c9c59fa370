package cloudwatch

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
)

// AWS's limits of one PutMetricData.
const (
	maxData       = 1000
	maxDataValues = 150
	oldestData    = 14 * 24 * time.Hour
	newestData    = 2 * time.Hour
)

type metricDatum struct {
	MetricName        string        `json:"MetricName"`
	Dimensions        []Dimension   `json:"Dimensions"`
	Timestamp         *api.Time     `json:"Timestamp"`
	Value             *float64      `json:"Value"`
	StatisticValues   *statisticSet `json:"StatisticValues"`
	Values            []float64     `json:"Values"`
	Counts            []float64     `json:"Counts"`
	Unit              string        `json:"Unit"`
	StorageResolution *int          `json:"StorageResolution"`
}

// entityData is data that names what it is about, which nothing here reads.
type entityData struct {
	MetricData []metricDatum `json:"MetricData"`
}

type putMetricDataInput struct {
	Namespace        string        `json:"Namespace"`
	MetricData       []metricDatum `json:"MetricData"`
	EntityMetricData []entityData  `json:"EntityMetricData"`
}

// data returns all data of the call, those of entities included. It counts them first: there may be
// far too many to copy.
func (in *putMetricDataInput) data() ([]metricDatum, error) {
	count := len(in.MetricData)
	for _, e := range in.EntityMetricData {
		count += len(e.MetricData)
	}
	if count == 0 {
		return nil, missing("MetricData")
	}
	if count > maxData {
		return nil, errInvalidValue.With("The collection MetricData must not have a size greater than %d.", maxData)
	}
	data := in.MetricData
	for _, e := range in.EntityMetricData {
		data = append(data, e.MetricData...)
	}
	return data, nil
}

// putMetricData stores all of the data or, if any of it is wrong, none.
func (s *Service) putMetricData(ctx context.Context, in *putMetricDataInput) (*api.Empty, error) {
	if err := checkNamespace(in.Namespace); err != nil {
		return nil, err
	}
	if strings.HasPrefix(in.Namespace, "AWS/") {
		return nil, invalid("AWS/", "Namespace")
	}
	data, err := in.data()
	if err != nil {
		return nil, err
	}
	now := s.clock.Now()
	for i := range data {
		if err := data[i].check(fmt.Sprintf("MetricData.member.%d.", i+1), now); err != nil {
			return nil, err
		}
	}
	c := api.CallOf(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range data {
		d := &data[i]
		key := seriesKey{c.Region, c.Account, in.Namespace, d.MetricName, joinDimensions(d.Dimensions)}
		s.store.put(key, now, d.time(now), d.unit(), d.fine(), d.addTo)
	}
	return &api.Empty{}, nil
}

func checkNamespace(namespace string) error {
	if strings.HasPrefix(namespace, ":") {
		return errInvalidValue.With("The value %s for parameter Namespace is invalid: it must not start with a colon.", namespace)
	}
	return length(namespace, "Namespace", 255, true)
}

func (d *metricDatum) check(at string, now time.Time) error {
	if err := checkMetric(at, d.MetricName, d.Dimensions); err != nil {
		return err
	}
	if err := enum(d.Unit, "metricData."+strings.Split(at, ".")[2]+".member.unit", units...); err != nil {
		return err
	}
	if r := d.StorageResolution; r != nil && *r != 1 && *r != 60 {
		return invalid(*r, at+"StorageResolution")
	}
	if t := d.Timestamp; t != nil {
		if t.Before(now.Add(-oldestData)) {
			return errInvalidValue.With("The parameter %sTimestamp must specify a time no more than two weeks in the past.", at)
		}
		if t.After(now.Add(newestData)) {
			return errInvalidValue.With("The parameter %sTimestamp must specify a time no more than two hours in the future.", at)
		}
	}
	return d.checkValues(at)
}

func (d *metricDatum) checkValues(at string) error {
	exclusive := func(other string) error {
		return errInvalidCombination.With("The parameters %sValue and %s%s are mutually exclusive and you have specified both.", at, at, other)
	}
	switch {
	case d.Value != nil && len(d.Values) > 0:
		return exclusive("Values")
	case d.Value != nil && d.StatisticValues != nil:
		return exclusive("StatisticValues")
	case d.Value != nil:
		return checkValue(*d.Value, at+"Value")
	case len(d.Values) > 0:
		return d.checkList(at)
	case d.StatisticValues != nil:
		return d.StatisticValues.check(at + "StatisticValues.")
	}
	return errMissing.With("At least one of the parameters %sValue, %sValues and %sStatisticValues must be specified.", at, at, at)
}

func (d *metricDatum) checkList(at string) error {
	if len(d.Values) > maxDataValues {
		return errInvalidValue.With("The collection %sValues must not have a size greater than %d.", at, maxDataValues)
	}
	if len(d.Counts) > 0 && len(d.Counts) != len(d.Values) {
		return errInvalidValue.With("The parameters %sValues and %sCounts must be of the same size.", at, at)
	}
	for _, v := range d.Values {
		if err := checkValue(v, at+"Values"); err != nil {
			return err
		}
	}
	for _, n := range d.Counts {
		if !(n > 0) || n > maxValue {
			return invalid(n, at+"Counts")
		}
	}
	return nil
}

func (s *statisticSet) check(at string) error {
	for _, member := range []struct {
		name  string
		value *float64
	}{{"SampleCount", s.SampleCount}, {"Sum", s.Sum}, {"Minimum", s.Minimum}, {"Maximum", s.Maximum}} {
		if member.value == nil {
			return missing(at + member.name)
		}
		if err := checkValue(*member.value, at+member.name); err != nil {
			return err
		}
	}
	if *s.Maximum < *s.Minimum {
		return errInvalidValue.With("The parameter %sMaximum must be greater than %sMinimum.", at, at)
	}
	if *s.SampleCount <= 0 {
		return invalid(*s.SampleCount, at+"SampleCount")
	}
	return nil
}

func (d *metricDatum) time(now time.Time) time.Time {
	if d.Timestamp == nil {
		return now
	}
	return d.Timestamp.Time
}

func (d *metricDatum) unit() string {
	if d.Unit == "" {
		return "None"
	}
	return d.Unit
}

func (d *metricDatum) fine() bool { return d.StorageResolution != nil && *d.StorageResolution == 1 }

// addTo puts the datum's values in. AWS takes Values beside StatisticValues; the values count.
func (d *metricDatum) addTo(a *aggregate) {
	switch {
	case d.Value != nil:
		a.add(*d.Value, 1)
	case len(d.Values) > 0:
		for i, v := range d.Values {
			count := 1.0
			if len(d.Counts) > 0 {
				count = d.Counts[i]
			}
			a.add(v, count)
		}
	default:
		a.addSet(*d.StatisticValues)
	}
}
