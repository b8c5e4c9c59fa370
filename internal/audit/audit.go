// Package audit is the verifier: it holds four witnesses of one history against each other and
// against what stepfleet promises (docs/guarantees.md). The witnesses are independent of each other:
//
//   - the client history: what callers asked, and what they were answered;
//   - the effect log: what user code says that it did, written outside Dagster and stepfleet;
//   - the ledger: its audit trail, and where its tasks stand;
//   - Dagster's event log.
//
// The package is pure. It reads witnesses as streams, keeps a small state for each task, and never
// asks a clock: the same witnesses give the same report. A witness that is absent is no error; the
// report names the invariants that could not be checked without it.
//
// Files, in the order of a check: history.go and effects.go read witnesses, replay.go follows the
// audit trail through the state machine, facts.go joins the witnesses, invariants*.go judge,
// runlog.go follows a run's own events, strangers.go tells what the ledger has lost from what is not
// stepfleet's, register.go looks for one order that explains all that was seen of a task, vacuity.go asks whether
// the history was worth judging, timeline.go shows a violation to people.
package audit

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/stepfleet/stepfleet"
)

// Source is a witness that can be read, also more than once: first to judge, then again for the
// evidence of what was found. An error ends it.
type Source[T any] func(ctx context.Context) iter.Seq2[T, error]

// Slice is a witness in memory.
func Slice[T any](all ...T) Source[T] {
	return func(context.Context) iter.Seq2[T, error] {
		return func(yield func(T, error) bool) {
			for _, v := range all {
				if !yield(v, nil) {
					return
				}
			}
		}
	}
}

// Map makes each of what is read into what a check takes.
func Map[A, B any](in iter.Seq2[A, error], to func(A) B) iter.Seq2[B, error] {
	return func(yield func(B, error) bool) {
		for a, err := range in {
			if !yield(to(a), err) {
				return
			}
		}
	}
}

// Witnesses is what is known of a history. Only Audit and Tasks must be there.
type Witnesses struct {
	// Client is the client history, in the order it was written. It is not cut to the window.
	Client Source[ClientEvent]
	// Effects is the effect log.
	Effects Source[Effect]
	// Audit is the ledger's audit trail by id, and Tasks is where the tasks stood after its last
	// row. Tasks is read after Audit.
	Audit Source[stepfleet.AuditRow]
	Tasks Source[Task]
	// Sessions are the workers' sessions, also those that have ended.
	Sessions Source[stepfleet.Session]
	// Dagster is its event log by id: StepEvents and RunEvents at least, of all runs that Tasks has.
	Dagster Source[DagsterEvent]
	// Later are all tasks of these runs after the other witnesses were read; nil where Tasks has all, and
	// nothing can have happened since.
	Later func(ctx context.Context, runs []string) iter.Seq2[Task, error]
	// Holds are the tasks that sessions hold, at the moment at which the ledger was read and whatever the
	// window is.
	Holds Source[stepfleet.Hold]
	// Runs says how runs ended in Dagster, and how they should have.
	Runs Source[Run]

	// From and Until bound the window that Audit was cut to; zero is the beginning, and the moment
	// at which Tasks was read.
	From, Until time.Time
	// Snapshot says that Audit and Tasks are of one moment, Until: then they agree to the row.
	Snapshot bool

	// Faults is what was done to the system, in order; Span is how long it was done.
	Faults []Fault
	Span   time.Duration
	// Healed is when the last fault was over, and Within how long after it every task has to have
	// ended. Zero: nobody waited for that.
	Healed time.Time
	Within time.Duration
	// Rest is what was left when everything had ended; nil: nobody looked.
	Rest *Rest

	// Lifetimes are the deadlines that the system ran with; zero is the default ones.
	Lifetimes stepfleet.Lifetimes
	// Skew is how far the witnesses' clocks may differ; zero is DefaultSkew.
	Skew time.Duration
	// Want is what makes the history worth judging.
	Want Want
}

