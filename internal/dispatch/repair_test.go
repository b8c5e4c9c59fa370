package dispatch_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
)

// orphan leaves a running step without an owner: its worker is proven dead now.
func (b *bench) orphan(run string) stepfleet.Key {
	b.t.Helper()
	b.submit(run, "a")
	b.claimAndStart(b.worker(1))
	if _, err := b.server.InstanceDead(b.ctx, "i", "killed"); err != nil {
		b.t.Fatal(err)
	}
	return stepfleet.Key{RunID: run, StepKey: "a"}
}

func (b *bench) want(run string, state stepfleet.State) stepfleet.View {
	b.t.Helper()
	v := b.state(run, "a")
	if v.State != state {
		b.t.Fatalf("the step is %s, want %s", v.State, state)
	}
	return v
}

func TestAnAttemptWhoseEndIsInTheLogIsRepaired(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.log.set(false, time.Hour) // an end that is there need not wait for others
		b.log.show(stepfleet.Key{RunID: "run-1", StepKey: "a"}, stepfleet.EventSuccess)
		b.orphan("run-1")
		time.Sleep(10 * time.Millisecond)
		v := b.want("run-1", stepfleet.StateSucceeded)
		if v.Result == nil || v.Result.Event != stepfleet.EventSuccess || !strings.Contains(v.Reason, stepfleet.EventSuccess) {
			t.Errorf("%+v", v)
		}
	})
}

func TestAnEventUnderWayIsWaitedFor(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.log.set(false, 400*time.Millisecond)
		key := b.orphan("run-1")
		time.Sleep(200 * time.Millisecond)
		b.want("run-1", stepfleet.StateRunning)
		b.log.show(key, stepfleet.EventFailure)
		time.Sleep(150 * time.Millisecond)
		b.want("run-1", stepfleet.StateFailed)
	})
}

func TestALostAttemptWithProofOfDeathIsDecidedWithinASecond(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.log.set(false, 400*time.Millisecond)
		b.orphan("run-1")
		time.Sleep(600 * time.Millisecond)
		b.want("run-1", stepfleet.StateLost)
	})
}

// A statement that waits behind a lock may take as long as its worker lets it.
func TestAWriteIsWaitedForAsLongAsAStatementMayTake(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.log.set(false, time.Hour)
		key := b.orphan("run-1")
		lt := stepfleet.DefaultLifetimes()
		longest := lt.RunLease - lt.SessionTTL
		if err := lt.ValidateStatements(longest); err != nil || lt.ValidateStatements(longest+1) == nil {
			t.Fatalf("%s is not the longest statement: %v", longest, err)
		}
		time.Sleep(longest)
		b.log.show(key, stepfleet.EventSuccess)
		time.Sleep(time.Second)
		b.want("run-1", stepfleet.StateSucceeded)
	})
}

func TestWritesThatNeverEndAreNotWaitedForForEver(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.log.set(false, time.Hour)
		b.orphan("run-1")
		lease := stepfleet.DefaultLifetimes().RunLease
		time.Sleep(lease)
		b.want("run-1", stepfleet.StateRunning)
		time.Sleep(6 * time.Second)
		if v := b.want("run-1", stepfleet.StateLost); !strings.Contains(v.Reason, "under way") {
			t.Errorf("reason %q", v.Reason)
		}
	})
}

func TestAVerdictWaitsForALogThatIsAway(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.log.set(true, 0)
		key := b.orphan("run-1")
		time.Sleep(time.Hour)
		b.want("run-1", stepfleet.StateRunning)
		b.log.show(key, stepfleet.EventRetry)
		b.log.set(false, 0)
		time.Sleep(2 * time.Second)
		b.want("run-1", stepfleet.StateFailed)
	})
}

// Liveness must not need a webserver.
func TestAVerdictWaitsForAWebserverWithPatience(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.log.set(true, 0)
		if holds, err := b.ledger.TakeDuty(b.ctx, "repair", "patient", 10*time.Minute); err != nil || !holds {
			t.Fatal(holds, err)
		}
		_, stop := b.startServer("patient", time.Minute)
		defer stop()
		b.orphan("run-1")
		time.Sleep(55 * time.Second)
		b.want("run-1", stepfleet.StateRunning)
		time.Sleep(10 * time.Second)
		if v := b.want("run-1", stepfleet.StateLost); !strings.Contains(v.Reason, "could not be asked") {
			t.Errorf("reason %q", v.Reason)
		}
	})
}

func TestARunWorkerIsNotLookedForInTheLog(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.log.set(true, 0)
		b.submitRunWorker("run-1")
		b.claimAndStartFrom(stepfleet.RunsQueue, b.worker(1))
		if _, err := b.server.InstanceDead(b.ctx, "i", "killed"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		if v := b.state("run-1", stepfleet.RunStepKey); v.State != stepfleet.StateLost {
			t.Errorf("the run worker is %s", v.State)
		}
	})
}

func TestAnAbandonedTaskIsDecided(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.log.show(stepfleet.Key{RunID: "run-1", StepKey: "a"}, stepfleet.EventSuccess)
		b.submit("run-1", "a")
		session := b.worker(1)
		ref := b.claimAndStart(session)
		if errs, err := b.ledger.Abandon(b.ctx, session, []stepfleet.Ref{ref}, 42, "killed in its last write"); err != nil || errs[0] != nil {
			t.Fatal(errs, err)
		}
		time.Sleep(1100 * time.Millisecond)
		b.want("run-1", stepfleet.StateSucceeded)
	})
}

// Of two replicas one asks and acts.
func TestOfTwoServersOneActs(t *testing.T) {
	inBubble(t, func(b *bench) {
		_, stop := b.startServer("s2", 0)
		defer stop()
		b.submitRunWorker("run-1")
		session := b.worker(2)
		worker := b.claimAndStartFrom(stepfleet.RunsQueue, session)
		b.terminate("run-1")
		time.Sleep(20 * time.Second) // both look
		b.gone(session, worker)
		time.Sleep(time.Minute)
		b.wantMarked("run-1")
		b.log.set(true, 0)
		b.orphan("run-2")
		time.Sleep(30 * time.Second)
		b.log.mu.Lock()
		asked := b.log.asked
		b.log.mu.Unlock()
		if asked > 32 {
			t.Errorf("the log was asked %d times in 30 s", asked)
		}
		b.log.set(false, 0)
		time.Sleep(2 * time.Second)
		b.want("run-2", stepfleet.StateLost)
	})
}

func TestADutyOutlivesNoServer(t *testing.T) {
	inBubble(t, func(b *bench) {
		if holds, err := b.ledger.TakeDuty(b.ctx, "repair", "killed", 5*time.Second); err != nil || !holds {
			t.Fatal(holds, err)
		}
		b.orphan("run-1")
		time.Sleep(4 * time.Second)
		b.want("run-1", stepfleet.StateRunning)
		time.Sleep(3 * time.Second)
		b.want("run-1", stepfleet.StateLost)
	})
}
