package audit

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/stepfleet/stepfleet"
)

// BreakKind says how an audit row breaks the state machine.
type BreakKind string

// The kinds of break.
const (
	BreakOrder   BreakKind = "order"   // its id is not above the one before
	BreakGap     BreakKind = "gap"     // it begins at another state than the task was in
	BreakVerb    BreakKind = "verb"    // it is no line of stepfleet.Transitions
	BreakFence   BreakKind = "fence"   // its fence does not follow the transition's rule
	BreakOwner   BreakKind = "owner"   // a session that does not own the task wrote it
	BreakRestart BreakKind = "restart" // it starts a task for the second time
	BreakEnded   BreakKind = "ended"   // it changes a task that had ended
)

// Break is a row that the state machine does not allow after the rows before it.
type Break struct {
	Kind   BreakKind
	TaskID stepfleet.TaskID
	RunID  string
	What   string
}

func (b Break) Error() string { return fmt.Sprintf("task %d: %s", b.TaskID, b.What) }

// life is what the rows so far say of a task. Times are Unix nanoseconds. It is small: there is one
// for each task of a history.
type life struct {
	task    stepfleet.TaskID
	fence   stepfleet.Fence
	session stepfleet.SessionID
	// started is when it was started, under the fence ran. gone is when that fence had lost the task:
	// it had been raised, or the task had ended.
	started, gone int64
	ran           stepfleet.Fence
	owner         stepfleet.SessionID // whose session started it
	last          int64               // when it last changed
	state         stateIndex
	partial       bool // its first rows are not in the window
	joined        bool // Tasks has it
}

// stateIndex is a state in one byte: its place in stepfleet.States plus one.
type stateIndex uint8

var stateIndexes = func() map[stepfleet.State]stateIndex {
	m := map[stepfleet.State]stateIndex{"": 0}
	for i, s := range stepfleet.States {
		m[s] = stateIndex(i + 1)
	}
	return m
}()

func (i stateIndex) state() stepfleet.State {
	if i == 0 {
		return ""
	}
	return stepfleet.States[i-1]
}

type move struct {
	verb     stepfleet.Verb
	from, to stepfleet.State
}

var (
	rules = func() map[move]stepfleet.FenceRule {
		m := map[move]stepfleet.FenceRule{}
		for _, t := range stepfleet.Transitions {
			m[move{t.Verb, t.From, t.To}] = t.Fence
		}
		return m
	}()

	// ownerVerbs are what only the session that owns the task may write.
	ownerVerbs = map[stepfleet.Verb]bool{
		stepfleet.VerbStart: true, stepfleet.VerbRelease: true, stepfleet.VerbSettle: true, stepfleet.VerbRevoke: true,
		stepfleet.VerbAbandon: true,
	}
)

// Replay follows tasks through the audit trail, row by row in the order of ids.
type Replay struct {
	// Window says that the trail is cut: a task may appear in the middle of its life.
	Window bool

	lives  []life
	byTask map[stepfleet.TaskID]int32
	lastID int64
}

// NewReplay returns a replay that has seen nothing.
func NewReplay() *Replay { return &Replay{byTask: map[stepfleet.TaskID]int32{}} }

// Add takes the next row and returns how it breaks the state machine; nil is as it should be. A
// broken row is taken at its word, so that one mistake is told once.
func (r *Replay) Add(row stepfleet.AuditRow) []Break {
	var breaks []Break
	broken := func(kind BreakKind, format string, args ...any) {
		breaks = append(breaks, Break{kind, row.TaskID, row.RunID, fmt.Sprintf("audit row %d (%s): ", row.ID, row.Verb) + fmt.Sprintf(format, args...)})
	}
	if row.ID <= r.lastID {
		broken(BreakOrder, "comes after row %d", r.lastID)
	}
	r.lastID = row.ID
	if row.Refused != "" || row.TaskID == 0 {
		return breaks
	}
	rule, known := rules[move{row.Verb, row.From, row.To}]
	l := r.at(row, rule)
	was := l.state.state()
	switch {
	case was.Terminal() && (row.From != was || row.To != was):
		broken(BreakEnded, "the task had ended as %s, and the row leads from %q to %q", was, row.From, row.To)
	case row.From != was:
		broken(BreakGap, "the task was %q, and the row begins at %q", was, row.From)
	case !known:
		broken(BreakVerb, "no transition leads from %q to %q", row.From, row.To)
	}
	if want := fenceAfter(rule, l.fence); known && row.Fence != want {
		broken(BreakFence, "it has fence %d and should have %d", row.Fence, want)
	}
	if owner, ok := sessionOf(row.Actor); ownerVerbs[row.Verb] && (!ok || owner != l.session) && (l.session != 0 || !l.partial) {
		broken(BreakOwner, "%s wrote it, and the owner is session %d", row.Actor, l.session)
	}
	if row.Verb == stepfleet.VerbStart && l.started != 0 {
		broken(BreakRestart, "the task was started before, with fence %d", l.ran)
	}
	l.take(row)
	return breaks
}

