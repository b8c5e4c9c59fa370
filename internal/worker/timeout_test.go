package worker_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stepfleet/stepfleet"
)

// docs/failures.md says how slow a worker's clock may run at the default deadlines.
func TestAWorkerWithASlowClockKillsBeforeItsRunLeaseIsOver(t *testing.T) {
	inBubble(t, func(b *bench) {
		const slow = 0.02
		began := time.Now()
		b.cfg.Now = func() time.Time { return began.Add(time.Duration((1 - slow) * float64(time.Since(began)))) }
		b.start()
		p := b.running("a")
		renewed := b.renewedAt()
		b.fail(func(string) error { return stepfleet.ErrUnavailable })
		<-p.done
		if silent := time.Since(renewed); silent >= b.cfg.Lifetimes.RunLease {
			t.Errorf("killed %s after the last renewal, of a run lease of %s", silent, b.cfg.Lifetimes.RunLease)
		}
	})
}

func TestAStepOverItsTimeoutIsRevokedTerminatedAndFails(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.runningTimed("a", 90)
		before := time.Now()
		if sig := <-p.signals; sig != "terminate" {
			t.Errorf("signal %s", sig)
		}
		if took := time.Since(before); took != 90*time.Second {
			t.Errorf("terminated after %s of a timeout of 90 s", took)
		}
		// Dagster answers SIGTERM with an ending event, which must not reach its log.
		if err := p.gate.Event(b.ctx, "STEP_FAILURE"); !errors.Is(err, stepfleet.ErrFenced) {
			t.Errorf("the gate after the timeout: %v", err)
		}
		if v := b.view("a"); v.State != stepfleet.StateRunning || v.Fence != 2 {
			t.Errorf("at SIGTERM the task is %s with fence %d, want running and revoked", v.State, v.Fence)
		}
		<-p.done // deaf to SIGTERM: killed after the grace
		b.expect("a", stepfleet.StateFailed)
		r := b.view("a").Result
		if r.Error == nil || r.Error.Code != "timeout" || !strings.Contains(r.Error.Message, "timeout of 1m30s") {
			t.Errorf("result %+v with error %+v", r, r.Error)
		}
		verbs := []stepfleet.Verb{}
		rows, err := b.ledger.Audit(b.ctx, "run-1")
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			verbs = append(verbs, row.Verb)
		}
		if len(verbs) != 6 || verbs[4] != stepfleet.VerbRevoke || verbs[5] != stepfleet.VerbSettle {
			t.Errorf("audit %v, want takeover, submit, claim, start, revoke, settle", verbs)
		}
	})
}

func TestATimeoutCountsFromTheStart(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		b.submitTimed(true, 20, "a")
		p := b.next()
		time.Sleep(50 * time.Second) // of the lease, not of the attempt
		if err := p.gate.Start(b.ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(19 * time.Second)
		p.succeed()
		b.expect("a", stepfleet.StateSucceeded)
		time.Sleep(time.Minute)
		if f := b.view("a").Fence; f != 1 {
			t.Errorf("fence %d: a step that has ended was revoked", f)
		}
	})
}

func TestAStepThatWasGrantedItsEndIsNotLate(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.runningTimed("a", 5)
		time.Sleep(4 * time.Second)
		if err := p.gate.Event(b.ctx, "STEP_SUCCESS"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // the write takes its time, or a hook does
		if len(p.signals) != 0 {
			t.Error("terminated although Dagster's log may have its STEP_SUCCESS")
		}
		p.succeed()
		b.expect("a", stepfleet.StateSucceeded)
	})
}

func TestThreadsThatOutliveAStepEndWithItsTimeout(t *testing.T) {
	for name, lasts := range map[string]time.Duration{"in time": 4 * time.Second, "with a hook over it": time.Minute} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(b *bench) {
				b.start()
				p := b.runningTimed("a", 5)
				began := time.Now()
				if err := p.gate.Event(b.ctx, "STEP_SUCCESS"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(lasts)
				p.linger()
				<-p.done
				if took := time.Since(began); took != max(lasts, 5*time.Second) {
					t.Errorf("ended %s after its start", took)
				}
				b.expect("a", stepfleet.StateSucceeded)
			})
		})
	}
}

