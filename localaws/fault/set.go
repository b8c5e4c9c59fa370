package fault

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet/localaws/clock"
)

// maxEnded is how many rules that are over a Set remembers, for their hits.
const maxEnded = 100

// stream keeps the sequence of faults apart from others of the same seed.
const stream = 0xfa017

// Active is a rule in force, or one that was.
type Active struct {
	rule   Rule
	set    *Set
	until  time.Time  // zero without a Rule.For
	random *rand.Rand // nil shares the set's
	seen   int
	hits   int
	ended  bool
	held   *hold // the call that waits for the next one, of Kind Reorder
}

// Name returns the rule's name, which it has been given if it had none.
func (a *Active) Name() string { return a.rule.Name }

// Hits returns how many calls the rule has hit.
func (a *Active) Hits() int {
	a.set.mu.Lock()
	defer a.set.mu.Unlock()
	return a.hits
}

// Remove ends the rule and forgets it.
func (a *Active) Remove() {
	a.set.mu.Lock()
	defer a.set.mu.Unlock()
	a.set.end(a)
	a.set.forget(a)
}

// Status is a rule and what became of it.
type Status struct {
	Rule Rule
	// Seen counts the matching calls, Hits those that misbehaved.
	Seen, Hits int
	// Until is when the rule ends by itself; zero is never.
	Until time.Time
	// Ended says that the rule is no longer in force.
	Ended bool
}

// Set is the rules and outages of one AWS. The zero value has none and is ready.
type Set struct {
	mu      sync.Mutex
	clock   clock.Clock // nil is the system's
	seed    uint64
	random  *rand.Rand
	names   int // how many names were given
	rules   []*Active
	ended   []*Active // the last of those that are over
	outages []*outage
	running map[*running]struct{}
}

// running is a call between Begin and its end.
type running struct {
	service, op string
	cancel      context.CancelFunc
	dropped     bool    // an outage began
	behind      []*hold // calls that wait for the end of this one
}

// New returns an empty set whose probabilities follow the seed.
func New(seed uint64) *Set { return &Set{seed: seed} }

// UseClock sets the time on which rules and outages end and calls are held back. An AWS gives its
// own to the set that it is made with.
func (s *Set) UseClock(c clock.Clock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = c
}

// time returns the set's clock. The caller holds mu.
func (s *Set) time() clock.Clock {
	if s.clock == nil {
		s.clock = clock.System()
	}
	return s.clock
}

// Add puts a rule in force, in the place of one with the same name. It panics on a rule that
// Check refuses: a fault that can never act would let a test pass for nothing.
func (s *Set) Add(r Rule) *Active {
	if err := r.Check(); err != nil {
		panic("localaws/fault: " + err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for r.Name == "" {
		s.names++
		if name := fmt.Sprintf("fault-%d", s.names); s.find(name) == nil {
			r.Name = name
		}
	}
	if old := s.find(r.Name); old != nil {
		s.end(old)
		s.forget(old)
	}
	a := &Active{rule: r, set: s}
	if r.For > 0 {
		a.until = s.time().Now().Add(r.For)
	}
	if r.Seed != 0 {
		a.random = rand.New(rand.NewPCG(r.Seed, stream))
	}
	s.rules = append(s.rules, a)
	return a
}

// List returns the rules in force in the order in which they match, and then the last of those
// that are over.
func (s *Set) List() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	var all []Status
	for _, a := range slices.Concat(s.rules, s.ended) {
		all = append(all, a.status())
	}
	return all
}

func (a *Active) status() Status {
	return Status{Rule: a.rule, Seen: a.seen, Hits: a.hits, Until: a.until, Ended: a.ended}
}

// Get returns the rule of that name; ok is false if there is none.
func (s *Set) Get(name string) (_ Status, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	a := s.find(name)
	if a == nil {
		return Status{}, false
	}
	return a.status(), true
}

// Remove ends and forgets the rule of that name, and reports whether there was one.
func (s *Set) Remove(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.find(name)
	if a == nil {
		return false
	}
	s.end(a)
	s.forget(a)
	return true
}

// RemoveAll ends and forgets every rule. Outages go on.
func (s *Set) RemoveAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range slices.Clone(s.rules) {
		s.end(a)
	}
	s.ended, s.names = nil, 0
}

