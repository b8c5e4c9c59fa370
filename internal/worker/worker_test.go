package worker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/memory"
)

func TestAStepGoesFromBellToSettled(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		b.submit(true, "a")
		p := b.next()
		b.expect("a", stepfleet.StateLeased)
		if p.job.Env["STEPFLEET_IDEMPOTENCY_KEY"] != "run-1/a" || p.job.Env["STEPFLEET_FENCE"] != "1" {
			t.Errorf("env %v", p.job.Env)
		}
		if err := p.gate.Start(b.ctx); err != nil {
			t.Fatal(err)
		}
		b.expect("a", stepfleet.StateRunning)
		if err := p.gate.Event(b.ctx, "STEP_SUCCESS"); err != nil {
			t.Fatal(err)
		}
		p.succeed()
		b.expect("a", stepfleet.StateSucceeded)
		if got := b.view("a"); got.Result == nil || got.Result.Worker != "worker-1" {
			t.Errorf("result %+v", got.Result)
		}
		if len(b.notes.told) != 1 || b.notes.told[0] != "http://server a" {
			t.Errorf("told %v", b.notes.told)
		}
	})
}

// A process's own end takes longer than what the next step waits for.
func TestAStepIsSettledWhenItsResultIsTold(t *testing.T) {
	inBubble(t, func(b *bench) {
		stop := b.start()
		b.submit(true, "a", "b", "c")
		p := b.next()
		b.next().succeed()
		if err := p.gate.Start(b.ctx); err != nil {
			t.Fatal(err)
		}
		p.report()
		b.expect("a", stepfleet.StateSucceeded)
		if got := <-p.signals; got != "kill" {
			t.Errorf("got %s: what the step left behind outlives it", got)
		}
		if got := b.view("a").Result; got == nil || got.ExitCode != 0 {
			t.Errorf("result %+v", got)
		}
		b.next() // c, in b's slot
		b.submit(true, "d")
		time.Sleep(time.Minute)
		b.expect("d", stepfleet.StateQueued)
		p.end(stepfleet.Exit{Result: success.Result, Status: -9})
		if got := b.next(); got.job.StepKey != "d" {
			t.Errorf("launched %s", got.job.StepKey)
		}
		stop()
	})
}

func TestClaimsNoMoreThanFreeSlots(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		b.submit(true, "a", "b", "c")
		p := b.next()
		b.next()
		time.Sleep(time.Minute)
		b.expect("c", stepfleet.StateQueued)
		if err := p.gate.Start(b.ctx); err != nil {
			t.Fatal(err)
		}
		before := time.Now()
		p.succeed()
		if got := b.next().job.StepKey; got != "c" {
			t.Errorf("launched %s", got)
		}
		if waited := time.Since(before); waited > 0 {
			t.Errorf("the freed slot stood empty for %s: the last claim had come back full", waited)
		}
	})
}

// A slot is taken until the process that had it is gone, whatever the ledger says of the task by then.
func TestAWorkerSaysWhichSlotsAreTaken(t *testing.T) {
	inBubble(t, func(b *bench) {
		w := b.worker()
		taken := func() int { synctest.Wait(); return w.Taken()["default"] }
		if w.Taken() != nil {
			t.Errorf("%v before it has a session", w.Taken())
		}
		ctx, stop := context.WithCancel(b.ctx)
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		defer func() { stop(); <-done }()
		b.submit(true, "a")
		p := b.next()
		if err := p.gate.Start(b.ctx); err != nil || taken() != 1 {
			t.Errorf("%d taken while the task runs (%v)", taken(), err)
		}
		p.report()
		b.expect("a", stepfleet.StateSucceeded)
		if taken() != 1 {
			t.Errorf("%d taken while the process is still there", taken())
		}
		p.end(stepfleet.Exit{Result: success.Result})
		if taken() != 0 {
			t.Errorf("%d taken when nothing is there", taken())
		}
	})
}

func TestALostBellCostsADelayOnly(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		time.Sleep(10 * time.Minute) // an idle worker looks rarely
		before := time.Now()
		b.submit(false, "a")
		b.next()
		if waited := time.Since(before); waited > 20*time.Second {
			t.Errorf("found after %s", waited)
		}
	})
}

