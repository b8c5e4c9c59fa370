package dispatch_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dispatch"
	"github.com/stepfleet/stepfleet/internal/memory"
)

// bench is a server on ports in memory, in virtual time.
type bench struct {
	t      *testing.T
	ctx    context.Context
	ledger *memory.Ledger
	down   atomic.Bool // the ledger is
	dagster
	log    eventLog
	hang   atomic.Int64 // how long a sweep takes, in nanoseconds
	bells  *memory.Bells
	server *dispatch.Server
}

func inBubble(t *testing.T, f func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, ctx: t.Context(), ledger: memory.NewLedger(), bells: memory.NewBells("default")}
		b.ledger.Fail = func(op string) error {
			if op == "sweep" {
				time.Sleep(time.Duration(b.hang.Load()))
			}
			if b.down.Load() {
				return stepfleet.ErrUnavailable
			}
			return nil
		}
		var stop func()
		b.server, stop = b.startServer("s1", 0)
		f(b)
		stop()
	})
}

// startServer runs a replica, whose verdicts wait for Dagster's log as long as patience says.
func (b *bench) startServer(name string, patience time.Duration) (server *dispatch.Server, stop func()) {
	b.t.Helper()
	server, err := dispatch.New(dispatch.Config{
		Name: name, URL: "http://" + name, Queues: []string{"default", stepfleet.RunsQueue}, Lifetimes: stepfleet.DefaultLifetimes(),
		MaxPayloadBytes: 200, Dagster: &b.dagster, EventLog: &b.log, EventLogPatience: patience, Logger: slog.New(slog.DiscardHandler),
	}, b.ledger, b.bells)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	return server, func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("server: %v", err)
		}
	}
}

func batchOf(run string, steps ...string) stepfleet.Batch {
	payload := []byte(`{"args":1}`)
	b := stepfleet.Batch{
		RunID: run, Epoch: 1, Identity: "id",
		Payloads: map[stepfleet.Digest][]byte{stepfleet.DigestOf(payload): payload},
	}
	for _, s := range steps {
		key := stepfleet.Key{RunID: run, StepKey: s}
		b.Tasks = append(b.Tasks, stepfleet.Task{
			V: stepfleet.TaskVersion, Kind: stepfleet.KindStep, Key: key, Op: s, Job: "job",
			IdempotencyKey: key.IdempotencyKey(), Queue: "default", Payload: stepfleet.DigestOf(payload),
		})
	}
	return b
}

// speak makes the test the run's executor; its epoch is 1.
func (b *bench) speak(run string) {
	b.t.Helper()
	if epoch, err := b.server.TakeEpoch(b.ctx, run, stepfleet.Executor{Name: "test"}); err != nil || epoch != 1 {
		b.t.Fatal(epoch, err)
	}
}

func (b *bench) submit(run string, steps ...string) []dispatch.Answer {
	b.t.Helper()
	b.speak(run)
	answers, err := b.server.Submit(b.ctx, batchOf(run, steps...))
	if err != nil {
		b.t.Fatal(err)
	}
	return answers
}

