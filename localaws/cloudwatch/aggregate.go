package cloudwatch

import (
	"math"
	"regexp"
	"slices"
	"strconv"
)

// maxDistinct is how many distinct values an aggregate tells apart; beyond it they are rounded to
// fewer digits, so percentiles of a crowd are good to half a percent. With one digit, the values
// from 2^-360 to 2^360 and their negatives are fewer than this.
const maxDistinct = 5000

// aggregate is the statistics of a set of values.
type aggregate struct {
	count, sum, min, max float64
	values               []weighted // in order; empty if opaque
	digits               int        // to which values are rounded; 0 is not
	opaque               bool       // holds a statistic set, whose values are unknown
}

// weighted is a value that occurred count times.
type weighted struct{ value, count float64 }

// add puts in a value that occurred count times.
func (a *aggregate) add(value, count float64) {
	a.include(count, value*count, value, value)
	if !a.opaque {
		a.remember(value, count)
	}
}

// statisticSet is a set of values of which only the statistics are known.
type statisticSet struct {
	SampleCount *float64 `json:"SampleCount"`
	Sum         *float64 `json:"Sum"`
	Minimum     *float64 `json:"Minimum"`
	Maximum     *float64 `json:"Maximum"`
}

// addSet puts in a set. One of equal values is as good as the values.
func (a *aggregate) addSet(s statisticSet) {
	if *s.SampleCount == 1 || *s.Minimum == *s.Maximum {
		a.include(*s.SampleCount, *s.Sum, *s.Minimum, *s.Maximum)
		if !a.opaque {
			a.remember(*s.Maximum, *s.SampleCount)
		}
		return
	}
	a.include(*s.SampleCount, *s.Sum, *s.Minimum, *s.Maximum)
	a.opaque, a.values = true, nil
}

// merge puts in another aggregate, which stays as it is.
func (a *aggregate) merge(b *aggregate) {
	a.include(b.count, b.sum, b.min, b.max)
	if b.opaque {
		a.opaque, a.values = true, nil
	}
	if a.opaque {
		return
	}
	for _, w := range b.values {
		a.remember(w.value, w.count)
	}
}

func (a *aggregate) include(count, sum, low, high float64) {
	if a.count == 0 {
		a.min, a.max = low, high
	}
	a.count += count
	a.sum += sum
	a.min, a.max = min(a.min, low), max(a.max, high)
}

func (a *aggregate) remember(value, count float64) {
	value = round(value, a.digits)
	i, found := slices.BinarySearchFunc(a.values, value, compareValue)
	if found {
		a.values[i].count += count
		return
	}
	a.values = slices.Insert(a.values, i, weighted{value, count})
	for len(a.values) > maxDistinct && a.digits != 1 {
		a.coarsen()
	}
}

func compareValue(w weighted, value float64) int {
	switch {
	case w.value < value:
		return -1
	case w.value > value:
		return 1
	}
	return 0
}

// coarsen rounds every value to fewer digits than before.
func (a *aggregate) coarsen() {
	a.digits--
	if a.digits < 0 {
		a.digits = 3
	}
	kept := a.values[:0]
	for _, w := range a.values {
		w.value = round(w.value, a.digits)
		if n := len(kept); n > 0 && kept[n-1].value == w.value {
			kept[n-1].count += w.count
			continue
		}
		kept = append(kept, w)
	}
	a.values = kept
}

// round keeps that many significant digits; 0 keeps all.
func round(value float64, digits int) float64 {
	if digits == 0 || value == 0 {
		return value
	}
	rounded, err := strconv.ParseFloat(strconv.FormatFloat(value, 'e', digits-1, 64), 64)
	if err != nil {
		return value
	}
	return rounded
}

// statistic is one of the statistics by name.
type statistic struct {
	name string
	rank float64 // of a percentile, from 0 to 1; negative for others
}

// basicStatistics are those that GetMetricStatistics calls Statistics.
var basicStatistics = []string{"SampleCount", "Average", "Sum", "Minimum", "Maximum"}

var percentileName = regexp.MustCompile(`^p(100(?:\.0{0,10})?|\d{1,2}(?:\.\d{0,10})?)$`)

// parseStatistic returns the statistic of that name; ok is false for a name that is none, and for
// the trimmed kinds, which are not emulated.
func parseStatistic(name string) (_ statistic, ok bool) {
	if slices.Contains(basicStatistics, name) {
		return statistic{name, -1}, true
	}
	found := percentileName.FindStringSubmatch(name)
	if found == nil {
		return statistic{}, false
	}
	percent, err := strconv.ParseFloat(found[1], 64)
	return statistic{name, percent / 100}, err == nil
}

// of returns the statistic of the aggregate; ok is false if it has none.
func (s statistic) of(a *aggregate) (_ float64, ok bool) {
	if a.count == 0 {
		return 0, false
	}
	switch s.name {
	case "SampleCount":
		return a.count, true
	case "Sum":
		return a.sum, true
	case "Average":
		return a.sum / a.count, true
	case "Minimum":
		return a.min, true
	case "Maximum":
		return a.max, true
	}
	return a.percentile(s.rank)
}

// percentile returns the smallest value that is no less than that share of all. AWS has no
// percentiles of statistic sets and of negative values.
func (a *aggregate) percentile(rank float64) (_ float64, ok bool) {
	if a.opaque || a.min < 0 || len(a.values) == 0 {
		return 0, false
	}
	need, passed := rank*a.count, 0.0
	for _, w := range a.values {
		if passed += w.count; passed >= need*(1-1e-12) { // the sums of counts are not exact
			return math.Min(w.value, a.max), true
		}
	}
	return a.max, true
}
