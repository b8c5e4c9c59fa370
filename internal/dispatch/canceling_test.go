package dispatch_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
)

// submitRunWorker submits the run's run worker, as its launcher does.
func (b *bench) submitRunWorker(run string) {
	b.t.Helper()
	batch := batchOf(run, stepfleet.RunStepKey)
	batch.Epoch = stepfleet.NoExecutor
	batch.Tasks[0].Kind, batch.Tasks[0].Queue = stepfleet.KindRun, stepfleet.RunsQueue
	if _, err := b.server.Submit(b.ctx, batch); err != nil {
		b.t.Fatal(err)
	}
}

// terminate cancels the run as its launcher does.
func (b *bench) terminate(run string) {
	b.t.Helper()
	b.cancel(run)
	keys := []stepfleet.Key{{RunID: run, StepKey: stepfleet.RunStepKey}}
	if _, err := b.server.Cancel(b.ctx, run, stepfleet.NoExecutor, keys, "asked"); err != nil {
		b.t.Fatal(err)
	}
}

// gone settles a task as its worker does once the process is gone.
func (b *bench) gone(session stepfleet.SessionID, ref stepfleet.Ref) {
	b.t.Helper()
	errs, err := b.ledger.Settle(b.ctx, session, []stepfleet.Settlement{{Ref: ref, Result: stepfleet.Result{
		V: stepfleet.TaskVersion, Outcome: stepfleet.StateCancelled, Outputs: []string{},
	}}})
	if err != nil || errs[0] != nil {
		b.t.Fatalf("settle: %v %v", errs, err)
	}
}

func (b *bench) wantMarked(runs ...string) time.Time {
	b.t.Helper()
	got, at := b.marks()
	if !slices.Equal(got, runs) {
		b.t.Fatalf("marked as canceled: %v, want %v", got, runs)
	}
	return at
}

func (b *bench) state(run, step string) stepfleet.View {
	b.t.Helper()
	views, err := b.ledger.RunTasks(b.ctx, run)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, v := range views {
		if v.StepKey == step {
			return v
		}
	}
	b.t.Fatalf("run %s has no task %s", run, step)
	return stepfleet.View{}
}

// What a killed, dead or frozen run worker leaves behind.
func TestACancelledRunWhoseRunWorkerIsGoneIsEnded(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.submitRunWorker("run-1")
		session := b.worker(2)
		worker := b.claimAndStartFrom(stepfleet.RunsQueue, session)
		b.submit("run-1", "runs", "waits")
		step := b.claimAndStart(session)
		time.Sleep(4 * time.Second) // between two looks that nobody asked for
		b.terminate("run-1")
		time.Sleep(time.Minute) // it does not answer to SIGTERM
		b.wantMarked()
		if v := b.state("run-1", "waits"); v.State != stepfleet.StateQueued {
			t.Errorf("a step is %s while the run worker may still cancel it", v.State)
		}
		b.gone(session, worker)
		time.Sleep(2 * time.Second)
		if v := b.state("run-1", "waits"); v.State != stepfleet.StateCancelled {
			t.Errorf("a waiting step is %s after the run worker's end", v.State)
		}
		if v := b.state("run-1", "runs"); !v.CancelRequested {
			t.Error("a running step was not told to stop")
		}
		time.Sleep(time.Minute) // the step's worker does not answer
		b.wantMarked()
		ended := time.Now()
		b.gone(session, step)
		time.Sleep(time.Minute)
		if took := b.wantMarked("run-1").Sub(ended); took < 3*time.Second || took > 6*time.Second {
			t.Errorf("marked %s after the end of the last process, want the grace of 3 s and a look or two", took)
		}
		if _, err := b.server.Submit(b.ctx, batchOf("run-1", "late")); err == nil {
			t.Error("the run is still open")
		}
	})
}

