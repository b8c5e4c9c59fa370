package conformance

import (
	"github.com/google/go-cmp/cmp"

	"github.com/stepfleet/stepfleet"
)

// runWorker is a submission of the run's run worker.
func runWorker(runID string) stepfleet.Batch {
	b := batch(runID, task(runID, stepfleet.RunStepKey))
	b.Tasks[0].Kind = stepfleet.KindRun
	return b
}

// withoutPayload is a submission of a run worker whose arguments are neither in it nor stored.
func withoutPayload(runID string, arguments []byte) stepfleet.Batch {
	b := runWorker(runID)
	b.Payloads, b.Tasks[0].Payload = nil, stepfleet.DigestOf(arguments)
	return b
}

var epochExamples = map[string]func(*fixture){
	"each executor of a run has an epoch of its own, and keeps it": func(f *fixture) {
		for i, executor := range []string{"a", "a", "b", "a"} {
			want := stepfleet.Epoch([]int{1, 1, 2, 3}[i])
			if got := f.speakAs("r", executor); got != want {
				f.Fatalf("executor %s, call %d: epoch %d, want %d", executor, i, got, want)
			}
		}
		for _, nobody := range []stepfleet.Executor{{}, {Name: "a", Resume: -1}, {Name: "a", Resume: 1 << 31}} {
			_, err := f.Ledger.TakeEpoch(f.ctx, "r", nobody, "")
			f.refused(err, stepfleet.ErrTaskInvalid)
		}
		got, err := f.Ledger.Epochs(f.ctx, []string{"r", "nobody"})
		if diff := cmp.Diff(map[string]stepfleet.Epoch{"r": 3}, got); diff != "" || err != nil {
			f.Fatalf("%s %v", diff, err)
		}
	},
	"a superseded executor is refused everything": func(f *fixture) {
		id := f.submit("r", "a")[0]
		old := f.speak("r")
		f.speakAs("r", "another")
		late := batch("r", task("r", "b"))
		late.Epoch = old
		_, err := f.Ledger.Submit(f.ctx, late)
		f.refused(err, stepfleet.ErrSuperseded)
		_, err = f.Ledger.Cancel(f.ctx, "r", old, nil, "late")
		f.refused(err, stepfleet.ErrSuperseded)
		_, err = f.Ledger.CloseRun(f.ctx, "r", old, "late")
		f.refused(err, stepfleet.ErrSuperseded)
		_, err = f.Ledger.Adjudicate(f.ctx, "r", old, []stepfleet.Key{task("r", "a").Key})
		f.refused(err, stepfleet.ErrSuperseded)
		f.refused(f.Ledger.Rejoin(f.ctx, "r", old, ""), stepfleet.ErrSuperseded)
		f.inState(id, stepfleet.StateQueued, 0)
		for _, verb := range []stepfleet.Verb{
			stepfleet.VerbSubmit, stepfleet.VerbCancel, stepfleet.VerbClose, stepfleet.VerbAdjudicate, stepfleet.VerbRejoin,
		} {
			if diff := cmp.Diff([]string{"superseded"}, f.refusals("r", verb)); diff != "" {
				f.Errorf("%s: %s", verb, diff)
			}
		}
	},
	"a first submission that is refused leaves nothing but its audit row": func(f *fixture) {
		other := []byte("only in a batch that is refused")
		ahead := batch("ahead", task("ahead", "a"))
		ahead.Epoch = 7
		ahead.Payloads[stepfleet.DigestOf(other)] = other
		_, err := f.Ledger.Submit(f.ctx, ahead)
		f.refused(err, stepfleet.ErrNotFound)
		_, err = f.Ledger.Submit(f.ctx, withoutPayload("bare", other))
		f.refused(err, stepfleet.ErrTaskInvalid) // what the first one had brought is gone, too
		for run, code := range map[string]string{"ahead": "not_found", "bare": "task_invalid"} {
			if diff := cmp.Diff([]string{code}, f.refusals(run, stepfleet.VerbSubmit)); diff != "" {
				f.Errorf("%s: %s", run, diff)
			}
		}
		open, err := f.Ledger.OpenRuns(f.ctx, "", 10)
		f.must(err)
		epochs, err := f.Ledger.Epochs(f.ctx, []string{"ahead", "bare"})
		f.must(err)
		if len(open) != 0 || len(epochs) != 0 {
			f.Errorf("runs that nobody knows: open %+v, epochs %v", open, epochs)
		}
		f.submit("bare", "a") // and it is as new as any other
	},
	"an executor of another ledger is told so, and not that it was superseded": func(f *fixture) {
		f.submit("r", "a")
		ahead := f.speak("r") + 1
		late := batch("r", task("r", "a"))
		late.Epoch = ahead
		for _, run := range []string{"r", "nobody"} {
			late.RunID, late.Tasks[0].RunID = run, run
			_, err := f.Ledger.Submit(f.ctx, late)
			f.refused(err, stepfleet.ErrNotFound)
			_, err = f.Ledger.Cancel(f.ctx, run, ahead, nil, "ahead")
			f.refused(err, stepfleet.ErrNotFound)
			_, err = f.Ledger.CloseRun(f.ctx, run, ahead, "ahead")
			f.refused(err, stepfleet.ErrNotFound)
			_, err = f.Ledger.Adjudicate(f.ctx, run, ahead, []stepfleet.Key{task(run, "a").Key})
			f.refused(err, stepfleet.ErrNotFound)
			f.refused(f.Ledger.Rejoin(f.ctx, run, ahead, ""), stepfleet.ErrNotFound)
		}
	},
	"a superseded executor hears so also of what has ended": func(f *fixture) {
		f.submit("r", "a")
		late := batch("r", task("r", "a"))
		late.Epoch = f.speak("r")
		now := f.speakAs("r", "another")
		if _, err := f.Ledger.CloseRun(f.ctx, "r", now, "over"); err != nil {
			f.Fatal(err)
		}
		_, err := f.Ledger.Submit(f.ctx, late)
		f.refused(err, stepfleet.ErrSuperseded)
		_, err = f.Ledger.TakeEpoch(f.ctx, "r", stepfleet.Executor{Name: "a third"}, "")
		f.refused(err, stepfleet.ErrRunClosed)
		f.must(f.Ledger.Rejoin(f.ctx, "r", now, "")) // it may watch how its steps end
	},
	"an executor of an earlier resume does not take the run from a later one": func(f *fixture) {
		resumed := stepfleet.Executor{Name: "resumed", Resume: 2}
		f.speakAs("r", "first")
		now := f.speakAfter("r", resumed)
		late := []stepfleet.Executor{{Name: "first"}, {Name: "never heard of", Resume: 1}}
		for _, old := range late { // its request was held up until now
			_, err := f.Ledger.TakeEpoch(f.ctx, "r", old, "http://late")
			f.refused(err, stepfleet.ErrSuperseded)
		}
		if again := f.speakAfter("r", resumed); again != now {
			f.Errorf("the epoch is %d, and was %d", again, now)
		}
		b := batch("r", task("r", "a"))
		b.Epoch = now
		f.submitBatch(b)
		if lease := f.claim(f.session(), 1).Leases[0]; lease.NotifyURL != "" {
			f.Errorf("ends are told to %s: where the late one asked", lease.NotifyURL)
		}
		if diff := cmp.Diff([]string{"superseded", "superseded"}, f.refusals("r", stepfleet.VerbTakeover)); diff != "" {
			f.Error(diff)
		}
		// Of one resume whoever asks last has it.
		if twin := f.speakAfter("r", stepfleet.Executor{Name: "twin", Resume: 2}); twin != now+1 {
			f.Errorf("another of the same resume has epoch %d, want %d", twin, now+1)
		}
		if _, err := f.Ledger.CloseRun(f.ctx, "r", now+1, "over"); err != nil {
			f.Fatal(err)
		}
		_, err := f.Ledger.TakeEpoch(f.ctx, "r", late[0], "")
		f.refused(err, stepfleet.ErrSuperseded) // it hears so also of what has ended
		_, err = f.Ledger.TakeEpoch(f.ctx, "r", stepfleet.Executor{Name: "next", Resume: 3}, "")
		f.refused(err, stepfleet.ErrRunClosed)
	},
	"steps need an executor, and run workers must have none": func(f *fixture) {
		_, err := f.Ledger.Submit(f.ctx, batch("r", task("r", "a")))
		f.refused(err, stepfleet.ErrTaskInvalid)
		b := runWorker("r")
		b.Epoch = f.speak("r")
		_, err = f.Ledger.Submit(f.ctx, b)
		f.refused(err, stepfleet.ErrTaskInvalid)
		f.submitBatch(runWorker("r"))
		f.refused(f.Ledger.Rejoin(f.ctx, "r", stepfleet.NoExecutor, ""), stepfleet.ErrTaskInvalid)
	},
	"an executor cancels its steps and not its run worker": func(f *fixture) {
		worker := f.submitBatch(runWorker("r"))[0]
		f.submit("r", "a")
		epoch := f.speak("r")
		for _, keys := range [][]stepfleet.Key{{worker.Key}, nil} {
			if _, err := f.Ledger.Cancel(f.ctx, "r", epoch, keys, "steps"); err != nil {
				f.Fatal(err)
			}
			f.inState(worker.TaskID, stepfleet.StateQueued, 0)
		}
		changes, err := f.Ledger.Cancel(f.ctx, "r", stepfleet.NoExecutor, nil, "all")
		if err != nil || len(changes) != 1 || changes[0].TaskID != worker.TaskID {
			f.Fatalf("%+v %v", changes, err)
		}
	},
	"an executor closes the run for steps, others for run workers too": func(f *fixture) {
		s := f.session()
		f.submitBatch(runWorker("r"))
		f.submit("r", "a")
		lease := f.claim(s, 1).Leases[0]
		if changes, err := f.Ledger.CloseRun(f.ctx, "r", f.speak("r"), "over"); err != nil || len(changes) != 1 {
			f.Fatalf("%+v %v", changes, err)
		}
		f.must(f.start(s, lease.Ref)) // the run worker
		another := runWorker("r")
		another.Tasks[0].Attempt = 1
		f.submitBatch(another)
		if open, err := f.Ledger.OpenRuns(f.ctx, "", 10); err != nil || len(open) != 0 {
			f.Fatalf("%+v %v", open, err)
		}
		leased := f.claim(s, 1).Leases[0]
		if changes, err := f.Ledger.CloseRun(f.ctx, "r", stepfleet.NoExecutor, "ended"); err != nil || len(changes) != 2 {
			f.Fatalf("%+v %v", changes, err)
		}
		f.refused(f.start(s, leased.Ref), stepfleet.ErrRunClosed)
		another.Tasks[0].Attempt = 2
		_, err := f.Ledger.Submit(f.ctx, another)
		f.refused(err, stepfleet.ErrRunClosed)
		open, err := f.Ledger.OpenRuns(f.ctx, "", 10)
		if diff := cmp.Diff([]stepfleet.OpenRun{{RunID: "r", Closed: true}}, open); diff != "" || err != nil {
			f.Fatalf("%s %v", diff, err)
		}
	},
	"adjudication is granted of what has ended, once an epoch": func(f *fixture) {
		s := f.session()
		f.submit("r", "lost", "open")
		lease := f.claim(s, 1).Leases[0]
		f.must(f.start(s, lease.Ref))
		f.must(f.settle(s, lease.Ref, stepfleet.StateLost))
		keys := []stepfleet.Key{task("r", "open").Key, lease.Key, task("r", "refused at submit").Key, lease.Key}
		first := f.speak("r")
		for range 2 {
			f.rulings(first, keys, []stepfleet.Ruling{
				{Key: keys[0], State: stepfleet.StateQueued},
				{Key: keys[1], State: stepfleet.StateLost, Granted: true},
				{Key: keys[2], Granted: true},
				{Key: keys[3], State: stepfleet.StateLost, Granted: true},
			})
		}
		// A later executor hears of the one before, however often it asks, and the old one of it.
		for i, executor := range []string{"b", "c"} {
			epoch := f.speakAs("r", executor)
			for range 2 {
				f.rulings(epoch, keys[1:2], []stepfleet.Ruling{
					{Key: keys[1], State: stepfleet.StateLost, Granted: true, Earlier: first + stepfleet.Epoch(i)},
				})
			}
			_, err := f.Ledger.Adjudicate(f.ctx, "r", first, keys)
			f.refused(err, stepfleet.ErrSuperseded)
		}
		f.rulings(first+2, keys[2:3], []stepfleet.Ruling{{Key: keys[2], Granted: true, Earlier: first}})
		f.inState(lease.TaskID, stepfleet.StateLost, 1)
	},
	"adjudication of nothing, of another run or by nobody is invalid": func(f *fixture) {
		epoch := f.speak("r")
		for _, keys := range [][]stepfleet.Key{nil, {task("other", "a").Key}, {{RunID: "r"}}, {task("r", "a").Key, task("r", "b\x00").Key}} {
			_, err := f.Ledger.Adjudicate(f.ctx, "r", epoch, keys)
			f.refused(err, stepfleet.ErrTaskInvalid)
		}
		_, err := f.Ledger.Adjudicate(f.ctx, "r", stepfleet.NoExecutor, []stepfleet.Key{task("r", "a").Key})
		f.refused(err, stepfleet.ErrTaskInvalid)
	},
}

func (f *fixture) rulings(epoch stepfleet.Epoch, keys []stepfleet.Key, want []stepfleet.Ruling) {
	f.Helper()
	got, err := f.Ledger.Adjudicate(f.ctx, keys[0].RunID, epoch, keys)
	f.must(err)
	if diff := cmp.Diff(want, got); diff != "" {
		f.Fatal(diff)
	}
}
