package fault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/clock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// call makes one call and returns the kind that hit it, "" for none.
func call(s *Set, service, op string) string {
	c := s.Begin(context.Background(), service, op)
	c.End()
	if c.Rule().Kind == 0 {
		return ""
	}
	return c.Rule().Kind.String()
}

func TestRulesEndByTimeOnTheInjectedClock(t *testing.T) {
	c := clock.NewManual(time.Unix(0, 0))
	s := New(1)
	s.UseClock(c)
	rule := s.Add(Rule{Kind: Throttle, For: time.Minute})
	s.StartOutage(Outage{Service: "ecs", For: time.Hour})
	c.Advance(time.Minute - 1)
	if call(s, "sqs", "SendMessage") != "throttle" || call(s, "ecs", "RunTask") != "drop" {
		t.Error("over before its time")
	}
	c.Advance(1)
	if got := call(s, "sqs", "SendMessage"); got != "" {
		t.Errorf("%s after its time", got)
	}
	if rule.Hits() != 1 {
		t.Errorf("%d hits", rule.Hits())
	}
	if got, ok := s.Get(rule.Name()); !ok || !got.Ended || got.Hits != 1 || !got.Until.Equal(time.Unix(60, 0)) {
		t.Errorf("what is over is %+v", got)
	}
	c.Advance(time.Hour)
	if got := call(s, "ecs", "RunTask"); got != "" || len(s.Outages()) != 0 {
		t.Errorf("%s after the outage, %v", got, s.Outages())
	}
}

func TestRulesHaveNamesAndAreListed(t *testing.T) {
	s := New(1)
	s.Add(Rule{Name: "fault-1", Kind: Drop, Op: "A"})
	second := s.Add(Rule{Kind: Fail, Op: "B", Times: 1})
	if second.Name() == "fault-1" {
		t.Error("a name was given twice")
	}
	call(s, "sqs", "B")
	var got []string
	for _, r := range s.List() {
		got = append(got, fmt.Sprint(r.Rule.Name, " ", r.Rule.Kind, " ", r.Hits, " ", r.Ended))
	}
	if want := []string{"fault-1 drop 0 false", second.Name() + " fail 1 true"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	s.Add(Rule{Name: "fault-1", Kind: Throttle})
	if len(s.List()) != 2 || call(s, "sqs", "A") != "throttle" {
		t.Errorf("the same name makes %v", s.List())
	}
	if !s.Remove("fault-1") || s.Remove("fault-1") || call(s, "sqs", "A") != "" {
		t.Error("a removed rule acts, or is removed twice")
	}
	if second.Remove(); len(s.List()) != 0 {
		t.Errorf("left: %v", s.List())
	}
	for range 3 * maxEnded {
		s.Add(Rule{Kind: Drop, Times: 1})
		call(s, "sqs", "A")
	}
	if n := len(s.List()); n != maxEnded {
		t.Errorf("%d rules that are over are remembered", n)
	}
}

func TestProbabilityFollowsTheSeed(t *testing.T) {
	draw := func(s *Set) string {
		var b strings.Builder
		for range 64 {
			b.WriteByte(".x"[min(len(call(s, "sqs", "A")), 1)])
		}
		return b.String()
	}
	fresh := func(set, rule uint64) *Set {
		s := New(set)
		s.Add(Rule{Kind: Drop, Probability: 0.5, Seed: rule})
		return s
	}
	if a, b := draw(fresh(1, 0)), draw(fresh(2, 0)); a == b {
		t.Error("two seeds make the same faults")
	}
	if a, b := draw(fresh(1, 9)), draw(fresh(2, 9)); a != b {
		t.Error("a rule's own seed does not count")
	}
	s := fresh(1, 0)
	first := draw(s)
	s.Clear()
	s.Add(Rule{Kind: Drop, Probability: 0.5})
	if again := draw(s); again != first {
		t.Errorf("after Clear the faults are others:\n%s\n%s", first, again)
	}
}

func TestOutageOfOneOperationAndByCount(t *testing.T) {
	s := New(1)
	running := s.Begin(t.Context(), "sqs", "ReceiveMessage")
	other := s.Begin(t.Context(), "sqs", "SendMessage")
	s.StartOutage(Outage{Service: "sqs", Op: "ReceiveMessage", Times: 2})
	if running.Err() == nil || other.Err() != nil {
		t.Errorf("under way: %v, another operation: %v", running.Err(), other.Err())
	}
	if !running.End() || other.End() {
		t.Error("the call under way must be dropped, another must not")
	}
	var got []string
	for _, op := range []string{"SendMessage", "ReceiveMessage", "ReceiveMessage", "ReceiveMessage"} {
		got = append(got, call(s, "sqs", op))
	}
	if want := []string{"", "drop", "drop", ""}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	s.StartOutage(Outage{Service: "sqs"})
	s.StartOutage(Outage{Service: "sqs", For: time.Hour})
	if got := s.Outages(); len(got) != 1 || got[0].Outage.For != time.Hour {
		t.Errorf("an outage takes the place of another: %v", got)
	}
	if !s.EndOutage("sqs", "") || s.EndOutage("sqs", "") || call(s, "sqs", "SendMessage") != "" {
		t.Error("an outage that has ended goes on")
	}
}

// order runs n calls one after the other, as far as the rules let them, and returns the order in
// which they took effect.
func order(t *testing.T, s *Set, n int) []int {
	t.Helper()
	var mu sync.Mutex
	var took []int
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			c := s.Begin(t.Context(), "sqs", "SendMessage")
			defer c.End()
			if err := c.Wait(); err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, i+1)
		})
		synctest.Wait()
	}
	all.Wait()
	return took
}

func TestReorderSwapsACallWithTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		started := time.Now()
		for _, test := range []struct {
			rule Rule
			want []int
			took time.Duration
		}{
			{Rule{}, []int{2, 1, 4, 3}, 0},
			{Rule{Times: 1}, []int{2, 1, 3, 4}, 0},
			{Rule{Skip: 1}, []int{1, 3, 2, 4}, time.Second}, // the fourth waits in vain
			{Rule{Op: "Other"}, []int{1, 2, 3, 4}, 0},
		} {
			s := New(1)
			test.rule.Kind, test.rule.Delay = Reorder, time.Second
			a := s.Add(test.rule)
			if got := order(t, s, 4); !slices.Equal(got, test.want) {
				t.Errorf("%+v: %v, want %v", test.rule, got, test.want)
			}
			if took := time.Since(started); took != test.took {
				t.Errorf("%+v took %v, want %v", test.rule, took, test.took)
			}
			if got, _ := s.Get(a.Name()); got.Ended != (test.rule.Times > 0) {
				t.Errorf("%+v: ended is %v after %d hits", test.rule, got.Ended, got.Hits)
			}
			started = time.Now()
		}
	})
}

func TestWhatIsHeldIsLetGo(t *testing.T) {
	for name, test := range map[string]struct {
		free func(*Set, context.CancelFunc)
		want error
	}{
		"clear":      {func(s *Set, _ context.CancelFunc) { s.Clear() }, errCleared},
		"remove":     {func(s *Set, _ context.CancelFunc) { s.Remove("r") }, nil},
		"remove all": {func(s *Set, _ context.CancelFunc) { s.RemoveAll() }, nil},
		"replace":    {func(s *Set, _ context.CancelFunc) { s.Add(Rule{Name: "r", Kind: Drop}) }, nil},
		"outage":     {func(s *Set, _ context.CancelFunc) { s.Outage("sqs", true) }, context.Canceled},
		"caller":     {func(_ *Set, cancel context.CancelFunc) { cancel() }, context.Canceled},
	} {
		for _, rule := range []Rule{{Kind: Reorder}, {Kind: Delay}, {Kind: Delay, Times: 1}} { // the last is over while it holds
			rule.Name, rule.Delay = "r", time.Hour
			synctest.Test(t, func(t *testing.T) {
				s := New(1)
				s.Add(rule)
				started := time.Now()
				over := make(chan error)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() {
					c := s.Begin(ctx, "sqs", "SendMessage")
					defer c.End()
					over <- c.Wait()
				}()
				synctest.Wait()
				test.free(s, cancel)
				err := <-over
				if took := time.Since(started); took != 0 || !errors.Is(err, test.want) {
					t.Errorf("%s, %v: %v after %v, want %v", name, rule.Kind, err, took, test.want)
				}
			})
		}
	}
}

func TestKindsHaveNames(t *testing.T) {
	for kind := Drop; kind <= Reorder; kind++ {
		if got, err := ParseKind(kind.String()); err != nil || got != kind {
			t.Errorf("%v is read as %v, %v", kind, got, err)
		}
	}
	if _, err := ParseKind("none"); err == nil || !strings.Contains(err.Error(), "lose_answer") {
		t.Errorf("%v", err)
	}
}

