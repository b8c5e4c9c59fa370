package conformance

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/stepfleet/stepfleet"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// together runs n functions at once and waits for them.
func together(n int, fn func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { fn(i) })
	}
	wg.Wait()
}

// raceExamples set calls against each other. What each answered must agree with the end.
var raceExamples = map[string]func(*fixture){
	"many claimers, each task once": func(f *fixture) {
		const tasks, workers = 300, 8
		var names []string
		for i := range tasks {
			names = append(names, fmt.Sprint(i))
		}
		f.submit("r", names...)
		var mu sync.Mutex
		owner := map[stepfleet.TaskID]int{}
		together(workers, func(i int) {
			s, err := f.Ledger.Register(f.ctx, stepfleet.SessionSpec{Worker: fmt.Sprint(i)})
			if err != nil {
				f.Error(err)
				return
			}
			for {
				got, err := f.Ledger.Claim(f.ctx, stepfleet.ClaimRequest{Session: s.ID, Instance: s.Instance, ID: fmt.Sprint(i), Queue: queue, Max: 7})
				if err != nil {
					f.Error(err)
					return
				}
				mu.Lock()
				for _, l := range got.Leases {
					owner[l.TaskID]++
				}
				mu.Unlock()
				if len(got.Leases) == 0 && !got.More {
					return
				}
			}
		})
		if len(owner) != tasks {
			f.Fatalf("%d of %d tasks claimed", len(owner), tasks)
		}
		for id, n := range owner {
			if n != 1 {
				f.Errorf("task %d claimed %d times", id, n)
			}
		}
	},
	"twins of one submission": func(f *fixture) {
		epoch := f.speak("r")
		const twins = 8
		answers := make([][]stepfleet.Receipt, twins)
		together(twins, func(i int) {
			b := batch("r", task("r", "a"), task("r", "b"))
			b.Epoch = epoch
			if i%2 == 1 {
				b.Tasks[0], b.Tasks[1] = b.Tasks[1], b.Tasks[0]
			}
			var err error
			if answers[i], err = f.Ledger.Submit(f.ctx, b); err != nil {
				f.Error(err)
			}
		})
		ids, fresh := map[stepfleet.Key]stepfleet.TaskID{}, 0
		for _, receipts := range answers {
			for _, r := range receipts {
				if known, ok := ids[r.Key]; ok && known != r.TaskID {
					f.Errorf("%s is task %d and %d", r.Key, known, r.TaskID)
				}
				ids[r.Key] = r.TaskID
				if !r.Known {
					fresh++
				}
			}
		}
		if fresh != 2 {
			f.Errorf("%d receipts say new, want 2", fresh)
		}
	},
	"takeover against submit, cancel and close: nothing of the old executor's happens after it": func(f *fixture) {
		for round := range 25 {
			run := fmt.Sprint("takeover-", round)
			f.submit(run, "known")
			old := f.speak(run)
			var taken stepfleet.Epoch
			var errs [4]error
			late := batch(run, task(run, "late"))
			late.Epoch = old
			together(4, func(i int) {
				switch i {
				case 0:
					taken, errs[i] = f.Ledger.TakeEpoch(f.ctx, run, stepfleet.Executor{Name: "another"}, "")
				case 1:
					_, errs[i] = f.Ledger.Submit(f.ctx, late)
				case 2:
					_, errs[i] = f.Ledger.Cancel(f.ctx, run, old, []stepfleet.Key{task(run, "known").Key}, "old")
				case 3:
					if round%2 == 0 {
						_, errs[i] = f.Ledger.CloseRun(f.ctx, run, old, "old")
					}
				}
			})
			f.checkTakeover(run, taken, errs[:])
		}
	},
	"takeovers of all resumes at once: the last one has the run": func(f *fixture) {
		for round := range 25 {
			run := fmt.Sprint("resumes-", round)
			f.runs[run] = true
			const last = 4
			together(last+1, func(i int) {
				executor := stepfleet.Executor{Name: fmt.Sprint("executor-", i), Resume: i}
				if _, err := f.Ledger.TakeEpoch(f.ctx, run, executor, ""); err != nil && !errors.Is(err, stepfleet.ErrSuperseded) {
					f.Errorf("%s: %v", executor, err)
				}
			})
			epochs, err := f.Ledger.Epochs(f.ctx, []string{run})
			f.must(err)
			again := f.speakAfter(run, stepfleet.Executor{Name: fmt.Sprint("executor-", last), Resume: last})
			if again != epochs[run] {
				f.Errorf("the last executor is given epoch %d, and the run was at %d: another had it", again, epochs[run])
			}
		}
	},
	"settle against sweep: one of them ends the task": func(f *fixture) {
		for range 25 {
			s := f.session()
			lease := f.running(s)
			f.must(f.end(s, "exit"))
			var settled error
			together(2, func(i int) {
				if i == 1 {
					f.sweep()
					return
				}
				settled = f.settle(s, lease.Ref, stepfleet.StateSucceeded)
			})
			f.sweep() // the first may have passed over a locked task
			switch v := f.view(lease.TaskID); {
			case settled == nil && v.State == stepfleet.StateSucceeded && v.Fence == 1:
			case errors.Is(settled, stepfleet.ErrFenced) && v.State == stepfleet.StateLost && v.Fence == 2:
			default:
				f.Fatalf("settle answered %v, the task is %s with fence %d", settled, v.State, v.Fence)
			}
		}
	},
	"start against cancel: a start that was granted is flagged, one that was not never runs": func(f *fixture) {
		for range 25 {
			s := f.session()
			lease := f.lease(s)
			var started error
			together(2, func(i int) {
				if i == 1 {
					if _, err := f.Ledger.Cancel(f.ctx, lease.RunID, stepfleet.NoExecutor, nil, "asked"); err != nil {
						f.Error(err)
					}
					return
				}
				started = f.start(s, lease.Ref)
			})
			switch v := f.view(lease.TaskID); {
			case started == nil && v.State == stepfleet.StateRunning && v.CancelRequested:
			case errors.Is(started, stepfleet.ErrCancelled) && v.State == stepfleet.StateCancelled:
			default:
				f.Fatalf("start answered %v, the task is %s", started, v.State)
			}
		}
	},
	"claim against the session's end: nothing is orphaned": func(f *fixture) {
		for round := range 25 {
			s := f.session()
			f.submit(fmt.Sprint("orphans-", round), "a", "b", "c")
			together(2, func(i int) {
				if i == 1 {
					if err := f.end(s, "exit"); err != nil {
						f.Error(err)
					}
					f.sweep()
					return
				}
				_, err := f.Ledger.Claim(f.ctx, stepfleet.ClaimRequest{Session: s, Instance: f.instances[s], ID: "x", Queue: queue, Max: 2})
				if err != nil && !errors.Is(err, stepfleet.ErrSessionDead) {
					f.Error(err)
				}
			})
			f.sweep()
			views, err := f.Ledger.RunTasks(f.ctx, fmt.Sprint("orphans-", round))
			f.must(err)
			for _, v := range views {
				if v.State != stepfleet.StateQueued {
					f.Fatalf("task %d is %s by dead session %d", v.ID, v.State, v.Session)
				}
			}
			f.cancelAll(fmt.Sprint("orphans-", round))
		}
	},
	"claims, cancels and releases of the same tasks do not lock each other out": func(f *fixture) {
		var names []string
		for i := range 60 {
			names = append(names, fmt.Sprint(i))
		}
		f.submit("r", names...)
		together(6, func(i int) {
			s, err := f.Ledger.Register(f.ctx, stepfleet.SessionSpec{Worker: fmt.Sprint(i)})
			if err != nil {
				f.Error(err)
				return
			}
			for round := range 15 {
				if i == 0 {
					key := task("r", names[round*4]).Key
					other := task("r", names[round*4+1]).Key
					if _, err := f.Ledger.Cancel(f.ctx, "r", stepfleet.NoExecutor, []stepfleet.Key{other, key}, "asked"); err != nil {
						f.Error(err)
					}
					continue
				}
				got, err := f.Ledger.Claim(f.ctx, stepfleet.ClaimRequest{Session: s.ID, Instance: s.Instance, ID: "x", Queue: queue, Max: 10})
				if err != nil {
					f.Error(err)
					return
				}
				var refs []stepfleet.Ref
				for _, l := range got.Leases {
					refs = append(refs, l.Ref)
				}
				if _, err := f.Ledger.Release(f.ctx, s.ID, refs, "back"); err != nil {
					f.Error(err)
				}
			}
		})
		f.must(f.end(1, "exit"))
		views, err := f.Ledger.RunTasks(f.ctx, "r")
		f.must(err)
		waiting := 0
		for _, v := range views {
			switch v.State {
			case stepfleet.StateQueued:
				waiting++
			case stepfleet.StateCancelled:
			default:
				f.Errorf("task %d is %s", v.ID, v.State)
			}
		}
		if got := f.claim(f.session(), 100); len(got.Leases) != waiting {
			f.Errorf("%d tasks wait, %d could be claimed", waiting, len(got.Leases))
		}
	},
}

// checkTakeover reads from the audit that whatever the old executor did came before the takeover.
func (f *fixture) checkTakeover(run string, taken stepfleet.Epoch, errs []error) {
	f.Helper()
	for i, err := range errs {
		if r := stepfleet.RefusalOf(err); err != nil && r != stepfleet.ErrSuperseded && r != stepfleet.ErrRunClosed {
			f.Fatalf("call %d: %v", i, err)
		}
	}
	if (taken == 2) == errors.Is(errs[0], stepfleet.ErrRunClosed) {
		f.Fatalf("epoch %d, %v", taken, errs[0])
	}
	rows, err := f.Ledger.Audit(f.ctx, run)
	f.must(err)
	over := false
	for _, row := range rows {
		switch {
		case row.Verb == stepfleet.VerbTakeover && row.Actor == "executor 2" && row.Refused == "":
			over = true
		case over && row.Actor == "executor 1" && row.Refused == "":
			f.Fatalf("after the takeover: %+v", row)
		}
	}
}