// The demo reads this line: a queue that delivers nothing shows nowhere else.
func TestASessionSaysHowManyClaimsBellsLedTo(t *testing.T) {
	for ring, want := range map[bool]string{true: "claims_by_bell=1", false: "claims_by_bell=0"} {
		inBubble(t, func(b *bench) {
			var log strings.Builder
			b.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
			stop := b.start()
			time.Sleep(time.Minute)
			b.submit(ring, "a")
			b.next().succeed()
			synctest.Wait()
			stop()
			if !strings.Contains(log.String(), `msg="session over"`) || !strings.Contains(log.String(), want) {
				t.Errorf("rung %t, the log has no %s:\n%s", ring, want, &log)
			}
		})
	}
}

// A bell is answered once its claim is committed: until then it stands for work that nobody has.
func TestABellWhoseClaimFailsRingsAgain(t *testing.T) {
	inBubble(t, func(b *bench) {
		stop := b.start()
		time.Sleep(time.Second) // past the look of the start
		b.fail(func(op string) error {
			if op == "claim" {
				return stepfleet.ErrUnavailable
			}
			return nil
		})
		b.submit(true, "a")
		time.Sleep(100 * time.Millisecond)
		stop()
		bells, err := b.bells.Receive(b.ctx, "default", 1, time.Minute)
		if err != nil || len(bells) != 1 {
			t.Errorf("%d bells are left of a claim that failed: %v", len(bells), err)
		}
	})
}

func TestWithoutBellsWorkersLookOften(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.bells.Fail(func(string, string) error { return stepfleet.ErrUnavailable })
		b.start()
		time.Sleep(10 * time.Minute)
		before := time.Now()
		b.submit(false, "a")
		b.next()
		if waited := time.Since(before); waited > 3*time.Second {
			t.Errorf("found after %s", waited)
		}
	})
}

func TestCancelTerminatesInterruptsThenKills(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.running("a")
		before := time.Now()
		if _, err := b.ledger.Cancel(b.ctx, "run-1", stepfleet.NoExecutor, nil, "asked"); err != nil {
			t.Fatal(err)
		}
		p.expectSignal(b.t, "terminate")
		terminated := time.Now()
		p.expectSignal(b.t, "interrupt") // deaf to SIGTERM
		if took := time.Since(terminated); took != b.cfg.KillGrace {
			t.Errorf("interrupted %s after SIGTERM, want the grace of %s", took, b.cfg.KillGrace)
		}
		<-p.done // deaf to SIGINT, too
		if took := time.Since(before); took > 5*time.Second {
			t.Errorf("gone after %s", took)
		}
		b.expect("a", stepfleet.StateCancelled)
	})
}

func TestAnInterruptedStepIsNotKilled(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.running("a")
		if _, err := b.ledger.Cancel(b.ctx, "run-1", stepfleet.NoExecutor, nil, "asked"); err != nil {
			t.Fatal(err)
		}
		p.expectSignal(b.t, "terminate")
		p.expectSignal(b.t, "interrupt")
		p.end(stepfleet.Exit{Result: &stepfleet.Result{V: stepfleet.TaskVersion, Outcome: stepfleet.StateFailed, Event: "STEP_FAILURE"}})
		b.expect("a", stepfleet.StateCancelled)
		if r := b.view("a").Result; r.Event != "STEP_FAILURE" {
			t.Errorf("result %+v, want the process's own", r)
		}
	})
}

func TestACancelledLeaseIsRefusedItsStart(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		b.submit(true, "a")
		p := b.next()
		if _, err := b.ledger.Cancel(b.ctx, "run-1", stepfleet.NoExecutor, nil, "asked"); err != nil {
			t.Fatal(err)
		}
		if err := p.gate.Start(b.ctx); !errors.Is(err, stepfleet.ErrCancelled) {
			t.Errorf("start: %v", err)
		}
		p.end(stepfleet.Exit{Status: 3})
		b.expect("a", stepfleet.StateCancelled)
	})
}

func TestDrainLetsStepsFinishAndGivesBackTheRest(t *testing.T) {
	inBubble(t, func(b *bench) {
		stop := b.start()
		b.submit(true, "a", "b", "c")
		p, unstarted := b.next(), b.next()
		if err := p.gate.Start(b.ctx); err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(10 * time.Second)
			p.succeed()
			unstarted.end(stepfleet.Exit{Status: 3})
		}()
		stop()
		b.expect(p.job.StepKey, stepfleet.StateSucceeded)
		b.expect("c", stepfleet.StateQueued)
		sessions, err := b.ledger.Sessions(b.ctx, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if len(sessions) != 1 || sessions[0].State != stepfleet.SessionDead {
			t.Errorf("sessions %+v", sessions)
		}
	})
}

