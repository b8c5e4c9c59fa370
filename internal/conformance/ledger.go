// Package conformance holds the suites that every adapter of a port must pass: each sentence of
// the port's contract is an example here, random operations are compared between two adapters, and
// what the adapter recorded is checked against the state machine.
package conformance

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
)

// LedgerEnv is a fresh ledger under test, and what moves its time.
type LedgerEnv struct {
	Ledger stepfleet.Ledger
	// AgeSession makes the session's last renewal older by d; AgeLease the task's claim.
	AgeSession func(id stepfleet.SessionID, d time.Duration)
	AgeLease   func(id stepfleet.TaskID, d time.Duration)
}

// RunLedger runs the examples, and the races, on ledgers that open makes.
func RunLedger(t *testing.T, open func(t *testing.T) LedgerEnv) {
	groups := []map[string]func(*fixture){epochExamples, intakeExamples, cancelExamples, claimExamples, ownerExamples, keeperExamples, repairExamples, poisonExamples, recordExamples, raceExamples, lapseExamples}
	for _, group := range groups {
		for name, example := range group {
			t.Run(name, func(t *testing.T) {
				f := &fixture{T: t, LedgerEnv: open(t), ctx: t.Context(), runs: map[string]bool{}, epochs: map[string]stepfleet.Epoch{}, instances: map[stepfleet.SessionID]string{}}
				example(f)
				f.checkHistories()
			})
		}
	}
}

// lives are the deadlines of the suite, far beyond what a test takes.
var lives = stepfleet.Lifetimes{
	Renew: time.Minute, SessionTTL: 30 * time.Minute, RunLease: 3 * time.Hour, Margin: time.Minute, StartWithin: time.Hour,
}

const queue = "default"