// DefaultSkew is how far the clocks of one machine's witnesses may seem to differ: a time is taken
// before what it names is done.
const DefaultSkew = time.Second

// Task is where a task stands in the ledger.
type Task struct {
	ID stepfleet.TaskID
	stepfleet.Key
	Kind      stepfleet.Kind
	State     stepfleet.State
	Fence     stepfleet.Fence
	Cancelled bool   // its cancel flag
	Event     string // Dagster's ending event as the worker reported it, empty when it reported none

	SubmittedAt, StartedAt, EndedAt time.Time
}

// TaskOf returns what the verifier needs of a view.
func TaskOf(v stepfleet.View) Task {
	t := Task{
		ID: v.ID, Key: v.Key, Kind: v.Kind, State: v.State, Fence: v.Fence,
		Cancelled: v.CancelRequested, SubmittedAt: v.SubmittedAt, StartedAt: v.StartedAt, EndedAt: v.EndedAt,
	}
	if v.Result != nil {
		t.Event = v.Result.Event
	}
	return t
}

// DagsterEvent is a row of Dagster's event log. Type is empty for a log message.
type DagsterEvent struct {
	ID      int64     `json:"id"`
	RunID   string    `json:"run_id"`
	StepKey string    `json:"step_key"`
	Type    string    `json:"type"`
	At      time.Time `json:"at"`
	// Ours says that it is the end of a step that a process of stepfleet has written: it has the mark of its attempt.
	Ours bool `json:"ours,omitempty"`
}

// Run is how a run ended in Dagster. Cancelled says that its cancel was asked for.
type Run struct {
	ID        string `json:"run_id"`
	Job       string `json:"job"`
	Status    string `json:"status"`
	Want      string `json:"want"` // empty is SUCCESS
	Cancelled bool   `json:"cancelled"`
	// NoRetries says that none of its steps has a RetryPolicy or a budget for lost attempts.
	NoRetries bool `json:"no_retries,omitempty"`
}

// Fault is one thing that was done to the system. Landed says that it hit what it was meant for.
type Fault struct {
	Kind   string    `json:"kind"`
	Target string    `json:"target"`
	At     time.Time `json:"at"`
	Until  time.Time `json:"until,omitzero"`
	Landed bool      `json:"landed"`
	Detail string    `json:"detail,omitempty"`
	// Host says that the target is a worker, and that it stood still meanwhile with all its processes.
	Host bool `json:"host,omitempty"`
}

// Rest is what was left at the end, each by name; all of it should be nothing. A list that is nil says
// that nobody looked: the report then says so.
type Rest struct {
	Bells     int      `json:"bells"`     // messages in the queues, also those in flight
	Children  []string `json:"children"`  // processes of steps
	Sessions  []string `json:"sessions"`  // sessions not dead whose worker is gone
	Held      []string `json:"held"`      // tasks that a session holds
	Slots     []string `json:"slots"`     // slots that a worker still counts as taken
	Protected []string `json:"protected"` // workers still protected from scale-in
	// Lanes is how many queues of workers were asked for their slots.
	Lanes int `json:"lanes"`
}

// Check judges the history. An error means that it could not be judged: a witness could not be
// read, or is damaged.
func Check(ctx context.Context, w Witnesses) (Report, error) {
	if w.Audit == nil || w.Tasks == nil {
		return Report{}, fmt.Errorf("check a history: the ledger's audit and tasks must be among the witnesses")
	}
	f, err := gather(ctx, w)
	if err != nil {
		return Report{}, fmt.Errorf("check a history: %w", err)
	}
	j := newJudge(f)
	for _, inv := range Invariants {
		j.hold(inv)
	}
	report := j.report()
	report.Vacuous = vacuous(w.Want, report)
	report.conclude()
	if err := addEvidence(ctx, w, &report); err != nil {
		return Report{}, fmt.Errorf("collect evidence: %w", err)
	}
	return report, nil
}
