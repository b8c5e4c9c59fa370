package audit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet"
)

// facts is what the witnesses say, joined: by task id what the audit says, by key what the others say.
type facts struct {
	Witnesses
	replay *Replay
	// found are the contradictions seen while reading, by kind.
	found map[BreakKind]*finds

	runs     map[string]*runFacts
	attempts []attempt
	byKey    map[stepfleet.Key]int32
	// moves are the transitions of each task, kept only where the register is checked.
	moves   map[stepfleet.TaskID][]transition
	effects map[stepfleet.Key]*effectFacts
	unknown []Effect // of keys that Tasks does not have
	// beyond are tasks that the ledger has and Tasks does not: of before the window, or later.
	beyond map[stepfleet.Key]bool
	steps  map[stepName]*stepLog
	// processes are those that user code has begun in, with the first attempt that did.
	processes map[process]stepfleet.Key
	sessions  map[stepfleet.SessionID]stepfleet.Session
	ops       []clientOp
	ended     []Run
	holds     int              // tasks that sessions hold
	stuck     []stepfleet.Hold // those of them that hang
	counts    Counts
	lateness  []float64 // of the sweep, in seconds
}

// Contradictions that are seen while reading, besides those of the replay.
const (
	foundRefusal   BreakKind = "refusal"   // a refused write without a winner
	foundRow       BreakKind = "row"       // a task that the audit does not lead to
	foundFence     BreakKind = "row fence" // a task whose fence the audit does not lead to
	foundTwin      BreakKind = "twin"      // two tasks of one key
	foundUnstarted BreakKind = "unknown"   // user code of a key that the ledger does not have
	foundShared    BreakKind = "shared"    // two attempts in one process
)

// find is one contradiction.
type find struct {
	task stepfleet.TaskID
	key  stepfleet.Key
	what string
}

// finds counts contradictions of one kind and keeps the first.
type finds struct {
	n     int
	first []find
}

// attempt is a task of Tasks.
type attempt struct {
	stepfleet.Key
	id               stepfleet.TaskID
	submitted, ended int64 // Unix nanoseconds, 0 for never
	life             int32 // its place among the replay's lives, -1 for none
	state            stateIndex
	run              bool // it is a run worker
	started          bool
	over             bool // it has ended, maybe after the snapshot
	event            string
}

type runFacts struct {
	epoch stepfleet.Epoch // the last that was taken
	// closed is when the run was closed for all, closedSteps for its steps.
	closed, closedSteps int64
	tasks, steps        int
	lost                bool // an attempt of it was lost or is dead
	whole               bool // its first executor is in the window: all of its steps came later
	events              int  // in Dagster's log
	orphaned            map[string]int
	log                 runLog
	elsewhere           elsewhere
}

type effectFacts struct {
	lines  []effectLine
	begins int
}

type effectLine struct {
	at    int64
	fence Fence
	event string
}

type stepName struct{ run, step string }

// stepLog is what Dagster's log says of a step. All endings before the final one are retries.
type stepLog struct {
	starts, retries, finals int
	final                   string
	extra                   string // an ending after the final one
	late                    bool   // it has events after the window, by their writers' clocks
	whole                   bool   // all its attempts are in sight
	ours                    bool   // a process of ours has written an ending
	undecided               bool   // its last ending is a RESOURCE_INIT_FAILURE, which may have a verdict to come
	restarted               int    // starts of an attempt that had started
	begun                   uint64 // the attempts that have a start, a bit for each as ending counts them
	base, top               int    // the least and the greatest attempt of its tasks
}

type transition struct {
	at    int64
	fence stepfleet.Fence
	verb  stepfleet.Verb
	from  stepfleet.State
	to    stepfleet.State
}

// clientOp is what a client asked, with its answer.
type clientOp struct {
	ClientEvent           // the answer; of an operation without one, the invoke
	invoked     time.Time // zero: the answer's invoke is missing
	answered    bool
}

