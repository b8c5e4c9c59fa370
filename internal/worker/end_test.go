package worker_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/worker"
)

var killed = stepfleet.Exit{Status: -9}

// atItsEnd grants the process its ending event.
func (b *bench) atItsEnd(p *scriptedProcess, event string) {
	b.t.Helper()
	if err := p.gate.Event(b.ctx, event); err != nil {
		b.t.Fatal(err)
	}
}

// inAHook brings a step to where Dagster's log has its end and a hook of it runs.
func (b *bench) inAHook(step, event string) *scriptedProcess {
	b.t.Helper()
	p := b.running(step)
	b.atItsEnd(p, event)
	p.sayEnded(event)
	return p
}

func (b *bench) cancel() {
	b.t.Helper()
	if _, err := b.ledger.Cancel(b.ctx, "run-1", stepfleet.NoExecutor, nil, "asked"); err != nil {
		b.t.Fatal(err)
	}
}

// Dagster's log has the end, and the ledger must agree with it.
func TestAStepKilledInAHookHasEndedAsItsLogSays(t *testing.T) {
	for event, want := range map[string]stepfleet.State{
		"STEP_SUCCESS": stepfleet.StateSucceeded, "STEP_FAILURE": stepfleet.StateFailed, "STEP_UP_FOR_RETRY": stepfleet.StateFailed,
	} {
		for name, exit := range map[string]stepfleet.Exit{"killed": killed, "with its host": {Status: -9, HostDied: true}} {
			t.Run(event+" "+name, func(t *testing.T) {
				inBubble(t, func(b *bench) {
					b.start()
					b.inAHook("a", event).end(exit)
					b.expect("a", want)
					if r := b.view("a").Result; r.Event != event {
						t.Errorf("result %+v, want the event of the log", r)
					}
				})
			})
		}
	}
}

// What the process has left in Dagster's database is found by its number.
func TestAnAbandonedTaskNamesTheConnectionsOfItsProcess(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.running("a")
		b.atItsEnd(p, stepfleet.EventSuccess)
		p.end(stepfleet.Exit{Status: -9, PID: 4711})
		synctest.Wait()
		orphans, err := b.ledger.Orphans(b.ctx, 0, 10)
		if err != nil || len(orphans) != 1 || orphans[0].Connections != stepfleet.ConnectionNameOf("i-1", 4711) {
			t.Errorf("%+v, %v", orphans, err)
		}
	})
}

// Granted and not told to be stored: only the log knows, and the server reads it.
func TestAStepThatDiesWritingItsEndIsAbandoned(t *testing.T) {
	for name, exit := range map[string]stepfleet.Exit{
		"killed":        killed,
		"by itself":     {Status: 1},
		"with its host": {Status: -9, HostDied: true},
		"after an error": {Result: &stepfleet.Result{
			V: stepfleet.TaskVersion, Outcome: stepfleet.StateFailed, Error: &stepfleet.Failure{Code: "no_ending_event"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(b *bench) {
				b.start()
				p := b.running("a")
				b.atItsEnd(p, "STEP_SUCCESS")
				p.end(exit)
				b.expectAbandoned("a", 2)
			})
		})
	}
}

// expectAbandoned expects the step to be nobody's, with this fence, and without an outcome.
func (b *bench) expectAbandoned(step string, fence stepfleet.Fence) {
	b.t.Helper()
	b.expect(step, stepfleet.StateRunning)
	orphans, err := b.ledger.Orphans(b.ctx, 0, 10)
	if err != nil || len(orphans) != 1 || orphans[0].StepKey != step {
		b.t.Fatalf("orphans %+v, %v: want %s abandoned", orphans, err, step)
	}
	if f := b.view(step).Fence; f != fence {
		b.t.Errorf("fence %d, want %d", f, fence)
	}
}

func TestAnAbandonWhoseAnswerIsLostIsSaidAgain(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.running("a")
		lost := false
		b.failAfter(func(op string) error {
			if op == "abandon" && !lost {
				lost = true
				return stepfleet.ErrUnavailable
			}
			return nil
		})
		b.atItsEnd(p, "STEP_SUCCESS")
		p.end(killed)
		time.Sleep(time.Minute)
		b.expectAbandoned("a", 2)
		if !lost {
			t.Error("no answer was lost")
		}
	})
}