// fixture is one example's ledger, with short words for what examples do.
type fixture struct {
	*testing.T
	LedgerEnv
	ctx  context.Context
	runs map[string]bool // whose histories are checked at the end
	seq  int
	// epochs of the runs whose executor the fixture is.
	epochs map[string]stepfleet.Epoch
	// instances of the sessions that the fixture has registered.
	instances map[stepfleet.SessionID]string
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// refused demands that err is this refusal; nil demands success.
func (f *fixture) refused(err error, want *stepfleet.Refusal) {
	f.Helper()
	if want == nil {
		f.must(err)
		return
	}
	if !errors.Is(err, want) {
		f.Fatalf("got error %v, want %s", err, want.Code)
	}
}

func task(runID, step string) stepfleet.Task {
	key := stepfleet.Key{RunID: runID, StepKey: step}
	return stepfleet.Task{
		V: stepfleet.TaskVersion, Kind: stepfleet.KindStep, Key: key, Op: "op " + step, Job: "job",
		IdempotencyKey: key.IdempotencyKey(), Queue: queue, CodeLocation: "location",
		Payload:     stepfleet.DigestOf([]byte("payload")),
		RetryBudget: stepfleet.RetryBudget{PolicyRetries: 2, LostStepRetries: 1}, TimeoutSeconds: 3600,
	}
}

// batch is a submission of these tasks with the payload that task names.
func batch(runID string, tasks ...stepfleet.Task) stepfleet.Batch {
	data := []byte("payload")
	return stepfleet.Batch{
		RunID: runID, Identity: "identity",
		Payloads: map[stepfleet.Digest][]byte{stepfleet.DigestOf(data): data}, Tasks: tasks,
	}
}

// speak makes the fixture the run's executor, once, and returns its epoch.
func (f *fixture) speak(runID string) stepfleet.Epoch {
	f.Helper()
	if f.epochs[runID] == stepfleet.NoExecutor {
		f.epochs[runID] = f.speakAs(runID, "fixture")
	}
	return f.epochs[runID]
}

func (f *fixture) speakAs(runID, executor string) stepfleet.Epoch {
	f.Helper()
	return f.speakAfter(runID, stepfleet.Executor{Name: executor})
}

func (f *fixture) speakAfter(runID string, executor stepfleet.Executor) stepfleet.Epoch {
	f.Helper()
	f.runs[runID] = true
	epoch, err := f.Ledger.TakeEpoch(f.ctx, runID, executor, "")
	f.must(err)
	return epoch
}

// trySubmit submits as the run's executor, unless the batch names one or is of run workers.
func (f *fixture) trySubmit(b stepfleet.Batch) ([]stepfleet.Receipt, error) {
	f.Helper()
	if b.Epoch == stepfleet.NoExecutor && (len(b.Tasks) == 0 || b.Tasks[0].Kind == stepfleet.KindStep) {
		b.Epoch = f.speak(b.RunID)
	}
	return f.Ledger.Submit(f.ctx, b)
}

func (f *fixture) submitBatch(b stepfleet.Batch) []stepfleet.Receipt {
	f.Helper()
	f.runs[b.RunID] = true
	receipts, err := f.trySubmit(b)
	f.must(err)
	if len(receipts) != len(b.Tasks) {
		f.Fatalf("%d receipts for %d tasks", len(receipts), len(b.Tasks))
	}
	return receipts
}

// submit submits steps of a run and returns their ids.
func (f *fixture) submit(runID string, steps ...string) []stepfleet.TaskID {
	f.Helper()
	var tasks []stepfleet.Task
	for _, s := range steps {
		tasks = append(tasks, task(runID, s))
	}
	var ids []stepfleet.TaskID
	for _, r := range f.submitBatch(batch(runID, tasks...)) {
		ids = append(ids, r.TaskID)
	}
	return ids
}

func (f *fixture) session() stepfleet.SessionID {
	f.Helper()
	f.seq++
	s, err := f.Ledger.Register(f.ctx, stepfleet.SessionSpec{
		Worker: fmt.Sprintf("worker-%d", f.seq), Instance: fmt.Sprintf("instance-%d", f.seq),
		Host: "host", PID: 7, Version: "1", Slots: map[string]int{queue: 4},
		SessionTTL: lives.SessionTTL, RunLease: lives.RunLease,
	})
	f.must(err)
	f.instances[s.ID] = s.Instance
	return s.ID
}

func (f *fixture) renew(s stepfleet.SessionID) (stepfleet.Renewal, error) {
	return f.Ledger.Renew(f.ctx, s, f.instances[s])
}

func (f *fixture) drain(s stepfleet.SessionID) error {
	return f.Ledger.SetDraining(f.ctx, s, f.instances[s])
}

func (f *fixture) end(s stepfleet.SessionID, reason string) error {
	return f.Ledger.EndSession(f.ctx, s, f.instances[s], reason)
}

func (f *fixture) claim(s stepfleet.SessionID, most int) stepfleet.Claimed {
	f.Helper()
	f.seq++
	got, err := f.Ledger.Claim(f.ctx, stepfleet.ClaimRequest{
		Session: s, Instance: f.instances[s], ID: fmt.Sprintf("claim-%d", f.seq), Queue: queue, Max: most,
	})
	f.must(err)
	return got
}

// lease submits one step of a new run and claims it.
func (f *fixture) lease(s stepfleet.SessionID) stepfleet.Lease {
	f.Helper()
	f.seq++
	f.submit(fmt.Sprintf("run-%d", f.seq), "a")
	got := f.claim(s, 1)
	if len(got.Leases) != 1 {
		f.Fatalf("claimed %d tasks, want 1", len(got.Leases))
	}
	return got.Leases[0]
}

// running is lease and start.
func (f *fixture) running(s stepfleet.SessionID) stepfleet.Lease {
	f.Helper()
	lease := f.lease(s)
	f.must(f.start(s, lease.Ref))
	return lease
}

// first returns the one task's error of a call on many.
func (f *fixture) first(errs []error, err error) error {
	f.Helper()
	f.must(err)
	if len(errs) != 1 {
		f.Fatalf("%d answers, want 1", len(errs))
	}
	return errs[0]
}

func (f *fixture) start(s stepfleet.SessionID, ref stepfleet.Ref) error {
	f.Helper()
	return f.first(f.Ledger.Start(f.ctx, s, []stepfleet.Ref{ref}))
}

func (f *fixture) release(s stepfleet.SessionID, ref stepfleet.Ref) error {
	f.Helper()
	return f.first(f.Ledger.Release(f.ctx, s, []stepfleet.Ref{ref}, "drain"))
}

func (f *fixture) settle(s stepfleet.SessionID, ref stepfleet.Ref, outcome stepfleet.State) error {
	f.Helper()
	return f.first(f.Ledger.Settle(f.ctx, s, []stepfleet.Settlement{{Ref: ref, Result: result(outcome)}}))
}

func result(outcome stepfleet.State) stepfleet.Result {
	r := stepfleet.Result{
		V: stepfleet.TaskVersion, Success: outcome == stepfleet.StateSucceeded, Outcome: outcome,
		Event: "STEP_END", Outputs: []string{"result"}, ExecutionSeconds: 1.5, Worker: "w",
	}
	if !r.Success {
		r.Error = &stepfleet.Failure{Code: "user_error", Message: "boom \x00 \u2603"}
	}
	return r
}

func (f *fixture) view(id stepfleet.TaskID) stepfleet.View {
	f.Helper()
	views, err := f.Ledger.Tasks(f.ctx, []stepfleet.TaskID{id})
	f.must(err)
	if len(views) != 1 {
		f.Fatalf("task %d: %d views", id, len(views))
	}
	return views[0]
}

func (f *fixture) inState(id stepfleet.TaskID, state stepfleet.State, fence stepfleet.Fence) stepfleet.View {
	f.Helper()
	v := f.view(id)
	if v.State != state || v.Fence != fence {
		f.Fatalf("task %d is %s with fence %d, want %s with %d", id, v.State, v.Fence, state, fence)
	}
	if v.State.Terminal() == v.EndedAt.IsZero() {
		f.Fatalf("task %d is %s and ended at %v", id, v.State, v.EndedAt)
	}
	return v
}

// suspect and dead make the session what they say by letting its time pass.
func (f *fixture) suspect(s stepfleet.SessionID) {
	f.Helper()
	f.AgeSession(s, lives.SessionTTL+time.Minute)
	f.expired(s, stepfleet.SessionSuspect)
}

func (f *fixture) dead(s stepfleet.SessionID) {
	f.Helper()
	f.AgeSession(s, lives.RunLease+time.Minute)
	f.expired(s, stepfleet.SessionDead)
}

// expire marks sessions after a beat that ends a row of them that has gone on for so long.
func (f *fixture) expire(unbroken time.Duration) ([]stepfleet.Session, error) {
	f.Helper()
	at, err := f.Ledger.Beat(f.ctx, "sweeper")
	f.must(err)
	return f.Ledger.ExpireSessions(f.ctx, stepfleet.Beats{Last: at, Unbroken: unbroken})
}

func (f *fixture) expired(id stepfleet.SessionID, want stepfleet.SessionState) {
	f.Helper()
	changed, err := f.expire(lives.SessionTTL)
	f.must(err)
	if len(changed) != 1 || changed[0].ID != id || changed[0].State != want {
		f.Fatalf("expired %+v, want session %d %s", changed, id, want)
	}
}

// sweep takes what dead and suspect sessions have, and finds nothing in Dagster's log.
func (f *fixture) sweep() []stepfleet.Change {
	f.Helper()
	changes, err := f.Ledger.Sweep(f.ctx, lives.StartWithin, 100)
	f.must(err)
	return append(changes, f.decide("")...)
}

// decide decides all orphans alike.
func (f *fixture) decide(event string) []stepfleet.Change {
	f.Helper()
	var decisions []stepfleet.Decision
	for _, o := range f.orphans() {
		decisions = append(decisions, o.Decide(event, o.Reason))
	}
	changes, err := f.Ledger.Decide(f.ctx, decisions)
	f.must(err)
	return changes
}

func (f *fixture) orphans() []stepfleet.Orphan {
	f.Helper()
	orphans, err := f.Ledger.Orphans(f.ctx, 0, 100)
	f.must(err)
	return orphans
}

// refusals returns the codes of the run's refused writes with this verb.
func (f *fixture) refusals(runID string, verb stepfleet.Verb) []string {
	f.Helper()
	rows, err := f.Ledger.Audit(f.ctx, runID)
	f.must(err)
	var codes []string
	for _, row := range rows {
		if row.Verb == verb && row.Refused != "" {
			codes = append(codes, row.Refused)
		}
	}
	return codes
}

func (f *fixture) checkHistories() {
	f.Helper()
	if f.Failed() {
		return
	}
	for runID := range f.runs {
		rows, err := f.Ledger.Audit(f.ctx, runID)
		f.must(err)
		views, err := f.Ledger.RunTasks(f.ctx, runID)
		f.must(err)
		f.must(CheckHistory(rows, views))
	}
}
