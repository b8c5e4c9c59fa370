package fault

import (
	"errors"
	"slices"
	"time"
)

// Outage takes calls away: their connections are closed without an answer, those of calls that are
// already running included.
type Outage struct {
	// Service and Op name the calls; empty is any.
	Service, Op string
	// For brings the calls back when that much time has passed on the clock of the services; 0 is
	// never.
	For time.Duration
	// Times brings them back after that many refused calls; 0 is never. Calls that were running when
	// the outage began do not count.
	Times int
}

// Check returns what is wrong with the outage, in words for whoever wrote it.
func (o Outage) Check() error {
	if o.For < 0 || o.Times < 0 {
		return errors.New("an outage's time and count must not be negative")
	}
	return nil
}

// OutageStatus is an outage that goes on.
type OutageStatus struct {
	Outage Outage
	// Refused counts the calls that found the service away.
	Refused int
	// Until is when it ends by itself; zero is never.
	Until time.Time
}

type outage struct {
	Outage
	refused int
	until   time.Time
}

// Outage takes the service away until it is brought back, or brings it back.
func (s *Set) Outage(service string, on bool) {
	if on {
		s.StartOutage(Outage{Service: service})
		return
	}
	s.EndOutage(service, "")
}

// StartOutage takes calls away, in the place of an outage of the same service and operation. It
// panics on one that Check refuses.
func (s *Set) StartOutage(o Outage) {
	if err := o.Check(); err != nil {
		panic("localaws/fault: " + err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endOutage(o.Service, o.Op)
	started := &outage{Outage: o}
	if o.For > 0 {
		started.until = s.time().Now().Add(o.For)
	}
	s.outages = append(s.outages, started)
	for c := s.calls; c != nil; c = c.next {
		if matches(o.Service, o.Op, c.service, c.op) {
			c.dropped = true
			c.cancel()
		}
	}
}

// EndOutage brings back what the outage of that service and operation took away, and reports
// whether there was one.
func (s *Set) EndOutage(service, op string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	return s.endOutage(service, op)
}

func (s *Set) endOutage(service, op string) bool {
	before := len(s.outages)
	s.outages = slices.DeleteFunc(s.outages, func(o *outage) bool { return o.Service == service && o.Op == op })
	return len(s.outages) < before
}

// EndOutages brings everything back.
func (s *Set) EndOutages() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outages = nil
}

// Outages returns what is away.
func (s *Set) Outages() []OutageStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	var all []OutageStatus
	for _, o := range s.outages {
		all = append(all, OutageStatus{Outage: o.Outage, Refused: o.refused, Until: o.until})
	}
	return all
}

// isAway reports whether an outage takes the call away, and counts it. The caller holds mu.
func (s *Set) isAway(service, op string) bool {
	for i, o := range s.outages {
		if !matches(o.Service, o.Op, service, op) {
			continue
		}
		if o.refused++; o.Times > 0 && o.refused >= o.Times {
			s.outages = slices.Delete(s.outages, i, i+1)
		}
		return true
	}
	return false
}