// A mark is a hit where the service acts it out, and nowhere else.
func TestAMarkIsAHitWhereItActs(t *testing.T) {
	for _, test := range []struct {
		rule  Rule
		asked func(context.Context) bool
		op    string
	}{
		{Rule{Kind: Duplicate}, IsDuplicate, "SendMessage"},
		{Rule{Kind: Duplicate, Service: "sqs"}, IsDuplicate, "SendMessageBatch"},
		{Rule{Kind: Duplicate, Op: "ReceiveMessage"}, IsDuplicate, "ReceiveMessage"},
		{Rule{Kind: Reorder}, IsReorder, "ReceiveMessage"},
	} {
		s := New(1)
		test.rule.Times = 1
		rule := s.Add(test.rule)
		marked := func(op string, ask bool) bool {
			c := s.Begin(t.Context(), "sqs", op)
			defer c.End()
			ctx := api.WithCall(c, &api.Call{Op: op})
			return ask && test.asked(ctx)
		}
		for _, op := range []string{"DeleteMessage", "CreateQueue"} {
			if marked(op, true) || rule.Hits() != 0 {
				t.Errorf("%+v hit %s", test.rule, op)
			}
		}
		if call(s, "monitoring", test.op) != "" {
			t.Errorf("%+v hit another service", test.rule)
		}
		if marked(test.op, false); rule.Hits() != 0 {
			t.Errorf("%+v: a call that had no use for it counts", test.rule)
		}
		if !marked(test.op, true) || rule.Hits() != 1 || marked(test.op, true) {
			t.Errorf("%+v must hit the next call and no other: %d hits", test.rule, rule.Hits())
		}
		if got, _ := s.Get(rule.Name()); !got.Ended {
			t.Errorf("%+v goes on after its hit", test.rule)
		}
	}
	if IsDuplicate(t.Context()) || IsReorder(t.Context()) {
		t.Error("a call outside of a set is marked")
	}
}

// While one call may still be the hit, another is not.
func TestAMarkThatIsPendingIsTaken(t *testing.T) {
	s := New(1)
	rule := s.Add(Rule{Kind: Duplicate, Times: 1})
	first := s.Begin(t.Context(), "sqs", "SendMessage")
	second := s.Begin(t.Context(), "sqs", "SendMessage")
	if IsDuplicate(second) || !IsDuplicate(first) {
		t.Error("the second call is marked, or the first is not")
	}
	first.End()
	second.End()
	if rule.Hits() != 1 {
		t.Errorf("%d hits", rule.Hits())
	}
}

func TestACallIsAContext(t *testing.T) {
	type key struct{}
	parent, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, 7))
	s := New(1)
	gone, away, over := s.Begin(parent, "sts", "A"), s.Begin(t.Context(), "sqs", "A"), s.Begin(t.Context(), "sts", "A")
	child, stop := context.WithCancel(gone)
	defer stop()
	cancel()
	<-gone.Done()
	<-child.Done()
	s.Outage("sqs", true)
	if away.Err() == nil || over.Err() != nil {
		t.Errorf("%v %v", away.Err(), over.Err())
	}
	<-away.Done() // asked for after the outage began
	over.End()
	<-over.Done()
	if gone.Err() == nil || over.Err() == nil || gone.Value(key{}) != 7 {
		t.Errorf("%v %v %v", gone.Err(), over.Err(), gone.Value(key{}))
	}
	gone.End()
	away.End()
	if s.calls != nil {
		t.Error("a call that is over is remembered")
	}
}

// The way of a call that nothing is wrong with is that of every call.
func TestACallWithoutAFaultIsCheap(t *testing.T) {
	s := New(1)
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() { s.Begin(ctx, "sqs", "SendMessage").End() }); n > 1 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkBegin(b *testing.B) {
	s := New(1)
	b.ReportAllocs()
	for b.Loop() {
		s.Begin(b.Context(), "sqs", "SendMessage").End()
	}
}

func TestRulesThatCanNeverActAreRefused(t *testing.T) {
	for _, r := range []Rule{
		{},
		{Kind: Reorder + 1},
		{Kind: Delay},
		{Kind: Duplicate, Service: "monitoring"},
		{Kind: Duplicate, Op: "DeleteMessage"},
		{Kind: Duplicate, Service: "sts", Op: "SendMessage"},
		{Kind: Reorder, Op: "SendMessage"},
		{Kind: Drop, Probability: 1.1},
		{Kind: Drop, Probability: -1},
		{Kind: Drop, Times: -1},
		{Kind: Drop, Skip: -1},
		{Kind: Drop, For: -1},
		{Kind: Drop, Error: &api.Error{Type: "X"}},
		{Kind: Fail, Error: &api.Error{}},
		{Kind: Fail, Error: &api.Error{Type: "X", Status: 200}},
	} {
		if r.Check() == nil {
			t.Errorf("%+v is taken", r)
		}
	}
	for _, r := range []Rule{
		{Kind: Duplicate}, {Kind: Duplicate, Op: "ReceiveMessage"}, {Kind: Reorder, Service: "sqs"}, {Kind: Reorder, Delay: 1, Service: "monitoring"},
	} {
		if err := r.Check(); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
	}
	r := Rule{Kind: Fail, Error: &api.Error{Type: "X"}}
	if err := r.Check(); err != nil || r.Failure().Status != 400 || (Rule{Kind: Fail}).Failure() != api.ErrInternal {
		t.Errorf("%v %v", err, r.Failure())
	}
	defer func() {
		if recover() == nil {
			t.Error("Add took a rule that Check refuses")
		}
	}()
	New(1).Add(Rule{})
}
