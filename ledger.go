package stepfleet

import (
	"context"
	"fmt"
	"math"
	"time"
)

// The ledger is the only authority on who owns a task and how it ended. It is one thing with four
// users, so it is four small interfaces: Intake for what executors ask, Claims for workers,
// Keeper for the server's sweep, and Records for readers. Two adapters implement all of them
// (internal/postgres, internal/memory) and pass one suite (internal/conformance).
//
// Common to all methods: the clock is the ledger's own. ErrUnavailable (wrapped) means that the
// ledger could not be asked or its answer was lost; what was asked may or may not have happened,
// and every method may be issued again. Every transition and every refused write leaves an audit
// row in the same commit. Lists come back in the order of the request.
type Ledger interface {
	Intake
	Claims
	Keeper
	Records
}

// Epoch counts the executors that a run has had. Who speaks for a run names the epoch it was
// given; once a later one is taken it is refused everything, so that a run worker which was cut off
// and the one that resumed its run cannot both act. NoExecutor is the epoch of everybody else: the
// run launcher, the server itself, people.
type Epoch int64

// NoExecutor names no executor.
const NoExecutor Epoch = 0

// Executor is a run worker's executor as it asks to speak for its run.
type Executor struct {
	// Name is one that it gave itself.
	Name string
	// Resume says which start of the run it is of: 0 the first, n the n-th resume. It was fixed when the
	// run worker was launched, so that it orders executors however late their requests come.
	Resume int
}

// String is the executor as the audit has it.
func (x Executor) String() string {
	if x.Resume == 0 {
		return x.Name
	}
	return fmt.Sprintf("%s of resume %d", x.Name, x.Resume)
}

// Validate returns ErrTaskInvalid for an executor that no run can have.
func (x Executor) Validate() error {
	switch {
	case x.Name == "":
		return fmt.Errorf("%w: the executor has no name", ErrTaskInvalid)
	case x.Resume < 0 || x.Resume > math.MaxInt32:
		return fmt.Errorf("%w: executor of resume %d: 0 is the first start, n the n-th resume", ErrTaskInvalid, x.Resume)
	}
	return nil
}

// Batch is one submission: the steps of one run that became ready together, by its executor, or
// run workers, by a run launcher.
type Batch struct {
	RunID string
	// Epoch is the executor's. Steps need one, and run workers must have none.
	Epoch Epoch
	// Identity names what the run executes (job origin and job snapshot). The first batch of a
	// run fixes it.
	Identity string
	// NotifyURL is the server replica that took the batch; workers tell it about ends while no
	// other is recorded. A later batch may go through a replica that does not hold the stream.
	NotifyURL string
	// Payloads are the arguments by digest. The ledger stores each once.
	Payloads map[Digest][]byte
	Tasks    []Task
}

// Receipt answers one task of a batch, in the batch's order. Known says that the key had been
// submitted before: then State is where that task stands, maybe terminal, and the stored payload
// has won over a different one (the difference is audited).
type Receipt struct {
	TaskID TaskID
	Key
	State State
	Known bool
}

// Change is one transition that the ledger made, for those who wait for it.
type Change struct {
	TaskID TaskID
	Key
	Queue string
	From  State
	To    State
}

// Ruling answers one key of an adjudication.
type Ruling struct {
	Key
	// State is where the task stands; empty when the ledger does not have it: it was refused at
	// submit.
	State State
	// Granted says that the caller may write how the attempt ended. It is false while the task is
	// open.
	Granted bool
	// Earlier is the last executor before that was granted the same, NoExecutor when there was
	// none. It may have written, or be about to.
	Earlier Epoch
}