func gather(ctx context.Context, w Witnesses) (*facts, error) {
	f := &facts{
		Witnesses: w, replay: NewReplay(), found: map[BreakKind]*finds{}, runs: map[string]*runFacts{},
		byKey: map[stepfleet.Key]int32{}, effects: map[stepfleet.Key]*effectFacts{}, beyond: map[stepfleet.Key]bool{},
		steps: map[stepName]*stepLog{}, processes: map[process]stepfleet.Key{}, sessions: map[stepfleet.SessionID]stepfleet.Session{},
		counts: Counts{ByState: map[stepfleet.State]int{}, Refused: map[string]int{}, FaultKinds: []FaultCount{}},
	}
	if f.Lifetimes == (stepfleet.Lifetimes{}) {
		f.Lifetimes = stepfleet.DefaultLifetimes()
	}
	f.Skew = cmp.Or(f.Skew, DefaultSkew)
	f.replay.Window = !w.From.IsZero()
	if w.Client != nil || w.Effects != nil {
		f.moves = map[stepfleet.TaskID][]transition{}
	}
	for _, read := range []func() error{
		func() error { return each(ctx, w.Sessions, f.session) },
		func() error { return each(ctx, w.Audit, f.row) },
		func() error { return each(ctx, w.Tasks, f.task) },
		func() error { return each(ctx, w.Effects, f.effect) },
		func() error { return each(ctx, w.Dagster, f.event) },
		func() error { return each(ctx, w.Client, f.client()) },
		func() error { return each(ctx, w.Runs, f.runEnded) },
		func() error { return each(ctx, w.Holds, f.hold) },
		func() error { return f.lookAgain(ctx) },
	} {
		if err := read(); err != nil {
			return nil, err
		}
	}
	f.takeUnknown()
	f.orphans()
	f.countFaults()
	return f, nil
}

// each reads a witness that may be absent.
func each[T any](ctx context.Context, source Source[T], take func(T)) error {
	if source == nil {
		return nil
	}
	for v, err := range source(ctx) {
		if err != nil {
			return err
		}
		take(v)
	}
	return ctx.Err()
}

func (f *facts) find(kind BreakKind, task stepfleet.TaskID, key stepfleet.Key, format string, args ...any) {
	list := f.found[kind]
	if list == nil {
		list = &finds{}
		f.found[kind] = list
	}
	list.n++
	if len(list.first) < MaxViolations {
		list.first = append(list.first, find{task, key, fmt.Sprintf(format, args...)})
	}
}

func (f *facts) run(id string) *runFacts {
	r := f.runs[id]
	if r == nil {
		r = &runFacts{}
		f.runs[id] = r
	}
	return r
}

func (f *facts) session(s stepfleet.Session) { f.sessions[s.ID] = s }

// row takes an audit row.
func (f *facts) row(row stepfleet.AuditRow) {
	f.counts.AuditRows++
	if sweeps[row.Verb] && row.Refused == "" {
		f.sweep(row)
	}
	for _, b := range f.replay.Add(row) {
		f.find(b.Kind, b.TaskID, stepfleet.Key{RunID: b.RunID}, "%s", b.What)
	}
	switch {
	case row.Refused != "":
		f.counts.Refused[row.Refused]++
		f.refusal(row)
	case row.TaskID == 0:
		f.runRow(row)
	case f.moves != nil:
		f.moves[row.TaskID] = append(f.moves[row.TaskID], transition{row.At.UnixNano(), row.Fence, row.Verb, row.From, row.To})
	}
}

// runRow takes a row that is about a run.
func (f *facts) runRow(row stepfleet.AuditRow) {
	r := f.run(row.RunID)
	at := row.At.UnixNano()
	switch row.Verb {
	case stepfleet.VerbTakeover:
		epoch := epochOf(row.Actor)
		r.epoch = max(r.epoch, epoch)
		r.whole = r.whole || epoch == firstExecutor
	case stepfleet.VerbClose:
		if epochOf(row.Actor) == stepfleet.NoExecutor {
			r.closed = cmp.Or(r.closed, at)
			r.log.bereft = r.log.bereft || strings.HasSuffix(row.Detail, stepfleet.RunWorkerGone)
		}
		r.closedSteps = cmp.Or(r.closedSteps, at)
	case stepfleet.VerbAdjudicate:
		// An attempt that the ledger does not have: its detail is "STEP attempt N".
		if i := strings.LastIndex(row.Detail, " attempt "); i >= 0 {
			if r.orphaned == nil {
				r.orphaned = map[string]int{}
			}
			r.orphaned[row.Detail[:i]]++
		}
	}
}

