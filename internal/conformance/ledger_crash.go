package conformance

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
)

const (
	crashes = 3
	// crashAfter is for how long the ledger is at work before it crashes: answers that came before their
	// commits were safe would by now be some that are, and many that are not.
	crashAfter = 300 * time.Millisecond
)

// CrashLedger crashes the ledger while it is at work, a few times. What it had answered must be there
// afterwards. The function begins to crash it and returns one that makes it whole again, once calls fail.
func CrashLedger(t *testing.T, env LedgerEnv, crash func() (heal func() LedgerEnv)) {
	f := &fixture{T: t, LedgerEnv: env, ctx: t.Context(), runs: map[string]bool{}, epochs: map[string]stepfleet.Epoch{}, instances: map[stepfleet.SessionID]string{}}
	answered := map[stepfleet.TaskID]stepfleet.State{}
	for round := range crashes {
		run, s, before := fmt.Sprint("crash-", round), f.session(), len(answered)
		f.speak(run)
		healer := make(chan func() LedgerEnv, 1)
		time.AfterFunc(crashAfter, func() { healer <- crash() })
		f.workUntilCrash(run, s, answered)
		f.LedgerEnv = (<-healer)()
		if len(answered) == before {
			t.Fatal("nothing was answered before the crash")
		}
		for id, state := range answered {
			if views, err := f.Ledger.Tasks(f.ctx, []stepfleet.TaskID{id}); err != nil || len(views) != 1 || views[0].State != state {
				t.Fatalf("task %d was answered to be %s; after crash %d there is %+v, %v", id, state, round+1, views, err)
			}
		}
	}
	f.checkHistories()
}

// workUntilCrash submits steps, of which it starts one in ten, and one in ten it ends: those commits make safe
// what came before them. It notes what was answered; a task about which a question is open is not in the notes.
func (f *fixture) workUntilCrash(run string, s stepfleet.SessionID, answered map[stepfleet.TaskID]stepfleet.State) {
	for n := 0; ; n++ {
		lane := fmt.Sprint(run, "-", n)
		t := task(run, lane)
		t.Queue = lane
		b := batch(run, t)
		b.Epoch = f.epochs[run]
		receipts, err := f.Ledger.Submit(f.ctx, b)
		if f.crashed(err) {
			return
		}
		id := receipts[0].TaskID
		answered[id] = stepfleet.StateQueued
		if n%10 > 1 {
			continue
		}
		delete(answered, id)
		claimed, err := f.Ledger.Claim(f.ctx, stepfleet.ClaimRequest{Session: s, Instance: f.instances[s], ID: lane, Queue: lane, Max: 1})
		if f.crashed(err) {
			return
		}
		ref := claimed.Leases[0].Ref
		if _, err := f.Ledger.Start(f.ctx, s, []stepfleet.Ref{ref}); f.crashed(err) {
			return
		}
		if n%10 == 1 {
			answered[id] = stepfleet.StateRunning
			continue
		}
		end := stepfleet.Settlement{Ref: ref, Result: result(stepfleet.StateSucceeded)}
		if _, err := f.Ledger.Settle(f.ctx, s, []stepfleet.Settlement{end}); f.crashed(err) {
			return
		}
		answered[id] = stepfleet.StateSucceeded
	}
}

// crashed says whether the error is that of a ledger that is not there.
func (f *fixture) crashed(err error) bool {
	f.Helper()
	if err != nil && !errors.Is(err, stepfleet.ErrUnavailable) {
		f.Fatal(err)
	}
	return err != nil
}