// Intake is the ledger as executors and launchers use it, through the server. Where a method takes
// an epoch, ErrSuperseded says that a later one has been taken; that is decided under the run's
// lock, so that nothing of an old executor's takes effect once a new one has its epoch. An epoch
// that the ledger has never given is ErrNotFound: the ledger was replaced, or has lost commits.
type Intake interface {
	// TakeEpoch makes the caller the run's executor and returns its epoch: asking again under the name
	// that has the epoch gives the same one. The notify URL is as for Rejoin. A run that is not known
	// yet is created open, without an identity; the first Submit fixes that. It returns ErrSuperseded
	// to an executor of an earlier resume than the run's, whose request was held up: it must not take
	// the run from the one that followed it. Otherwise it returns ErrRunClosed.
	TakeEpoch(ctx context.Context, runID string, executor Executor, notifyURL string) (Epoch, error)
	// Rejoin confirms the epoch, and records which server replica holds the run's stream from now
	// on. It returns ErrSuperseded; a closed run can be rejoined.
	Rejoin(ctx context.Context, runID string, epoch Epoch, notifyURL string) error
	// Submit records the whole batch in one commit, or nothing. It is idempotent on the task
	// key. It returns ErrSuperseded, ErrConflict when the run is known with another identity,
	// ErrRunClosed when the run is closed (also for known keys that are still open; if every key
	// of the batch is known and terminal the receipts are the answer), and ErrTaskInvalid when a
	// payload a task names is neither in the batch nor stored. Of a batch that is refused to a run that
	// is not known nothing stays but the audit row.
	Submit(ctx context.Context, b Batch) ([]Receipt, error)
	// Cancel ends the run's named tasks, or all of its open tasks when keys is nil: queued and
	// leased ones at once, running ones by raising their flag. Terminal and unknown keys are
	// passed over. All tasks of an executor are its steps: it runs inside the run worker. Cancel
	// returns a Change for each task it ended or flagged (a flagged one has From and To running),
	// or ErrSuperseded.
	Cancel(ctx context.Context, runID string, epoch Epoch, keys []Key, reason string) ([]Change, error)
	// CloseRun closes the run, commits, and then cancels its tasks, as Cancel with nil keys. A
	// closed run never reopens, accepts nothing and has no new executor; closing it again, or a
	// run nobody knows, is no error. An executor closes it for steps only: the run worker has yet
	// to say in Dagster how the run ended, and where it dies over that, another one must. It
	// returns ErrSuperseded.
	CloseRun(ctx context.Context, runID string, epoch Epoch, reason string) ([]Change, error)
	// Adjudicate asks whether the executor may write, in Dagster's log, how these attempts ended,
	// because their processes did not. It may once the task has ended, and for a task that the
	// ledger does not have. It is granted to each epoch once, and asking again is answered the
	// same. It returns ErrSuperseded.
	Adjudicate(ctx context.Context, runID string, epoch Epoch, keys []Key) ([]Ruling, error)
}

// Ref is how an owner names its task: with the fence it was given.
type Ref struct {
	TaskID TaskID
	Fence  Fence
}

// Lease is a claimed task.
type Lease struct {
	Ref
	Task
	// NotifyURL is where to tell of the task's end; empty when no server holds the stream.
	NotifyURL string
}

// ClaimRequest asks for work. ID makes the claim's rows recognisable in the audit.
type ClaimRequest struct {
	Session  SessionID
	Instance string
	ID       string
	Queue    string
	Max      int
	// Except are the code locations that the session cannot run: their tasks are left to others.
	Except []string
}

// Claimed answers a claim. More says that further rows wait that this claim might have taken and
// did not: its limit was reached, or others hold them locked.
type Claimed struct {
	Leases   []Lease
	Payloads map[Digest][]byte
	More     bool
}

// Renewal answers a renewal: the session's state before it, and what the ledger says it holds.
// The worker releases leased tasks in it that it does not know: the answer to their claim was lost. It
// abandons running ones that it does not know: the ledger has lost that they ended.
type Renewal struct {
	Was  SessionState // alive or suspect
	Held []Held
}

// Settlement is how an owner ends its task.
type Settlement struct {
	Ref
	Result Result
}

