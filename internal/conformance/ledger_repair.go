package conformance

import (
	"errors"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/stepfleet/stepfleet"
)

// abandonedProcess is what had run the tasks that are abandoned here.
const abandonedProcess = 42

func (f *fixture) abandon(s stepfleet.SessionID, ref stepfleet.Ref) error {
	f.Helper()
	return f.first(f.Ledger.Abandon(f.ctx, s, []stepfleet.Ref{ref}, abandonedProcess, "killed in its last write"))
}

// repairExamples are about running tasks that have lost their owner.
var repairExamples = map[string]func(*fixture){
	"orphans are what dead sessions ran and what was abandoned": func(f *fixture) {
		s, other := f.session(), f.session()
		running, left, mine := f.running(s), f.running(other), f.running(other)
		f.lease(s)
		again := task(running.RunID, "a")
		again.Attempt = 2
		f.submitBatch(batch(running.RunID, again))
		if got := f.orphans(); len(got) != 0 {
			f.Fatalf("%+v", got)
		}
		f.dead(s)
		f.must(f.abandon(other, left.Ref))
		want := []stepfleet.Orphan{
			{Ref: running.Ref, Key: running.Key, Kind: stepfleet.KindStep, Worker: "worker-1", InFlight: lives.RunLease, Connections: stepfleet.ConnectionNameOf("instance-1", 0)},
			{Ref: stepfleet.Ref{TaskID: left.TaskID, Fence: 2}, Key: left.Key, Kind: stepfleet.KindStep, Worker: "worker-2", InFlight: lives.RunLease, Connections: stepfleet.ConnectionNameOf("instance-2", abandonedProcess)},
		}
		got := f.orphans()
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(stepfleet.Orphan{}, "Gone", "Reason")); diff != "" {
			f.Fatal(diff)
		}
		for _, o := range got {
			if o.Gone < 0 || o.Gone > time.Hour || o.Reason == "" {
				f.Errorf("%+v", o)
			}
		}
		page, err := f.Ledger.Orphans(f.ctx, running.TaskID, 1)
		if err != nil || len(page) != 1 || page[0].TaskID != left.TaskID {
			f.Fatalf("%+v %v", page, err)
		}
		if page, err = f.Ledger.Orphans(f.ctx, 0, 1); err != nil || len(page) != 1 || page[0].TaskID != running.TaskID {
			f.Fatalf("%+v %v", page, err)
		}
		f.inState(mine.TaskID, stepfleet.StateRunning, 1)
	},
	"connections of a dead session are not told from those of a later one of its instance": func(f *fixture) {
		of := func(instance string) stepfleet.SessionID {
			f.Helper()
			s, err := f.Ledger.Register(f.ctx, stepfleet.SessionSpec{
				Worker: "w", Instance: instance, Slots: map[string]int{queue: 1},
				SessionTTL: lives.SessionTTL, RunLease: lives.RunLease,
			})
			f.must(err)
			f.instances[s.ID] = instance
			return s.ID
		}
		first := of("instance")
		f.running(first)
		f.dead(first)
		named := func(want string) {
			f.Helper()
			if got := f.orphans(); len(got) != 1 || got[0].Connections != want {
				f.Errorf("%+v, want connections %q", got, want)
			}
		}
		of("another")
		named(stepfleet.ConnectionNameOf("instance", 0))
		of("instance")
		named("")
	},
	"an orphan knows the least attempt of its step": func(f *fixture) {
		s := f.session()
		for _, attempt := range []int{3, 2} {
			t := task("r", "a")
			t.Attempt = attempt
			f.submitBatch(batch("r", t))
		}
		f.must(f.start(s, f.claim(s, 1).Leases[0].Ref))
		f.must(f.end(s, "exit"))
		if got := f.orphans(); len(got) != 1 || got[0].Attempt != 3 || got[0].FirstAttempt != 2 {
			f.Fatalf("%+v", got)
		}
	},
	"a decision follows the log, a cancel flag yields to success alone, and silence is loss": func(f *fixture) {
		for _, c := range []struct {
			event   string
			flagged bool
			want    stepfleet.State
			verb    stepfleet.Verb
		}{
			{stepfleet.EventSuccess, false, stepfleet.StateSucceeded, stepfleet.VerbRepair},
			{stepfleet.EventSuccess, true, stepfleet.StateSucceeded, stepfleet.VerbRepair},
			{stepfleet.EventFailure, false, stepfleet.StateFailed, stepfleet.VerbRepair},
			{stepfleet.EventRetry, false, stepfleet.StateFailed, stepfleet.VerbRepair},
			{stepfleet.EventFailure, true, stepfleet.StateCancelled, stepfleet.VerbRepair},
			{"", false, stepfleet.StateLost, stepfleet.VerbSweep},
			{"", true, stepfleet.StateCancelled, stepfleet.VerbSweep},
		} {
			s := f.session()
			lease := f.running(s)
			if c.flagged {
				_, err := f.Ledger.Cancel(f.ctx, lease.RunID, stepfleet.NoExecutor, nil, "asked")
				f.must(err)
			}
			f.must(f.end(s, "exit"))
			want := []stepfleet.Change{{TaskID: lease.TaskID, Key: lease.Key, Queue: queue, From: stepfleet.StateRunning, To: c.want}}
			if diff := cmp.Diff(want, f.decide(c.event)); diff != "" {
				f.Fatal(diff)
			}
			v := f.inState(lease.TaskID, c.want, 2)
			if v.Reason == "" || v.Session != s || (v.Result != nil) != (c.event != "") {
				f.Fatalf("%+v", v)
			}
			if v.Result != nil && (v.Result.Event != c.event || v.Result.Outcome != c.want || v.Result.Validate() != nil) {
				f.Fatalf("%+v", v.Result)
			}
			rows, err := f.Ledger.Audit(f.ctx, lease.RunID)
			f.must(err)
			if last := rows[len(rows)-1]; last.Verb != c.verb || last.Actor != "server" || last.Fence != 2 {
				f.Fatalf("%+v", last)
			}
			if len(f.decide(c.event)) != 0 {
				f.Fatal("decided twice")
			}
			f.refused(f.settle(s, lease.Ref, stepfleet.StateSucceeded), stepfleet.ErrFenced)
		}
	},
	"what has changed since it was listed is passed over": func(f *fixture) {
		s := f.session()
		owned, lease := f.running(s), f.running(s)
		d := stepfleet.Orphan{Ref: owned.Ref}.Decide(stepfleet.EventSuccess, "x")
		if changes, err := f.Ledger.Decide(f.ctx, []stepfleet.Decision{d}); err != nil || len(changes) != 0 {
			f.Fatalf("a task that has an owner: %+v %v", changes, err)
		}
		f.must(f.abandon(s, lease.Ref))
		for what, d := range map[string]stepfleet.Decision{
			"an old fence": {Ref: lease.Ref, Event: stepfleet.EventSuccess},
			"a flag":       {Ref: f.orphans()[0].Ref, CancelRequested: true, Event: stepfleet.EventSuccess},
			"nothing":      {Ref: stepfleet.Ref{TaskID: 4711, Fence: 1}},
		} {
			if changes, err := f.Ledger.Decide(f.ctx, []stepfleet.Decision{d}); err != nil || len(changes) != 0 {
				f.Fatalf("%s: %+v %v", what, changes, err)
			}
		}
		f.inState(lease.TaskID, stepfleet.StateRunning, 2)
	},
	"an abandoned task is nobody's, and abandoning again is done": func(f *fixture) {
		s := f.session()
		lease := f.running(s)
		f.refused(f.abandon(f.session(), lease.Ref), stepfleet.ErrFenced)
		f.refused(f.abandon(s, stepfleet.Ref{TaskID: lease.TaskID, Fence: 2}), stepfleet.ErrFenced)
		f.must(f.abandon(s, lease.Ref))
		f.must(f.abandon(s, lease.Ref))
		if v := f.inState(lease.TaskID, stepfleet.StateRunning, 2); v.Session != 0 {
			f.Fatalf("%+v", v)
		}
		for fence := range stepfleet.Fence(3) {
			f.refused(f.settle(s, stepfleet.Ref{TaskID: lease.TaskID, Fence: fence}, stepfleet.StateSucceeded), stepfleet.ErrFenced)
		}
		_, err := f.Ledger.Revoke(f.ctx, s, stepfleet.Ref{TaskID: lease.TaskID, Fence: 2}, "x")
		f.refused(err, stepfleet.ErrFenced)
		if held, err := f.Ledger.Held(f.ctx, s); err != nil || len(held) != 0 {
			f.Fatalf("%+v %v", held, err)
		}
		f.decide(stepfleet.EventSuccess)
		f.inState(lease.TaskID, stepfleet.StateSucceeded, 3)
		f.must(f.abandon(s, lease.Ref))
		if lanes, err := f.Ledger.Lanes(f.ctx); err != nil || lanes[0].Running != 0 {
			f.Fatalf("%+v %v", lanes, err)
		}
	},
	"only what runs can be abandoned": func(f *fixture) {
		s := f.session()
		leased, settled := f.lease(s), f.running(s)
		f.must(f.settle(s, settled.Ref, stepfleet.StateFailed))
		for _, ref := range []stepfleet.Ref{leased.Ref, settled.Ref, {TaskID: 4711, Fence: 1}} {
			f.refused(f.abandon(s, ref), stepfleet.ErrFenced)
		}
		if got := f.refusals(leased.RunID, stepfleet.VerbAbandon); len(got) != 1 || got[0] != stepfleet.ErrFenced.Code {
			f.Fatalf("%v", got)
		}
		f.inState(leased.TaskID, stepfleet.StateLeased, 1)
	},
	"an abandoned task outlives its session and can be cancelled": func(f *fixture) {
		s := f.session()
		lease := f.running(s)
		f.must(f.abandon(s, lease.Ref))
		f.must(f.end(s, "exit"))
		changes, err := f.Ledger.Cancel(f.ctx, lease.RunID, stepfleet.NoExecutor, nil, "asked")
		if err != nil || len(changes) != 1 || changes[0].To != stepfleet.StateRunning {
			f.Fatalf("%+v %v", changes, err)
		}
		f.decide("")
		f.inState(lease.TaskID, stepfleet.StateCancelled, 3)
	},
	"repair against settle against cancel: one of them ends the task": func(f *fixture) {
		for round := range 25 {
			s := f.session()
			lease := f.running(s)
			if round%2 == 0 {
				f.must(f.end(s, "exit"))
			}
			var settled error
			together(4, func(i int) {
				switch i {
				case 0:
					settled = f.settle(s, lease.Ref, stepfleet.StateSucceeded)
				case 1:
					if _, err := f.Ledger.Cancel(f.ctx, lease.RunID, stepfleet.NoExecutor, nil, "asked"); err != nil {
						f.Error(err)
					}
				case 2:
					f.decide(stepfleet.EventFailure)
				case 3:
					if round%2 == 1 {
						if err := f.abandon(s, lease.Ref); err != nil && !errors.Is(err, stepfleet.ErrFenced) {
							f.Error(err)
						}
					}
				}
			})
			f.decide(stepfleet.EventFailure)
			switch v := f.view(lease.TaskID); {
			case settled == nil && v.State == stepfleet.StateSucceeded && v.Fence == 1:
			case errors.Is(settled, stepfleet.ErrFenced) && v.State != stepfleet.StateSucceeded && v.State.Terminal():
			default:
				f.Fatalf("round %d: settle answered %v, the task is %s with fence %d", round, settled, v.State, v.Fence)
			}
		}
	},
	"two servers decide: one of them ends the task": func(f *fixture) {
		for range 25 {
			s := f.session()
			lease := f.running(s)
			f.must(f.end(s, "exit"))
			o := f.orphans()[0]
			won := make([]int, 2)
			together(2, func(i int) {
				event := []string{stepfleet.EventSuccess, ""}[i]
				changes, err := f.Ledger.Decide(f.ctx, []stepfleet.Decision{o.Decide(event, o.Reason)})
				if err != nil {
					f.Error(err)
				}
				won[i] = len(changes)
			})
			v := f.view(lease.TaskID)
			if want := []stepfleet.State{stepfleet.StateLost, stepfleet.StateSucceeded}[won[0]]; won[0]+won[1] != 1 || v.State != want || v.Fence != 2 {
				f.Fatalf("%v, the task is %s with fence %d", won, v.State, v.Fence)
			}
		}
	},
}
