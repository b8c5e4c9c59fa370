package audit_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/memory"
)

// story is a history that tests can spoil: what each witness says.
type story struct {
	client   []audit.ClientEvent
	effects  []audit.Effect
	rows     []stepfleet.AuditRow
	tasks    []audit.Task
	sessions []stepfleet.Session
	dagster  []audit.DagsterEvent
	runs     []audit.Run
	faults   []audit.Fault
	holds    []stepfleet.Hold
	rest     *audit.Rest
	healed   time.Time
	want     audit.Want
}

func (s *story) witnesses() audit.Witnesses {
	return audit.Witnesses{
		Client: audit.Slice(s.client...), Effects: audit.Slice(s.effects...), Audit: audit.Slice(s.rows...),
		Tasks: audit.Slice(s.tasks...), Sessions: audit.Slice(s.sessions...), Dagster: audit.Slice(s.dagster...),
		Runs: audit.Slice(s.runs...), Faults: s.faults, Span: time.Minute, Healed: s.healed, Within: time.Minute,
		Rest: s.rest, Lifetimes: lives, Want: s.want,
	}
}

func (s *story) check(t *testing.T) audit.Report {
	t.Helper()
	report, err := audit.Check(t.Context(), s.witnesses())
	if err != nil {
		t.Fatal(err)
	}
	return report
}

var lives = stepfleet.Lifetimes{
	Renew: time.Second, SessionTTL: 3 * time.Second, RunLease: 12 * time.Second, Margin: time.Second, StartWithin: 60 * time.Second,
}

// teller makes a story with the ledger in memory, in virtual time.
type teller struct {
	*story
	t      *testing.T
	ctx    context.Context
	ledger *memory.Ledger
	op     int64
	// instances of the sessions, in the order of their numbers, which begin at 1
	instances []string
}

func newTeller(t *testing.T, s *story) *teller {
	return &teller{story: s, t: t, ctx: t.Context(), ledger: memory.NewLedger()}
}

// tell returns a history in which everything went as it should, faults included:
// a succeeds at once; b is lost with its worker, whose late settle is refused, and succeeds as a
// second attempt; c is released and succeeds later; d is cancelled while it runs; e fails and is not tried again;
// run r2 is closed while its only step waits, and run r3 ends well; Dagster resumes r3 after its executor
// has closed it, and the new run worker finds it ended.
func tell(t *testing.T) *story {
	t.Helper()
	s := &story{rest: &audit.Rest{}}
	synctest.Test(t, func(t *testing.T) {
		tl := newTeller(t, s)
		tl.play()
		s.healed = time.Now()
		tl.collect("r1", "r2", "r3")
	})
	return s
}

