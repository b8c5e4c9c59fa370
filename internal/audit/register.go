package audit

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/stepfleet/stepfleet"
)

// A task as a register that many saw: Porcupine looks for one order of all that was done to it and
// seen of it in which everything fits, and in which what was over before another thing began comes
// before it. It is checked key by key, so the cost is linear in the keys.
//
// The ledger's transitions change the register. A client's submit, cancel and read, and the lines of
// the effect log, observe it.

// commitWithin bounds how long after the time of its audit row a transition was visible. It matters
// for a task's last transition only: of another one the next row bounds it.
const commitWithin = 30 * time.Second

// registerTimeout bounds the search for one key.
const registerTimeout = 10 * time.Second

// seen is one operation on the register.
type seen struct {
	what  string // a verb, or submitted, cancelled, read, begin, end
	from  stepfleet.State
	to    stepfleet.State // of a read: the state that was seen
	fence stepfleet.Fence // -1: unknown
	fresh bool            // of a submit: it was told that the key was new
}

// register is the state of a task.
type register struct {
	known, told bool // told: a submit was answered that the key was new
	state       stepfleet.State
	fence       stepfleet.Fence
	flagged     bool
	ran         stepfleet.Fence
	started     bool
	begun       bool
}

var model = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(state, input, _ any) (bool, any) {
		r, ok := state.(register).step(input.(seen))
		return ok, r
	},
	DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
	DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
}

// step applies an operation; false says that it does not fit here.
func (r register) step(s seen) (register, bool) {
	switch s.what {
	case "submitted":
		ok := r.known && (!s.fresh || !r.told)
		r.told = r.told || s.fresh
		return r, ok
	case "cancelled":
		return r, !r.known || r.flagged || r.state.Terminal()
	case "read":
		return r, r.known && r.state == s.to
	case EffectBegin:
		ok := r.started && !r.begun && (s.fence < 0 || s.fence == r.ran)
		r.begun = true
		return r, ok
	case EffectEnd, EffectError:
		return r, r.begun
	}
	return r.move(s)
}

func (r register) move(s seen) (register, bool) {
	verb := stepfleet.Verb(s.what)
	if r.state != s.from {
		return r, false
	}
	r.known, r.state, r.fence = true, s.to, s.fence
	switch verb {
	case stepfleet.VerbStart:
		r.started, r.ran = true, s.fence
	case stepfleet.VerbCancel, stepfleet.VerbClose:
		r.flagged = true
	}
	return r, true
}

func linearizable(f *facts, v *finding) {
	if f.moves == nil {
		v.unchecked("there is neither a client history nor an effect log")
		return
	}
	if f.replay.Window {
		v.unchecked("the window may begin in the middle of a task's life")
		return
	}
	observed := map[stepfleet.Key][]porcupine.Operation{}
	for _, op := range f.ops {
		if op.StepKey == "" || op.Type != OK || op.invoked.IsZero() || f.after(op.At) {
			continue
		}
		if s, ok := observation(op); ok {
			observed[op.Key] = append(observed[op.Key], operation(s, op.invoked.UnixNano()-int64(f.Skew), op.At.UnixNano()+int64(f.Skew)))
		}
	}
	for key, e := range f.effects {
		for _, line := range e.lines {
			fence, given := line.fence.Number()
			if !given {
				fence = -1
			}
			observed[key] = append(observed[key], operation(seen{what: line.event, fence: fence}, line.at-int64(f.Skew), line.at+int64(f.Skew)))
		}
	}
	if len(observed) == 0 {
		v.unchecked("neither the client history nor the effect log has anything of these runs")
	}
	for key, ops := range observed {
		task := f.idOf(key)
		if task == 0 || f.startedSince(key) {
			continue // I1 and I5 tell of it, or the ledger's rows end before it
		}
		v.cases(1)
		ops = append(ops, f.transitions(task)...)
		slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
		if got := porcupine.CheckOperationsTimeout(model, ops, registerTimeout); got != porcupine.Ok {
			v.bad(task, key, "no order of the %d things that were done to it and seen of it fits (%s)", len(ops), got)
		}
	}
}

// after reports whether what was seen then may be of a transition whose row the audit does not have: it was
// read before.
func (f *facts) after(at time.Time) bool {
	return !f.Until.IsZero() && at.After(f.Until.Add(-f.Skew))
}

func observation(op clientOp) (seen, bool) {
	switch op.F {
	case OpSubmit:
		return seen{what: "submitted", fresh: !op.Known}, true
	case OpCancel:
		return seen{what: "cancelled"}, true
	case OpRead:
		return seen{what: "read", to: op.State}, true
	}
	return seen{}, false
}

func operation(s seen, from, until int64) porcupine.Operation {
	return porcupine.Operation{Input: s, Call: from, Return: until}
}

// transitions returns what the ledger did to a task. Each was visible between its row's time and the
// next row's.
func (f *facts) transitions(task stepfleet.TaskID) []porcupine.Operation {
	moves := f.moves[task]
	ops := make([]porcupine.Operation, len(moves))
	for i, m := range moves {
		until := m.at + int64(commitWithin)
		if i+1 < len(moves) {
			until = max(moves[i+1].at, m.at)
		}
		ops[i] = operation(seen{what: string(m.verb), from: m.from, to: m.to, fence: m.fence}, m.at-int64(f.Skew), until+int64(f.Skew))
	}
	return ops
}