func TestDrainEndsWhatDoesNotFinishAsLost(t *testing.T) {
	inBubble(t, func(b *bench) {
		stop := b.start()
		p := b.running("a")
		before := time.Now()
		stop()
		if took := time.Since(before); took < b.cfg.DrainTimeout || took > b.cfg.DrainTimeout+5*time.Second {
			t.Errorf("drained in %s", took)
		}
		b.expect("a", stepfleet.StateLost)
		if err := p.gate.Event(b.ctx, "STEP_FAILURE"); err == nil {
			t.Error("the gate lets a revoked process write")
		}
		if f := b.view("a").Fence; f != 2 {
			t.Errorf("fence %d: the process's own fence must be old", f)
		}
	})
}

// A session that has ended is as good as dead: the next attempt of its tasks may begin.
func TestADrainWhoseRevokesHangKillsBeforeTheSessionEnds(t *testing.T) {
	inBubble(t, func(b *bench) {
		stop := b.start()
		p := b.running("a")
		p.slow = true
		ended, signals := false, 0
		b.fail(func(op string) error {
			switch op {
			case "revoke":
				time.Sleep(time.Minute)
			case "end session":
				ended, signals = true, len(p.signals)
			}
			return nil
		})
		go func() {
			time.Sleep(b.cfg.DrainTimeout + 2*time.Minute)
			p.end(stepfleet.Exit{Status: -9})
		}()
		stop()
		if !ended || signals == 0 {
			t.Errorf("the session ended: %t, after %d kills", ended, signals)
		}
	})
}

func TestAnOutageShorterThanTheRunLeaseKillsNobody(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.running("a")
		b.fail(func(string) error { return stepfleet.ErrUnavailable })
		time.Sleep(60 * time.Second)
		wrote := make(chan error, 1)
		go func() { wrote <- p.gate.Event(b.ctx, "STEP_SUCCESS") }()
		time.Sleep(60 * time.Second)
		select {
		case err := <-wrote:
			t.Fatalf("the gate answered while the session was not renewed: %v", err)
		case <-p.done:
			t.Fatal("killed before the run lease ran out")
		default:
		}
		b.fail(nil)
		if err := <-wrote; err != nil {
			t.Errorf("the gate after the outage: %v", err)
		}
		p.succeed()
		time.Sleep(10 * time.Second)
		b.expect("a", stepfleet.StateSucceeded)
	})
}

func TestTheRunLeaseEndsWhatRuns(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.running("a")
		b.fail(func(string) error { return stepfleet.ErrUnavailable })
		before := time.Now()
		<-p.done
		took, lease := time.Since(before), b.cfg.Lifetimes.RunLease
		if took > lease-b.cfg.Lifetimes.Margin+time.Second || took < lease-3*b.cfg.Lifetimes.Margin {
			t.Errorf("killed after %s of a run lease of %s", took, lease)
		}
		if err := p.gate.Event(b.ctx, "STEP_SUCCESS"); err == nil {
			t.Error("the gate of a life that is over lets a process write")
		}
		b.fail(nil)
		time.Sleep(time.Minute)
		sessions, err := b.ledger.Sessions(b.ctx, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if len(sessions) != 2 {
			t.Errorf("%d sessions, want the old one and a new life", len(sessions))
		}
	})
}

// hungRenewals takes renewals and answers none.
type hungRenewals struct {
	*memory.Ledger
	hung atomic.Bool
}

func (h *hungRenewals) Renew(ctx context.Context, id stepfleet.SessionID, instance string) (stepfleet.Renewal, error) {
	if h.hung.Load() {
		<-ctx.Done()
		return stepfleet.Renewal{}, fmt.Errorf("%w: %w", stepfleet.ErrUnavailable, ctx.Err())
	}
	return h.Ledger.Renew(ctx, id, instance)
}

// replacedLedger renews in another ledger once there is one.
type replacedLedger struct {
	*memory.Ledger
	by atomic.Pointer[memory.Ledger]
}

func (r *replacedLedger) Renew(ctx context.Context, id stepfleet.SessionID, instance string) (stepfleet.Renewal, error) {
	if by := r.by.Load(); by != nil {
		return by.Renew(ctx, id, instance)
	}
	return r.Ledger.Renew(ctx, id, instance)
}