func (tl *teller) play() {
	one, two := tl.register("one"), tl.register("two")
	tl.epoch("r1")
	tl.epoch("r2")
	tl.event("r1", "", "PIPELINE_START")
	tl.event("r2", "", "PIPELINE_START")
	for _, step := range []string{"a", "b", "c", "d", "e"} {
		tl.submit("r1", step, 0)
	}
	leases := tl.claim(one, 2) // a, b
	tl.run(one, leases[0], stepfleet.StateSucceeded, "STEP_SUCCESS")
	tl.start(one, leases[1])
	tl.begin(leases[1])
	tl.faults = append(tl.faults, audit.Fault{Kind: "kill worker", Target: "one", At: time.Now(), Landed: true})
	tl.must(tl.ledger.DeclareDead(tl.ctx, "one", "killed"))
	tl.lose()
	tl.settle(one, leases[1].Ref, stepfleet.StateSucceeded, "STEP_SUCCESS") // refused
	tl.event("r1", "b", "STEP_UP_FOR_RETRY")                                // the executor's verdict
	tl.adjudicate("r1", "b", 0)
	tl.submit("r1", "b", 1)
	leases = tl.claim(two, 1) // c
	tl.must(tl.ledger.Release(tl.ctx, two, []stepfleet.Ref{leases[0].Ref}, "drain"))
	for range 3 { // c, d, e in any order
		lease := tl.claim(two, 1)[0]
		switch lease.StepKey {
		case "c":
			tl.run(two, lease, stepfleet.StateSucceeded, "STEP_SUCCESS")
		case "d":
			tl.start(two, lease)
			tl.begin(lease)
			tl.cancel("r1", "d")
			fence, err := tl.ledger.Revoke(tl.ctx, two, lease.Ref, "cancel")
			tl.must(nil, err)
			tl.line(lease, audit.EffectError)
			tl.event("r1", "d", "STEP_FAILURE")
			tl.settle(two, stepfleet.Ref{TaskID: lease.TaskID, Fence: fence}, stepfleet.StateCancelled, "STEP_FAILURE")
		case "e":
			tl.run(two, lease, stepfleet.StateFailed, "STEP_FAILURE")
		}
	}
	tl.run(two, tl.claim(two, 1)[0], stepfleet.StateSucceeded, "STEP_SUCCESS") // b again
	tl.submit("r2", "z", 0)
	last := tl.claim(two, 1)[0]
	tl.close("r2")
	tl.must(tl.ledger.Start(tl.ctx, two, []stepfleet.Ref{last.Ref})) // refused
	tl.epoch("r3")
	tl.event("r3", "", "PIPELINE_START")
	tl.submit("r3", "y", 0)
	tl.run(two, tl.claim(two, 1)[0], stepfleet.StateSucceeded, "STEP_SUCCESS")
	tl.close("r3")
	tl.event("r3", "", "PIPELINE_SUCCESS")
	time.Sleep(10 * time.Second)
	tl.submit("r3", stepfleet.RunStepKey, 1)
	worker := tl.claim(two, 1)[0]
	tl.must(tl.ledger.Start(tl.ctx, two, []stepfleet.Ref{worker.Ref}))
	tl.settle(two, worker.Ref, stepfleet.StateSucceeded, "")
	tl.runs = append(tl.runs, audit.Run{ID: "r3", Job: "job", Status: "SUCCESS", NoRetries: true}, audit.Run{ID: "r1", Job: "job", Status: "FAILURE", Want: "FAILURE"},
		audit.Run{ID: "r2", Job: "job", Status: "CANCELED", Cancelled: true})
}

