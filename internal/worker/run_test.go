package worker_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/memory"
)

// serveRuns gives the worker slots for run workers, and what they need.
func (b *bench) serveRuns() {
	b.bells = memory.NewBells("default", "runs")
	b.cfg.Spec.Slots = map[string]int{"default": 2, "runs": 2}
	b.cfg.RunKillGrace = 20 * time.Second
	b.cfg.RunEnv = map[string]string{"STEPFLEET_TOKEN": "secret"}
}

// runWorker submits a run worker and brings it past its start.
func (b *bench) runWorker(resumes int) *scriptedProcess {
	b.t.Helper()
	payload := []byte(`{"run":1}`)
	key := stepfleet.Key{RunID: "run-1", StepKey: stepfleet.RunStepKey}
	_, err := b.ledger.Submit(b.ctx, stepfleet.Batch{
		RunID: "run-1", Identity: "id", Payloads: map[stepfleet.Digest][]byte{stepfleet.DigestOf(payload): payload},
		Tasks: []stepfleet.Task{{
			V: stepfleet.TaskVersion, Kind: stepfleet.KindRun, Key: key, Job: "job",
			IdempotencyKey: key.IdempotencyKey(), Queue: "runs", Payload: stepfleet.DigestOf(payload),
			RetryBudget: stepfleet.RetryBudget{LostStepRetries: resumes},
		}},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.bells.Ring(b.ctx, "runs", 1); err != nil {
		b.t.Fatal(err)
	}
	p := b.next()
	b.begin(p)
	return p
}

func TestOnlyRunWorkersGetWhatTheServerAsksFor(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.serveRuns()
		stop := b.start()
		run, step := b.runWorker(0), b.running("a")
		if env := run.job.Env; env["STEPFLEET_TOKEN"] != "secret" || env["STEPFLEET_STEP_KEY"] != stepfleet.RunStepKey {
			t.Errorf("the run worker's environment: %v", env)
		}
		if _, has := step.job.Env["STEPFLEET_TOKEN"]; has {
			t.Error("a step's process gets the token")
		}
		run.succeed()
		step.succeed()
		stop()
	})
}

func TestACancelledRunWorkerHasAGraceOfItsOwn(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.serveRuns()
		b.start()
		p := b.runWorker(0)
		if _, err := b.ledger.Cancel(b.ctx, "run-1", 0, nil, "asked"); err != nil {
			t.Fatal(err)
		}
		<-p.signals
		asked := time.Now()
		<-p.done
		if took := time.Since(asked); took != b.cfg.RunKillGrace+time.Second { // of SIGINT
			t.Errorf("killed %s after SIGTERM, want %s and a second", took, b.cfg.RunKillGrace)
		}
		b.expect(stepfleet.RunStepKey, stepfleet.StateCancelled)
	})
}

// Dagster resumes no run that is STARTING.
func TestARunWorkerThatIsStruckBeforeItSaysAnythingIsStartedAnew(t *testing.T) {
	struck, crashed := stepfleet.Exit{Status: -9}, stepfleet.Exit{Status: 1}
	for name, c := range map[string]struct {
		exit     stepfleet.Exit
		launches int
		end      stepfleet.State
		before   func(b *bench, p *scriptedProcess)
	}{
		"struck once":   {exit: struck, launches: 2, end: stepfleet.StateSucceeded},
		"struck always": {exit: struck, launches: 5, end: stepfleet.StateFailed},
		"by itself":     {exit: crashed, launches: 1, end: stepfleet.StateFailed},
		"after an event": {exit: struck, launches: 1, end: stepfleet.StateFailed, before: func(b *bench, p *scriptedProcess) {
			if err := p.gate.Event(b.ctx, "PIPELINE_START"); err != nil {
				t.Error(err)
			}
		}},
		"cancelled": {exit: struck, launches: 1, end: stepfleet.StateCancelled, before: func(b *bench, p *scriptedProcess) {
			if _, err := b.ledger.Cancel(b.ctx, "run-1", 0, nil, "asked"); err != nil {
				t.Error(err)
			}
			<-p.signals
		}},
		"without another process": {exit: struck, launches: 1, end: stepfleet.StateFailed, before: func(b *bench, _ *scriptedProcess) {
			b.host.setFail(errors.New("no template"))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(b *bench) {
				b.serveRuns()
				b.start()
				p := b.runWorker(3)
				for range c.launches - 1 {
					p.end(c.exit)
					p = b.next()
					b.begin(p)
				}
				if c.before != nil {
					c.before(b, p)
				}
				if c.end == stepfleet.StateSucceeded {
					p.succeed()
				} else {
					p.end(c.exit)
				}
				time.Sleep(10 * time.Second) // longer than any launch waits
				if synctest.Wait(); len(b.host.began) > 0 {
					t.Errorf("%d more launches than %d", len(b.host.began), c.launches)
				}
				b.expect(stepfleet.RunStepKey, c.end)
				if view := b.view(stepfleet.RunStepKey); view.Fence != 1 {
					t.Errorf("fence %d, want the one of its claim", view.Fence)
				}
			})
		})
	}
}

// begin has a process ask for its start.
func (b *bench) begin(p *scriptedProcess) {
	b.t.Helper()
	if err := p.gate.Start(b.ctx); err != nil {
		b.t.Fatal(err)
	}
}

func TestADrainHandsOverTheRunsThatWillBeResumed(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.serveRuns()
		stop := b.start()
		p, step := b.runWorker(1), b.running("a")
		began := time.Now()
		go func() {
			<-p.signals
			if after := time.Since(began); after != 20*time.Second {
				t.Errorf("asked to leave %s after the drain began, want 20s: 10s before its end", after)
			}
			// It leaves its run without an end.
			p.end(stepfleet.Exit{Result: &stepfleet.Result{V: 1, Outcome: stepfleet.StateFailed}})
			step.succeed()
		}()
		stop()
		b.expect(stepfleet.RunStepKey, stepfleet.StateLost)
		if r := b.view(stepfleet.RunStepKey).Result; r == nil || r.Error == nil || r.Error.Code != "drained" {
			t.Errorf("result %+v, want drained", r)
		}
		if len(step.signals) > 0 {
			t.Error("the step was asked to stop as well")
		}
		b.expect("a", stepfleet.StateSucceeded)
	})
}

func TestADrainLetsARunThatNobodyResumesGoOn(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.serveRuns()
		stop := b.start()
		p := b.runWorker(0)
		go func() {
			time.Sleep(b.cfg.DrainTimeout - time.Second)
			p.succeed()
		}()
		stop()
		synctest.Wait()
		if len(p.signals) > 0 {
			t.Error("it was asked to leave")
		}
		b.expect(stepfleet.RunStepKey, stepfleet.StateSucceeded)
	})
}
