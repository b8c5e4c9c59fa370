package conformance

import (
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/stepfleet/stepfleet"
)

var keeperExamples = map[string]func(*fixture){
	"sessions expire in two steps": func(f *fixture) {
		s := f.session()
		f.session() // renewed in time
		f.suspect(s)
		if changed, err := f.expire(lives.SessionTTL); err != nil || len(changed) != 0 {
			f.Fatalf("changed twice: %+v %v", changed, err)
		}
		f.dead(s)
		all, err := f.Ledger.Sessions(f.ctx, 0)
		if err != nil || len(all) != 1 {
			f.Fatalf("%+v %v", all, err)
		}
	},
	"a long silence is death at once": func(f *fixture) {
		s := f.session()
		f.dead(s)
		all, err := f.Ledger.Sessions(f.ctx, time.Hour)
		if err != nil || len(all) != 1 || all[0].EndReason == "" {
			f.Fatalf("%+v %v", all, err)
		}
	},
	"proof of death ends an instance's sessions": func(f *fixture) {
		s := f.session()
		f.session()
		for i := range 2 {
			changed, err := f.Ledger.DeclareDead(f.ctx, "instance-1", "the task stopped")
			if err != nil || len(changed) != 1-i {
				f.Fatalf("%+v %v", changed, err)
			}
			if i == 0 && (changed[0].ID != s || changed[0].State != stepfleet.SessionDead || changed[0].EndReason != "the task stopped") {
				f.Fatalf("%+v", changed)
			}
		}
		if changed, err := f.Ledger.DeclareDead(f.ctx, "", "x"); err != nil || len(changed) != 0 {
			f.Fatalf("%+v %v", changed, err)
		}
	},
	"open runs are those that are not over": func(f *fixture) {
		running := f.running(f.session()).RunID
		f.submit("b", "x")
		f.submit("c", "x")
		for _, run := range []string{running, "b"} {
			if _, err := f.Ledger.CloseRun(f.ctx, run, stepfleet.NoExecutor, "over"); err != nil {
				f.Fatal(err)
			}
		}
		f.speak("d")
		// Of the first, the step that runs has yet to end.
		want := []stepfleet.OpenRun{{RunID: "c"}, {RunID: "d"}, {RunID: running, Closed: true}}
		got, err := f.Ledger.OpenRuns(f.ctx, "", 10)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			f.Fatalf("%s %v", diff, err)
		}
		got, err = f.Ledger.OpenRuns(f.ctx, "c", 1)
		if diff := cmp.Diff(want[1:2], got); diff != "" || err != nil {
			f.Fatalf("a page: %s %v", diff, err)
		}
	},
	"carried runs are those that have a run worker, with what is open of them": func(f *fixture) {
		s := f.session()
		f.submit("alien", "a")
		gone := f.submitBatch(runWorker("gone"))[0].TaskID
		lease := f.claim(s, 2).Leases
		f.must(f.start(s, lease[1].Ref))
		f.must(f.settle(s, lease[1].Ref, stepfleet.StateFailed))
		f.inState(gone, stepfleet.StateFailed, 1)
		f.submit("gone", "a", "b")
		if _, err := f.Ledger.Cancel(f.ctx, "gone", stepfleet.NoExecutor, []stepfleet.Key{task("gone", "b").Key}, "x"); err != nil {
			f.Fatal(err)
		}
		again := runWorker("open")
		again.Tasks[0].Attempt = 1
		f.submitBatch(runWorker("open"))
		f.submitBatch(again)
		f.submitBatch(runWorker("told"))
		for range 3 {
			f.must(f.start(s, f.claim(s, 1).Leases[0].Ref))
		}
		for _, key := range []stepfleet.Key{runWorker("told").Tasks[0].Key, runWorker("open").Tasks[0].Key} {
			if _, err := f.Ledger.Cancel(f.ctx, key.RunID, stepfleet.NoExecutor, []stepfleet.Key{key}, "x"); err != nil {
				f.Fatal(err)
			}
		}
		want := []stepfleet.CarriedRun{
			{RunID: "gone", Steps: 1},
			{RunID: "open", RunWorkers: 2, Untold: []int{1}},
			{RunID: "told", RunWorkers: 1},
		}
		got, err := f.Ledger.CarriedRuns(f.ctx, []string{"told", "alien", "nobody", "open", "told", "gone"})
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" || err != nil {
			f.Fatalf("%s %v", diff, err)
		}
	},
	"of a suspect session the sweep takes what has not begun": func(f *fixture) {
		s := f.session()
		running, leased := f.running(s), f.lease(s)
		if changes := f.sweep(); len(changes) != 0 {
			f.Fatalf("swept an alive session: %+v", changes)
		}
		f.suspect(s)
		want := []stepfleet.Change{{
			TaskID: leased.TaskID, Key: leased.Key, Queue: queue, From: stepfleet.StateLeased, To: stepfleet.StateQueued,
		}}
		if diff := cmp.Diff(want, f.sweep()); diff != "" {
			f.Fatal(diff)
		}
		f.inState(leased.TaskID, stepfleet.StateQueued, 2)
		f.inState(running.TaskID, stepfleet.StateRunning, 1)
		_, err := f.renew(s)
		f.must(err)
		f.refused(f.start(s, leased.Ref), stepfleet.ErrFenced)
		f.must(f.settle(s, running.Ref, stepfleet.StateSucceeded))
		if again := f.claim(s, 1).Leases; len(again) != 1 || again[0].TaskID != leased.TaskID || again[0].Fence != 3 {
			f.Fatalf("%+v", again)
		}
	},
	"of a dead session the sweep takes everything": func(f *fixture) {
		s := f.session()
		flagged, running, leased := f.running(s), f.running(s), f.lease(s)
		_, err := f.Ledger.Cancel(f.ctx, flagged.RunID, stepfleet.NoExecutor, nil, "asked")
		f.must(err)
		f.dead(s)
		want := []stepfleet.State{stepfleet.StateQueued, stepfleet.StateCancelled, stepfleet.StateLost}
		var got []stepfleet.State
		for _, c := range f.sweep() {
			got = append(got, c.To)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			f.Fatal(diff)
		}
		f.inState(flagged.TaskID, stepfleet.StateCancelled, 2)
		if v := f.inState(running.TaskID, stepfleet.StateLost, 2); v.Reason == "" || v.Result != nil {
			f.Fatalf("%+v", v)
		}
		f.inState(leased.TaskID, stepfleet.StateQueued, 2)
		f.refused(f.settle(s, running.Ref, stepfleet.StateSucceeded), stepfleet.ErrFenced)
		f.inState(running.TaskID, stepfleet.StateLost, 2)
		if held, _ := f.Ledger.Held(f.ctx, s); len(held) != 0 {
			f.Fatalf("still held: %+v", held)
		}
	},
	"what a session held when it ended is swept": func(f *fixture) {
		s := f.session()
		lease := f.running(s)
		f.must(f.end(s, "exit"))
		if changes := f.sweep(); len(changes) != 1 || changes[0].TaskID != lease.TaskID {
			f.Fatalf("%+v", changes)
		}
	},
	"a lease that does not start in time is swept": func(f *fixture) {
		s := f.session()
		late, fresh := f.lease(s), f.lease(s)
		started := f.running(s)
		f.AgeLease(late.TaskID, lives.StartWithin+time.Minute)
		f.AgeLease(started.TaskID, lives.StartWithin+time.Minute)
		if changes := f.sweep(); len(changes) != 1 || changes[0].TaskID != late.TaskID {
			f.Fatalf("%+v", changes)
		}
		f.inState(fresh.TaskID, stepfleet.StateLeased, 1)
		f.refused(f.start(s, late.Ref), stepfleet.ErrFenced)
	},
	"the sweep keeps to its limit": func(f *fixture) {
		s := f.session()
		f.submit("r", "a", "b", "c")
		f.claim(s, 3)
		f.must(f.end(s, "exit"))
		for _, want := range []int{2, 1, 0} {
			if changes, err := f.Ledger.Sweep(f.ctx, lives.StartWithin, 2); err != nil || len(changes) != want {
				f.Fatalf("%+v %v", changes, err)
			}
		}
	},
	"beats go through, by the ledger's clock": func(f *fixture) {
		first, err := f.Ledger.Beat(f.ctx, "server-1")
		f.must(err)
		second, err := f.Ledger.Beat(f.ctx, "server-1")
		f.must(err)
		if first.IsZero() || second.Before(first) {
			f.Fatalf("%s, then %s", first, second)
		}
	},
	"a session expires by its own deadlines, and those with a long TTL wait for long beats": func(f *fixture) {
		s, err := f.Ledger.Register(f.ctx, stepfleet.SessionSpec{Worker: "w", SessionTTL: time.Hour, RunLease: 10 * time.Hour})
		f.must(err)
		f.AgeSession(s.ID, lives.RunLease+time.Minute)
		if changed, err := f.expire(59 * time.Minute); err != nil || len(changed) != 0 {
			f.Fatalf("%+v %v", changed, err)
		}
		changed, err := f.expire(time.Hour)
		if err != nil || len(changed) != 1 || changed[0].State != stepfleet.SessionSuspect {
			f.Fatalf("%+v %v", changed, err)
		}
	},
	"time after the sweeper's last beat does not count, however late the sessions are marked": func(f *fixture) {
		s := f.session()
		at, err := f.Ledger.Beat(f.ctx, "sweeper")
		f.must(err)
		aged := time.Duration(0)
		mark := func(silent time.Duration, want stepfleet.SessionState) {
			f.Helper()
			// Its renewals stopped so long before the beat, and twice the run lease has gone by since.
			f.AgeSession(s, silent+2*lives.RunLease-aged)
			aged = silent + 2*lives.RunLease
			_, err := f.Ledger.ExpireSessions(f.ctx, stepfleet.Beats{Last: at.Add(-2 * lives.RunLease), Unbroken: time.Hour})
			f.must(err)
			all, err := f.Ledger.Sessions(f.ctx, time.Hour)
			f.must(err)
			if len(all) != 1 || all[0].State != want {
				f.Fatalf("silent for %s before the beat: %+v, want %s", silent, all, want)
			}
		}
		mark(lives.SessionTTL-time.Minute, stepfleet.SessionAlive)
		mark(lives.SessionTTL+time.Minute, stepfleet.SessionSuspect)
		mark(lives.RunLease+time.Minute, stepfleet.SessionDead)
	},
	"a session without deadlines has the default ones": func(f *fixture) {
		s, err := f.Ledger.Register(f.ctx, stepfleet.SessionSpec{Worker: "w"})
		f.must(err)
		if want := stepfleet.DefaultLifetimes(); s.SessionTTL != want.SessionTTL || s.RunLease != want.RunLease {
			f.Fatalf("%s and %s", s.SessionTTL, s.RunLease)
		}
	},
	"one server has a duty": func(f *fixture) {
		take := func(duty, server string, hold time.Duration, want bool) {
			f.Helper()
			if got, err := f.Ledger.TakeDuty(f.ctx, duty, server, hold); err != nil || got != want {
				f.Fatalf("%s takes %s: %t %v, want %t", server, duty, got, err, want)
			}
		}
		take("repair", "a", time.Hour, true)
		take("repair", "b", time.Hour, false)
		take("reconcile", "b", time.Hour, true)
		take("repair", "a", time.Hour, true)
		take("repair", "a", 0, true) // given back
		take("repair", "b", time.Hour, true)
		take("repair", "a", time.Hour, false)
	},
}

