package conformance

import (
	"fmt"
	"strings"

	"github.com/stepfleet/stepfleet"
)

// loseAttempt takes an attempt of a step to its loss with the session's death.
func (f *fixture) loseAttempt(runID string, attempt int, drained bool) {
	f.Helper()
	s := f.session()
	t := task(runID, "a")
	t.Attempt = attempt
	f.submitBatch(batch(runID, t))
	lease := f.claim(s, 1).Leases[0]
	f.must(f.start(s, lease.Ref))
	if drained {
		f.must(f.drain(s))
	}
	f.must(f.end(s, "killed"))
	f.decide("")
	f.inState(lease.TaskID, stepfleet.StateLost, 2)
}

func (f *fixture) submitAttempt(runID string, attempt int) stepfleet.Receipt {
	f.Helper()
	t := task(runID, "a")
	t.Attempt = attempt
	return f.submitBatch(batch(runID, t))[0]
}

// poisonExamples are about tasks that kill their workers.
var poisonExamples = map[string]func(*fixture){
	"after three lost attempts the next is dead, with the evidence": func(f *fixture) {
		for attempt := range stepfleet.PoisonLost {
			f.loseAttempt("r", attempt, false)
		}
		got := f.submitAttempt("r", 3)
		if got.State != stepfleet.StateDead || got.Known {
			f.Fatalf("%+v", got)
		}
		v := f.inState(got.TaskID, stepfleet.StateDead, 1)
		for attempt := range stepfleet.PoisonLost {
			if want := fmt.Sprintf("attempt %d on worker worker-", attempt); !strings.Contains(v.Reason, want) || !strings.Contains(v.Reason, "is dead: killed") {
				f.Errorf("the evidence has no %q: %s", want, v.Reason)
			}
		}
		rows, err := f.Ledger.Audit(f.ctx, "r")
		f.must(err)
		last := rows[len(rows)-1]
		if last.Verb != stepfleet.VerbPoison || last.From != stepfleet.StateQueued || last.Detail != v.Reason {
			f.Fatalf("%+v", last)
		}
		if again := f.submitAttempt("r", 3); again.State != stepfleet.StateDead || !again.Known {
			f.Fatalf("%+v", again)
		}
		if left := f.claim(f.session(), 10); len(left.Leases) != 0 || left.More {
			f.Fatalf("%+v", left)
		}
	},
	"other steps of the batch are taken": func(f *fixture) {
		for attempt := range stepfleet.PoisonLost {
			f.loseAttempt("r", attempt, false)
		}
		bad, good := task("r", "a"), task("r", "b")
		bad.Attempt, good.Attempt = 3, 3
		receipts := f.submitBatch(batch("r", good, bad))
		if receipts[0].State != stepfleet.StateQueued || receipts[1].State != stepfleet.StateDead {
			f.Fatalf("%+v", receipts)
		}
		if got := f.claim(f.session(), 10).Leases; len(got) != 1 || got[0].StepKey != "b" {
			f.Fatalf("%+v", got)
		}
	},
	"two lost attempts, others' and drained ones do not count": func(f *fixture) {
		f.loseAttempt("r", 0, false)
		f.loseAttempt("r", 1, true)
		f.loseAttempt("r", 2, false)
		for attempt := range stepfleet.PoisonLost {
			f.loseAttempt("another run", attempt, false)
		}
		third := f.submitAttempt("r", 3)
		if third.State != stepfleet.StateQueued {
			f.Fatalf("%+v", third)
		}
		s := f.session()
		lease := f.claim(s, 1).Leases[0]
		f.must(f.start(s, lease.Ref))
		f.must(f.settle(s, lease.Ref, stepfleet.StateLost)) // by its worker, which drains
		if fourth := f.submitAttempt("r", 4); fourth.State != stepfleet.StateQueued {
			f.Fatalf("%+v", fourth)
		}
	},
	"attempts that were lost with their template count, though the worker lives": func(f *fixture) {
		s := f.session()
		for attempt := range stepfleet.PoisonLost {
			f.submitAttempt("r", attempt)
			lease := f.claim(s, 1).Leases[0]
			f.must(f.start(s, lease.Ref))
			r := result(stepfleet.StateLost)
			r.Error = &stepfleet.Failure{Code: stepfleet.HostDied, Message: fmt.Sprintf("template %d died", attempt)}
			f.must(f.first(f.Ledger.Settle(f.ctx, s, []stepfleet.Settlement{{Ref: lease.Ref, Result: r}})))
		}
		f.must(f.drain(s)) // long after
		got := f.submitAttempt("r", 3)
		if got.State != stepfleet.StateDead {
			f.Fatalf("%+v", got)
		}
		v := f.view(got.TaskID)
		for attempt := range stepfleet.PoisonLost {
			if want := fmt.Sprintf("attempt %d on worker worker-1, host_died: template %d died", attempt, attempt); !strings.Contains(v.Reason, want) {
				f.Errorf("the evidence has no %q: %s", want, v.Reason)
			}
		}
	},
	"an abandoned attempt that is lost counts": func(f *fixture) {
		s := f.session()
		for attempt := range stepfleet.PoisonLost {
			f.submitAttempt("r", attempt)
			lease := f.claim(s, 1).Leases[0]
			f.must(f.start(s, lease.Ref))
			f.must(f.abandon(s, lease.Ref))
			f.decide("")
		}
		if got := f.submitAttempt("r", 3); got.State != stepfleet.StateDead {
			f.Fatalf("%+v", got)
		}
	},
	"a lease that five sessions held when they died is dead": func(f *fixture) {
		id := f.submit("r", "a")[0]
		for death := range stepfleet.PoisonDeaths {
			// Releases, drains and suspicion do not count.
			s := f.session()
			f.must(f.release(s, f.claim(s, 1).Leases[0].Ref))
			f.claim(s, 1)
			f.suspect(s)
			f.sweep()
			f.must(f.end(s, "over"))
			s = f.session()
			f.claim(s, 1)
			f.must(f.drain(s))
			f.must(f.end(s, "drained"))
			f.sweep()
			if v := f.view(id); v.State != stepfleet.StateQueued {
				f.Fatalf("%d deaths: %+v", death, v)
			}
			s = f.session()
			f.claim(s, 1)
			f.must(f.end(s, "killed"))
			f.sweep()
		}
		v := f.view(id)
		if v.State != stepfleet.StateDead || !strings.Contains(v.Reason, "5 sessions that died") || !strings.Contains(v.Reason, "killed") {
			f.Fatalf("%+v", v)
		}
		rows, err := f.Ledger.Audit(f.ctx, "r")
		f.must(err)
		if last := rows[len(rows)-1]; last.Verb != stepfleet.VerbPoison || last.From != stepfleet.StateLeased || last.Detail != v.Reason {
			f.Fatalf("%+v", last)
		}
	},
}