// The ledger has revoked the task and nobody has heard: with the old fence its end would be refused for
// ever, under a session that lives.
func TestARevokeWhoseAnswerIsLostIsSaidAgain(t *testing.T) {
	inBubble(t, func(b *bench) {
		stop := b.start()
		p := b.running("a")
		lost := 0
		b.failAfter(func(op string) error {
			if op == "revoke" && lost < 3 {
				lost++
				return stepfleet.ErrUnavailable
			}
			return nil
		})
		stop()
		<-p.done
		b.expect("a", stepfleet.StateLost)
		if lost != 3 {
			t.Errorf("%d answers were lost", lost)
		}
	})
}

func TestADrainAbandonsAStepThatDoesNotComeToItsEnd(t *testing.T) {
	inBubble(t, func(b *bench) {
		stop := b.start()
		p := b.running("a")
		b.atItsEnd(p, "STEP_SUCCESS")
		before := time.Now()
		stop()
		if took := time.Since(before); took != b.cfg.DrainTimeout+2*time.Second {
			t.Errorf("drained in %s, want %s and two seconds for the end", took, b.cfg.DrainTimeout)
		}
		b.expectAbandoned("a", 3) // revoked before
	})
}

func TestACancelAbandonsAStepThatDoesNotComeToItsEnd(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.running("a")
		b.atItsEnd(p, "STEP_FAILURE")
		before := time.Now()
		b.cancel()
		<-p.done
		if took := time.Since(before); took > 6500*time.Millisecond {
			t.Errorf("gone after %s", took)
		}
		b.expectAbandoned("a", 2)
	})
}

func TestADrainInAHookLeavesTheStepItsEnd(t *testing.T) {
	inBubble(t, func(b *bench) {
		stop := b.start()
		p := b.inAHook("a", "STEP_SUCCESS")
		before := time.Now()
		stop()
		if took := time.Since(before); took != b.cfg.DrainTimeout {
			t.Errorf("drained in %s, want %s: the step has had its end", took, b.cfg.DrainTimeout)
		}
		<-p.done
		b.expect("a", stepfleet.StateSucceeded)
	})
}

func TestADrainWaitsForAStepThatIsWritingItsEnd(t *testing.T) {
	inBubble(t, func(b *bench) {
		stop := b.start()
		p := b.running("a")
		b.atItsEnd(p, "STEP_FAILURE")
		go func() {
			time.Sleep(b.cfg.DrainTimeout + time.Second)
			p.sayEnded("STEP_FAILURE")
		}()
		stop()
		b.expect("a", stepfleet.StateFailed)
	})
}

func TestACancelInAHookLeavesTheStepItsSuccess(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.inAHook("a", "STEP_SUCCESS")
		b.cancel()
		p.expectSignal(t, "terminate")
		p.expectSignal(t, "interrupt")
		<-p.done // killed
		b.expect("a", stepfleet.StateSucceeded)
	})
}

func TestACancelWaitsForAStepThatIsWritingItsEnd(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.running("a")
		b.cancel()
		p.expectSignal(t, "terminate")
		p.expectSignal(t, "interrupt")
		b.atItsEnd(p, "STEP_SUCCESS")
		interrupted := time.Now()
		time.Sleep(2 * time.Second)
		p.sayEnded("STEP_SUCCESS")
		<-p.done
		if took := time.Since(interrupted); took != 2*time.Second {
			t.Errorf("killed %s after SIGINT, want it killed once its end was told", took)
		}
		b.expect("a", stepfleet.StateSucceeded)
	})
}

// Whose time is over is killed at once: nobody here may say how it ended.
func TestADeadSessionWaitsForNobodysEnd(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.start()
		p := b.running("a")
		b.atItsEnd(p, "STEP_SUCCESS")
		if _, err := b.ledger.DeclareDead(b.ctx, "i-1", "a mistake"); err != nil {
			t.Fatal(err)
		}
		before := time.Now()
		<-p.done
		if took := time.Since(before); took > b.cfg.Lifetimes.Renew+time.Second {
			t.Errorf("killed %s after the session's death", took)
		}
		b.expect("a", stepfleet.StateRunning)
	})
}