func TestACancelIsLookedAfterWithoutWaitingForTheNextLook(t *testing.T) {
	inBubble(t, func(b *bench) {
		time.Sleep(time.Second)
		b.submitRunWorker("run-1")
		session := b.worker(1)
		worker := b.claimAndStartFrom(stepfleet.RunsQueue, session)
		began := time.Now()
		b.terminate("run-1")
		b.gone(session, worker)
		time.Sleep(time.Minute)
		if took := b.wantMarked("run-1").Sub(began); took > 6*time.Second {
			t.Errorf("marked %s after the cancel", took)
		}
	})
}

// The grace is for the run worker's own RUN_CANCELED, and for that of a launcher that found none.
func TestACancelledRunThatEndsByItselfIsLeftAlone(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.submitRunWorker("run-1")
		session := b.worker(1)
		worker := b.claimAndStartFrom(stepfleet.RunsQueue, session)
		b.terminate("run-1")
		b.gone(session, worker)
		time.Sleep(2500 * time.Millisecond) // what it wrote becomes visible late
		b.end("run-1")
		time.Sleep(time.Minute)
		b.wantMarked()
	})
}

func TestACancelledRunThatAnotherLauncherCarriesIsLeftAlone(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.submit("run-1", "a")
		b.cancel("run-1")
		b.cancel("run-of-which-the-ledger-knows-nothing")
		time.Sleep(time.Minute)
		b.wantMarked()
		if v := b.state("run-1", "a"); v.State != stepfleet.StateQueued {
			t.Errorf("its step is %s", v.State)
		}
		if n := b.questions(); n > 7 {
			t.Errorf("Dagster was asked %d times in a minute although no run of ours is being cancelled", n)
		}
	})
}

// The launcher could not reach the server, or died over its cancel.
func TestARunWorkerThatTheLauncherCouldNotCancelIsCancelled(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.submitRunWorker("waits")
		b.cancel("waits")
		session := b.worker(1)
		time.Sleep(12 * time.Second)
		if v := b.state("waits", stepfleet.RunStepKey); v.State != stepfleet.StateCancelled {
			t.Fatalf("a waiting run worker is %s", v.State)
		}
		time.Sleep(6 * time.Second)
		b.wantMarked("waits")

		b.submitRunWorker("runs")
		worker := b.claimAndStartFrom(stepfleet.RunsQueue, session)
		b.cancel("runs")
		time.Sleep(time.Minute)
		if v := b.state("runs", stepfleet.RunStepKey); !v.CancelRequested {
			t.Fatal("a running run worker was not told to stop")
		}
		b.wantMarked("waits")
		b.gone(session, worker)
		time.Sleep(6 * time.Second)
		b.wantMarked("waits", "runs")
	})
}

// The executor closes its run before it ends it in Dagster.
func TestACancelledRunThatItsExecutorClosedIsEnded(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.submitRunWorker("run-1")
		session := b.worker(1)
		worker := b.claimAndStartFrom(stepfleet.RunsQueue, session)
		b.submit("run-1", "a")
		b.terminate("run-1")
		if _, err := b.server.CloseRun(b.ctx, "run-1", 1, "interrupted"); err != nil {
			t.Fatal(err)
		}
		b.gone(session, worker)
		time.Sleep(10 * time.Second)
		b.wantMarked("run-1")
	})
}

func TestACancelledRunIsEndedAfterAnOutage(t *testing.T) {
	for _, who := range []string{"Dagster", "ledger"} {
		t.Run(who, func(t *testing.T) {
			inBubble(t, func(b *bench) {
				b.submitRunWorker("run-1")
				session := b.worker(1)
				worker := b.claimAndStartFrom(stepfleet.RunsQueue, session)
				b.terminate("run-1")
				b.gone(session, worker)
				time.Sleep(2 * time.Second)
				away := b.leave
				if who == "ledger" {
					away = b.down.Store
				}
				away(true)
				time.Sleep(10 * time.Minute)
				b.wantMarked()
				away(false)
				time.Sleep(20 * time.Second)
				b.wantMarked("run-1")
			})
		})
	}
}
