package postgres_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

func TestMain(m *testing.M) {
	// The server for tests lives as long as this process, on a goroutine of its own.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/stepfleet/stepfleet/internal/pglocal.startProcess.func1"))
}

func open(t testing.TB, dsn string, opts postgres.Options) *postgres.Ledger {
	t.Helper()
	l, err := postgres.Open(t.Context(), dsn, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// one returns a batch of one task of the run.
// one is a submission of one run worker, which needs no executor.
func one(runID, step string) stepfleet.Batch {
	payload := []byte(`{"run":"` + runID + `"}`)
	d := stepfleet.DigestOf(payload)
	key := stepfleet.Key{RunID: runID, StepKey: step}
	return stepfleet.Batch{
		RunID: runID, Identity: "id", Payloads: map[stepfleet.Digest][]byte{d: payload},
		Tasks: []stepfleet.Task{{
			V: stepfleet.TaskVersion, Kind: stepfleet.KindRun, Key: key, Op: "op", Job: "job",
			IdempotencyKey: key.IdempotencyKey(), Queue: stepfleet.DefaultQueue, CodeLocation: "loc", Payload: d,
		}},
	}
}

func TestLife(t *testing.T) {
	l := open(t, testenv.Migrated(t), postgres.Options{})
	ctx := t.Context()
	if err := l.Check(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Submit(ctx, one("r", "a")); err != nil {
		t.Fatal(err)
	}
	s, err := l.Register(ctx, stepfleet.SessionSpec{Worker: "w", Instance: "i", Slots: map[string]int{"default": 2}})
	if err != nil {
		t.Fatal(err)
	}
	claimed, err := l.Claim(ctx, stepfleet.ClaimRequest{Session: s.ID, Instance: s.Instance, ID: "c", Queue: "default", Max: 5})
	if err != nil || len(claimed.Leases) != 1 || len(claimed.Payloads) != 1 {
		t.Fatal(claimed, err)
	}
	ref := claimed.Leases[0].Ref
	if errs, err := l.Start(ctx, s.ID, []stepfleet.Ref{ref}); err != nil || errs[0] != nil {
		t.Fatal(errs, err)
	}
	end := stepfleet.Settlement{Ref: ref, Result: stepfleet.Result{V: 1, Success: true, Outcome: stepfleet.StateSucceeded}}
	if errs, err := l.Settle(ctx, s.ID, []stepfleet.Settlement{end}); err != nil || errs[0] != nil {
		t.Fatal(errs, err)
	}
	views, err := l.RunTasks(ctx, "r")
	if err != nil || len(views) != 1 || views[0].State != stepfleet.StateSucceeded || views[0].Result == nil {
		t.Fatal(views, err)
	}
	rows, err := l.Audit(ctx, "r")
	if err != nil || len(rows) != 4 {
		t.Fatal(rows, err)
	}
	if _, err := l.Beat(ctx, "srv"); err != nil {
		t.Fatal(err)
	}
	if lanes, err := l.Lanes(ctx); err != nil || len(lanes) != 1 {
		t.Fatal(lanes, err)
	}
}