// The steps of an executor inside the run worker are not the run worker's own end.
func TestARunWorkerIsNotAtItsEndWhenAStepOfItsIs(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.serveRuns()
		b.start()
		p := b.runWorker(0)
		b.atItsEnd(p, "STEP_SUCCESS")
		b.cancel()
		<-p.signals
		asked := time.Now()
		<-p.done
		if took := time.Since(asked); took != b.cfg.RunKillGrace+time.Second {
			t.Errorf("killed %s after SIGTERM, want its grace of %s and a second", took, b.cfg.RunKillGrace)
		}
		b.expect(stepfleet.RunStepKey, stepfleet.StateCancelled)
	})
}

func TestAnAbortDuringADrainKillsAndEndsTheSession(t *testing.T) {
	for name, ledger := range map[string]error{"with the ledger": nil, "without the ledger": stepfleet.ErrUnavailable} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(b *bench) {
				abort := make(chan struct{})
				b.cfg.Abort = abort
				w := b.worker()
				ctx, stop := context.WithCancel(b.ctx)
				result := make(chan error, 1)
				go func() { result <- w.Run(ctx) }()
				p := b.running("a")
				stop()
				time.Sleep(time.Second)
				select {
				case <-p.done:
					t.Fatal("killed by the drain's begin")
				default:
				}
				b.fail(func(string) error { return ledger })
				before := time.Now()
				close(abort)
				if err := <-result; !errors.Is(err, worker.ErrAborted) {
					t.Errorf("Run: %v", err)
				}
				if took := time.Since(before); took > time.Second {
					t.Errorf("stopped %s after it was told to stop at once", took)
				}
				<-p.done
				b.fail(nil)
				if ledger != nil {
					return
				}
				sessions, err := b.ledger.Sessions(b.ctx, time.Hour)
				if err != nil || len(sessions) != 1 || sessions[0].State != stepfleet.SessionDead {
					t.Errorf("sessions %+v, %v", sessions, err)
				}
			})
		})
	}
}

func TestAnAbortBreaksOffACallThatHangs(t *testing.T) {
	inBubble(t, func(b *bench) {
		abort, renewals := make(chan struct{}), &hungRenewals{Ledger: b.ledger}
		b.cfg.Abort, b.renewals = abort, renewals
		w := b.worker()
		result := make(chan error, 1)
		go func() { result <- w.Run(b.ctx) }()
		p := b.running("a")
		renewals.hung.Store(true)
		time.Sleep(b.cfg.Lifetimes.Renew)
		synctest.Wait()
		before := time.Now()
		close(abort)
		if err := <-result; !errors.Is(err, worker.ErrAborted) {
			t.Errorf("Run: %v", err)
		}
		if took := time.Since(before); took > time.Second {
			t.Errorf("stopped %s after it was told to stop at once", took)
		}
		<-p.done
	})
}

func TestAnEventIsGrantedOnlyIfItsWriteIsOverWithTheRunLease(t *testing.T) {
	inBubble(t, func(b *bench) {
		lt := b.cfg.Lifetimes
		const grants = 15 * time.Second // of a TTL of 30
		b.cfg.StatementTimeout = lt.RunLease - lt.Margin - grants
		b.start()
		p := b.running("a")
		b.fail(func(string) error { return stepfleet.ErrUnavailable })
		time.Sleep(grants - 2*lt.Renew)
		b.atItsEnd(p, "STEP_OUTPUT")
		time.Sleep(2 * lt.Renew)
		wrote := make(chan error, 1)
		go func() { wrote <- p.gate.Event(b.ctx, "STEP_SUCCESS") }()
		synctest.Wait()
		select {
		case err := <-wrote:
			t.Fatalf("granted with %s of the run lease left, and a statement takes %s: %v", lt.RunLease-grants, b.cfg.StatementTimeout, err)
		default:
		}
		b.fail(nil)
		if err := <-wrote; err != nil {
			t.Errorf("the gate after a renewal: %v", err)
		}
	})
}

func TestAStatementTimeoutBeyondTheRunLeaseIsRefused(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.cfg.StatementTimeout = b.cfg.Lifetimes.RunLease
		if _, err := worker.New(b.cfg, worker.Ports{}); err == nil {
			t.Error("no event could ever be written")
		}
	})
}
