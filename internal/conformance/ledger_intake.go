package conformance

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/stepfleet/stepfleet"
)

var intakeExamples = map[string]func(*fixture){
	"submit records the whole batch in order": func(f *fixture) {
		b := batch("r", task("r", "b"), task("r", "a"), task("r", "c[x]"))
		b.Tasks[1].Attempt, b.Tasks[1].Priority = 3, -2
		receipts := f.submitBatch(b)
		for i, r := range receipts {
			if r.Known || r.State != stepfleet.StateQueued || r.Key != b.Tasks[i].Key {
				f.Fatalf("receipt %d: %+v", i, r)
			}
			if i > 0 && r.TaskID <= receipts[i-1].TaskID {
				f.Fatalf("ids do not grow: %+v", receipts)
			}
			v := f.inState(r.TaskID, stepfleet.StateQueued, 0)
			if diff := cmp.Diff(b.Tasks[i], v.Task); diff != "" || v.SubmittedAt.IsZero() || !v.ClaimedAt.IsZero() {
				f.Fatalf("view %d: %s", i, diff)
			}
		}
	},
	"submit is idempotent on the key": func(f *fixture) {
		first := f.submitBatch(batch("r", task("r", "a"), task("r", "b")))
		s := f.session()
		lease := f.claim(s, 1).Leases[0]
		again := f.submitBatch(batch("r", task("r", "c"), task("r", "b"), task("r", "a")))
		if again[0].Known || !again[1].Known || !again[2].Known {
			f.Fatalf("known: %+v", again)
		}
		if again[2].TaskID != first[0].TaskID || again[2].State != stepfleet.StateLeased || lease.TaskID != first[0].TaskID {
			f.Fatalf("%+v is not %+v leased", again[2], first[0])
		}
	},
	"another attempt is another task": func(f *fixture) {
		retry := task("r", "a")
		retry.Attempt = 1
		got := f.submitBatch(batch("r", task("r", "a"), retry))
		if got[0].TaskID == got[1].TaskID || got[1].Known {
			f.Fatalf("%+v", got)
		}
	},
	"a key twice in one batch is one task": func(f *fixture) {
		got := f.submitBatch(batch("r", task("r", "a"), task("r", "a")))
		if got[0].TaskID != got[1].TaskID || got[0].Known || !got[1].Known {
			f.Fatalf("%+v", got)
		}
	},
	"another identity is a conflict and records nothing": func(f *fixture) {
		f.submit("r", "a")
		other := batch("r", task("r", "b"))
		other.Identity = "another"
		_, err := f.trySubmit(other)
		f.refused(err, stepfleet.ErrConflict)
		if views, _ := f.Ledger.RunTasks(f.ctx, "r"); len(views) != 1 {
			f.Fatalf("%d tasks", len(views))
		}
		if diff := cmp.Diff([]string{"conflict"}, f.refusals("r", stepfleet.VerbSubmit)); diff != "" {
			f.Fatal(diff)
		}
	},
	"another payload for a known key is audited and the stored one wins": func(f *fixture) {
		f.submit("r", "a")
		grown := task("r", "a")
		grown.Payload = stepfleet.DigestOf([]byte("grown"))
		b := batch("r", grown)
		b.Payloads[grown.Payload] = []byte("grown")
		f.submitBatch(b)
		got := f.claim(f.session(), 1)
		want := stepfleet.DigestOf([]byte("payload"))
		if got.Leases[0].Payload != want || !bytes.Equal(got.Payloads[want], []byte("payload")) || len(got.Payloads) != 1 {
			f.Fatalf("%+v", got)
		}
		if diff := cmp.Diff([]string{"conflict"}, f.refusals("r", stepfleet.VerbSubmit)); diff != "" {
			f.Fatal(diff)
		}
	},
	"a payload must be in the batch or stored": func(f *fixture) {
		b := batch("r", task("r", "a"), task("r", "b"))
		b.Tasks[1].Payload = stepfleet.DigestOf([]byte("nowhere"))
		f.runs["r"] = true
		_, err := f.trySubmit(b)
		f.refused(err, stepfleet.ErrTaskInvalid)
		if views, _ := f.Ledger.RunTasks(f.ctx, "r"); len(views) != 0 {
			f.Fatalf("half a batch: %+v", views)
		}
		f.submit("r", "a")
		stored := batch("r", task("r", "b"))
		stored.Payloads = nil
		f.submitBatch(stored)
	},
	"an empty payload is a payload": func(f *fixture) {
		b := batch("r", task("r", "a"))
		b.Tasks[0].Payload = stepfleet.DigestOf(nil)
		b.Payloads = map[stepfleet.Digest][]byte{stepfleet.DigestOf(nil): nil}
		f.submitBatch(b)
		if got := f.claim(f.session(), 1); len(got.Payloads) != 1 {
			f.Fatalf("%+v", got)
		}
	},
	"an invalid task refuses the batch": func(f *fixture) {
		for name, spoil := range map[string]func(*stepfleet.Task){
			"version":  func(t *stepfleet.Task) { t.V = 99 },
			"run":      func(t *stepfleet.Task) { t.RunID = "another" },
			"queue":    func(t *stepfleet.Task) { t.Queue = "No Queue" },
			"step key": func(t *stepfleet.Task) { t.StepKey = "\xff" },
			"attempt":  func(t *stepfleet.Task) { t.Attempt = 1 << 40 },
		} {
			b := batch("r", task("r", "a"), task("r", "b"))
			spoil(&b.Tasks[1])
			if _, err := f.trySubmit(b); stepfleet.RefusalOf(err) != stepfleet.ErrTaskInvalid {
				f.Errorf("%s: %v", name, err)
			}
		}
		big := batch("r", task("r", "a"))
		data := make([]byte, stepfleet.MaxPayloadBytes+1)
		big.Payloads[stepfleet.DigestOf(data)] = data
		_, err := f.trySubmit(big)
		f.refused(err, stepfleet.ErrPayloadTooBig)
		forged := batch("r", task("r", "a"))
		forged.Payloads[forged.Tasks[0].Payload] = []byte("another")
		_, err = f.trySubmit(forged)
		f.refused(err, stepfleet.ErrTaskInvalid)
		if views, _ := f.Ledger.RunTasks(f.ctx, "r"); len(views) != 0 {
			f.Fatalf("%+v", views)
		}
	},
	"the longest and strangest names are kept": func(f *fixture) {
		long := strings.Repeat("é", stepfleet.MaxStepKeyBytes/2)
		twin := long[:len(long)-2] + "e\u0301"[:2]
		f.submit("r", long, twin[:len(twin)-1], `x'"\;--[🂡]`)
		views, err := f.Ledger.RunTasks(f.ctx, "r")
		f.must(err)
		if views[0].StepKey != long || views[2].StepKey != `x'"\;--[🂡]` {
			f.Fatal("a step key changed")
		}
	},
	"the largest batch is one commit": func(f *fixture) {
		var tasks []stepfleet.Task
		for i := range stepfleet.MaxBatchTasks {
			tasks = append(tasks, task("r", fmt.Sprint("step ", i)))
		}
		f.submitBatch(batch("r", tasks...))
		_, err := f.trySubmit(batch("r", append(tasks, task("r", "more"))...))
		f.refused(err, stepfleet.ErrTaskInvalid)
	},
	"an empty batch is no error": func(f *fixture) {
		f.submitBatch(batch("r"))
	},
	"a closed run accepts nothing new, and answers for what has ended": func(f *fixture) {
		s := f.session()
		f.submit("r", "runs", "waits")
		lease := f.claim(s, 1).Leases[0]
		f.must(f.start(s, lease.Ref))
		if _, err := f.Ledger.CloseRun(f.ctx, "r", stepfleet.NoExecutor, "over"); err != nil {
			f.Fatal(err)
		}
		got := f.submitBatch(batch("r", task("r", "waits")))
		if !got[0].Known || got[0].State != stepfleet.StateCancelled {
			f.Fatalf("%+v", got)
		}
		for _, steps := range [][]string{{"new"}, {"runs"}, {"waits", "runs"}} {
			var tasks []stepfleet.Task
			for _, s := range steps {
				tasks = append(tasks, task("r", s))
			}
			_, err := f.trySubmit(batch("r", tasks...))
			f.refused(err, stepfleet.ErrRunClosed)
		}
	},
}