// Claims is the ledger as workers use it. What a worker does to its session, and what it claims for it,
// it does by the session's number and its own instance: a ledger that has lost commits gives the numbers
// of lost sessions to others, and a session that is not of this instance is as good as dead. Start, Settle and Release take many tasks so that a
// worker's writes share a commit; they answer one error a task, nil where it was done, and an
// error of their own only when nothing can be said of any. All three are idempotent by (task,
// fence): asking again after an ambiguous commit finds the transition made and answers nil.
type Claims interface {
	// Register begins a session. Workers register again after ErrSessionDead. It returns ErrSchema
	// when the ledger does not fit this binary.
	Register(ctx context.Context, spec SessionSpec) (Session, error)
	// Renew proves that the session lives, and makes a suspect one alive again. It returns
	// ErrSessionDead when the session is dead, or is not of this instance. Then the worker must kill
	// what it runs.
	Renew(ctx context.Context, id SessionID, instance string) (Renewal, error)
	// Held reads what the session holds, without renewing it. Workers look here for cancel flags.
	Held(ctx context.Context, id SessionID) ([]Held, error)
	// SetDraining says that the session will claim no more. It returns ErrSessionDead.
	SetDraining(ctx context.Context, id SessionID, instance string) error
	// EndSession makes the session dead by its own word: its process is about to exit. What it
	// still holds is taken by the next sweep. Ending a dead session, or another's, changes nothing and
	// is no error.
	EndSession(ctx context.Context, id SessionID, instance, reason string) error

	// Claim takes up to Max waiting tasks of the queue for the session, best first (priority
	// descending, then turn, then age), and raises each fence. It returns ErrSessionDead or
	// ErrSessionSuspect when the session may not claim; a claim that finds nothing answers no
	// leases and no error.
	Claim(ctx context.Context, req ClaimRequest) (Claimed, error)
	// Start records that user code is about to begin: leased becomes running. Errors a task:
	// ErrFenced (not the owner any more), ErrSessionDead, ErrSessionSuspect, ErrRunClosed,
	// ErrCancelled. Only after nil may user code run.
	Start(ctx context.Context, session SessionID, refs []Ref) ([]error, error)
	// Settle records how running tasks ended. Errors a task: ErrFenced, ErrTaskInvalid.
	Settle(ctx context.Context, session SessionID, ends []Settlement) ([]error, error)
	// Release gives leased tasks back unstarted; they are queued again with their old turn.
	// Errors a task: ErrFenced.
	Release(ctx context.Context, session SessionID, refs []Ref, reason string) ([]error, error)
	// Revoke raises the fence of the session's own running task and returns the new one, so that
	// the process with the old fence is refused everything from now on. The worker then kills
	// that process and settles with the new fence. It returns ErrFenced.
	Revoke(ctx context.Context, session SessionID, ref Ref, reason string) (Fence, error)
	// Abandon gives up running tasks whose processes are gone and of which the session does not
	// know whether their end is in Dagster's log. From then on nobody owns them, the session is
	// refused everything, and the server decides how they ended, as of a dead session's. It is
	// idempotent by (task, fence) as Settle is. Errors a task: ErrFenced.
	// The process is the one that ran them: what it is called by in the names of its connections, 0 where
	// nobody knows.
	Abandon(ctx context.Context, session SessionID, refs []Ref, process int, reason string) ([]error, error)
}

// Beats are a server's heartbeats up to now: when the last one was, by the ledger's clock, and for how
// long they have been unbroken then.
type Beats struct {
	Last     time.Time
	Unbroken time.Duration
}