func (tl *teller) must(_ any, err error) {
	tl.t.Helper()
	if err != nil {
		tl.t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
}

// lose ends what nobody owns any more; Dagster's log shows no end of it.
func (tl *teller) lose() {
	orphans, err := tl.ledger.Orphans(tl.ctx, 0, 10)
	tl.must(nil, err)
	for _, o := range orphans {
		tl.must(tl.ledger.Decide(tl.ctx, []stepfleet.Decision{o.Decide("", o.Reason)}))
	}
}

func (tl *teller) register(name string) stepfleet.SessionID {
	s, err := tl.ledger.Register(tl.ctx, stepfleet.SessionSpec{Worker: name, Instance: name, Slots: map[string]int{"default": 4}, SessionTTL: lives.SessionTTL, RunLease: lives.RunLease})
	tl.must(nil, err)
	tl.instances = append(tl.instances, name)
	return s.ID
}

func (tl *teller) epoch(run string) {
	tl.must(tl.ledger.TakeEpoch(tl.ctx, run, stepfleet.Executor{Name: "x"}, ""))
}

func (tl *teller) submit(run, step string, attempt int) {
	payload := []byte("{}")
	key := stepfleet.Key{RunID: run, StepKey: step, Attempt: attempt}
	task := stepfleet.Task{
		V: stepfleet.TaskVersion, Kind: stepfleet.KindStep, Key: key, Op: step, Job: "job",
		IdempotencyKey: key.IdempotencyKey(), Queue: stepfleet.DefaultQueue, Payload: stepfleet.DigestOf(payload),
	}
	epoch := stepfleet.Epoch(1)
	if step == stepfleet.RunStepKey {
		task.Kind, epoch = stepfleet.KindRun, stepfleet.NoExecutor
	}
	e := tl.invoke(audit.OpSubmit, key)
	receipts, err := tl.ledger.Submit(tl.ctx, stepfleet.Batch{
		RunID: run, Epoch: epoch, Identity: "id", Payloads: map[stepfleet.Digest][]byte{task.Payload: payload}, Tasks: []stepfleet.Task{task},
	})
	tl.must(nil, err)
	e.TaskID, e.Known = receipts[0].TaskID, receipts[0].Known
	tl.answer(e)
}

func (tl *teller) invoke(f audit.Operation, key stepfleet.Key) audit.ClientEvent {
	tl.op++
	e := audit.ClientEvent{I: int64(len(tl.client) + 1), At: time.Now(), Process: "p", Type: audit.Invoke, F: f, Op: tl.op, Key: key}
	tl.client = append(tl.client, e)
	return e
}

func (tl *teller) answer(e audit.ClientEvent) {
	e.I, e.At, e.Type = int64(len(tl.client)+1), time.Now(), audit.OK
	tl.client = append(tl.client, e)
}

func (tl *teller) cancel(run, step string) {
	key := stepfleet.Key{RunID: run, StepKey: step}
	e := tl.invoke(audit.OpCancel, key)
	tl.must(tl.ledger.Cancel(tl.ctx, run, 1, []stepfleet.Key{key}, "asked"))
	tl.answer(e)
}

func (tl *teller) close(run string) {
	e := tl.invoke(audit.OpClose, stepfleet.Key{RunID: run})
	tl.must(tl.ledger.CloseRun(tl.ctx, run, 1, "over"))
	e.Epoch = 1
	tl.answer(e)
}

func (tl *teller) adjudicate(run, step string, attempt int) {
	tl.must(tl.ledger.Adjudicate(tl.ctx, run, 1, []stepfleet.Key{{RunID: run, StepKey: step, Attempt: attempt}}))
}

func (tl *teller) claim(session stepfleet.SessionID, n int) []stepfleet.Lease {
	claimed, err := tl.ledger.Claim(tl.ctx, stepfleet.ClaimRequest{Session: session, Instance: tl.instances[session-1], ID: "c", Queue: "default", Max: n})
	tl.must(nil, err)
	if len(claimed.Leases) != n {
		tl.t.Fatalf("claimed %d, want %d", len(claimed.Leases), n)
	}
	return claimed.Leases
}

func (tl *teller) start(session stepfleet.SessionID, lease stepfleet.Lease) {
	errs, err := tl.ledger.Start(tl.ctx, session, []stepfleet.Ref{lease.Ref})
	tl.must(errs, err)
	tl.must(nil, errs[0])
	kind := "STEP_START"
	if lease.Attempt > 0 {
		kind = "STEP_RESTARTED"
	}
	tl.event(lease.RunID, lease.StepKey, kind)
}

func (tl *teller) begin(lease stepfleet.Lease) { tl.line(lease, audit.EffectBegin) }

func (tl *teller) line(lease stepfleet.Lease, event string) {
	tl.effects = append(tl.effects, audit.Effect{
		Event: event, Key: lease.Key, Fence: audit.Fence(fmt.Sprint(lease.Fence)), PID: 7, Worker: "w",
		Born: 100 + int64(lease.TaskID), // its number was given out again and again
		At:   float64(time.Now().UnixMicro()) / 1e6, Op: lease.Op,
	})
	time.Sleep(10 * time.Millisecond)
}

func (tl *teller) event(run, step, kind string) {
	tl.dagster = append(tl.dagster, audit.DagsterEvent{ID: int64(len(tl.dagster) + 1), RunID: run, StepKey: step, Type: kind, At: time.Now()})
	time.Sleep(10 * time.Millisecond)
}

func (tl *teller) run(session stepfleet.SessionID, lease stepfleet.Lease, outcome stepfleet.State, event string) {
	tl.start(session, lease)
	tl.begin(lease)
	tl.line(lease, audit.EffectEnd)
	tl.event(lease.RunID, lease.StepKey, event)
	tl.settle(session, lease.Ref, outcome, event)
}

func (tl *teller) settle(session stepfleet.SessionID, ref stepfleet.Ref, outcome stepfleet.State, event string) {
	tl.must(tl.ledger.Settle(tl.ctx, session, []stepfleet.Settlement{{Ref: ref, Result: stepfleet.Result{
		V: stepfleet.TaskVersion, Success: outcome == stepfleet.StateSucceeded, Outcome: outcome, Event: event,
	}}}))
}

func (tl *teller) collect(runs ...string) {
	for _, run := range runs {
		rows, err := tl.ledger.Audit(tl.ctx, run)
		tl.must(nil, err)
		views, err := tl.ledger.RunTasks(tl.ctx, run)
		tl.must(nil, err)
		tl.rows = append(tl.rows, rows...)
		for _, v := range views {
			tl.tasks = append(tl.tasks, audit.TaskOf(v))
		}
	}
	slices.SortFunc(tl.rows, func(a, b stepfleet.AuditRow) int { return int(a.ID - b.ID) })
	sessions, err := tl.ledger.Sessions(tl.ctx, time.Hour)
	tl.must(nil, err)
	tl.sessions = sessions
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
