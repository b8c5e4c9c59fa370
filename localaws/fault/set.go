package fault

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
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
	// pending counts the hits that are none yet: calls whose mark the service has not asked for.
	pending int
}

// Name returns the rule's name, which it has been given if it had none.
func (a *Active) Name() string { return a.rule.Name }

// Hits returns how many calls the rule has hit.
func (a *Active) Hits() int {
	a.set.mu.Lock()
	defer a.set.mu.Unlock()
	return a.hits
}

// Remove ends the rule and forgets it; calls that it holds run at once.
func (a *Active) Remove() {
	a.set.mu.Lock()
	defer a.set.mu.Unlock()
	a.set.remove(a)
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
	calls   *Call // under way, as a list
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
		s.remove(old)
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

// Remove ends and forgets the rule of that name, and reports whether there was one. Calls that the
// rule holds run at once.
func (s *Set) Remove(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.find(name)
	if a == nil {
		return false
	}
	s.remove(a)
	return true
}

// RemoveAll ends and forgets every rule; calls that are held run at once. Outages go on.
func (s *Set) RemoveAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeAll(nil)
}

// errCleared answers a call that was held when the set was cleared. No client tries it again by
// itself, which would bring it into what comes next.
var errCleared = &api.Error{
	Type: "RequestAborted", Common: true, Status: http.StatusBadRequest,
	Message: "A fault held this call back until the faults were reset. It has not run.",
}

// Clear ends and forgets every rule and every outage, and starts the probabilities anew from the
// seed, so that what follows repeats. Calls that are held do not run: they belong to what was before.
func (s *Set) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeAll(errCleared)
	s.outages, s.random = nil, nil
}

// removeAll lets the calls go that are held, to run or with an error, and forgets every rule.
func (s *Set) removeAll(err error) {
	for c := s.calls; c != nil; c = c.next {
		c.hold.release(err)
	}
	for _, a := range slices.Clone(s.rules) {
		s.end(a)
	}
	s.ended, s.names = nil, 0
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
	a.held.release(nil)
	a.held = nil
	s.rules = without(s.rules, a)
	s.ended = append(s.ended, a)
	if extra := len(s.ended) - maxEnded; extra > 0 {
		s.ended = slices.Delete(s.ended, 0, extra)
	}
}

// remove ends the rule, lets the calls run that it holds, and forgets it.
func (s *Set) remove(a *Active) {
	s.end(a)
	for c := s.calls; c != nil; c = c.next {
		if c.by == a {
			c.hold.release(nil)
		}
	}
	s.ended = without(s.ended, a)
}

// endSpent ends a rule that has had its hits, unless one of them may still be none, or it still
// holds a call for the next one.
func (s *Set) endSpent(a *Active) {
	if a.isSpent() && a.held == nil && a.pending == 0 {
		s.end(a)
	}
}

func (a *Active) isSpent() bool { return a.rule.Times > 0 && a.hits >= a.rule.Times }

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

// Begin announces a call. The Call is the context to run it in, and says which fault to act out. The
// caller calls End when the call is over.
func (s *Set) Begin(ctx context.Context, service, op string) *Call {
	c := &Call{Context: ctx, set: s, service: service, op: op, rule: &noRule}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.rules)+len(s.outages) > 0 {
		s.expire()
		if s.isAway(service, op) {
			c.rule, c.dropped = &Rule{Service: service, Op: op, Kind: Drop}, true
			return c
		}
		s.match(c)
	}
	s.link(c)
	return c
}

func (s *Set) link(c *Call) {
	if c.next = s.calls; c.next != nil {
		c.next.previous = c
	}
	s.calls = c
}

// unlink is content with a call that was never linked.
func (s *Set) unlink(c *Call) {
	if c.next != nil {
		c.next.previous = c.previous
	}
	if c.previous != nil {
		c.previous.next = c.next
	} else if s.calls == c {
		s.calls = c.next
	}
	c.previous, c.next = nil, nil
}

// match gives the call the first rule that hits it.
func (s *Set) match(c *Call) {
	for _, a := range s.rules {
		if !a.hit(c) {
			continue
		}
		c.rule, c.by = &a.rule, a
		switch {
		case a.rule.Kind == Delay:
			c.hold = newHold()
		case a.rule.Kind == Reorder && a.rule.Delay > 0:
			c.hold = newHold()
			a.held = c.hold
		case a.rule.actors() != nil:
			c.pending = true
			a.pending++
		}
		s.endSpent(a)
		return
	}
}

// hit reports whether the rule hits the call. A call that another waits for passes.
func (a *Active) hit(c *Call) bool {
	r := &a.rule
	if !r.isFor(c.service, c.op) {
		return false
	}
	a.seen++
	if a.held != nil {
		c.behind = append(c.behind, a.held)
		a.held = nil
		a.set.endSpent(a)
		return false
	}
	if a.seen <= r.Skip || a.isSpent() {
		return false
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