// worker registers a session and claims what there is.
func (b *bench) worker(slots int) stepfleet.SessionID {
	b.t.Helper()
	s, err := b.ledger.Register(b.ctx, stepfleet.SessionSpec{
		Worker: "w", Instance: "i", Slots: map[string]int{"default": slots},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return s.ID
}

func (b *bench) claimAndStart(session stepfleet.SessionID) stepfleet.Ref {
	b.t.Helper()
	return b.claimAndStartFrom("default", session)
}

func (b *bench) claimAndStartFrom(queue string, session stepfleet.SessionID) stepfleet.Ref {
	b.t.Helper()
	c, err := b.ledger.Claim(b.ctx, stepfleet.ClaimRequest{Session: session, Instance: "i", ID: "c", Queue: queue, Max: 1})
	if err != nil || len(c.Leases) != 1 {
		b.t.Fatalf("claim: %d leases, %v", len(c.Leases), err)
	}
	if errs, err := b.ledger.Start(b.ctx, session, []stepfleet.Ref{c.Leases[0].Ref}); err != nil || errs[0] != nil {
		b.t.Fatalf("start: %v %v", errs, err)
	}
	return c.Leases[0].Ref
}

func (b *bench) settle(session stepfleet.SessionID, ref stepfleet.Ref) {
	b.t.Helper()
	errs, err := b.ledger.Settle(b.ctx, session, []stepfleet.Settlement{{Ref: ref, Result: stepfleet.Result{
		V: stepfleet.TaskVersion, Success: true, Outcome: stepfleet.StateSucceeded, Outputs: []string{},
	}}})
	if err != nil || errs[0] != nil {
		b.t.Fatalf("settle: %v %v", errs, err)
	}
}

func TestABadTaskIsRefusedAloneAndTheRestIsTaken(t *testing.T) {
	inBubble(t, func(b *bench) {
		batch := batchOf("run-1", "good", "lost-queue", "too-big", "bad-version")
		batch.Tasks[1].Queue = "gpu"
		big := make([]byte, 201)
		batch.Tasks[2].Payload = stepfleet.DigestOf(big)
		batch.Payloads[batch.Tasks[2].Payload] = big
		batch.Tasks[3].V = 9
		b.speak("run-1")
		answers, err := b.server.Submit(b.ctx, batch)
		if err != nil {
			t.Fatal(err)
		}
		want := []*stepfleet.Refusal{nil, stepfleet.ErrUnknownQueue, stepfleet.ErrPayloadTooBig, stepfleet.ErrTaskInvalid}
		for i, a := range answers {
			if stepfleet.RefusalOf(a.Err) != want[i] {
				t.Errorf("%s: %v", a.StepKey, a.Err)
			}
		}
		views, err := b.ledger.RunTasks(b.ctx, "run-1")
		if err != nil || len(views) != 1 || views[0].StepKey != "good" {
			t.Errorf("recorded %+v, %v", views, err)
		}
	})
}

func TestRunWorkersAndStepsAreKeptApart(t *testing.T) {
	inBubble(t, func(b *bench) {
		for _, wrong := range []struct {
			kind        stepfleet.Kind
			step, queue string
		}{
			{stepfleet.KindRun, stepfleet.RunStepKey, "default"},
			{stepfleet.KindRun, "a", "runs"},
			{stepfleet.KindStep, "a", "runs"},
			{stepfleet.KindStep, "a", "runs-big"},
			{stepfleet.KindStep, stepfleet.RunStepKey, "default"},
		} {
			batch := batchOf("r", wrong.step)
			batch.Tasks[0].Kind, batch.Tasks[0].Queue = wrong.kind, wrong.queue
			answers, err := b.server.Submit(b.ctx, batch)
			if err != nil || stepfleet.RefusalOf(answers[0].Err) != stepfleet.ErrTaskInvalid {
				t.Errorf("%+v: %v %v, want it refused", wrong, answers, err)
			}
		}
		if !stepfleet.CarriesRuns("runs") || !stepfleet.CarriesRuns("runs-big") || stepfleet.CarriesRuns("runsbig") {
			t.Error("queues for runs are runs and runs-...")
		}
	})
}

func TestAnImpossibleQueueIsNotAdvisedToBeAdded(t *testing.T) {
	inBubble(t, func(b *bench) {
		batch := batchOf("run-1", "a")
		batch.Tasks[0].Queue = "GPU"
		b.speak("run-1")
		answers, err := b.server.Submit(b.ctx, batch)
		if err != nil || !errors.Is(answers[0].Err, stepfleet.ErrUnknownQueue) || !strings.Contains(answers[0].Err.Error(), "a-z") {
			t.Errorf("%+v, %v", answers, err)
		}
	})
}

func TestThePayloadLimitIsAtMostTheLedgers(t *testing.T) {
	for limit, ok := range map[int]bool{
		0: true, 1: true, stepfleet.MaxPayloadBytes: true, stepfleet.MaxPayloadBytes + 1: false, -1: false,
	} {
		_, err := dispatch.New(dispatch.Config{
			Queues: []string{"default"}, Lifetimes: stepfleet.DefaultLifetimes(), MaxPayloadBytes: limit,
			Logger: slog.New(slog.DiscardHandler),
		}, memory.NewLedger(), memory.NewBells("default"))
		if (err == nil) != ok {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

func TestAPayloadThatIsNestedTooDeepIsRefused(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.speak("run-1")
		for levels, want := range map[int]*stepfleet.Refusal{
			stepfleet.MaxPayloadDepth: nil, stepfleet.MaxPayloadDepth + 1: stepfleet.ErrTaskInvalid,
		} {
			payload := []byte(strings.Repeat("[", levels) + strings.Repeat("]", levels))
			batch := batchOf("run-1", fmt.Sprint("nested-", levels))
			batch.Tasks[0].Payload = stepfleet.DigestOf(payload)
			batch.Payloads = map[stepfleet.Digest][]byte{batch.Tasks[0].Payload: payload}
			answers, err := b.server.Submit(b.ctx, batch)
			if err != nil || stepfleet.RefusalOf(answers[0].Err) != want {
				t.Errorf("%d levels: %v %v, want %v", levels, answers, err, want)
			}
		}
	})
}

func TestAForgedDigestIsRefused(t *testing.T) {
	inBubble(t, func(b *bench) {
		batch := batchOf("run-1", "a")
		batch.Payloads[batch.Tasks[0].Payload] = []byte("something else")
		b.speak("run-1")
		answers, err := b.server.Submit(b.ctx, batch)
		if err != nil || !errors.Is(answers[0].Err, stepfleet.ErrTaskInvalid) {
			t.Errorf("%v %v", answers, err)
		}
	})
}

func TestASubmitIsAnsweredWhileBellsAreDown(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.bells.Fail(func(string, string) error { return stepfleet.ErrUnavailable })
		if a := b.submit("run-1", "a"); a[0].State != stepfleet.StateQueued {
			t.Errorf("answer %+v", a[0])
		}
		b.worker(1)
		time.Sleep(5 * time.Second)
		b.bells.Fail(nil)
		time.Sleep(20 * time.Second) // the longest rest after a failure is 16 s; the worker's session lives for 30 s
		if b.bells.Pending("default") == 0 {
			t.Error("no bell after the queue healed, although a task waits and a slot is free")
		}
	})
}

func TestRingsNoMoreBellsThanSlots(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.worker(3)
		time.Sleep(5 * time.Second) // the ringer has seen the slots
		steps := make([]string, 100)
		for i := range steps {
			steps[i] = fmt.Sprint("s", i)
		}
		b.submit("run-1", steps...)
		synctest.Wait()
		if n := b.bells.Pending("default"); n != 3 {
			t.Errorf("%d bells for 3 slots", n)
		}
	})
}

