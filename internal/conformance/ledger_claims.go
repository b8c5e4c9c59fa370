package conformance

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/stepfleet/stepfleet"
)

func steps(c stepfleet.Claimed) []string {
	var out []string
	for _, l := range c.Leases {
		out = append(out, l.RunID+"/"+l.StepKey)
	}
	return out
}

var claimExamples = map[string]func(*fixture){
	"a claim raises the fence and hands over the task": func(f *fixture) {
		s := f.session()
		lease := f.lease(s)
		if lease.Fence != 1 {
			f.Fatalf("fence %d", lease.Fence)
		}
		if diff := cmp.Diff(task(lease.RunID, "a"), lease.Task); diff != "" {
			f.Fatal(diff)
		}
		v := f.inState(lease.TaskID, stepfleet.StateLeased, 1)
		if v.Session != s || v.Worker != "worker-1" || v.ClaimedAt.Before(v.SubmittedAt) {
			f.Fatalf("%+v", v)
		}
	},
	"claims go by priority, then turn, then age": func(f *fixture) {
		b := batch("r", task("r", "low"), task("r", "old"), task("r", "new"), task("r", "high"))
		b.Tasks[0].Priority, b.Tasks[3].Priority = -5, 7
		f.submitBatch(b)
		got := f.claim(f.session(), 9)
		if diff := cmp.Diff([]string{"r/high", "r/old", "r/new", "r/low"}, steps(got)); diff != "" {
			f.Fatal(diff)
		}
	},
	"a high priority submitted late is claimed before all that waits": func(f *fixture) {
		var many []string
		for i := range 30 {
			many = append(many, fmt.Sprint(i))
		}
		f.submit("backfill", many...)
		s := f.session()
		f.claim(s, 10)
		b := batch("urgent", task("urgent", "a"), task("urgent", "b"), task("urgent", "c"))
		for i := range b.Tasks {
			b.Tasks[i].Priority = 1
		}
		f.submitBatch(b)
		want := []string{"urgent/a", "urgent/b", "urgent/c", "backfill/10"}
		if diff := cmp.Diff(want, steps(f.claim(s, 4))); diff != "" {
			f.Fatal(diff)
		}
	},
	"a run of 3 gets its first turn within one claim of each slot of a backfill of 1000": func(f *fixture) {
		const slots = 4
		var many []string
		for i := range 1000 {
			many = append(many, fmt.Sprint(i))
		}
		f.submit("backfill", many...)
		s := f.session()
		f.claim(s, slots) // what runs when the small run comes
		f.submit("small", "a", "b", "c")
		var order []string
		for range 2 * slots { // a slot frees, a claim fills it
			order = append(order, steps(f.claim(s, 1))...)
		}
		var small []int
		for i, step := range order {
			if strings.HasPrefix(step, "small/") {
				small = append(small, i)
			}
		}
		if len(small) != 3 || small[0] >= slots {
			f.Fatalf("claims in order: %v", order)
		}
	},
	"a small run is not starved by a large one": func(f *fixture) {
		var many []string
		for i := range 50 {
			many = append(many, fmt.Sprint(i))
		}
		f.submit("backfill", many...)
		s := f.session()
		f.claim(s, 10)
		f.submit("small", "a", "b", "c")
		got := steps(f.claim(s, 6))
		small := slices.DeleteFunc(got, func(s string) bool { return !strings.HasPrefix(s, "small/") })
		if len(small) != 3 {
			f.Fatalf("the next six claims have %d of the small run's steps", len(small))
		}
	},
	"more says that further rows wait": func(f *fixture) {
		f.submit("r", "a", "b", "c")
		s := f.session()
		for _, step := range []struct {
			most, got int
			more      bool
		}{{0, 0, true}, {2, 2, true}, {1, 1, false}, {1, 0, false}} {
			c := f.claim(s, step.most)
			if len(c.Leases) != step.got || c.More != step.more {
				f.Fatalf("claim of %d: %d leases, more %t", step.most, len(c.Leases), c.More)
			}
		}
	},
	"queues are apart": func(f *fixture) {
		b := batch("r", task("r", "a"), task("r", "b"))
		b.Tasks[1].Queue = "gpu"
		f.submitBatch(b)
		s := f.session()
		if got := f.claim(s, 9); len(got.Leases) != 1 || got.More {
			f.Fatalf("%+v", got)
		}
		got, err := f.Ledger.Claim(f.ctx, stepfleet.ClaimRequest{Session: s, Instance: f.instances[s], ID: "gpu", Queue: "gpu", Max: 9})
		if err != nil || len(got.Leases) != 1 || got.Leases[0].StepKey != "b" {
			f.Fatalf("%+v %v", got, err)
		}
	},
	"a session leaves the tasks of code locations that it cannot run to others": func(f *fixture) {
		b := batch("r", task("r", "broken"), task("r", "works"), task("r", "broken too"), task("r", "nowhere"))
		b.Tasks[0].CodeLocation, b.Tasks[2].CodeLocation, b.Tasks[3].CodeLocation = "shop", "bank", ""
		f.submitBatch(b)
		claim := func(most int, except ...string) stepfleet.Claimed {
			s := f.session()
			got, err := f.Ledger.Claim(f.ctx, stepfleet.ClaimRequest{
				Session: s, Instance: f.instances[s], ID: "picky", Queue: queue, Max: most, Except: except,
			})
			f.must(err)
			return got
		}
		got := claim(1, "shop", "bank", "odd \x00 name")
		if diff := cmp.Diff([]string{"r/works"}, steps(got)); diff != "" || !got.More {
			f.Fatalf("more %t, %s", got.More, diff)
		}
		got = claim(9, "shop", "bank")
		if diff := cmp.Diff([]string{"r/nowhere"}, steps(got)); diff != "" || got.More {
			f.Fatalf("more %t, %s", got.More, diff)
		}
		if got = claim(9, "shop", "bank"); len(got.Leases) != 0 || got.More {
			f.Fatalf("what it cannot run does not call it back: %+v", got)
		}
		if diff := cmp.Diff([]string{"r/broken", "r/broken too"}, steps(claim(9))); diff != "" {
			f.Fatal(diff)
		}
	},
	"arguments that tasks share come once": func(f *fixture) {
		f.submit("r", "a", "b", "c")
		if got := f.claim(f.session(), 3); len(got.Leases) != 3 || len(got.Payloads) != 1 {
			f.Fatalf("%+v", got)
		}
	},
	"only an alive session claims": func(f *fixture) {
		f.submit("r", "a")
		s := f.session()
		try := func() error {
			_, err := f.Ledger.Claim(f.ctx, stepfleet.ClaimRequest{Session: s, Instance: f.instances[s], ID: "x", Queue: queue, Max: 1})
			return err
		}
		f.suspect(s)
		f.refused(try(), stepfleet.ErrSessionSuspect)
		f.dead(s)
		f.refused(try(), stepfleet.ErrSessionDead)
		s = 4711
		f.refused(try(), stepfleet.ErrSessionDead)
	},
	"a draining session claims nothing": func(f *fixture) {
		f.submit("r", "a")
		s := f.session()
		f.must(f.drain(s))
		if got := f.claim(s, 1); len(got.Leases) != 0 {
			f.Fatalf("%+v", got)
		}
		f.must(f.end(s, "done"))
		f.refused(f.drain(s), stepfleet.ErrSessionDead)
	},
	"a renewal tells what is held and revives a suspect session": func(f *fixture) {
		s := f.session()
		lease := f.lease(s)
		f.suspect(s)
		r, err := f.renew(s)
		f.must(err)
		want := stepfleet.Renewal{Was: stepfleet.SessionSuspect, Held: []stepfleet.Held{
			{TaskID: lease.TaskID, Fence: 1, State: stepfleet.StateLeased},
		}}
		if diff := cmp.Diff(want, r); diff != "" {
			f.Fatal(diff)
		}
		if r, err = f.renew(s); err != nil || r.Was != stepfleet.SessionAlive {
			f.Fatalf("%+v %v", r, err)
		}
		f.must(f.start(s, lease.Ref))
	},
	"a session is renewed by no other instance": func(f *fixture) {
		s := f.session()
		lease := f.lease(s)
		f.suspect(s)
		for _, instance := range []string{"another", ""} {
			r, err := f.Ledger.Renew(f.ctx, s, instance)
			f.refused(err, stepfleet.ErrSessionDead)
			if len(r.Held) != 0 {
				f.Fatalf("another's tasks are told: %+v", r)
			}
		}
		f.refused(f.start(s, lease.Ref), stepfleet.ErrSessionSuspect) // it was not revived
		if r, err := f.renew(s); err != nil || len(r.Held) != 1 {
			f.Fatalf("%+v %v", r, err)
		}
	},
	"a session claims for no other instance, and is drained and ended by none": func(f *fixture) {
		s := f.session()
		f.submit("r", "a")
		for _, instance := range []string{"another", ""} {
			got, err := f.Ledger.Claim(f.ctx, stepfleet.ClaimRequest{Session: s, Instance: instance, ID: "x", Queue: queue, Max: 1})
			f.refused(err, stepfleet.ErrSessionDead)
			if len(got.Leases) != 0 {
				f.Fatalf("claimed for another: %+v", got)
			}
			f.refused(f.Ledger.SetDraining(f.ctx, s, instance), stepfleet.ErrSessionDead)
			f.must(f.Ledger.EndSession(f.ctx, s, instance, "another's"))
		}
		if got := f.claim(s, 1); len(got.Leases) != 1 { // alive, and not draining
			f.Fatalf("%+v", got)
		}
	},
	"dead is for ever": func(f *fixture) {
		s := f.session()
		f.must(f.end(s, "bye"))
		f.must(f.end(s, "again"))
		f.must(f.end(4711, "nobody"))
		_, err := f.renew(s)
		f.refused(err, stepfleet.ErrSessionDead)
		_, err = f.Ledger.Renew(f.ctx, 4711, "nobody")
		f.refused(err, stepfleet.ErrSessionDead)
		all, err := f.Ledger.Sessions(f.ctx, lives.RunLease)
		if err != nil || len(all) != 1 || all[0].State != stepfleet.SessionDead || all[0].EndReason != "bye" {
			f.Fatalf("%+v %v", all, err)
		}
	},
}

