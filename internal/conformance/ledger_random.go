package conformance

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/memory"
)

// CompareLedgers runs random operations on the ledger under test and on the one in memory, and
// compares every answer and, at the end, everything recorded. It licenses the ledger in memory as
// a stand-in for tests of roles. rapid prints the seed of a failure and shrinks it.
func CompareLedgers(t *testing.T, open func(t *testing.T) LedgerEnv) {
	env := open(t)
	life := 0
	rapid.Check(t, func(rt *rapid.T) {
		life++
		model := memory.NewLedger()
		p := &pair{
			rt: rt, ctx: context.Background(), scope: fmt.Sprintf("s%d", life), real: env,
			model: LedgerEnv{Ledger: model, AgeSession: model.AgeSession, AgeLease: model.AgeLease},
			tasks: newNames[stepfleet.TaskID]("task"), sessions: newNames[stepfleet.SessionID]("session"),
		}
		defer p.leave()
		p.speak()
		rt.Repeat(p.actions())
		p.finish()
	})
}

// pair is a ledger under test and its model. Ids differ between them, so each is known by the
// order in which it was seen. Runs, queues and instances carry the scope: the ledger under test is
// shared by all lives of one check.
type pair struct {
	rt          *rapid.T
	ctx         context.Context
	scope       string
	real, model LedgerEnv
	tasks       *names[stepfleet.TaskID]
	sessions    *names[stepfleet.SessionID]
	instances   []string // of the sessions
	refs        []ref    // every fence that was ever handed out
}

// ref is a task as its owner names it, in both ledgers.
type ref struct {
	task, session int
	fence         stepfleet.Fence
}

// names pairs the ids of two ledgers.
type names[T ~int64] struct {
	word        string
	real, model []T
}

func newNames[T ~int64](word string) *names[T] { return &names[T]{word: word} }

// add pairs two ids. Id 0 and ids that nobody has seen are not in the list.
func (n *names[T]) add(real, model T) int {
	if i := slices.Index(n.real, real); i >= 0 {
		return i
	}
	n.real, n.model = append(n.real, real), append(n.model, model)
	return len(n.real) - 1
}

// name is what an id of one ledger is called in comparisons.
func (n *names[T]) name(side []T, id T) string {
	if id == 0 {
		return ""
	}
	if i := slices.Index(side, id); i >= 0 {
		return fmt.Sprintf("%s #%d", n.word, i)
	}
	return fmt.Sprintf("%s unknown", n.word)
}

// side is one of the two ledgers with the means to say its answers in common words.
type side struct {
	LedgerEnv
	tasks    []stepfleet.TaskID
	sessions []stepfleet.SessionID
	p        *pair
}

func (p *pair) realSide() side  { return side{p.real, p.tasks.real, p.sessions.real, p} }
func (p *pair) modelSide() side { return side{p.model, p.tasks.model, p.sessions.model, p} }

func (s side) task(id stepfleet.TaskID) string       { return s.p.tasks.name(s.tasks, id) }
func (s side) session(id stepfleet.SessionID) string { return s.p.sessions.name(s.sessions, id) }

// both runs an operation on both sides and compares what it says.
func (p *pair) both(what string, op func(s side) string) string {
	real, model := op(p.realSide()), op(p.modelSide())
	if diff := cmp.Diff(strings.Split(model, "\n"), strings.Split(real, "\n")); diff != "" {
		p.rt.Fatalf("%s: the ledgers differ (-memory +under test):\n%s", what, diff)
	}
	return real
}

// code says an error in common words.
func code(err error) string {
	if err == nil {
		return "ok"
	}
	if r := stepfleet.RefusalOf(err); r != nil {
		return r.Code
	}
	return "error " + err.Error()
}

func codes(errs []error, err error) string {
	out := []string{code(err)}
	for _, e := range errs {
		out = append(out, code(e))
	}
	return strings.Join(out, "\n")
}

func (s side) changes(changes []stepfleet.Change, err error) string {
	out := []string{code(err)}
	for _, c := range changes {
		out = append(out, fmt.Sprint(s.task(c.TaskID), c.Key, c.Queue, c.From, c.To))
	}
	return strings.Join(out, "\n")
}

// silence is a duration that two ledgers may round differently.
var silence = regexp.MustCompile(`no renewal for \d+ s`)

// sessionName in texts names ids that differ.
var sessionName = regexp.MustCompile(`session (\d+)`)