// refusal holds a refused write against the winner that there must have been.
func (f *facts) refusal(row stepfleet.AuditRow) {
	key := stepfleet.Key{RunID: row.RunID}
	l := f.replay.of(row.TaskID)
	if f.replay.Window && l == nil {
		return // the winner is before the window
	}
	bad := func(why string) {
		f.find(foundRefusal, row.TaskID, key, "audit row %d: %s of %s with fence %d was refused as %s, and %s",
			row.ID, row.Verb, row.Actor, row.Fence, row.Refused, why)
	}
	r := f.run(row.RunID)
	switch row.Refused {
	case stepfleet.ErrFenced.Code:
		owner, _ := sessionOf(row.Actor)
		switch {
		case l == nil:
			bad("the audit has no such task")
		case l.fence == row.Fence && l.session == owner && ownable(row.Verb, l.state.state()):
			bad(fmt.Sprintf("it was the owner of the %s task: nobody had won", l.state.state()))
		case l.fence < row.Fence:
			bad(fmt.Sprintf("no owner ever had that fence: the task's was %d", l.fence))
		}
	case stepfleet.ErrCancelled.Code, stepfleet.ErrRunClosed.Code:
		if row.TaskID != 0 && (l == nil || l.state.state() != stepfleet.StateCancelled) {
			if r.closedSteps == 0 && !f.replay.Window {
				bad("nothing had cancelled it")
			}
		} else if row.TaskID == 0 && r.closedSteps == 0 && !f.replay.Window {
			bad("nobody had closed the run")
		}
	case stepfleet.ErrSuperseded.Code:
		if r.epoch <= epochOf(row.Actor) && !f.replay.Window {
			bad("no later executor had taken over the run")
		}
	case stepfleet.ErrConflict.Code:
		if row.TaskID != 0 && l == nil {
			bad("the audit has no such task")
		}
	}
}

// ownable reports whether the owner may do this to its task in this state.
func ownable(verb stepfleet.Verb, state stepfleet.State) bool {
	switch verb {
	case stepfleet.VerbStart, stepfleet.VerbRelease:
		return state == stepfleet.StateLeased
	case stepfleet.VerbSettle, stepfleet.VerbRevoke, stepfleet.VerbAbandon:
		return state == stepfleet.StateRunning
	}
	return false
}

// sweeps are the verbs by which the server takes tasks from owners that are gone.
var sweeps = map[stepfleet.Verb]bool{stepfleet.VerbSweep: true, stepfleet.VerbRepair: true, stepfleet.VerbPoison: true}

// sweep measures how long after its deadline a task was taken. The task's life is as it was before.
func (f *facts) sweep(row stepfleet.AuditRow) {
	if row.From == stepfleet.StateQueued {
		return // poisoned at its submit
	}
	f.counts.Sweeps++
	l := f.replay.of(row.TaskID)
	if l == nil {
		return
	}
	s, known := f.sessions[l.session]
	since := row.At.Sub(s.RenewedAt)
	switch {
	case strings.HasSuffix(row.Detail, "in time"):
		known = true
		since = time.Duration(row.At.UnixNano()-l.last) - f.Lifetimes.StartWithin
	case strings.Contains(row.Detail, "is suspect"):
		since -= cmp.Or(s.SessionTTL, f.Lifetimes.SessionTTL)
	case strings.Contains(row.Detail, "no renewal for"):
		since -= cmp.Or(s.RunLease, f.Lifetimes.RunLease)
	}
	// A session that was renewed later, or whose mark came late for a good reason, says nothing.
	if known && since >= -f.Skew {
		f.lateness = append(f.lateness, max(since, 0).Seconds())
	}
}

// task takes a task and compares it with what the audit says.
func (f *facts) task(t Task) {
	f.counts.Tasks++
	f.counts.ByState[t.State]++
	if i, ok := f.byKey[t.Key]; ok {
		f.find(foundTwin, t.ID, t.Key, "tasks %d and %d have the same key", f.attempts[i].id, t.ID)
		return
	}
	a := attempt{
		Key: t.Key, id: t.ID, submitted: nanos(t.SubmittedAt), ended: nanos(t.EndedAt), life: -1,
		state: stateIndexes[t.State], run: t.Kind == stepfleet.KindRun, event: t.Event, started: !t.StartedAt.IsZero(), over: t.State.Terminal(),
	}
	if i, ok := f.replay.byTask[t.ID]; ok {
		a.life = i
		f.replay.lives[i].joined = true
		a.started = a.started || f.replay.lives[i].started != 0
	}
	f.compare(t, a.life)
	f.byKey[t.Key] = int32(len(f.attempts))
	f.attempts = append(f.attempts, a)
	r := f.run(t.RunID)
	r.tasks++
	r.lost = r.lost || t.State == stepfleet.StateLost || t.State == stepfleet.StateDead
	r.log.carried = r.log.carried || a.run
	if t.Kind == stepfleet.KindStep {
		r.steps++
		f.span(t.Key)
	}
}