// Keeper is the ledger as the server's sweep uses it.
type Keeper interface {
	// Beat writes the server's own heartbeat and returns its time, by the ledger's clock. The
	// sweeper may expire sessions only after its beats went through unbroken for a whole session
	// TTL.
	Beat(ctx context.Context, server string) (time.Time, error)
	// ExpireSessions marks sessions suspect or dead whose renewals had stopped their SessionTTL or
	// RunLease before the caller's last beat, and commits. However late that happens, time after the
	// beat does not count: the ledger may have stood still. Sessions whose TTL is longer than the beats
	// were unbroken are passed over. It returns those it changed.
	ExpireSessions(ctx context.Context, beats Beats) ([]Session, error)
	// DeclareDead marks the alive and suspect sessions of a worker instance dead on proof that
	// its process is gone. It returns those it changed.
	DeclareDead(ctx context.Context, instance, reason string) ([]Session, error)
	// Sweep takes up to max leased tasks from sessions that are committed as suspect or dead, and
	// those not started within startWithin from anybody, and queues them again. A task whose
	// lease PoisonDeaths sessions have held when they died is dead instead. Call it again while it
	// returns max changes.
	Sweep(ctx context.Context, startWithin time.Duration, max int) ([]Change, error)
	// Orphans returns up to max running tasks, by id and after the given one, that nobody owns:
	// their sessions are committed as dead, or have abandoned them.
	Orphans(ctx context.Context, after TaskID, max int) ([]Orphan, error)
	// Decide ends orphans, as far as they are still as they were listed, and passes over the
	// others. It returns those it changed.
	Decide(ctx context.Context, decisions []Decision) ([]Change, error)
	// TakeDuty says whether the server has the duty, which one server has at a time: it takes a
	// duty that nobody has, or whose owner has let its time run out, and prolongs its own. From
	// now on it has it for the given time; with 0 it gives it back.
	TakeDuty(ctx context.Context, duty, server string, hold time.Duration) (bool, error)
	// OpenRuns returns up to max runs, by id and after the given one, that are open, or that are
	// closed and still have open tasks that the close concerned: a CloseRun was cut short between
	// its commits, or workers have yet to end what it flagged.
	OpenRuns(ctx context.Context, after string, max int) ([]OpenRun, error)
	// CarriedRuns returns, by id, those of the runs that have, or had, a run worker here. Runs that
	// other launchers carry are not among them, whatever steps of theirs are.
	CarriedRuns(ctx context.Context, runIDs []string) ([]CarriedRun, error)
}

// Orphan is a running task that nobody owns.
type Orphan struct {
	Ref
	Key
	Kind            Kind
	CancelRequested bool
	// FirstAttempt is the least attempt that the ledger knows of the step in its run: a run that
	// repeats another one goes on counting.
	FirstAttempt int
	// Gone is how long ago its session was found dead, or has abandoned it.
	Gone time.Duration
	// Connections is the name of those to Dagster's database on which its process may have sent
	// something (ConnectionName): that process's own, or the worker's whose processes are all gone. It is
	// empty where nobody knows, or others have connections of that name.
	Connections string
	// InFlight is how long after that a statement of its process may still be under way in Dagster's
	// database: the session's run lease, which is longer than a statement may take
	// (Lifetimes.ValidateStatements).
	InFlight time.Duration
	// Reason says which session had it, and what became of that.
	Reason string
	// Worker is the name of the session's worker.
	Worker string
}

// Decision is how an orphan ends. Ref and CancelRequested are as the orphan was listed.
type Decision struct {
	Ref
	CancelRequested bool
	// Event is the attempt's ending event in Dagster's log; empty: it shows none.
	Event  string
	Worker string
	Reason string
}

// Decide makes the decision on the orphan from what Dagster's log shows.
func (o Orphan) Decide(event, reason string) Decision {
	return Decision{Ref: o.Ref, CancelRequested: o.CancelRequested, Event: event, Worker: o.Worker, Reason: reason}
}

// Verb is the decision's: a repair rests on the log, a sweep on its silence.
func (d Decision) Verb() Verb {
	if d.Event == "" {
		return VerbSweep
	}
	return VerbRepair
}