// A ledger that was restored gives the number of a lost session to another worker.
func TestAWorkerWhoseSessionIsAnothersBeginsANewLife(t *testing.T) {
	inBubble(t, func(b *bench) {
		renewals := &replacedLedger{Ledger: b.ledger}
		b.renewals = renewals
		b.start()
		p := b.running("a")
		restored := memory.NewLedger()
		another, err := restored.Register(b.ctx, stepfleet.SessionSpec{Worker: "worker-2", Instance: "i-2"})
		if err != nil || another.ID != 1 {
			t.Fatal(another, err)
		}
		renewals.by.Store(restored)
		before := time.Now()
		<-p.done
		if took := time.Since(before); took > b.cfg.Lifetimes.Renew+time.Second {
			t.Errorf("killed after %s, want it at the next renewal", took)
		}
		renewals.by.Store(nil)
		time.Sleep(time.Minute)
		if sessions, err := b.ledger.Sessions(b.ctx, time.Hour); err != nil || len(sessions) != 2 {
			t.Errorf("%d sessions, %v, want the old one and a new life", len(sessions), err)
		}
	})
}

func TestARenewalThatHangsDoesNotHoldUpTheRunLease(t *testing.T) {
	inBubble(t, func(b *bench) {
		renewals := &hungRenewals{Ledger: b.ledger}
		b.renewals = renewals
		b.start()
		p := b.running("a")
		renewals.hung.Store(true)
		renewed := b.renewedAt()
		<-p.done
		lt := b.cfg.Lifetimes
		if age := time.Since(renewed); age > lt.RunLease-lt.Margin+2*time.Second {
			t.Errorf("killed %s after the last renewal, want %s", age, lt.RunLease-lt.Margin)
		}
	})
}

func (b *bench) renewedAt() time.Time {
	b.t.Helper()
	sessions, err := b.ledger.Sessions(b.ctx, time.Hour)
	if err != nil || len(sessions) != 1 {
		b.t.Fatal(sessions, err)
	}
	return sessions[0].RenewedAt
}

func TestADeadSessionKillsAndBeginsANewLife(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.running("a")
		if _, err := b.ledger.DeclareDead(b.ctx, "i-1", "a mistake"); err != nil {
			t.Fatal(err)
		}
		<-p.done
		b.expect("a", stepfleet.StateRunning) // only the sweep says lost
		orphans, err := b.ledger.Orphans(b.ctx, 0, 10)
		if err != nil || len(orphans) != 1 {
			t.Fatal(orphans, err)
		}
		if _, err := b.ledger.Decide(b.ctx, []stepfleet.Decision{orphans[0].Decide("", "")}); err != nil {
			t.Fatal(err)
		}
		b.expect("a", stepfleet.StateLost)
		b.submit(true, "b")
		b.next() // the new life works
	})
}

func TestAClaimWhoseAnswerWasLostIsGivenBack(t *testing.T) {
	inBubble(t, func(b *bench) {
		lost := false
		b.failAfter(func(op string) error {
			if op == "claim" && !lost && b.view("a").State == stepfleet.StateLeased {
				lost = true
				return stepfleet.ErrUnavailable
			}
			return nil
		})
		b.submit(false, "a")
		b.start()
		if got := b.next().job; got.StepKey != "a" || !lost {
			t.Errorf("launched %s, answer lost: %t", got.StepKey, lost)
		}
	})
}

// A failover to a replica that lags may lose that a task has ended, and leave the session: the ledger
// then says that the task runs in a worker which has forgotten it, and which lives.
func TestATaskThatTheLedgerSaysRunsHereAndDoesNotIsAbandoned(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		b.submitEdited(false, func(task *stepfleet.Task) { task.Queue = "elsewhere" }, "a")
		synctest.Wait()
		claimed, err := b.ledger.Claim(b.ctx, stepfleet.ClaimRequest{Session: 1, Instance: "i-1", ID: "c", Queue: "elsewhere", Max: 1})
		if err != nil || len(claimed.Leases) != 1 {
			t.Fatal(claimed, err)
		}
		if errs, err := b.ledger.Start(b.ctx, 1, []stepfleet.Ref{claimed.Leases[0].Ref}); err != nil || errs[0] != nil {
			t.Fatal(errs, err)
		}
		time.Sleep(b.cfg.Lifetimes.Renew + time.Second)
		b.expect("a", stepfleet.StateRunning)
		if v := b.view("a"); v.Fence != 1 {
			t.Errorf("abandoned at the first renewal: it may be one that has just ended")
		}
		time.Sleep(b.cfg.Lifetimes.Renew)
		b.expectAbandoned("a", 2)
	})
}

func TestAProcessThatDiesBeforeItsStartFailsItsAttempt(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		b.submit(true, "a")
		b.next().end(stepfleet.Exit{Status: 1})
		b.expect("a", stepfleet.StateFailed)
		if r := b.view("a").Result; r == nil || r.Error == nil || r.Error.Code != "process_died" {
			t.Errorf("result %+v", r)
		}
	})
}