func TestAStreamTellsOfEachEndOnce(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.submit("run-1", "a", "b")
		session := b.worker(2)
		first := b.claimAndStart(session)
		b.settle(session, first)
		st, snapshot, err := b.server.Open(b.ctx, "run-1", 1)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		if len(snapshot) != 1 || snapshot[0].ID != first.TaskID {
			t.Errorf("snapshot %+v", snapshot)
		}
		second := b.claimAndStart(session)
		b.settle(session, second)
		for range 3 {
			if err := b.server.Notified(b.ctx, []stepfleet.TaskID{first.TaskID, second.TaskID}); err != nil {
				t.Fatal(err)
			}
		}
		views, err := st.Next(b.ctx)
		if err != nil || len(views) != 1 || views[0].ID != second.TaskID {
			t.Errorf("told %+v, %v", views, err)
		}
		quiet, cancel := context.WithTimeout(b.ctx, time.Minute)
		defer cancel()
		if views, err := st.Next(quiet); err == nil {
			t.Errorf("told again: %+v", views)
		}
	})
}

func TestALostNotifyIsCoveredByTheLook(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.submit("run-1", "a")
		st, _, err := b.server.Open(b.ctx, "run-1", 1)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		session := b.worker(1)
		b.settle(session, b.claimAndStart(session))
		before := time.Now()
		views, err := st.Next(b.ctx)
		if err != nil || len(views) != 1 {
			t.Fatalf("told %+v, %v", views, err)
		}
		if took := time.Since(before); took > 10*time.Second {
			t.Errorf("told after %s", took)
		}
	})
}