var ownerExamples = map[string]func(*fixture){
	"a task starts once, and asking again is no error": func(f *fixture) {
		s := f.session()
		lease := f.lease(s)
		for range 2 {
			f.must(f.start(s, lease.Ref))
		}
		if v := f.inState(lease.TaskID, stepfleet.StateRunning, 1); v.StartedAt.Before(v.ClaimedAt) {
			f.Fatalf("%+v", v)
		}
	},
	"start is refused to all but the owner": func(f *fixture) {
		s, other := f.session(), f.session()
		lease := f.lease(s)
		f.refused(f.start(other, lease.Ref), stepfleet.ErrFenced)
		for _, ref := range []stepfleet.Ref{{TaskID: lease.TaskID, Fence: 0}, {TaskID: lease.TaskID, Fence: 2}, {TaskID: 4711, Fence: 1}} {
			f.refused(f.start(s, ref), stepfleet.ErrFenced)
		}
		f.suspect(s)
		f.refused(f.start(s, lease.Ref), stepfleet.ErrSessionSuspect)
		f.dead(s)
		f.refused(f.start(s, lease.Ref), stepfleet.ErrSessionDead)
		want := []string{"fenced", "fenced", "fenced", "session_suspect", "session_dead"}
		if diff := cmp.Diff(want, f.refusals(lease.RunID, stepfleet.VerbStart)); diff != "" {
			f.Fatal(diff)
		}
	},
	"a cancelled task does not start": func(f *fixture) {
		s := f.session()
		lease := f.lease(s)
		_, err := f.Ledger.Cancel(f.ctx, lease.RunID, stepfleet.NoExecutor, nil, "asked")
		f.must(err)
		f.refused(f.start(s, lease.Ref), stepfleet.ErrCancelled)
	},
	"a task of a closed run does not start": func(f *fixture) {
		s := f.session()
		lease := f.lease(s)
		_, err := f.Ledger.CloseRun(f.ctx, lease.RunID, stepfleet.NoExecutor, "over")
		f.must(err)
		f.refused(f.start(s, lease.Ref), stepfleet.ErrRunClosed)
	},
	"an ended task does not start": func(f *fixture) {
		s := f.session()
		lease := f.running(s)
		f.must(f.settle(s, lease.Ref, stepfleet.StateSucceeded))
		f.refused(f.start(s, lease.Ref), stepfleet.ErrFenced)
	},
	"settle records each outcome once": func(f *fixture) {
		s := f.session()
		for _, outcome := range []stepfleet.State{stepfleet.StateSucceeded, stepfleet.StateFailed, stepfleet.StateCancelled, stepfleet.StateLost} {
			lease := f.running(s)
			f.must(f.settle(s, lease.Ref, outcome))
			v := f.inState(lease.TaskID, outcome, 1)
			want := result(outcome)
			if diff := cmp.Diff(&want, v.Result); diff != "" || v.EndedAt.Before(v.StartedAt) || v.Worker != "worker-1" {
				f.Fatalf("%s %+v", diff, v)
			}
			for _, later := range []stepfleet.State{outcome, stepfleet.StateFailed} { // the first result stays
				f.must(f.settle(s, lease.Ref, later))
				f.inState(lease.TaskID, outcome, 1)
			}
		}
		if held, _ := f.Ledger.Held(f.ctx, s); len(held) != 0 {
			f.Fatalf("still held: %+v", held)
		}
	},
	"settle is refused to all but the owner of a running task": func(f *fixture) {
		s, other := f.session(), f.session()
		lease := f.lease(s)
		f.refused(f.settle(s, lease.Ref, stepfleet.StateSucceeded), stepfleet.ErrFenced) // not running
		f.must(f.start(s, lease.Ref))
		f.refused(f.settle(other, lease.Ref, stepfleet.StateSucceeded), stepfleet.ErrFenced)
		f.refused(f.settle(s, stepfleet.Ref{TaskID: lease.TaskID}, stepfleet.StateSucceeded), stepfleet.ErrFenced)
		f.refused(f.settle(s, stepfleet.Ref{TaskID: 4711, Fence: 1}, stepfleet.StateSucceeded), stepfleet.ErrFenced)
		f.refused(f.settle(s, lease.Ref, stepfleet.StateQueued), stepfleet.ErrTaskInvalid)
		f.inState(lease.TaskID, stepfleet.StateRunning, 1)
		want := []string{"fenced", "fenced", "fenced", "task_invalid"}
		if diff := cmp.Diff(want, f.refusals(lease.RunID, stepfleet.VerbSettle)); diff != "" {
			f.Fatal(diff)
		}
	},
	"an outcome counts until the sweep has taken the task": func(f *fixture) {
		s := f.session()
		lease := f.running(s)
		f.dead(s)
		f.must(f.settle(s, lease.Ref, stepfleet.StateSucceeded))
		if changes := f.sweep(); len(changes) != 0 {
			f.Fatalf("%+v", changes)
		}
	},
	"a message over the limit is cut": func(f *fixture) {
		s := f.session()
		lease := f.running(s)
		r := result(stepfleet.StateFailed)
		r.Error.Message = strings.Repeat("é", stepfleet.MaxErrorBytes)
		f.must(f.first(f.Ledger.Settle(f.ctx, s, []stepfleet.Settlement{{Ref: lease.Ref, Result: r}})))
		if n := len(f.view(lease.TaskID).Result.Error.Message); n > stepfleet.MaxErrorBytes+3 || n < stepfleet.MaxErrorBytes-3 {
			f.Fatalf("%d bytes kept", n)
		}
	},
	"a released task waits again with its old turn": func(f *fixture) {
		s := f.session()
		f.submit("r", "a", "b", "c")
		lease := f.claim(s, 1).Leases[0]
		for range 2 {
			f.must(f.release(s, lease.Ref))
		}
		v := f.inState(lease.TaskID, stepfleet.StateQueued, 2)
		if v.Session != 0 || !v.ClaimedAt.IsZero() {
			f.Fatalf("%+v", v)
		}
		other := f.session()
		again := f.claim(other, 1).Leases[0]
		if again.TaskID != lease.TaskID || again.Fence != 3 {
			f.Fatalf("%+v after %+v", again, lease)
		}
		f.must(f.release(s, lease.Ref)) // it was made, whoever has the task now
		f.inState(lease.TaskID, stepfleet.StateLeased, 3)
	},
	"release is refused to all but the owner of a leased task": func(f *fixture) {
		s, other := f.session(), f.session()
		lease := f.lease(s)
		f.refused(f.release(other, lease.Ref), stepfleet.ErrFenced)
		f.refused(f.release(s, stepfleet.Ref{TaskID: lease.TaskID}), stepfleet.ErrFenced)
		f.must(f.start(s, lease.Ref))
		f.refused(f.release(s, lease.Ref), stepfleet.ErrFenced)
		if diff := cmp.Diff([]string{"fenced", "fenced", "fenced"}, f.refusals(lease.RunID, stepfleet.VerbRelease)); diff != "" {
			f.Fatal(diff)
		}
	},
	"revoke takes the task from its own process": func(f *fixture) {
		s, other := f.session(), f.session()
		lease := f.running(s)
		_, err := f.Ledger.Revoke(f.ctx, other, lease.Ref, "x")
		f.refused(err, stepfleet.ErrFenced)
		for range 2 {
			fence, err := f.Ledger.Revoke(f.ctx, s, lease.Ref, "timeout")
			if err != nil || fence != 2 {
				f.Fatalf("fence %d, %v", fence, err)
			}
		}
		f.refused(f.settle(s, lease.Ref, stepfleet.StateSucceeded), stepfleet.ErrFenced)
		f.must(f.settle(s, stepfleet.Ref{TaskID: lease.TaskID, Fence: 2}, stepfleet.StateFailed))
		f.inState(lease.TaskID, stepfleet.StateFailed, 2)
		_, err = f.Ledger.Revoke(f.ctx, s, stepfleet.Ref{TaskID: lease.TaskID, Fence: 2}, "late")
		f.refused(err, stepfleet.ErrFenced)
	},
	"answers come in the order of the request": func(f *fixture) {
		s := f.session()
		f.submit("r", "a", "b")
		leases := f.claim(s, 2).Leases
		refs := []stepfleet.Ref{leases[1].Ref, {TaskID: leases[0].TaskID, Fence: 9}, leases[0].Ref, leases[1].Ref, {TaskID: 4711}}
		errs, err := f.Ledger.Start(f.ctx, s, refs)
		f.must(err)
		for i, fenced := range []bool{false, true, false, false, true} {
			if (stepfleet.RefusalOf(errs[i]) == stepfleet.ErrFenced) != fenced || !fenced && errs[i] != nil {
				f.Fatalf("answer %d: %v", i, errs[i])
			}
		}
		none, err := f.Ledger.Start(f.ctx, s, nil)
		if err != nil || len(none) != 0 {
			f.Fatalf("%v %v", none, err)
		}
		ends := []stepfleet.Settlement{
			{Ref: leases[0].Ref, Result: result(stepfleet.StateFailed)},
			{Ref: leases[0].Ref, Result: result(stepfleet.StateSucceeded)}, // the first of the two stays
			{Ref: leases[1].Ref, Result: stepfleet.Result{}},
		}
		errs, err = f.Ledger.Settle(f.ctx, s, ends)
		if err != nil || errs[0] != nil || errs[1] != nil || stepfleet.RefusalOf(errs[2]) != stepfleet.ErrTaskInvalid {
			f.Fatalf("%v %v", errs, err)
		}
		f.inState(leases[0].TaskID, stepfleet.StateFailed, 1)
	},
}
