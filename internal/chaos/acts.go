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
	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet/internal/chaos/proxy"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

// act is a scene in place of a schedule.
type act struct {
	// play launches a few runs, and does something to them.
	play func(context.Context, *nemesis) error
	// empty are the invariants of which the scene makes no case.
	empty []string
}

var acts = map[string]act{
	theDeaths:     {deaths, oneLoses},
	theLateWorker: {lateWorker, oneLoses},
	"slow-log":    {slowLog, []string{"I9", "R2"}}, // every step has retries
}

// oneLoses is what is empty where the only run loses steps, and nobody asks for what he has lost: there are no
// refusals, and the run need not succeed.
var oneLoses = []string{"I9", "R1"}

// Acts are the names of all of them.
func Acts() []string { return slices.Sorted(maps.Keys(acts)) }

// noRetries are the jobs whose steps have one attempt.
var noRetries = []string{"bare", "slow"}

const (
	theDeaths     = "deaths"
	theLateWorker = "late-worker"
	// ahead is how much earlier than its worker a step wakes: long enough to write how it ended.
	ahead = 4 * time.Second
	// slowBy is how much later than its answer a reader of Dagster's log sees what it has, and slowFor for
	// how long that goes on.
	slowBy  = 400 * time.Millisecond
	slowFor = 12 * time.Second
)

// deaths has a worker and its template die at once, with steps that have no retries. Nobody is left who could end
// their processes: neither the worker's own nor, in this act, its supervisor.
func deaths(ctx context.Context, n *nemesis) error {
	i := &Injected{Fault: schedule.Fault{Kind: schedule.KillWorker}}
	if err := n.meetSteps(ctx, i); err != nil {
		return err
	}
	defer n.keep(i)
	return n.killHost(i)
}

// lateWorker has a host with steps stand still until its run lease is over and what it ran was taken, and
// wakes the steps before the worker. There is no relay that would hold back what they write, and the server has
// ended their connections before: only the gate, at which they wait for their worker, is left.
func lateWorker(ctx context.Context, n *nemesis) error {
	i := &Injected{Fault: schedule.Fault{Kind: schedule.FreezeHost}}
	if err := n.meetSteps(ctx, i); err != nil {
		return err
	}
	defer n.keep(i)
	p, err := n.service(i, i.Target)
	if err != nil {
		return err
	}
	defer n.give(i.Target)
	instance, host := n.instance(i.Target), stopTree(p)
	defer func() { wakeLast(ctx, host, ahead); i.Healed = time.Now() }()
	if !within(landWait, p.Stopped) {
		return fmt.Errorf("%s does not stand still %s after its signal", i.Target, landWait)
	}
	i.Landed = time.Now()
	if err := n.losesAll(ctx, instance); err != nil {
		return fmt.Errorf("%s has stood still for %s, and the ledger has not taken all of its tasks: %w", i.Target, time.Since(i.Landed).Round(time.Second), err)
	}
	return nil
}

// wakeLast wakes the first process so much later than the others.
func wakeLast(ctx context.Context, host []proctable.Process, later time.Duration) {
	for _, p := range host[1:] {
		_ = p.Signal(syscall.SIGCONT)
	}
	hold(ctx, later)
	_ = host[0].Signal(syscall.SIGCONT)
}

// losesAll waits until the ledger has taken everything from the sessions of a worker's life.
func (n *nemesis) losesAll(ctx context.Context, instance string) error {
	ctx, cancel := context.WithTimeout(ctx, loseWithin)
	defer cancel()
	return n.inLedger(ctx, func(conn *pgx.Conn) error {
		for held := 1; ; hold(ctx, wakeEvery) {
			if err := conn.QueryRow(ctx, countHeld, instance).Scan(&held); err != nil || held == 0 {
				return err
			}
		}
	})
}

const countHeld = `SELECT count(*) FROM stepfleet.held h JOIN stepfleet.session s ON s.id = h.session_id WHERE s.instance = $1`

// meetSteps launches a run of long steps without retries, and waits for the fault's target: a worker that
// has some of them and not the run worker.
func (n *nemesis) meetSteps(ctx context.Context, i *Injected) error {
	if err := n.launchAll(ctx, "slow"); err != nil {
		return err
	}
	if !within(busyWait, func() bool { return n.onSteps(ctx, i) || ctx.Err() != nil }) {
		return fmt.Errorf("in %s no worker ran steps of a run whose run worker is elsewhere", busyWait)
	}
	return ctx.Err()
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

// onSteps finds a worker that has steps, and no run worker; to be killed, one whose death is proven.
func (n *nemesis) onSteps(ctx context.Context, i *Injected) bool {
	host := n.hostOf(ctx)
	for w := range workers {
		if name := workerName(w); host != "" && name != host && (i.Kind != schedule.KillWorker || proven(name)) && n.load.works(name) {
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
