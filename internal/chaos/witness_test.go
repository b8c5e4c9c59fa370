package chaos

import (
	"syscall"
	"testing"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// What the verifier is given of the ledger is all of it, and says whose process was killed.
func TestTheLedgerIsReadWhole(t *testing.T) {
	ctx, dsn := t.Context(), testenv.Migrated(t)
	l, err := postgres.Open(ctx, dsn, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, run := range []string{"killed", "queued"} {
		epoch, err := l.TakeEpoch(ctx, run, stepfleet.Executor{Name: "test"}, "")
		must(err)
		key, payload := stepfleet.Key{RunID: run, StepKey: "a"}, []byte("{}")
		_, err = l.Submit(ctx, stepfleet.Batch{
			RunID: run, Epoch: epoch, Identity: "id", Payloads: map[stepfleet.Digest][]byte{stepfleet.DigestOf(payload): payload},
			Tasks: []stepfleet.Task{{
				V: stepfleet.TaskVersion, Kind: stepfleet.KindStep, Key: key, Op: "a", Job: "job",
				IdempotencyKey: key.IdempotencyKey(), Queue: stepfleet.DefaultQueue, Payload: stepfleet.DigestOf(payload),
			}},
		})
		must(err)
	}
	s, err := l.Register(ctx, stepfleet.SessionSpec{Worker: "w"})
	must(err)
	got, err := l.Claim(ctx, stepfleet.ClaimRequest{Session: s.ID, Instance: s.Instance, ID: "c", Queue: stepfleet.DefaultQueue, Max: 1})
	must(err)
	ref := got.Leases[0].Ref
	_, err = l.Start(ctx, s.ID, []stepfleet.Ref{ref})
	must(err)
	_, err = l.Settle(ctx, s.ID, []stepfleet.Settlement{{Ref: ref, Result: stepfleet.Result{
		V: stepfleet.TaskVersion, Outcome: stepfleet.StateFailed, Outputs: []string{}, ExitCode: -int(syscall.SIGKILL),
		Error: &stepfleet.Failure{Code: "process_died", Message: "\x00"},
	}}})
	must(err)
	must(l.EndSession(ctx, s.ID, s.Instance, "over"))

	w := &witnesses{hurt: map[string]bool{}}
	must(w.readLedger(ctx, dsn))
	if len(w.audit) != 7 || len(w.tasks) != 2 || len(w.sessions) != 1 || w.sessions[0].State != stepfleet.SessionDead {
		t.Errorf("audit %+v, tasks %+v, sessions %+v", w.audit, w.tasks, w.sessions)
	}
	if !w.hurt["killed"] || len(w.hurt) != 1 {
		t.Errorf("killed: %v", w.hurt)
	}
}
