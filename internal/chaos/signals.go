package chaos

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

// againTimeout bounds how long the supervisor takes to have a process again after it died.
const againTimeout = 20 * time.Second

// serviceOf returns the name of the supervised process that a fault is for.
func serviceOf(i *Injected) string {
	switch i.Kind {
	case schedule.KillServer, schedule.PauseServer:
		return serverName(i.Victim % servers)
	case schedule.KillAWS, schedule.PauseAWS:
		return "aws"
	case schedule.KillDaemon, schedule.PauseDaemon:
		return "daemon"
	case schedule.KillWebserver, schedule.PauseWebserver:
		return "webserver"
	case schedule.KillCode, schedule.PauseCode:
		return "code-1"
	default:
		return workerName(i.Victim % workers)
	}
}

// service takes a supervised process that runs; give it back with give(name).
func (n *nemesis) service(i *Injected, name string) (proctable.Process, error) {
	if !n.take(name) {
		return proctable.Process{}, errNoVictim
	}
	p, ok := proctable.Read(n.pid(name))
	if !ok || !p.Alive() {
		n.give(name)
		return proctable.Process{}, errNoVictim
	}
	i.Target, i.PID = name, p.PID
	return p, nil
}

// killService kills a supervised process. It has landed when that process is gone, and is healed when
// the supervisor has started another.
func (n *nemesis) killService(i *Injected) error {
	name := serviceOf(i)
	if i.Kind == schedule.KillWorker {
		if !n.load.works(name) {
			return errNoVictim // its death would take nothing
		}
		i.Instance = n.instance(name)
	}
	p, err := n.service(i, name)
	if err != nil {
		return err
	}
	defer n.give(name)
	return n.end(i, p, name, syscall.SIGKILL, landWait)
}

// end sends the signal and waits for the process's end, and for the one that follows it.
func (n *nemesis) end(i *Injected, p proctable.Process, name string, sig syscall.Signal, wait time.Duration) error {
	if err := p.Signal(sig); err != nil {
		return errNoVictim
	}
	return n.ended(i, p, name, wait)
}

// ended waits for the end of a process that was sent a signal, and for the one that follows it.
func (n *nemesis) ended(i *Injected, p proctable.Process, name string, wait time.Duration) error {
	at := time.Now()
	if !within(wait, func() bool { return !p.Alive() }) {
		return fmt.Errorf("%s, process %d, lives on %s after its signal", name, p.PID, wait)
	}
	i.Landed = at
	if !within(againTimeout, func() bool { pid := n.pid(name); return pid != 0 && pid != p.PID }) {
		return fmt.Errorf("%s is not started again %s after its end", name, againTimeout)
	}
	i.Healed = time.Now()
	return nil
}

// pauseService stops a supervised process for a while.
func (n *nemesis) pauseService(ctx context.Context, i *Injected) error {
	name := serviceOf(i)
	p, err := n.service(i, name)
	if err != nil {
		return err
	}
	defer n.give(name)
	return n.pause(ctx, i, []proctable.Process{p})
}

// pauseHost stops a worker with all that is below it. One is frozen when it runs a step, which its
// wake-up then finds over the run lease.
func (n *nemesis) pauseHost(ctx context.Context, i *Injected) error {
	name := serviceOf(i)
	if i.Kind == schedule.FreezeHost && !n.load.works(name) {
		return errNoVictim
	}
	p, err := n.service(i, name)
	if err != nil {
		return err
	}
	defer n.give(name)
	return n.pause(ctx, i, stopTree(p))
}

// stopTree stops a process and all below it, also those that are forked meanwhile.
func stopTree(root proctable.Process) []proctable.Process {
	var tree []proctable.Process
	for more := []proctable.Process{root}; len(more) > 0; {
		for _, p := range more {
			_ = p.Signal(syscall.SIGSTOP)
		}
		tree = append(tree, more...)
		more = slices.DeleteFunc(proctable.Descendants(root.PID), func(p proctable.Process) bool {
			return slices.ContainsFunc(tree, func(q proctable.Process) bool { return p.PID == q.PID && p.Start == q.Start })
		})
	}
	return tree
}