func TestAProcessStruckBeforeItsStartCostsNoAttempt(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		b.submit(true, "a")
		b.next().end(stepfleet.Exit{Status: -9})
		p := b.next()
		if err := p.gate.Start(b.ctx); err != nil {
			t.Fatal(err)
		}
		p.succeed()
		b.expect("a", stepfleet.StateSucceeded)
	})
}

func TestAProcessStruckAgainAndAgainFailsItsAttempt(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		b.submit(true, "a")
		for range 4 {
			b.next().end(stepfleet.Exit{Status: -11})
		}
		b.expect("a", stepfleet.StateFailed)
	})
}

// The start is recorded, its answer is lost, and the process dies before it is asked for again.
func TestAProcessThatDiesWhileItsStartIsRecordedLeavesNothingRunning(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.failAfter(func(op string) error {
			if op == "start" {
				return stepfleet.ErrUnavailable
			}
			return nil
		})
		b.start()
		b.submit(true, "a")
		p := b.next()
		asking, dies := context.WithCancel(b.ctx)
		answered := make(chan error)
		go func() { answered <- p.gate.Start(asking) }()
		b.expect("a", stepfleet.StateRunning)
		dies()
		if err := <-answered; err == nil {
			t.Error("a dead process was granted its start")
		}
		p.end(stepfleet.Exit{Status: -9})
		b.expect("a", stepfleet.StateLost)
	})
}

func TestAnOutcomeThatIsNoneFailsTheAttempt(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.running("a")
		p.end(stepfleet.Exit{Result: &stepfleet.Result{V: stepfleet.TaskVersion, Outcome: "odd"}})
		b.expect("a", stepfleet.StateFailed)
	})
}

// What began and died through no fault of its own is lost, so that lost_step_retries applies.
func TestAStepWhoseHostDiedIsLost(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		b.running("a").end(stepfleet.Exit{Status: -9, HostDied: true})
		b.expect("a", stepfleet.StateLost)
		b.running("b").end(stepfleet.Exit{Status: -9})
		b.expect("b", stepfleet.StateFailed)
	})
}

func TestWithoutAProcessTheLeaseGoesBack(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.host.setFail(errors.New("no template"))
		b.start()
		b.submit(true, "a")
		time.Sleep(time.Second)
		b.expect("a", stepfleet.StateQueued)
		b.host.setFail(nil)
		b.next()
	})
}

func TestWhileTheTemplateLoadsNothingIsClaimed(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		time.Sleep(time.Second)
		b.host.setAvailable(false) // while the worker listens for bells
		b.submit(true, "a")
		time.Sleep(5 * time.Minute)
		b.expect("a", stepfleet.StateQueued)
		b.host.setAvailable(true)
		before := time.Now()
		b.next()
		if waited := time.Since(before); waited > 3*time.Second {
			t.Errorf("claimed %s after the template was there", waited)
		}
	})
}

func TestAnAmbiguousStartIsAskedAgain(t *testing.T) {
	inBubble(t, func(b *bench) {
		lost := false
		b.failAfter(func(op string) error {
			if op == "start" && !lost {
				lost = true
				return stepfleet.ErrUnavailable
			}
			return nil
		})
		b.start()
		b.submit(true, "a")
		p := b.next()
		if err := p.gate.Start(b.ctx); err != nil || !lost {
			t.Errorf("start: %v, answer lost: %t", err, lost)
		}
		p.succeed()
		b.expect("a", stepfleet.StateSucceeded)
	})
}

func TestReadiness(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.fail(func(string) error { return stepfleet.ErrUnavailable })
		synctest.Wait()
		ctx, cancel := context.WithCancel(b.ctx)
		defer cancel()
		w := b.worker()
		done := make(chan struct{})
		go func() { defer close(done); _ = w.Run(ctx) }()
		time.Sleep(time.Second)
		if r := w.Ready(ctx); len(r) != 1 || !strings.Contains(r[0], stepfleet.ErrUnavailable.Error()) {
			t.Errorf("without a session: %v, want a reason that says why", r)
		}
		b.fail(nil)
		time.Sleep(time.Minute)
		if r := w.Ready(ctx); r != nil {
			t.Errorf("not ready: %v", r)
		}
		b.fail(func(string) error { return stepfleet.ErrUnavailable })
		time.Sleep(time.Minute)
		if w.Ready(ctx) == nil {
			t.Error("ready although the session is not renewed")
		}
		b.fail(nil)
		cancel()
		<-done
	})
}
