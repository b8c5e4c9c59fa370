package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/stepfleet/stepfleet/internal/chaos/proxy"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

// act is a scene in place of a schedule: a few runs, and what is done to them.
type act func(context.Context, *nemesis) error

var acts = map[string]act{theDeaths: deaths, "slow-log": slowLog}

// Acts are the names of all of them.
func Acts() []string { return slices.Sorted(maps.Keys(acts)) }

// noRetries are the jobs whose steps have one attempt.
var noRetries = []string{"bare", "slow"}

const (
	theDeaths = "deaths"
	// slowBy is how much later than its answer a reader of Dagster's log sees what it has, and slowFor for
	// how long that goes on.
	slowBy  = 400 * time.Millisecond
	slowFor = 12 * time.Second
)

// deaths has a worker and its template die at once, with steps that have no retries. Nobody is left who could end
// their processes: neither the worker's own nor, in this act, its supervisor.
func deaths(ctx context.Context, n *nemesis) error {
	if err := n.launchAll(ctx, "slow"); err != nil {
		return err
	}
	i := &Injected{Fault: schedule.Fault{Kind: schedule.KillWorker}}
	found := within(busyWait, func() bool { return n.onSteps(ctx, i) || ctx.Err() != nil })
	if !found {
		return fmt.Errorf("in %s no worker ran steps of a run whose run worker is elsewhere", busyWait)
	}
	defer n.keep(i)
	return n.killHost(i)
}

// launchAll launches a run of each job.
func (n *nemesis) launchAll(ctx context.Context, jobs ...string) error {
	for _, job := range jobs {
		if err := n.load.launch(ctx, job, uuid.NewString()); err != nil {
			return fmt.Errorf("launch %s: %w", job, err)
		}
	}
	return nil
}

// hostOf returns the worker that the run worker of a run is on.
func (n *nemesis) hostOf(ctx context.Context) string {
	if _, err := n.load.look(ctx); err != nil {
		return ""
	}
	_, executor, ok := n.load.runWorker(n.hits)
	for w := range workers {
		name := workerName(w)
		if ok && slices.ContainsFunc(proctable.Descendants(n.pid(name)), func(p proctable.Process) bool { return p.PID == executor.PID }) {
			return name
		}
	}
	return ""
}

// onSteps finds a worker whose death is proven and that has steps, and no run worker.
func (n *nemesis) onSteps(ctx context.Context, i *Injected) bool {
	host := n.hostOf(ctx)
	for w := range workers {
		if name := workerName(w); host != "" && name != host && proven(name) && n.load.works(name) {
			i.Target = name
			return true
		}
	}
	return false
}

// killHost kills a worker and its template. The template is stopped before, or it would end its children when
// it sees that the worker is gone.
func (n *nemesis) killHost(i *Injected) error {
	name := i.Target
	p, err := n.service(i, name)
	if err != nil {
		return err
	}
	defer n.give(name)
	template, ok := templateOf(p.PID)
	if !ok {
		return fmt.Errorf("%s has no template", name)
	}
	i.Instance = n.instance(name)
	if err := template.Signal(syscall.SIGSTOP); err != nil || !within(landWait, template.Stopped) {
		return fmt.Errorf("stop the template of %s: %w", name, errNoVictim)
	}
	if err := errors.Join(p.Signal(syscall.SIGKILL), template.Signal(syscall.SIGKILL)); err != nil {
		return err
	}
	return n.ended(i, p, name, landWait)
}

// slowLog has a run worker read Dagster's log slowly, so that it learns from the ledger first how steps ended.
// Some steps run over their timeout and are tried again; in each process there is room for one attempt.
func slowLog(ctx context.Context, n *nemesis) error {
	if err := n.launchAll(ctx, "wide"); err != nil {
		return err
	}
	host := ""
	if !within(busyWait, func() bool { host = n.hostOf(ctx); return host != "" || ctx.Err() != nil }) {
		return fmt.Errorf("in %s no run worker has opened its run", busyWait)
	}
	var slow sync.WaitGroup
	for _, edge := range n.net.of(host, "child-PG") {
		slow.Go(func() {
			i := &Injected{Fault: schedule.Fault{Kind: schedule.LinkDelay, Delay: slowBy, Hold: slowFor}}
			if err := n.breakEdge(ctx, i, edge, proxy.Delay); err != nil {
				i.Missed = err.Error()
			}
			n.keep(i)
		})
	}
	err := n.launchAll(ctx, "hasty", "wide")
	slow.Wait()
	return err
}