// pause stops the processes and lets them go on, in this order or in the other. The first of them says
// whether it landed.
func (n *nemesis) pause(ctx context.Context, i *Injected, victims []proctable.Process) error {
	first := victims[0]
	defer func() {
		if i.Victim%2 == 1 {
			slices.Reverse(victims)
		}
		for _, p := range victims {
			_ = p.Signal(syscall.SIGCONT)
		}
		i.Healed = time.Now()
	}()
	for _, p := range victims {
		if err := p.Signal(syscall.SIGSTOP); err != nil && p == first {
			return errNoVictim
		}
	}
	at := time.Now()
	if !within(landWait, first.Stopped) {
		return errNoVictim
	}
	i.Landed = at
	hold(ctx, i.Hold)
	return nil
}

// below returns a process below a worker: its template, a child that is in user code, or the run
// worker of the run that has been hit least.
func (n *nemesis) below(i *Injected) (proctable.Process, string, error) {
	switch i.Kind {
	case schedule.KillTemplate, schedule.PauseTemplate:
		name := workerName(i.Victim % workers)
		p, ok := templateOf(n.pid(name))
		if !ok {
			return proctable.Process{}, "", errNoVictim
		}
		return p, "template of " + name, nil
	case schedule.KillChild, schedule.PauseChild:
		busy := n.load.busy()
		if len(busy) == 0 {
			return proctable.Process{}, "", errNoVictim
		}
		e := busy[i.Victim%len(busy)]
		i.Run = e.RunID
		return e.process, fmt.Sprintf("child in %s/%s/%d", e.RunID, e.StepKey, e.Attempt), nil
	default:
		run, p, ok := n.load.runWorker(n.hits)
		if !ok {
			return proctable.Process{}, "", errNoVictim
		}
		i.Run = run
		return p, "run worker of " + run, nil
	}
}

// hits returns how often a run worker of the run has been hit.
func (n *nemesis) hits(run string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hit[run]
}

// takeBelow takes such a process; give it back with give.
func (n *nemesis) takeBelow(i *Injected) (proctable.Process, string, error) {
	p, target, err := n.below(i)
	if err != nil {
		return proctable.Process{}, "", err
	}
	key := pidKey(p.PID)
	if !n.take(key) {
		return proctable.Process{}, "", errNoVictim
	}
	if !p.Alive() {
		n.give(key)
		return proctable.Process{}, "", errNoVictim
	}
	if i.Run != "" && i.Kind == schedule.KillRunWorker {
		n.mu.Lock()
		n.hit[i.Run]++
		n.mu.Unlock()
	}
	i.Target, i.PID = target, p.PID
	return p, key, nil
}

func (n *nemesis) killBelow(i *Injected) error {
	p, key, err := n.takeBelow(i)
	if err != nil {
		return err
	}
	defer n.give(key)
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return errNoVictim
	}
	at := time.Now()
	if !within(landWait, func() bool { return !p.Alive() }) {
		return fmt.Errorf("process %d lives on after SIGKILL", p.PID)
	}
	i.Landed = at
	return nil
}

func (n *nemesis) pauseBelow(ctx context.Context, i *Injected) error {
	p, key, err := n.takeBelow(i)
	if err != nil {
		return err
	}
	defer n.give(key)
	return n.pause(ctx, i, []proctable.Process{p})
}

// restartPostgres has PostgreSQL end at once, as in a crash: the next start replays its log.
func (n *nemesis) restartPostgres(i *Injected) error {
	p, err := n.service(i, "postgres")
	if err != nil {
		return err
	}
	defer n.give("postgres")
	return n.end(i, p, "postgres", syscall.SIGQUIT, 2*landWait)
}

// pausePostgres stops the server with all its backends.
func (n *nemesis) pausePostgres(ctx context.Context, i *Injected) error {
	p, err := n.service(i, "postgres")
	if err != nil {
		return err
	}
	defer n.give("postgres")
	return n.pause(ctx, i, stopTree(p))
}

// drainSlack is what a worker takes to end beside its drain.
const drainSlack = 15 * time.Second

// rollingRestart restarts every worker in an orderly way, one after another.
func (n *nemesis) rollingRestart(ctx context.Context, i *Injected) error {
	first := time.Time{}
	for w := range workers {
		name := workerName((i.Victim + w) % workers)
		p, err := n.service(i, name)
		for wait := time.Now().Add(againTimeout); err != nil && ctx.Err() == nil && time.Now().Before(wait); {
			hold(ctx, victimInterval)
			p, err = n.service(i, name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		err = n.end(i, p, name, syscall.SIGTERM, n.Drain+drainSlack)
		n.give(name)
		if err != nil {
			return err
		}
		if first.IsZero() {
			first = i.Landed
		}
	}
	i.Target, i.PID, i.Landed = "all workers", 0, first
	return nil
}
