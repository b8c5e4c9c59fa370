package conformance

import (
	"errors"
	"fmt"
	"time"

	"github.com/stepfleet/stepfleet"
)

// lapseExamples set calls against deadlines that pass and runs that close meanwhile.
var lapseExamples = map[string]func(*fixture){
	"start against the sweep of overdue leases: a task is started or taken, never both": func(f *fixture) {
		s := f.session()
		for round := range 20 {
			run := fmt.Sprint("overdue-", round)
			f.submit(run, "a", "b", "c", "d", "e", "f")
			leases := f.claim(s, 6).Leases
			for _, lease := range leases {
				f.AgeLease(lease.TaskID, 2*lives.StartWithin)
			}
			started := make([]error, len(leases))
			together(len(leases)+2, func(i int) {
				if i < len(leases) {
					started[i] = f.start(s, leases[i].Ref)
				} else if _, err := f.Ledger.Sweep(f.ctx, lives.StartWithin, 100); err != nil {
					f.Error(err)
				}
			})
			for i, lease := range leases {
				switch v := f.view(lease.TaskID); {
				case started[i] == nil && v.State == stepfleet.StateRunning && v.Fence == lease.Fence:
				case errors.Is(started[i], stepfleet.ErrFenced) && v.State == stepfleet.StateQueued && v.Fence == lease.Fence+1:
				default:
					f.Fatalf("start with fence %d answered %v, the task is %s with fence %d", lease.Fence, started[i], v.State, v.Fence)
				}
			}
			f.cancelAll(run)
		}
	},
	"claim against the session's expiry: nothing is orphaned": func(f *fixture) {
		for round := range 25 {
			run, s := fmt.Sprint("expiry-", round), f.session()
			f.submit(run, "a", "b", "c", "d", "e", "f")
			f.AgeSession(s, lives.SessionTTL+time.Minute)
			together(4, func(i int) {
				if i == 3 {
					if _, err := f.expire(lives.SessionTTL); err != nil {
						f.Error(err)
					}
					return
				}
				_, err := f.Ledger.Claim(f.ctx, stepfleet.ClaimRequest{Session: s, Instance: f.instances[s], ID: fmt.Sprint(i), Queue: queue, Max: 2})
				if err != nil && stepfleet.RefusalOf(err) == nil {
					f.Error(err)
				}
			})
			f.sweep()
			views, err := f.Ledger.RunTasks(f.ctx, run)
			f.must(err)
			for _, v := range views {
				if v.State != stepfleet.StateQueued {
					f.Fatalf("task %d is %s by session %d, which is suspect", v.ID, v.State, v.Session)
				}
			}
			f.cancelAll(run)
		}
	},
	"submit against close: a closed run has no task that is open": func(f *fixture) {
		for round := range 10 {
			run := fmt.Sprint("closing-", round)
			epoch := f.speak(run)
			together(4, func(i int) {
				if i == 3 {
					if _, err := f.Ledger.CloseRun(f.ctx, run, epoch, "over"); err != nil {
						f.Error(err)
					}
					return
				}
				f.submitUntilClosed(run, epoch, i)
			})
			views, err := f.Ledger.RunTasks(f.ctx, run)
			f.must(err)
			for _, v := range views {
				if !v.State.Terminal() {
					f.Fatalf("task %d is %s, and its run is closed", v.ID, v.State)
				}
			}
		}
	},
}

// submitUntilClosed submits one step after another until that is refused, or there are many.
func (f *fixture) submitUntilClosed(run string, epoch stepfleet.Epoch, client int) {
	for n := range 200 {
		b := batch(run, task(run, fmt.Sprint(client, "-", n)))
		b.Epoch = epoch
		_, err := f.Ledger.Submit(f.ctx, b)
		if errors.Is(err, stepfleet.ErrRunClosed) {
			return
		}
		if err != nil {
			f.Error(err)
			return
		}
	}
}

func (f *fixture) cancelAll(run string) {
	f.Helper()
	_, err := f.Ledger.Cancel(f.ctx, run, stepfleet.NoExecutor, nil, "next round")
	f.must(err)
}