// Clear ends and forgets every rule and every outage, and starts the probabilities anew from the
// seed, so that what follows repeats.
func (s *Set) Clear() {
	s.RemoveAll()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outages, s.random = nil, nil
}

func (s *Set) find(name string) *Active {
	for _, a := range slices.Concat(s.rules, s.ended) {
		if a.rule.Name == name {
			return a
		}
	}
	return nil
}

// end takes the rule out of force and lets go the call that it holds.
func (s *Set) end(a *Active) {
	if a.ended {
		return
	}
	a.ended = true
	a.held.release()
	a.held = nil
	s.rules = without(s.rules, a)
	s.ended = append(s.ended, a)
	if extra := len(s.ended) - maxEnded; extra > 0 {
		s.ended = slices.Delete(s.ended, 0, extra)
	}
}

// forget drops a rule that is over.
func (s *Set) forget(a *Active) { s.ended = without(s.ended, a) }

// without returns a copy of the list without a.
func without(list []*Active, a *Active) []*Active {
	return slices.DeleteFunc(slices.Clone(list), func(x *Active) bool { return x == a })
}

// expire ends what has had its time. There is no timer: nothing can notice between two calls.
func (s *Set) expire() {
	now := time.Time{}
	over := func(until time.Time) bool {
		if until.IsZero() {
			return false
		}
		if now.IsZero() {
			now = s.time().Now()
		}
		return !now.Before(until)
	}
	for _, a := range slices.Clone(s.rules) {
		if over(a.until) {
			s.end(a)
		}
	}
	s.outages = slices.DeleteFunc(s.outages, func(o *outage) bool { return over(o.until) })
}

// Begin announces a call and returns the fault to act out, or the zero Rule. The returned context
// ends when an outage that takes the call away begins. The caller calls end when the call is over;
// end reports whether such an outage began, or is why the call must be dropped.
func (s *Set) Begin(ctx context.Context, service, op string) (_ context.Context, r Rule, end func() (down bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	if s.isAway(service, op) {
		return ctx, Rule{Service: service, Op: op, Kind: Drop}, func() bool { return true }
	}
	ctx, cancel := context.WithCancel(ctx)
	call := &running{service: service, op: op, cancel: cancel}
	if s.running == nil {
		s.running = map[*running]struct{}{}
	}
	s.running[call] = struct{}{}
	return ctx, s.match(call), func() bool {
		defer cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.running, call)
		for _, h := range call.behind {
			h.release()
		}
		call.behind = nil
		return call.dropped
	}
}

// match returns the first rule that hits the call.
func (s *Set) match(call *running) Rule {
	for _, a := range s.rules {
		if !a.hit(call) {
			continue
		}
		rule := a.rule
		if rule.Kind == Reorder && rule.Delay > 0 {
			a.held = newHold()
			rule.hold = a.held
		}
		if a.rule.Times > 0 && a.hits >= a.rule.Times && a.held == nil {
			s.end(a)
		}
		return rule
	}
	return Rule{}
}

// hit reports whether the rule hits the call. A call that another waits for passes.
func (a *Active) hit(call *running) bool {
	r := a.rule
	if !matches(r.Service, r.Op, call.service, call.op) {
		return false
	}
	a.seen++
	if a.held != nil {
		call.behind = append(call.behind, a.held)
		a.held = nil
		if r.Times > 0 && a.hits >= r.Times {
			a.set.end(a)
		}
		return false
	}
	if a.seen <= r.Skip {
		return false
	}
	if r.Times > 0 && a.hits >= r.Times {
		return false // it only waited for its held call to end
	}
	if r.Probability > 0 && a.float() >= r.Probability {
		return false
	}
	a.hits++
	return true
}

// matches reports whether a rule for service and op, empty being any, is for that call.
func matches(service, op, callService, callOp string) bool {
	return (service == "" || service == callService) && (op == "" || op == callOp)
}

func (a *Active) float() float64 {
	if a.random != nil {
		return a.random.Float64()
	}
	s := a.set
	if s.random == nil {
		s.random = rand.New(rand.NewPCG(s.seed, stream))
	}
	return s.random.Float64()
}