// Outcome is the state in which the task ends. As for a worker, a cancel flag yields to nothing
// but success.
func (d Decision) Outcome() State {
	switch {
	case d.Event == EventSuccess:
		return StateSucceeded
	case d.CancelRequested:
		return StateCancelled
	case d.Event != "":
		return StateFailed
	}
	return StateLost
}

// Result is what the ledger keeps of a repaired task, in place of what its worker could not
// report; nil when the log shows nothing.
func (d Decision) Result() *Result {
	if d.Event == "" {
		return nil
	}
	r := &Result{
		V: TaskVersion, Outcome: d.Outcome(), Event: d.Event, Outputs: []string{}, Worker: d.Worker,
	}
	if r.Success = r.Outcome == StateSucceeded; !r.Success {
		r.Error = &Failure{Code: "repaired", Message: d.Reason}
	}
	return r
}

// OpenRun is a run that is not over here. Closed says that only its tasks are open, ClosedBy in
// whose name it was closed: closing it again in that name ends them.
type OpenRun struct {
	RunID    string
	Closed   bool
	ClosedBy Epoch
}

// CarriedRun is a run whose run worker is a task here. It has nobody left that could end it once no
// run worker is open: a task ends when its process is gone.
type CarriedRun struct {
	RunID string
	// RunWorkers and Steps count what is open of each kind.
	RunWorkers, Steps int
	// Untold are the attempts of the open run workers that nobody has cancelled.
	Untold []int
}

// Lane is the state of one queue, for ringing and for people.
type Lane struct {
	Queue string `json:"queue"`
	// Ready counts waiting tasks; OldestAge is the age of the oldest, 0 when none waits.
	Ready     int           `json:"ready"`
	OldestAge time.Duration `json:"-"`
	Leased    int           `json:"leased"`
	Running   int           `json:"running"`
	// Slots sums the slots of alive sessions that are not draining.
	Slots int `json:"slots"`
}

// AuditRow is one transition or one refused write.
type AuditRow struct {
	ID     int64     `json:"id"`
	At     time.Time `json:"at"`
	TaskID TaskID    `json:"task_id,omitempty"` // 0 where no task is concerned
	RunID  string    `json:"run_id,omitempty"`
	Verb   Verb      `json:"verb"`
	// Actor is "session 12", "executor 3" (its epoch), or "server": whoever came through it without
	// being an executor.
	Actor string `json:"actor"`
	From  State  `json:"from,omitempty"`
	To    State  `json:"to,omitempty"`
	// Fence is the fence after the transition; of a refused write, the one it named.
	Fence Fence `json:"fence"`
	// Refused carries the code of the refusal; empty for a transition.
	Refused string `json:"refused,omitempty"`
	Detail  string `json:"detail,omitempty"`
}

// Records is the ledger as readers use it.
type Records interface {
	// RunTasks returns the run's tasks of these kinds, of all without any, by id; none when the run
	// is unknown.
	RunTasks(ctx context.Context, runID string, kinds ...Kind) ([]View, error)
	// Tasks returns the tasks of these ids that exist, by id.
	Tasks(ctx context.Context, ids []TaskID) ([]View, error)
	// Audit returns the audit rows of the run, oldest first.
	Audit(ctx context.Context, runID string) ([]AuditRow, error)
	// Epochs returns the current epochs of those of the runs that are known.
	Epochs(ctx context.Context, runIDs []string) (map[string]Epoch, error)
	// Lanes returns every queue that has a waiting or held task or a slot, by name.
	Lanes(ctx context.Context) ([]Lane, error)
	// Sessions returns the sessions that are not dead, and those that died within the last
	// `since`, by id.
	Sessions(ctx context.Context, since time.Duration) ([]Session, error)
	// Check reports whether the ledger can be written and read by this binary: ErrUnavailable,
	// or ErrSchema with what to do. Readiness rests on it.
	Check(ctx context.Context) error
}