func (s side) text(in string) string {
	in = silence.ReplaceAllString(in, "no renewal")
	return sessionName.ReplaceAllStringFunc(in, func(m string) string {
		var id stepfleet.SessionID
		fmt.Sscanf(m, "session %d", &id)
		return s.session(id)
	})
}

func (s side) sessionList(in []stepfleet.Session, err error) string {
	out := []string{code(err)}
	for _, v := range in {
		if strings.HasPrefix(v.Instance, s.p.scope+"-") {
			out = append(out, fmt.Sprint(s.session(v.ID), v.SessionSpec, v.State, v.Draining, s.text(v.EndReason)))
		}
	}
	return strings.Join(out, "\n")
}

func (s side) held(in []stepfleet.Held) string {
	var out []string
	for _, h := range in {
		out = append(out, fmt.Sprint(s.task(h.TaskID), h.Fence, h.State, h.CancelRequested))
	}
	return strings.Join(out, "\n")
}

func (s side) view(v stepfleet.View) string {
	result := "none"
	if v.Result != nil {
		result = fmt.Sprintf("%+v %+v", *v.Result, v.Result.Error)
		if v.Result.Error != nil { // its address differs
			copied := *v.Result
			copied.Error = nil
			result = fmt.Sprintf("%+v %+v", copied, *v.Result.Error)
		}
	}
	return fmt.Sprint(s.task(v.ID), v.Task, v.State, v.Fence, v.CancelRequested, s.session(v.Session), v.Worker,
		v.SubmittedAt.IsZero(), v.ClaimedAt.IsZero(), v.StartedAt.IsZero(), v.EndedAt.IsZero(), s.text(v.Reason), result)
}

// speak gives both runs an executor: without one there would be little to compare.
func (p *pair) speak() {
	for _, runID := range p.runIDs() {
		p.both("take epoch", func(s side) string {
			epoch, err := s.Ledger.TakeEpoch(p.ctx, runID, stepfleet.Executor{Name: "x"}, "")
			return fmt.Sprint(code(err), epoch)
		})
	}
}

// finish compares everything recorded and checks it against the state machine.
func (p *pair) finish() {
	for _, runID := range p.runIDs() {
		p.both("tasks of "+runID, func(s side) string {
			views, err := s.Ledger.RunTasks(p.ctx, runID)
			out := []string{code(err)}
			for _, v := range views {
				out = append(out, s.view(v))
			}
			return strings.Join(out, "\n")
		})
		p.both("audit of "+runID, func(s side) string {
			rows, err := s.Ledger.Audit(p.ctx, runID)
			if err != nil {
				return code(err)
			}
			views, err := s.Ledger.RunTasks(p.ctx, runID)
			if err == nil {
				err = CheckHistory(rows, views)
			}
			if err != nil {
				p.rt.Fatalf("history of %s: %v", runID, err)
			}
			var out []string
			for _, r := range rows {
				out = append(out, fmt.Sprint(s.task(r.TaskID), r.Verb, s.text(r.Actor), r.From, r.To, r.Fence, r.Refused, s.text(r.Detail)))
			}
			// Rows of one commit come in any order; those of one task are checked above.
			slices.Sort(out)
			return strings.Join(out, "\n")
		})
	}
	p.both("sessions", func(s side) string { return s.sessionList(s.Ledger.Sessions(p.ctx, time.Hour)) })
	p.both("lanes", func(s side) string {
		lanes, err := s.Ledger.Lanes(p.ctx)
		out := []string{code(err)}
		for _, l := range lanes {
			if strings.HasPrefix(l.Queue, p.scope+"-") {
				out = append(out, fmt.Sprint(l.Queue, l.Ready, l.Leased, l.Running, l.Slots, l.OldestAge > 0))
			}
		}
		return strings.Join(out, "\n")
	})
}

// leave takes this life's sessions and tasks out of the way of the next one.
func (p *pair) leave() {
	l := p.real.Ledger
	for i, id := range p.sessions.real {
		_ = l.EndSession(p.ctx, id, p.instances[i], "over")
	}
	for {
		changes, err := l.Sweep(p.ctx, lives.StartWithin, 1000)
		if err != nil || len(changes) < 1000 {
			break
		}
	}
	orphans, _ := l.Orphans(p.ctx, 0, 1000)
	var decisions []stepfleet.Decision
	for _, o := range orphans {
		decisions = append(decisions, o.Decide("", "over"))
	}
	_, _ = l.Decide(p.ctx, decisions)
}
