package cloudwatch

import (
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

// Feed takes samples into the namespace at the end of each period, as the data of that period:
// what is sampled at 12:01:00 is of 12:00. The period is of whole seconds; periods are counted from
// 1970. Call stop to end it; a sampling that is under way may end later.
func (s *Service) Feed(namespace string, every time.Duration, sample func() []Sample) (stop func()) {
	f := &feed{service: s, namespace: namespace, every: every, sample: sample}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.timer = s.clock.AfterFunc(f.untilNext(), f.tick)
	return f.stop
}

type feed struct {
	service   *Service
	namespace string
	every     time.Duration
	sample    func() []Sample

	mu      sync.Mutex
	timer   clock.Timer
	stopped bool
}

// untilNext is how long the current period lasts.
func (f *feed) untilNext() time.Duration {
	now := f.service.clock.Now()
	return floor(now, f.every).Add(f.every).Sub(now)
}

func (f *feed) tick() {
	f.service.take(f.namespace, f.every, f.sample())
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.stopped {
		f.timer.Reset(f.untilNext())
	}
}

func (f *feed) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = true
	f.timer.Stop()
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
