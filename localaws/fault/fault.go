// Package fault lets a test make localaws misbehave the ways AWS and the network do. Rules are
// matched per call, by service and operation, in the order they were added; the first that
// matches acts. An outage takes a service, or one operation of it, away, with the long polls that
// are under way.
//
// A rule or an outage lasts for a count of calls, for a time on the clock of the services, or
// until it is removed. What is random follows a seed.
//
// Where to read: fault.go is what a rule may say, set.go the rules in force and the matching of a
// call, call.go a call under way and how it is held back and swapped, outage.go the outages.
package fault

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
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
	// next one: the at-least-once delivery of a standard queue. It is for SendMessage,
	// SendMessageBatch and ReceiveMessage of SQS; other calls pass it, uncounted.
	Duplicate
	// Throttle answers, in the service's own words, that the caller is too fast; the operation has
	// not run.
	Throttle
	// Fail answers Rule.Error, or 500 InternalFailure; the operation has not run.
	Fail
	// FailAfter runs the operation and then answers Rule.Error, or 500 InternalFailure.
	FailAfter
	// LoseAnswer runs the operation and then closes the connection.
	LoseAnswer
	// Reorder makes calls take effect in another order than they came in. With a Delay it holds a
	// call back until the next matching call is over, or for the Delay if none comes: calls 1 2 3 4
	// take effect as 2 1 4 3, whatever the probability hits; the call that passes is no hit. With
	// or without a Delay the call is marked (IsReorder), so that a service may hand out what the one
	// call carries in another order, as a standard queue does. Without one it is for ReceiveMessage of
	// SQS; other calls pass it, uncounted.
	Reorder
)

var kindNames = [...]string{
	"none", "drop", "delay", "duplicate", "throttle", "fail", "fail_after", "lose_answer", "reorder",
}

// String returns the kind's name, as ParseKind reads it.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return "unknown"
	}
	return kindNames[k]
}

// Kinds returns the name of every kind.
func Kinds() []string { return append([]string(nil), kindNames[1:]...) }

// ParseKind returns the kind of that name. Its error lists the names.
func ParseKind(name string) (Kind, error) {
	for i, known := range kindNames[1:] {
		if name == known {
			return Kind(i + 1), nil
		}
	}
	return 0, fmt.Errorf("no kind of fault is called %q; the kinds are %s", name, strings.Join(kindNames[1:], ", "))
}

// Rule says which calls misbehave, and how.
type Rule struct {
	// Name tells the rule from others; empty gives it one. A new rule takes the place of the one
	// that has its name.
	Name string
	// Service and Op name the calls, as in "sqs" and "SendMessage"; empty is any. A service has the
	// name that signatures have: CloudWatch is "monitoring".
	Service, Op string
	Kind        Kind
	// Delay is how long Kind Delay holds a call back, and how long Reorder does at most; other kinds
	// have no use for it.
	Delay time.Duration
	// Error is what the kinds Fail and FailAfter answer; nil is 500 InternalFailure. Only its Type is
	// needed: Status 0 is 400.
	Error *api.Error
	// Skip lets that many matching calls pass first.
	Skip int
	// Times ends the rule after that many hits; 0 is for ever.
	Times int
	// For ends the rule when that much time has passed on the clock of the services; 0 is for ever.
	For time.Duration
	// Probability is the share of matching calls hit; 0 is all of them.
	Probability float64
	// Seed gives the rule's probability a sequence of its own; 0 shares that of the Set.
	Seed uint64
}

// Check returns what is wrong with the rule, in words for whoever wrote it.
func (r Rule) Check() error {
	switch {
	case r.Kind < Drop || r.Kind > Reorder:
		return fmt.Errorf("a fault needs a kind: %s", strings.Join(kindNames[1:], ", "))
	case r.Kind == Delay && r.Delay <= 0:
		return fmt.Errorf("a fault of kind delay needs a delay above zero")
	case r.Delay < 0 || r.For < 0:
		return fmt.Errorf("a fault's times must not be negative: delay %v, for %v", r.Delay, r.For)
	case r.Skip < 0 || r.Times < 0:
		return fmt.Errorf("a fault's counts must not be negative: skip %d, times %d", r.Skip, r.Times)
	case !(r.Probability >= 0 && r.Probability <= 1):
		return fmt.Errorf("a fault's probability lies between 0 and 1, and is %v", r.Probability)
	}
	if err := r.checkActors(); err != nil {
		return err
	}
	return r.checkError()
}

func (r Rule) checkError() error {
	e := r.Error
	switch {
	case e == nil:
		return nil
	case r.Kind != Fail && r.Kind != FailAfter:
		return fmt.Errorf("a fault of kind %v answers no error; only fail and fail_after do", r.Kind)
	case e.Type == "":
		return fmt.Errorf("a fault's error needs a type, the name of the error's shape, such as QueueDoesNotExist")
	case e.Status != 0 && (e.Status < 400 || e.Status > 599):
		return fmt.Errorf("a fault's error has a status from 400 to 599, not %d", e.Status)
	}
	return nil
}

// Failure returns what a rule of the kinds Fail and FailAfter answers.
func (r Rule) Failure() *api.Error {
	if r.Error == nil {
		return api.ErrInternal
	}
	e := *r.Error
	if e.Status == 0 {
		e.Status = http.StatusBadRequest
	}
	return &e
}

// operation is one of a service's.
type operation struct{ service, name string }

// The operations that act out a mark, of queues that may: a FIFO queue never does.
var (
	duplicable  = []operation{{"sqs", "SendMessage"}, {"sqs", "SendMessageBatch"}, {"sqs", "ReceiveMessage"}}
	reorderable = []operation{{"sqs", "ReceiveMessage"}}
)

// actors returns the operations that can act out the rule; nil is all of them.
func (r *Rule) actors() []operation {
	switch {
	case r.Kind == Duplicate:
		return duplicable
	case r.Kind == Reorder && r.Delay == 0:
		return reorderable
	}
	return nil
}

// isFor reports whether the rule is about that call.
func (r *Rule) isFor(service, op string) bool {
	if !matches(r.Service, r.Op, service, op) {
		return false
	}
	actors := r.actors()
	return actors == nil || slices.Contains(actors, operation{service, op})
}

// checkActors refuses a rule whose operations have no mark to act out.
func (r *Rule) checkActors() error {
	actors := r.actors()
	if actors == nil || slices.ContainsFunc(actors, func(o operation) bool { return matches(r.Service, r.Op, o.service, o.name) }) {
		return nil
	}
	names := make([]string, len(actors))
	for i, o := range actors {
		names[i] = o.service + " " + o.name
	}
	kind := r.Kind.String()
	if r.Kind == Reorder {
		kind += " without a delay"
	}
	return fmt.Errorf("a fault of kind %s acts on %s only", kind, strings.Join(names, ", "))
}

// IsDuplicate reports whether the service is to act out Kind Duplicate. A service asks only where it
// can: by that the call becomes a hit.
func IsDuplicate(ctx context.Context) bool { return isMarked(ctx, Duplicate) }

// IsReorder reports the same for Kind Reorder.
func IsReorder(ctx context.Context) bool { return isMarked(ctx, Reorder) }
