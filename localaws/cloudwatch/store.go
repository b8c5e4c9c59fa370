package cloudwatch

import (
	"cmp"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// How long data is kept, and how much of it: AWS keeps minutes for 15 days and high-resolution
// seconds for 3 hours; what it keeps longer and coarser is not kept here.
const (
	keepCoarse = 15 * 24 * time.Hour
	keepFine   = 3 * time.Hour
	// maxSeries bounds the metrics; the one that has been silent longest gives way.
	maxSeries = 50_000
	// maxWeight bounds the periods and distinct values of all metrics together, some 100 bytes each
	// at most; beyond it the oldest half of the time is dropped.
	maxWeight = 2_000_000
)

// Dimension is a name and a value by which metrics of one name differ.
type Dimension struct {
	Name  string `json:"Name"`
	Value string `json:"Value"`
}

// seriesKey is what makes a metric. Dimensions are in order and joined, so that each set of them is
// a metric of its own.
type seriesKey struct{ region, account, namespace, name, dimensions string }

func joinDimensions(dimensions []Dimension) string {
	sorted := slices.SortedFunc(slices.Values(dimensions), func(a, b Dimension) int { return cmp.Compare(a.Name, b.Name) })
	var b strings.Builder
	for _, d := range sorted {
		b.WriteString(d.Name + "\x00" + d.Value + "\x00")
	}
	return b.String()
}

func (k seriesKey) split() []Dimension {
	out := []Dimension{}
	parts := strings.Split(k.dimensions, "\x00")
	for i := 0; i+1 < len(parts); i += 2 {
		out = append(out, Dimension{parts[i], parts[i+1]})
	}
	return out
}

// bucket is what was put for one minute, or one second, in one unit.
type bucket struct {
	at   int64 // its start, in seconds since 1970
	unit string
	aggregate
}

func compareBuckets(a, b bucket) int {
	return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.unit, b.unit))
}

func (b *bucket) weight() int { return 1 + len(b.values) }

// series is one metric. Data of high resolution is in both lists.
type series struct {
	minutes, seconds []bucket // by time, then unit
	touched          time.Time
}

// store is every metric.
type store struct {
	log                  *slog.Logger
	series               map[seriesKey]*series
	weight               int
	maxSeries, maxWeight int // lower in tests
}

func newStore(log *slog.Logger) store {
	return store{log: log, series: map[seriesKey]*series{}, maxSeries: maxSeries, maxWeight: maxWeight}
}

// put adds to one metric at the time at; now is the clock's.
func (s *store) put(key seriesKey, now, at time.Time, unit string, fine bool, add func(*aggregate)) {
	m := s.series[key]
	if m == nil {
		s.makeRoom(now)
		m = &series{}
		s.series[key] = m
	}
	m.touched = now
	s.weight += insert(&m.minutes, at.Unix()-mod(at.Unix(), 60), unit, add)
	if fine {
		s.weight += insert(&m.seconds, at.Unix(), unit, add)
	}
	s.prune(m, now, keepCoarse)
	for keep := keepCoarse / 2; s.weight > s.maxWeight && keep > time.Minute; keep /= 2 {
		s.shed(now, keep)
	}
}

// insert adds to the bucket at that time and returns by how much the weight grew.
func insert(list *[]bucket, at int64, unit string, add func(*aggregate)) int {
	i, found := slices.BinarySearchFunc(*list, bucket{at: at, unit: unit}, compareBuckets)
	before := 0
	if found {
		before = (*list)[i].weight()
	} else {
		*list = slices.Insert(*list, i, bucket{at: at, unit: unit})
	}
	b := &(*list)[i]
	add(&b.aggregate)
	return b.weight() - before
}

// mod is the remainder that is never negative.
func mod(a, b int64) int64 { return ((a % b) + b) % b }

// prune drops what is older than it may be, and keep at most.
func (s *store) prune(m *series, now time.Time, keep time.Duration) {
	s.weight -= dropBefore(&m.minutes, now.Add(-keep).Unix())
	s.weight -= dropBefore(&m.seconds, now.Add(-min(keep, keepFine)).Unix())
}

func dropBefore(list *[]bucket, at int64) (weight int) {
	n := 0
	for n < len(*list) && (*list)[n].at < at {
		weight += (*list)[n].weight()
		n++
	}
	if n > 0 {
		*list = slices.Delete(*list, 0, n)
	}
	return weight
}

// shed drops what is older than keep, of every metric.
func (s *store) shed(now time.Time, keep time.Duration) {
	s.log.Warn("CloudWatch holds too much data; old data is dropped", "older_than", keep)
	for _, m := range s.series {
		s.prune(m, now, keep)
	}
	s.dropEmpty()
}

// makeRoom drops the metric that has been silent longest if there are as many as there may be.
func (s *store) makeRoom(now time.Time) {
	if len(s.series) < s.maxSeries {
		return
	}
	s.sweep(now)
	for len(s.series) >= s.maxSeries {
		var oldest seriesKey
		var touched time.Time
		for key, m := range s.series {
			if touched.IsZero() || m.touched.Before(touched) {
				oldest, touched = key, m.touched
			}
		}
		s.log.Warn("CloudWatch holds too many metrics; the one that was silent longest is dropped", "namespace", oldest.namespace, "metric", oldest.name)
		s.drop(oldest)
	}
}

func (s *store) drop(key seriesKey) {
	m := s.series[key]
	dropAll := int64(1) << 62
	s.weight -= dropBefore(&m.minutes, dropAll) + dropBefore(&m.seconds, dropAll)
	delete(s.series, key)
}

// sweep drops what is past its time, of every metric, and those that have nothing left.
func (s *store) sweep(now time.Time) {
	for _, m := range s.series {
		s.prune(m, now, keepCoarse)
	}
	s.dropEmpty()
}

func (s *store) dropEmpty() {
	for key, m := range s.series {
		if len(m.minutes) == 0 {
			delete(s.series, key)
		}
	}
}

// find returns the metric without what is past its time, or nil.
func (s *store) find(key seriesKey, now time.Time) *series {
	m := s.series[key]
	if m != nil {
		s.prune(m, now, keepCoarse)
	}
	return m
}

// between returns the buckets from start to before end, for periods of that many seconds.
func (m *series) between(start, end, period int64) []bucket {
	if m == nil {
		return nil
	}
	list := m.minutes
	if period < 60 && len(m.seconds) > 0 {
		list = m.seconds
	}
	byTime := func(b bucket, at int64) int { return cmp.Compare(b.at, at) }
	from, _ := slices.BinarySearchFunc(list, start, byTime)
	to, _ := slices.BinarySearchFunc(list, max(start, end), byTime)
	return list[from:to]
}

// periods aggregates the buckets from start to before end, in periods that are counted from start.
// Each unit has its own; a unit that is given is the only one.
func (m *series) periods(start, end, period int64, unit string) []bucket {
	var out []bucket
	for _, b := range m.between(start, end, period) {
		if unit != "" && b.unit != unit {
			continue
		}
		at := b.at - mod(b.at-start, period)
		insert(&out, at, b.unit, func(a *aggregate) { a.merge(&b.aggregate) })
	}
	return out
}