func TestATakeoverEndsTheOldExecutorsStream(t *testing.T) {
	for _, where := range []string{"here", "at another replica"} {
		t.Run(where, func(t *testing.T) {
			inBubble(t, func(b *bench) {
				b.submit("run-1", "a")
				st, _, err := b.server.Open(b.ctx, "run-1", 1)
				if err != nil {
					t.Fatal(err)
				}
				defer st.Close()
				before, take := time.Now(), b.server.TakeEpoch
				if where != "here" {
					take = func(ctx context.Context, run string, executor stepfleet.Executor) (stepfleet.Epoch, error) {
						return b.ledger.TakeEpoch(ctx, run, executor, "http://other")
					}
				}
				if epoch, err := take(b.ctx, "run-1", stepfleet.Executor{Name: "another"}); err != nil || epoch != 2 {
					t.Fatal(epoch, err)
				}
				if views, err := st.Next(b.ctx); !errors.Is(err, stepfleet.ErrSuperseded) {
					t.Errorf("%v %v", views, err)
				}
				if took := time.Since(before); took > 6*time.Second || where == "here" && took > 0 {
					t.Errorf("told after %s", took)
				}
				if _, _, err := b.server.Open(b.ctx, "run-1", 1); !errors.Is(err, stepfleet.ErrSuperseded) {
					t.Errorf("opened again: %v", err)
				}
				if err := b.server.Confirm(b.ctx, "run-1", 2); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The run worker that closed its run has yet to say in Dagster how it ended.
func TestReconcileLeavesTheRunWorkerOfARunThatItsExecutorClosed(t *testing.T) {
	inBubble(t, func(b *bench) {
		worker := batchOf("run-1", stepfleet.RunStepKey)
		worker.Epoch = stepfleet.NoExecutor
		worker.Tasks[0].Kind, worker.Tasks[0].Queue = stepfleet.KindRun, stepfleet.RunsQueue
		if _, err := b.server.Submit(b.ctx, worker); err != nil {
			t.Fatal(err)
		}
		session := b.worker(2)
		ref := b.claimAndStartFrom(stepfleet.RunsQueue, session)
		b.submit("run-1", "a")
		step := b.claimAndStart(session)
		if _, err := b.server.CloseRun(b.ctx, "run-1", 1, "over"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(25 * time.Second) // two comparisons
		views, err := b.ledger.Tasks(b.ctx, []stepfleet.TaskID{ref.TaskID, step.TaskID})
		if err != nil || views[0].CancelRequested || !views[1].CancelRequested {
			t.Errorf("%+v %v", views, err)
		}
	})
}

func TestProofOfDeathTakesOverAtOnce(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.submit("run-1", "a", "b")
		st, _, err := b.server.Open(b.ctx, "run-1", 1)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		session := b.worker(2)
		b.claimAndStart(session)
		c, err := b.ledger.Claim(b.ctx, stepfleet.ClaimRequest{Session: session, Instance: "i", ID: "c2", Queue: "default", Max: 1})
		if err != nil || len(c.Leases) != 1 {
			t.Fatal(c, err)
		}
		before := time.Now()
		dead, err := b.server.InstanceDead(b.ctx, "i", "killed by signal 9")
		if err != nil || len(dead) != 1 {
			t.Fatal(dead, err)
		}
		views, err := st.Next(b.ctx)
		if err != nil || len(views) != 1 || views[0].State != stepfleet.StateLost {
			t.Errorf("told %+v, %v", views, err)
		}
		if took := time.Since(before); took > 0 {
			t.Errorf("told after %s of a proof of death", took)
		}
		if again, _ := b.ledger.Tasks(b.ctx, []stepfleet.TaskID{c.Leases[0].TaskID}); again[0].State != stepfleet.StateQueued {
			t.Errorf("the lease is %s", again[0].State)
		}
	})
}

// Nothing ends a task that only waits, and how long it has waited is there to see.
func TestATaskWaitsForAWorkerOfItsQueue(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.submit("run-1", "a")
		if _, err := b.ledger.Register(b.ctx, stepfleet.SessionSpec{Worker: "other", Slots: map[string]int{"other": 4}}); err != nil {
			t.Fatal(err)
		}
		const waited = 3 * time.Hour
		time.Sleep(waited)
		lanes, err := b.ledger.Lanes(b.ctx)
		waits := func(l stepfleet.Lane) bool { return l.Queue == "default" && l.Ready == 1 && l.OldestAge >= waited }
		if err != nil || !slices.ContainsFunc(lanes, waits) {
			t.Errorf("the queues are %+v, %v", lanes, err)
		}
		session := b.worker(1)
		b.settle(session, b.claimAndStart(session))
		b.want("run-1", stepfleet.StateSucceeded)
	})
}

func TestASilentWorkerIsSuspectThenDead(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.submit("run-1", "a")
		session := b.worker(1)
		ref := b.claimAndStart(session)
		time.Sleep(100 * time.Second)
		if s := b.session(session); s.State != stepfleet.SessionSuspect {
			t.Errorf("session is %s", s.State)
		}
		if v, _ := b.ledger.Tasks(b.ctx, []stepfleet.TaskID{ref.TaskID}); v[0].State != stepfleet.StateRunning {
			t.Errorf("what a suspect session runs is %s", v[0].State)
		}
		time.Sleep(100 * time.Second)
		if v, _ := b.ledger.Tasks(b.ctx, []stepfleet.TaskID{ref.TaskID}); v[0].State != stepfleet.StateLost {
			t.Errorf("what a dead session ran is %s", v[0].State)
		}
	})
}

// After an outage of the ledger all renewals are late, through no fault of the workers.
func TestTheSweeperWaitsATTLAfterAnOutage(t *testing.T) {
	inBubble(t, func(b *bench) {
		session := b.worker(1)
		time.Sleep(time.Second)
		b.down.Store(true)
		time.Sleep(170 * time.Second)
		b.down.Store(false)
		time.Sleep(15 * time.Second) // past the run lease, within the grace
		if s := b.session(session); s.State != stepfleet.SessionAlive {
			t.Fatalf("session is %s right after the outage", s.State)
		}
		if _, err := b.ledger.Renew(b.ctx, session, b.session(session).Instance); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		if s := b.session(session); s.State != stepfleet.SessionAlive {
			t.Errorf("session is %s after it renewed", s.State)
		}
	})
}

// A sweep that hangs through an outage leaves no failed beat behind, only a gap between two.
func TestTheSweeperWaitsATTLAfterASweepThatHung(t *testing.T) {
	inBubble(t, func(b *bench) {
		session := b.worker(1)
		time.Sleep(40 * time.Second)
		if _, err := b.ledger.Renew(b.ctx, session, b.session(session).Instance); err != nil {
			t.Fatal(err)
		}
		b.hang.Store(int64(170 * time.Second))
		time.Sleep(2 * time.Second)
		b.hang.Store(0)
		time.Sleep(183 * time.Second) // past the run lease, within the grace
		if s := b.session(session); s.State != stepfleet.SessionAlive {
			t.Fatalf("session is %s right after the outage", s.State)
		}
		time.Sleep(30 * time.Second)
		if s := b.session(session); s.State != stepfleet.SessionDead {
			t.Errorf("session is %s a TTL after the outage, without a renewal", s.State)
		}
	})
}

func TestARunThatEndedInDagsterIsClosed(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.submit("run-1", "runs", "waits")
		b.submit("run-2", "waits")
		session := b.worker(1)
		ref := b.claimAndStart(session)
		time.Sleep(time.Minute)
		if v, _ := b.ledger.RunTasks(b.ctx, "run-1"); v[1].State != stepfleet.StateQueued {
			t.Fatalf("a waiting task of an open run is %s", v[1].State)
		}
		b.end("run-1") // its run worker was killed
		time.Sleep(15 * time.Second)
		v, err := b.ledger.RunTasks(b.ctx, "run-1")
		if err != nil || !v[0].CancelRequested || v[1].State != stepfleet.StateCancelled {
			t.Errorf("%+v %v", v, err)
		}
		if v, _ := b.ledger.RunTasks(b.ctx, "run-2"); v[0].State != stepfleet.StateQueued {
			t.Errorf("a task of the other run is %s", v[0].State)
		}
		if _, err := b.server.Submit(b.ctx, batchOf("run-1", "late")); !errors.Is(err, stepfleet.ErrRunClosed) {
			t.Errorf("a late submit: %v", err)
		}
		b.settle(session, ref)
	})
}

func (b *bench) session(id stepfleet.SessionID) stepfleet.Session {
	b.t.Helper()
	sessions, err := b.ledger.Sessions(b.ctx, time.Hour)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, s := range sessions {
		if s.ID == id {
			return s
		}
	}
	b.t.Fatalf("no session %d", id)
	return stepfleet.Session{}
}

func TestCloseStreamsWhenTheServerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ledger := memory.NewLedger()
		server, err := dispatch.New(dispatch.Config{
			Name: "s", Queues: []string{"default"}, Lifetimes: stepfleet.DefaultLifetimes(), Logger: slog.New(slog.DiscardHandler),
		}, ledger, memory.NewBells("default"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- server.Run(ctx) }()
		if _, err := server.TakeEpoch(t.Context(), "run-1", stepfleet.Executor{Name: "test"}); err != nil {
			t.Fatal(err)
		}
		st, _, err := server.Open(t.Context(), "run-1", 1)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if views, err := st.Next(t.Context()); err != nil || len(views) != 0 {
			t.Errorf("%v %v", views, err)
		}
		<-done
	})
}