// at returns the task's life, begun if this is its first row.
func (r *Replay) at(row stepfleet.AuditRow, rule stepfleet.FenceRule) *life {
	i, ok := r.byTask[row.TaskID]
	if !ok {
		i = int32(len(r.lives))
		r.byTask[row.TaskID] = i
		l := life{task: row.TaskID}
		if r.Window && row.From != "" {
			l.partial, l.state, l.fence = true, stateIndexes[row.From], row.Fence
			if rule == stepfleet.FenceRaise {
				l.fence--
			}
		}
		r.lives = append(r.lives, l)
	}
	return &r.lives[i]
}

func fenceAfter(rule stepfleet.FenceRule, before stepfleet.Fence) stepfleet.Fence {
	switch rule {
	case stepfleet.FenceZero:
		return 0
	case stepfleet.FenceRaise:
		return before + 1
	}
	return before
}

// take makes the row's transition.
func (l *life) take(row stepfleet.AuditRow) {
	at := row.At.UnixNano()
	if owner, ok := sessionOf(row.Actor); ok {
		l.session = owner
	}
	if row.Verb == stepfleet.VerbStart && l.started == 0 {
		l.started, l.ran, l.owner = at, row.Fence, l.session
	}
	if l.started != 0 && l.gone == 0 && (row.Fence != l.ran || row.To.Terminal()) {
		l.gone = at
	}
	if row.To == stepfleet.StateQueued || row.Verb == stepfleet.VerbAbandon {
		l.session = 0
	}
	l.state, l.fence, l.last = stateIndexes[row.To], row.Fence, at
}

// of returns what the rows said of a task, nil when no row names it.
func (r *Replay) of(id stepfleet.TaskID) *life {
	i, ok := r.byTask[id]
	if !ok {
		return nil
	}
	return &r.lives[i]
}

// sessionOf reads the actor "session 12".
func sessionOf(actor string) (stepfleet.SessionID, bool) {
	rest, ok := strings.CutPrefix(actor, "session ")
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseInt(rest, 10, 64)
	return stepfleet.SessionID(id), err == nil
}

// epochOf reads the actor "executor 3"; everybody else speaks for no executor.
func epochOf(actor string) stepfleet.Epoch {
	rest, ok := strings.CutPrefix(actor, "executor ")
	if !ok {
		return stepfleet.NoExecutor
	}
	epoch, err := strconv.ParseInt(rest, 10, 64)
	if err != nil {
		return stepfleet.NoExecutor
	}
	return stepfleet.Epoch(epoch)
}

// CheckRun holds all audit rows of a run against the state machine and against where the run's tasks
// stand: the rows alone give each task's state and fence.
func CheckRun(rows []stepfleet.AuditRow, views []stepfleet.View) error {
	replay := NewReplay()
	for _, row := range rows {
		if breaks := replay.Add(row); len(breaks) > 0 {
			return breaks[0]
		}
	}
	for _, v := range views {
		l := replay.of(v.ID)
		if l == nil {
			return fmt.Errorf("task %d is %s, and its audit has no row", v.ID, v.State)
		}
		if l.state.state() != v.State || l.fence != v.Fence {
			return fmt.Errorf("task %d is %s with fence %d, its audit says %s with %d", v.ID, v.State, v.Fence, l.state.state(), l.fence)
		}
	}
	if n := len(replay.lives) - len(views); n > 0 {
		return fmt.Errorf("the audit knows %d tasks that the run does not have", n)
	}
	return nil
}
