// Package fault lets a test make localaws misbehave the ways AWS and the network do. Rules are
// matched per call, by service and operation, in the order they were added; the first that
// matches acts. An outage takes a whole service away, with the long polls that are under way.
package fault

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Kind is a way to misbehave.
type Kind int

// The kinds. Those before the operation leave its state untouched; those after have committed it.
const (
	// Drop closes the connection without an answer; the operation has not run.
	Drop Kind = iota + 1
	// Delay holds the call back for Rule.Delay, then runs it.
	Delay
	// Duplicate makes a send take effect twice, or leaves what a receive returns visible to the
	// next one: the at-least-once delivery of a standard queue.
	Duplicate
	// Throttle answers that the caller is too fast; the operation has not run.
	Throttle
	// Fail answers 500 InternalFailure; the operation has not run.
	Fail
	// FailAfter runs the operation and then answers 500 InternalFailure.
	FailAfter
	// LoseAnswer runs the operation and then closes the connection.
	LoseAnswer
)

// String returns the kind's name, for logs.
func (k Kind) String() string {
	names := [...]string{"none", "drop", "delay", "duplicate", "throttle", "fail", "fail after", "lose answer"}
	if k < 0 || int(k) >= len(names) {
		return "unknown"
	}
	return names[k]
}

// Rule says which calls misbehave, and how.
type Rule struct {
	// Service and Op name the calls, as in "sqs" and "SendMessage"; empty is any.
	Service, Op string
	Kind        Kind
	// Delay is for Kind Delay.
	Delay time.Duration
	// Skip lets that many matching calls pass first.
	Skip int
	// Times ends the rule after that many hits; 0 is for ever.
	Times int
	// Probability is the share of matching calls hit; 0 is all of them.
	Probability float64
}

// Active is a rule in force.
type Active struct {
	rule Rule
	set  *Set
	seen int
	hits int
}

// Hits returns how many calls the rule has hit.
func (a *Active) Hits() int {
	a.set.mu.Lock()
	defer a.set.mu.Unlock()
	return a.hits
}

// Remove ends the rule.
func (a *Active) Remove() {
	a.set.mu.Lock()
	defer a.set.mu.Unlock()
	a.set.drop(a)
}

// Set is the rules in force for one AWS. The zero value has none and is ready.
type Set struct {
	mu      sync.Mutex
	random  *rand.Rand
	rules   []*Active
	down    map[string]bool
	running map[string]map[*running]struct{}
}

type running struct{ cancel context.CancelFunc }

// New returns an empty set whose probabilities follow the seed.
func New(seed uint64) *Set { return &Set{random: rand.New(rand.NewPCG(seed, 0xfa017))} }

// Add puts a rule in force.
func (s *Set) Add(r Rule) *Active {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &Active{rule: r, set: s}
	s.rules = append(s.rules, a)
	return a
}

// Clear ends every rule and every outage.
func (s *Set) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules, s.down = nil, nil
}

// Outage takes the service away or brings it back. While it is away its connections are closed
// without an answer, those of calls already running included.
func (s *Set) Outage(service string, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down == nil {
		s.down = map[string]bool{}
	}
	s.down[service] = on
	if !on {
		return
	}
	for r := range s.running[service] {
		r.cancel()
	}
}

// Begin announces a call and returns the fault to act out, or the zero Rule. The returned context
// ends when an outage of the service begins. The caller calls end when the call is over; end
// reports whether the service is away, in which case the answer must be dropped.
func (s *Set) Begin(ctx context.Context, service, op string) (_ context.Context, r Rule, end func() (down bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down[service] {
		return ctx, Rule{Service: service, Op: op, Kind: Drop}, func() bool { return true }
	}
	ctx, cancel := context.WithCancel(ctx)
	call := s.enter(service, cancel)
	return ctx, s.match(service, op), func() bool {
		defer cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.running[service], call)
		return s.down[service]
	}
}

func (s *Set) enter(service string, cancel context.CancelFunc) *running {
	if s.running == nil {
		s.running = map[string]map[*running]struct{}{}
	}
	if s.running[service] == nil {
		s.running[service] = map[*running]struct{}{}
	}
	call := &running{cancel}
	s.running[service][call] = struct{}{}
	return call
}

func (s *Set) match(service, op string) Rule {
	for _, a := range s.rules {
		if !a.hit(service, op) {
			continue
		}
		if a.rule.Times > 0 && a.hits >= a.rule.Times {
			s.drop(a)
		}
		return a.rule
	}
	return Rule{}
}

func (a *Active) hit(service, op string) bool {
	r := a.rule
	if r.Service != "" && r.Service != service || r.Op != "" && r.Op != op {
		return false
	}
	if a.seen++; a.seen <= r.Skip {
		return false
	}
	if r.Probability > 0 && a.set.float() >= r.Probability {
		return false
	}
	a.hits++
	return true
}

func (s *Set) float() float64 {
	if s.random == nil {
		s.random = rand.New(rand.NewPCG(1, 0xfa017))
	}
	return s.random.Float64()
}

func (s *Set) drop(a *Active) {
	s.rules = slices.DeleteFunc(slices.Clone(s.rules), func(x *Active) bool { return x == a })
}

type duplicateKey struct{}

// WithDuplicate marks a call for Kind Duplicate; the service acts it out.
func WithDuplicate(ctx context.Context) context.Context {
	return context.WithValue(ctx, duplicateKey{}, true)
}

// IsDuplicate reports whether the call is marked.
func IsDuplicate(ctx context.Context) bool {
	marked, _ := ctx.Value(duplicateKey{}).(bool)
	return marked
}