func TestAStepIsSettledWhenTheThreadsThatOutliveItHaveEnded(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.running("a")
		p.linger()
		time.Sleep(time.Hour)
		b.expect("a", stepfleet.StateRunning)
		p.report()
		b.expect("a", stepfleet.StateSucceeded)
		p.end(success)
	})
}

func TestACancelEndsThreadsThatOutliveAStep(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.running("a")
		p.linger()
		if _, err := b.ledger.Cancel(b.ctx, "run-1", 0, nil, "asked"); err != nil {
			t.Fatal(err)
		}
		p.expectSignal(t, "terminate")
		p.expectSignal(t, "interrupt")
		<-p.done // killed
		b.expect("a", stepfleet.StateSucceeded)
	})
}

func TestAnOutputDoesNotStopTheTimeout(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.runningTimed("a", 5)
		if err := p.gate.Event(b.ctx, "STEP_OUTPUT"); err != nil {
			t.Fatal(err)
		}
		<-p.done
		b.expect("a", stepfleet.StateFailed)
	})
}

func TestATimeoutNeedsNoLedger(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.runningTimed("a", 30)
		b.fail(func(string) error { return stepfleet.ErrUnavailable })
		before := time.Now()
		<-p.done
		if took := time.Since(before); took > 31*time.Second+b.cfg.KillGrace {
			t.Errorf("gone %s after its start: the ledger held up the timeout", took)
		}
		b.fail(nil)
		time.Sleep(10 * time.Second)
		b.expect("a", stepfleet.StateFailed)
		if r := b.view("a").Result; r.Error == nil || r.Error.Code != "timeout" {
			t.Errorf("result %+v", r)
		}
	})
}

// The machine sleeps: only the worker's clock counts it, Go's timers do not.
func TestATimeoutCountsSuspend(t *testing.T) {
	inBubble(t, func(b *bench) {
		var slept atomic.Int64
		b.cfg.Now = func() time.Time { return time.Now().Add(time.Duration(slept.Load())) }
		b.start()
		p := b.runningTimed("a", 60)
		synctest.Wait()
		before := time.Now()
		slept.Store(int64(59 * time.Second))
		<-p.done
		if took := time.Since(before); took > 2*time.Second+b.cfg.KillGrace {
			t.Errorf("gone %s after a suspend of 59 s, with a timeout of 60 s", took)
		}
		b.expect("a", stepfleet.StateFailed)
	})
}

func TestACancelBeforeTheTimeoutStaysACancel(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.cfg.KillGrace = time.Minute
		b.start()
		p := b.runningTimed("a", 10)
		time.Sleep(8 * time.Second)
		if _, err := b.ledger.Cancel(b.ctx, "run-1", 0, nil, "asked"); err != nil {
			t.Fatal(err)
		}
		<-p.signals
		time.Sleep(10 * time.Second)
		if err := p.gate.Event(b.ctx, "STEP_FAILURE"); err != nil {
			t.Errorf("a cancelled step may say how it ended: %v", err)
		}
		p.sayEnded("STEP_FAILURE")
		p.end(stepfleet.Exit{Status: 0})
		b.expect("a", stepfleet.StateCancelled)
	})
}

func TestARevokeWhoseAnswerIsLostIsAskedAgainBeforeTheSettlement(t *testing.T) {
	inBubble(t, func(b *bench) {
		var revokes atomic.Int32
		b.failAfter(func(op string) error {
			if op == "revoke" && revokes.Add(1) == 1 {
				return errors.New("connection reset")
			}
			return nil
		})
		b.start()
		p := b.runningTimed("a", 5)
		<-p.done
		b.expect("a", stepfleet.StateFailed)
		if v := b.view("a"); v.Fence != 2 || v.Result.Error.Code != "timeout" {
			t.Errorf("fence %d, result %+v", v.Fence, v.Result)
		}
	})
}
