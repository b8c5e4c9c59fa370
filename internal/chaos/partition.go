package chaos

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/chaos/proxy"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
)

const (
	// cutOff is the worker that is cut from PostgreSQL.
	cutOff = "worker-1"
	// busyWait bounds the wait until it runs something, and calm is how long the load goes on after.
	busyWait = time.Minute
	calm     = 10 * time.Second
	// cutRuns is how many steps it must be running: one may end before the cut.
	cutRuns = 2
)

// partition cuts one worker, with its steps and run workers, from PostgreSQL for a while, when it
// runs steps. Nothing else is done.
func (n *nemesis) partition(ctx context.Context, lasts time.Duration) {
	loading, enough := context.WithCancel(ctx)
	var load, cuts sync.WaitGroup
	load.Go(func() { n.load.run(loading) })
	if within(busyWait, func() bool { return n.load.running(cutOff) >= cutRuns || ctx.Err() != nil }) {
		for _, edge := range n.net.of(cutOff, "worker-PG", "renewals-PG", "child-PG") {
			cuts.Go(func() {
				i := &Injected{Fault: schedule.Fault{Kind: schedule.LinkStall, Hold: lasts}}
				if err := n.breakEdge(ctx, i, edge, proxy.Stall); err != nil {
					i.Missed = err.Error()
				}
				n.keep(i)
			})
		}
	}
	cuts.Wait()
	hold(ctx, calm)
	enough()
	load.Wait()
}

// judgePartition requires that nothing was lost, and that something could have been.
func (r *Report) judgePartition(o outcome, effects audit.Source[audit.Effect]) {
	var from, until time.Time
	for _, f := range o.faults {
		if f.Ok() {
			from, until = f.Landed, f.Healed
		}
	}
	ended := map[stepfleet.Key]audit.Task{}
	for _, t := range o.tasks {
		ended[t.Key] = t
		if t.State != stepfleet.StateSucceeded && (t.Kind == stepfleet.KindRun || t.Event == "") {
			r.problem("partition", "%s is %s", t.Key, t.State)
		}
	}
	survived := 0
	for e, err := range effects(context.Background()) {
		if err != nil {
			r.problem("partition", "%v", err)
			return
		}
		t := ended[e.Key]
		if e.Event == audit.EffectBegin && e.Worker == cutOff && e.Time().Before(from) && t.EndedAt.After(until) && t.State == stepfleet.StateSucceeded {
			survived++
		}
	}
	if survived == 0 {
		r.problem("vacuous", "no step of %s ran from before %s to after %s", cutOff, from, until)
	}
	r.Survived = survived
}

// partitionPhase is what the phase is called.
func partitionPhase(lasts time.Duration) string {
	return fmt.Sprintf("cut %s from PostgreSQL for %s", cutOff, lasts)
}
