package cloudwatch

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet/localaws/clock"
)

// Sample is one number that a service tells about itself.
type Sample struct {
	Region, Account string
	Name            string
	Dimensions      []Dimension
	Unit            string
	Value           float64
	// Count is how often the value occurred; 0 is once.
	Count float64
}

// Source is what a feed samples. It is asked for one thing at a time.
type Source interface {
	// Samples returns the numbers of the period that ends now.
	Samples() []Sample
	// Reset forgets all that was sampled: the next samples are as the first.
	Reset()
}

// Feed takes samples into the namespace at the end of each period, as the data of that period:
// what is sampled at 12:01:00 is of 12:00. The period is of whole seconds; periods are counted from
// 1970. Call stop to end it, and not from the source: it waits for a sampling that is under way.
func (s *Service) Feed(namespace string, every time.Duration, source Source) (stop func()) {
	f := &feed{service: s, namespace: namespace, every: every, source: source}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.timer = s.clock.AfterFunc(f.untilNext(), f.tick)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.feeds[f] = true
	return f.stop
}

// allFeeds returns the feeds that were not stopped.
func (s *Service) allFeeds() []*feed {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.feeds))
}

// feed is one source. Its mutex is taken before the service's.
type feed struct {
	service   *Service
	namespace string
	every     time.Duration
	source    Source

	mu      sync.Mutex // held while the source is asked, and until its samples are stored
	timer   clock.Timer
	stopped bool
}

// untilNext is how long the current period lasts.
func (f *feed) untilNext() time.Duration {
	now := f.service.clock.Now()
	return floor(now, f.every).Add(f.every).Sub(now)
}

func (f *feed) tick() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return
	}
	f.service.take(f.namespace, f.every, f.source.Samples())
	f.timer.Reset(f.untilNext())
}

func (f *feed) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.source.Reset()
}

func (f *feed) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = true
	f.timer.Stop()
	f.service.mu.Lock()
	defer f.service.mu.Unlock()
	delete(f.service.feeds, f)
}

// take stores samples for the period that has just ended.
func (s *Service) take(namespace string, every time.Duration, samples []Sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Now()
	at := floor(now, every).Add(-every)
	for _, v := range samples {
		key := seriesKey{v.Region, v.Account, namespace, v.Name, joinDimensions(v.Dimensions)}
		s.store.put(key, now, at, v.Unit, false, func(a *aggregate) { a.add(v.Value, max(v.Count, 1)) })
	}
}