// compare holds a task against its life. A task that had not ended at the end of the window may
// have moved since.
func (f *facts) compare(t Task, place int32) {
	edge := f.edge()
	if place < 0 {
		if !t.SubmittedAt.Before(f.From) && (edge.IsZero() || t.SubmittedAt.Before(edge)) {
			f.find(foundRow, t.ID, t.Key, "the task is %s, and the audit has no row of it", t.State)
		}
		return
	}
	l := f.replay.lives[place]
	if l.partial && !t.SubmittedAt.Before(f.From) {
		f.find(foundRow, t.ID, t.Key, "the audit begins in the middle of its life: rows are missing")
	}
	said := l.state.state()
	moved := !edge.IsZero() && !f.Snapshot && !said.Terminal() && (t.EndedAt.IsZero() || !t.EndedAt.Before(edge))
	if moved {
		return
	}
	if said != t.State {
		f.find(foundRow, t.ID, t.Key, "the task is %s, and its audit leads to %s", t.State, said)
	}
	if l.fence != t.Fence {
		f.find(foundFence, t.ID, t.Key, "the task has fence %d, and its audit leads to %d", t.Fence, l.fence)
	}
}

// edge is until when what a task's row tells must be in the audit. Where the window ends before the
// moment of the ledger that is a little before its end: an audit row is written after the task's and has
// a time of its own.
func (f *facts) edge() time.Time {
	if f.Until.IsZero() || f.Snapshot {
		return f.Until
	}
	return f.Until.Add(-f.Skew)
}

// span notes which attempts of a step the ledger has.
func (f *facts) span(k stepfleet.Key) {
	if f.Dagster == nil {
		return
	}
	s := f.steps[stepName{k.RunID, k.StepKey}]
	if s == nil {
		s = &stepLog{base: k.Attempt, top: k.Attempt}
		f.steps[stepName{k.RunID, k.StepKey}] = s
	}
	if s.base < 0 { // the log had it before the ledger
		s.base = k.Attempt
	}
	s.base, s.top = min(s.base, k.Attempt), max(s.top, k.Attempt)
}

// orphans finds tasks of the audit that the ledger does not have.
func (f *facts) orphans() {
	for _, l := range f.replay.lives {
		if !l.joined {
			f.find(foundRow, l.task, stepfleet.Key{}, "the audit leads task %d to %s, and the ledger does not have it", l.task, l.state.state())
		}
	}
}

// effect takes a line of the effect log. Whose it is when Tasks does not have its task shows later.
func (f *facts) effect(e Effect) {
	if _, known := f.byKey[e.Key]; known {
		f.take(e)
	} else {
		f.unknown = append(f.unknown, e)
	}
}

func (f *facts) take(e Effect) {
	f.counts.Effects++
	f.shares(e)
	have := f.effects[e.Key]
	if have == nil {
		have = &effectFacts{}
		f.effects[e.Key] = have
	}
	if e.Event == EffectBegin {
		have.begins++
	}
	have.lines = append(have.lines, effectLine{e.Time().UnixNano(), e.Fence, e.Event})
}

// event takes an event of Dagster's log.
func (f *facts) event(e DagsterEvent) {
	f.counts.DagsterEvents++
	r := f.run(e.RunID)
	r.events++
	if e.StepKey == "" {
		r.log.take(e.Type)
		return
	}
	r.log.steps = true
	s := f.steps[stepName{e.RunID, e.StepKey}]
	if s == nil {
		s = &stepLog{base: -1, top: -1}
		f.steps[stepName{e.RunID, e.StepKey}] = s
	}
	s.ours = s.ours || e.Ours
	s.late = s.late || !f.Until.IsZero() && e.At.After(f.Until.Add(-f.Skew))
	s.take(e.Type)
}

// The events of Dagster that begin and end an attempt.
const (
	stepStart     = "STEP_START"
	stepRestarted = "STEP_RESTARTED"
	stepRetry     = "STEP_UP_FOR_RETRY"
	stepSuccess   = "STEP_SUCCESS"
	stepFailure   = "STEP_FAILURE"
	initFailure   = "RESOURCE_INIT_FAILURE"
)

// StepEvents are the types of event that a check needs of Dagster's log.
var StepEvents = []string{stepStart, stepRestarted, stepRetry, stepSuccess, stepFailure, initFailure}