var recordExamples = map[string]func(*fixture){
	"lanes count what waits, what is held and what there is room for": func(f *fixture) {
		s := f.session()
		f.submit("r", "a", "b", "c")
		f.must(f.start(s, f.claim(s, 1).Leases[0].Ref))
		f.claim(s, 1)
		_, err := f.Ledger.Register(f.ctx, stepfleet.SessionSpec{Worker: "g", Slots: map[string]int{"gpu": 1, queue: 2, "none": 0}})
		f.must(err)
		_, err = f.Ledger.Register(f.ctx, stepfleet.SessionSpec{Worker: "no slots"})
		f.must(err)
		draining := f.session()
		f.must(f.drain(draining))
		got, err := f.Ledger.Lanes(f.ctx)
		f.must(err)
		want := []stepfleet.Lane{
			{Queue: queue, Ready: 1, Leased: 1, Running: 1, Slots: 6},
			{Queue: "gpu", Slots: 1},
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(stepfleet.Lane{}, "OldestAge")); diff != "" {
			f.Fatal(diff)
		}
		if got[0].OldestAge <= 0 || got[0].OldestAge > time.Hour || got[1].OldestAge != 0 {
			f.Fatalf("ages %+v", got)
		}
	},
	"tasks are read by id and by run": func(f *fixture) {
		ids := f.submit("r", "a", "b")
		f.submit("other", "a")
		views, err := f.Ledger.Tasks(f.ctx, []stepfleet.TaskID{ids[1], 4711, ids[0]})
		if err != nil || len(views) != 2 || views[0].ID != ids[0] {
			f.Fatalf("%+v %v", views, err)
		}
		views, err = f.Ledger.RunTasks(f.ctx, "r")
		if err != nil || len(views) != 2 || views[0].ID != ids[0] {
			f.Fatalf("%+v %v", views, err)
		}
		if views, err = f.Ledger.RunTasks(f.ctx, "nobody"); err != nil || len(views) != 0 {
			f.Fatalf("%+v %v", views, err)
		}
	},
	"a run's tasks are read by kind": func(f *fixture) {
		runWorkers := f.submitBatch(runWorker("r"))
		steps := f.submit("r", "a", "b")
		f.submitBatch(runWorker("other"))
		for _, c := range []struct {
			kinds []stepfleet.Kind
			want  []stepfleet.TaskID
		}{
			{[]stepfleet.Kind{stepfleet.KindRun}, []stepfleet.TaskID{runWorkers[0].TaskID}},
			{[]stepfleet.Kind{stepfleet.KindStep}, steps},
			{[]stepfleet.Kind{stepfleet.KindStep, stepfleet.KindRun}, append([]stepfleet.TaskID{runWorkers[0].TaskID}, steps...)},
			{nil, append([]stepfleet.TaskID{runWorkers[0].TaskID}, steps...)},
		} {
			views, err := f.Ledger.RunTasks(f.ctx, "r", c.kinds...)
			f.must(err)
			var got []stepfleet.TaskID
			for _, v := range views {
				got = append(got, v.ID)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				f.Errorf("kinds %v: %s", c.kinds, diff)
			}
		}
	},
	"the audit tells a task's life": func(f *fixture) {
		s := f.session()
		lease := f.running(s)
		f.must(f.settle(s, lease.Ref, stepfleet.StateSucceeded))
		rows, err := f.Ledger.Audit(f.ctx, lease.RunID)
		f.must(err)
		me := "session " + itoa(int64(s))
		want := []stepfleet.AuditRow{
			{Verb: stepfleet.VerbTakeover, Actor: "executor 1", Detail: "fixture"},
			{Verb: stepfleet.VerbSubmit, Actor: "executor 1", To: stepfleet.StateQueued},
			{Verb: stepfleet.VerbClaim, Actor: me, From: stepfleet.StateQueued, To: stepfleet.StateLeased, Fence: 1, Detail: "claim-3"},
			{Verb: stepfleet.VerbStart, Actor: me, From: stepfleet.StateLeased, To: stepfleet.StateRunning, Fence: 1},
			{Verb: stepfleet.VerbSettle, Actor: me, From: stepfleet.StateRunning, To: stepfleet.StateSucceeded, Fence: 1},
		}
		for i := range want {
			want[i].TaskID, want[i].RunID = lease.TaskID, lease.RunID
		}
		want[0].TaskID = 0 // the run's
		if diff := cmp.Diff(want, rows, cmpopts.IgnoreFields(stepfleet.AuditRow{}, "ID", "At")); diff != "" {
			f.Fatal(diff)
		}
	},
	"a session is shown as it registered": func(f *fixture) {
		spec := stepfleet.SessionSpec{
			Worker: "w", Instance: "arn:x", Host: "h", PID: 42, Version: "1.2", Slots: map[string]int{"gpu": 1, queue: 8},
			SessionTTL: 1500 * time.Millisecond, RunLease: time.Minute,
		}
		s, err := f.Ledger.Register(f.ctx, spec)
		f.must(err)
		all, err := f.Ledger.Sessions(f.ctx, 0)
		f.must(err)
		if diff := cmp.Diff([]stepfleet.Session{s}, all); diff != "" || s.State != stepfleet.SessionAlive || s.RenewedAt.IsZero() {
			f.Fatal(diff, s)
		}
		if diff := cmp.Diff(spec, all[0].SessionSpec); diff != "" {
			f.Fatal(diff)
		}
	},
	"a ledger that works passes its check": func(f *fixture) {
		f.must(f.Ledger.Check(f.ctx))
	},
	"a call whose context is over answers unavailable": func(f *fixture) {
		f.ctx = cancelled()
		_, err := f.Ledger.RunTasks(f.ctx, "r")
		f.refused(err, stepfleet.ErrUnavailable)
		f.ctx = f.Context()
	},
}