var cancelExamples = map[string]func(*fixture){
	"cancel ends what waits and flags what runs": func(f *fixture) {
		s := f.session()
		ids := f.submit("r", "done", "runs", "leased", "queued")
		leases := f.claim(s, 3).Leases
		f.must(f.start(s, leases[0].Ref))
		f.must(f.settle(s, leases[0].Ref, stepfleet.StateSucceeded))
		f.must(f.start(s, leases[1].Ref))
		changes, err := f.Ledger.Cancel(f.ctx, "r", stepfleet.NoExecutor, nil, "asked")
		f.must(err)
		want := []stepfleet.Change{
			{TaskID: ids[1], Key: leases[1].Key, Queue: queue, From: stepfleet.StateRunning, To: stepfleet.StateRunning},
			{TaskID: ids[2], Key: leases[2].Key, Queue: queue, From: stepfleet.StateLeased, To: stepfleet.StateCancelled},
			{TaskID: ids[3], Key: task("r", "queued").Key, Queue: queue, From: stepfleet.StateQueued, To: stepfleet.StateCancelled},
		}
		if diff := cmp.Diff(want, changes); diff != "" {
			f.Fatal(diff)
		}
		f.inState(ids[0], stepfleet.StateSucceeded, 1)
		if v := f.inState(ids[1], stepfleet.StateRunning, 1); !v.CancelRequested {
			f.Fatal("not flagged")
		}
		f.inState(ids[2], stepfleet.StateCancelled, 2)
		if v := f.inState(ids[3], stepfleet.StateCancelled, 1); v.Reason != "asked" {
			f.Fatalf("reason %q", v.Reason)
		}
		held, err := f.Ledger.Held(f.ctx, s)
		f.must(err)
		if len(held) != 1 || held[0].TaskID != ids[1] || !held[0].CancelRequested {
			f.Fatalf("held %+v", held)
		}
		if again, err := f.Ledger.Cancel(f.ctx, "r", stepfleet.NoExecutor, nil, "asked"); err != nil || len(again) != 0 {
			f.Fatalf("again: %+v %v", again, err)
		}
		if got := f.claim(s, 9); len(got.Leases) != 0 {
			f.Fatalf("claimed a cancelled task: %+v", got)
		}
	},
	"cancel takes the named keys of the run only": func(f *fixture) {
		f.submit("r", "a", "b")
		f.submit("other", "a")
		keys := []stepfleet.Key{task("r", "b").Key, task("r", "unknown").Key, task("other", "a").Key}
		changes, err := f.Ledger.Cancel(f.ctx, "r", stepfleet.NoExecutor, keys, "asked")
		f.must(err)
		if len(changes) != 1 || changes[0].StepKey != "b" {
			f.Fatalf("%+v", changes)
		}
		if none, err := f.Ledger.Cancel(f.ctx, "r", stepfleet.NoExecutor, []stepfleet.Key{}, "none"); err != nil || len(none) != 0 {
			f.Fatalf("no keys are not all keys: %+v %v", none, err)
		}
		if none, err := f.Ledger.Cancel(f.ctx, "nobody", stepfleet.NoExecutor, nil, "none"); err != nil || len(none) != 0 {
			f.Fatalf("%+v %v", none, err)
		}
	},
	"the owner of a flagged task settles it": func(f *fixture) {
		s := f.session()
		lease := f.running(s)
		_, err := f.Ledger.Cancel(f.ctx, lease.RunID, stepfleet.NoExecutor, nil, "asked")
		f.must(err)
		f.must(f.settle(s, lease.Ref, stepfleet.StateCancelled))
		f.inState(lease.TaskID, stepfleet.StateCancelled, 1)
	},
	"closing a run cancels its tasks, and again is no error": func(f *fixture) {
		ids := f.submit("r", "a", "b")
		for i := range 2 {
			changes, err := f.Ledger.CloseRun(f.ctx, "r", stepfleet.NoExecutor, "over")
			if err != nil || len(changes) != 2-2*i {
				f.Fatalf("%+v %v", changes, err)
			}
		}
		f.inState(ids[0], stepfleet.StateCancelled, 1)
		if changes, err := f.Ledger.CloseRun(f.ctx, "nobody", stepfleet.NoExecutor, "over"); err != nil || len(changes) != 0 {
			f.Fatalf("%+v %v", changes, err)
		}
	},
	"a notify url can come before the run and travels with claims": func(f *fixture) {
		epoch, err := f.Ledger.TakeEpoch(f.ctx, "r", stepfleet.Executor{Name: "executor"}, "http://one")
		f.must(err)
		f.epochs["r"] = epoch
		if views, err := f.Ledger.RunTasks(f.ctx, "r"); err != nil || len(views) != 0 {
			f.Fatalf("%+v %v", views, err)
		}
		f.submit("r", "a", "b", "c")
		s := f.session()
		if got := f.claim(s, 1).Leases[0].NotifyURL; got != "http://one" {
			f.Fatalf("url %q", got)
		}
		f.must(f.Ledger.Rejoin(f.ctx, "r", epoch, "http://two"))
		if got := f.claim(s, 1).Leases[0].NotifyURL; got != "http://two" {
			f.Fatalf("url %q", got)
		}
		b := batch("r", task("r", "d"))
		b.NotifyURL = "http://three"
		f.submitBatch(b)
		if got := f.claim(s, 1).Leases[0].NotifyURL; got != "http://two" {
			f.Fatalf("url %q", got)
		}
	},
}