// take counts an event. A RESOURCE_INIT_FAILURE is the end of its attempt unless the run worker's
// verdict follows, as it does since Dagster 1.12.
func (s *stepLog) take(kind string) {
	switch kind {
	case stepStart, stepRestarted:
		s.starts++
		of := s.attemptOf(kind)
		if s.began(of) {
			s.restarted++
		}
		s.begun |= attemptBit(of)
	case initFailure:
		s.undecided = true
	case stepRetry, stepFailure, stepSuccess:
		s.undecided = false
		switch {
		case s.finals > 0:
			s.extra = kind
			s.finals++
		case kind == stepRetry:
			s.retries++
		default:
			s.final = kind
			s.finals++
		}
	}
}

// attemptOf returns the attempt that a start is of. One that was given up may write its own late, when
// the next one is under way. Of the first attempt Dagster's word tells; of two starts of a later one the first
// is of the attempt before it that has none.
func (s *stepLog) attemptOf(kind string) int {
	if kind == stepStart {
		return 0
	}
	if s.began(s.retries) {
		for n := s.retries - 1; n > 0; n-- {
			if !s.began(n) {
				return n
			}
		}
	}
	return s.retries
}

// endings counts the attempts that have an ending in the log.
func (s *stepLog) endings() int { return s.retries + min(s.finals, 1) }

// began reports whether the log has a start of the n-th attempt.
func (s *stepLog) began(n int) bool { return s.begun&attemptBit(n) != 0 }

// attemptBit is the n-th attempt's; those after the 64th have none, and their starts are not looked at.
func attemptBit(n int) uint64 { return 1 << n }

// ending returns the ending event of the n-th attempt in the log, empty when it has none.
func (s *stepLog) ending(n int) string {
	switch {
	case n < s.retries:
		return stepRetry
	case n == s.retries && s.finals > 0:
		return s.final
	case n == s.retries && s.undecided:
		return initFailure
	}
	return ""
}

// client returns what takes the client history.
func (f *facts) client() func(ClientEvent) {
	type opID struct {
		process string
		op      int64
	}
	open := map[opID]int{}
	attempted, acked := map[stepfleet.Key]bool{}, map[stepfleet.Key]bool{}
	return func(e ClientEvent) {
		f.counts.ClientEvents++
		id := opID{e.Process, e.Op}
		place, known := open[id]
		if !known {
			place = len(f.ops)
			open[id] = place
			f.ops = append(f.ops, clientOp{ClientEvent: e})
		}
		op := &f.ops[place]
		switch {
		case e.Type == Invoke:
			f.counts.Asked++
			op.invoked = e.At
		default:
			invoked := op.invoked
			*op = clientOp{ClientEvent: e, invoked: invoked, answered: e.Type != Info}
			if op.answered {
				f.counts.Answered++
			}
		}
		if e.F != OpSubmit {
			return
		}
		if e.Type == Invoke && !attempted[e.Key] {
			attempted[e.Key] = true
			f.counts.Attempted++
		}
		if e.Type == OK && !acked[e.Key] {
			acked[e.Key] = true
			f.counts.Acknowledged++
		}
	}
}

func (f *facts) runEnded(r Run) {
	f.ended = append(f.ended, r)
	if slices.Contains([]string{"SUCCESS", "FAILURE", "CANCELED"}, r.Status) {
		f.counts.RunsEnded++
	}
}

func (f *facts) countFaults() {
	for _, fault := range f.Faults {
		i := slices.IndexFunc(f.counts.FaultKinds, func(k FaultCount) bool { return k.Kind == fault.Kind })
		if i < 0 {
			i = len(f.counts.FaultKinds)
			f.counts.FaultKinds = append(f.counts.FaultKinds, FaultCount{Kind: fault.Kind})
		}
		f.counts.FaultKinds[i].Tried++
		if fault.Landed {
			f.counts.FaultKinds[i].Landed++
			f.counts.Faults++
		}
	}
	slices.SortFunc(f.counts.FaultKinds, func(a, b FaultCount) int { return strings.Compare(a.Kind, b.Kind) })
	f.counts.Seconds = f.Span.Seconds()
	f.counts.Recovery = quantiles(f.lateness)
}

func quantiles(seconds []float64) Quantiles {
	if len(seconds) == 0 {
		return Quantiles{}
	}
	slices.Sort(seconds)
	at := func(q float64) float64 { return seconds[int(q*float64(len(seconds)-1)+0.5)] }
	return Quantiles{N: len(seconds), P50: at(0.5), P99: at(0.99), Max: seconds[len(seconds)-1]}
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func number(f stepfleet.Fence) string { return strconv.FormatInt(int64(f), 10) }
