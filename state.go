package stepfleet

// State is where a task stands.
type State string

// The states of a task. Queued, leased and running are open; the others are terminal and never
// change.
const (
	StateQueued    State = "queued"    // waits for a worker
	StateLeased    State = "leased"    // a worker has it, user code has not begun
	StateRunning   State = "running"   // the start is recorded: user code may have begun
	StateSucceeded State = "succeeded" // ended well
	StateFailed    State = "failed"    // ended, and Dagster's log says how (failure or retry), or the process died
	StateCancelled State = "cancelled" // asked to stop, and did
	StateLost      State = "lost"      // began, and its worker's session died
	StateDead      State = "dead"      // refused for good: it kills its workers
)

// States lists every state, in the order of a task's life.
var States = []State{
	StateQueued, StateLeased, StateRunning,
	StateSucceeded, StateFailed, StateCancelled, StateLost, StateDead,
}

// Terminal reports whether a task in this state has ended.
func (s State) Terminal() bool {
	switch s {
	case StateSucceeded, StateFailed, StateCancelled, StateLost, StateDead:
		return true
	}
	return false
}

// SettlesRunning reports whether a worker's settle may end a running task in this state.
func (s State) SettlesRunning() bool { return Allowed(VerbSettle, StateRunning, s) }

// Verb names a transition, the same in Go, SQL, Python, CLI and docs. Every transition, and every
// refused one, is an audit row under its verb.
type Verb string

// The verbs.
const (
	VerbSubmit  Verb = "submit"
	VerbClaim   Verb = "claim"
	VerbStart   Verb = "start"
	VerbRelease Verb = "release"
	VerbSettle  Verb = "settle"
	VerbSweep   Verb = "sweep"
	VerbRepair  Verb = "repair"
	VerbPoison  Verb = "poison"
	VerbRevoke  Verb = "revoke"
	VerbAbandon Verb = "abandon"
	VerbCancel  Verb = "cancel"
	VerbClose   Verb = "close"

	// Of the run and its executor; they move no task.
	VerbTakeover   Verb = "takeover"
	VerbRejoin     Verb = "rejoin"
	VerbAdjudicate Verb = "adjudicate"
)

// FenceRule says what a transition does to the fence.
type FenceRule int

// The fence rules.
const (
	FenceZero  FenceRule = iota // set to 0
	FenceKeep                   // the owner stays
	FenceRaise                  // +1: whoever held the task before is refused from now on
)

// Transition is one legal change of a task.
type Transition struct {
	Verb  Verb
	From  State // empty for submit
	To    State
	Fence FenceRule
	// Guard says what else must hold, in words; the ledger's statements carry it in SQL.
	Guard string
}

// Transitions is the state machine. The ledger's adapters are checked against it: each audit row
// they write is one of these lines. Cancel of a running task changes no state; it raises a flag
// that the worker sees, and the worker settles. What an executor asks for needs its epoch current,
// also in cancel and close; adjudication changes nothing of a task.
var Transitions = []Transition{
	{VerbSubmit, "", StateQueued, FenceZero, "executor's epoch current, run open, same identity, unique key"},
	{VerbClaim, StateQueued, StateLeased, FenceRaise, "own session alive"},
	{VerbStart, StateLeased, StateRunning, FenceKeep, "fence, session alive, run open, no cancel flag"},
	{VerbRelease, StateLeased, StateQueued, FenceRaise, "fence"},
	{VerbSettle, StateRunning, StateSucceeded, FenceKeep, "fence"},
	{VerbSettle, StateRunning, StateFailed, FenceKeep, "fence"},
	{VerbSettle, StateRunning, StateCancelled, FenceKeep, "fence"},
	{VerbSettle, StateRunning, StateLost, FenceKeep, "fence"},
	{VerbSweep, StateLeased, StateQueued, FenceRaise, "session committed as suspect or dead, or lease not started in time"},
	{VerbSweep, StateRunning, StateLost, FenceRaise, "no owner: session committed as dead, or abandoned; Dagster's log shows no end"},
	{VerbSweep, StateRunning, StateCancelled, FenceRaise, "the same, cancel flag set"},
	{VerbRepair, StateRunning, StateSucceeded, FenceRaise, "no owner; Dagster's log shows STEP_SUCCESS"},
	{VerbRepair, StateRunning, StateFailed, FenceRaise, "no owner; Dagster's log shows another end"},
	{VerbRepair, StateRunning, StateCancelled, FenceRaise, "the same, cancel flag set"},
	{VerbPoison, StateQueued, StateDead, FenceRaise, "in its submit: PoisonLost attempts of the step lost without a drain"},
	{VerbPoison, StateLeased, StateDead, FenceRaise, "session committed as dead without a drain, the task's PoisonDeaths-th"},
	{VerbAbandon, StateRunning, StateRunning, FenceRaise, "fence; by the owner, whose step's process is gone: nobody owns the task from then on"},
	{VerbRevoke, StateRunning, StateRunning, FenceRaise, "fence; by the owner, before it kills the step's process"},
	{VerbCancel, StateQueued, StateCancelled, FenceRaise, ""},
	{VerbCancel, StateLeased, StateCancelled, FenceRaise, ""},
	{VerbCancel, StateRunning, StateRunning, FenceKeep, "raises the flag"},
	{VerbClose, StateQueued, StateCancelled, FenceRaise, "run row closed and committed before"},
	{VerbClose, StateLeased, StateCancelled, FenceRaise, "run row closed and committed before"},
	{VerbClose, StateRunning, StateRunning, FenceKeep, "raises the flag"},
	// Any ended state: a process can be lost, killed or refused without an ending event, and a log
	// that lost its last commits in a failover does not show the event of one that succeeded.
	{VerbAdjudicate, StateSucceeded, StateSucceeded, FenceKeep, "executor's epoch current"},
	{VerbAdjudicate, StateFailed, StateFailed, FenceKeep, "executor's epoch current"},
	{VerbAdjudicate, StateCancelled, StateCancelled, FenceKeep, "executor's epoch current"},
	{VerbAdjudicate, StateLost, StateLost, FenceKeep, "executor's epoch current"},
	{VerbAdjudicate, StateDead, StateDead, FenceKeep, "executor's epoch current"},
}

// When a task is refused for good: the next attempts, or owners, would end the same way. What a
// worker that drains gives back or loses does not count.
const (
	// PoisonLost is how many attempts of one step of one run may be lost; the next one is dead.
	PoisonLost = 3
	// PoisonDeaths is how many sessions may die holding a task's lease; with this many it is dead.
	PoisonDeaths = 5
)

// Allowed reports whether the state machine has the transition.
func Allowed(verb Verb, from, to State) bool {
	for _, t := range Transitions {
		if t.Verb == verb && t.From == from && t.To == to {
			return true
		}
	}
	return false
}
