package chaos

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet/internal/chaos/proxy"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
)

// Injected is one fault as it went: when it landed and when it was healed, by the wall clock. A fault
// that found no victim, or that no trace of was seen, has not landed and does not count.
type Injected struct {
	schedule.Fault
	Target string    `json:"target"`
	Landed time.Time `json:"landed,omitzero"`
	Healed time.Time `json:"healed,omitzero"`
	Hits   int       `json:"hits,omitempty"` // connections, replies or calls
	// Instance is the worker life that a kill ended, PID the process that was hit, Run the run.
	Instance string `json:"instance,omitempty"`
	PID      int    `json:"pid,omitempty"`
	Run      string `json:"run,omitempty"`
	Missed   string `json:"missed,omitempty"` // why it did not land
}

// Ok reports whether the fault landed.
func (i *Injected) Ok() bool { return !i.Landed.IsZero() && i.Missed == "" }

// errNoVictim says that there is nothing to hit at present.
var errNoVictim = errors.New("no victim")

const (
	// victimWait is how long a fault waits for a victim, victimInterval between two looks.
	victimWait     = 4 * time.Second
	victimInterval = 100 * time.Millisecond
	// landWait bounds the time from a signal to its effect.
	landWait = 3 * time.Second
	// quietWait is how long a fault of an edge on which little passes waits for something to hit.
	quietWait = 15 * time.Second
	// againWait is how long after the plan's last fault kinds of which too few have landed are tried again.
	againWait = 30 * time.Second
)

// nemesis carries a plan out.
type nemesis struct {
	*stack
	load *load

	began  time.Time
	mu     sync.Mutex
	busy   map[string]bool // what a fault is in force on
	toCome map[schedule.Kind]int
	done   []*Injected
	hit    map[string]int // times that a run worker of a run was hit
}

func newNemesis(s *stack, l *load) *nemesis {
	return &nemesis{stack: s, load: l, busy: map[string]bool{}, toCome: map[schedule.Kind]int{}, hit: map[string]int{}}
}

// run injects the faults at their times and returns when all are healed.
func (n *nemesis) run(ctx context.Context, faults []schedule.Fault, least int) {
	n.began = time.Now()
	for _, f := range faults {
		n.toCome[f.Kind]++
	}
	var all sync.WaitGroup
	for _, f := range faults {
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(n.began.Add(f.At))):
			all.Go(func() { n.insist(ctx, f, least, n.began.Add(faults[len(faults)-1].At+againWait)) })
		}
	}
	all.Wait()
}

// insist injects a fault and, while too few of its kind have landed and the plan has no more of it, tries
// again until the time is up.
func (n *nemesis) insist(ctx context.Context, f schedule.Fault, least int, until time.Time) {
	n.inject(ctx, f)
	n.mu.Lock()
	n.toCome[f.Kind]--
	n.mu.Unlock()
	for n.short(f.Kind, least) && time.Now().Before(until) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(victimWait): // what has hindered it may have passed
		}
		f.At, f.Victim = time.Since(n.began), f.Victim+stride(f.Kind)
		n.inject(ctx, f)
	}
}

// short says whether too few of a kind will have landed when the plan is over.
func (n *nemesis) short(kind schedule.Kind, least int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	expected := n.toCome[kind]
	for _, i := range n.done {
		if i.Kind == kind && i.Ok() {
			expected++
		}
	}
	return expected < least
}

// results returns what has been injected, in the order of time.
func (n *nemesis) results() []*Injected {
	n.mu.Lock()
	defer n.mu.Unlock()
	done := slices.Clone(n.done)
	slices.SortStableFunc(done, func(a, b *Injected) int { return cmp.Compare(a.At, b.At) })
	return done
}

// take makes a thing this fault's alone, false when another is in force on it.
func (n *nemesis) take(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.busy[name] {
		return false
	}
	n.busy[name] = true
	return true
}

func (n *nemesis) give(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.busy, name)
}

// inject carries one fault out: it looks for a victim, hits it, waits, heals.
func (n *nemesis) inject(ctx context.Context, f schedule.Fault) {
	i := &Injected{Fault: f}
	deadline := time.Now().Add(victimWait)
	var err error
	for {
		if err = n.act(ctx, i); err == nil || !errors.Is(err, errNoVictim) || time.Now().After(deadline) {
			break
		}
		i.Victim += stride(i.Kind)
		select {
		case <-ctx.Done():
			deadline = time.Now()
		case <-time.After(victimInterval):
		}
	}
	if err != nil {
		i.Missed = err.Error()
	} else if i.Healed.IsZero() {
		i.Healed = time.Now()
	}
	n.keep(i)
}

// stride is how far it is to the next victim. Kills of workers, which take turns, stay with those whose
// deaths are reported, or with the others: the plan is to meet both.
func stride(kind schedule.Kind) int {
	if kind == schedule.KillWorker {
		return 2
	}
	return 1
}

// keep adds a fault to the results.
func (n *nemesis) keep(i *Injected) {
	n.mu.Lock()
	n.done = append(n.done, i)
	n.mu.Unlock()
	n.Log.Info("fault", "kind", i.Kind, "target", i.Target, "landed", i.Ok(), "missed", i.Missed, "hits", i.Hits, "pid", i.PID)
}

// act does what the kind says.
func (n *nemesis) act(ctx context.Context, i *Injected) error {
	switch i.Kind {
	case schedule.KillServer, schedule.KillWorker, schedule.KillAWS, schedule.KillDaemon, schedule.KillWebserver, schedule.KillCode:
		return n.killService(i)
	case schedule.KillTemplate, schedule.KillChild, schedule.KillRunWorker:
		return n.killBelow(i)
	case schedule.PauseServer, schedule.PauseWorker, schedule.PauseAWS, schedule.PauseDaemon, schedule.PauseWebserver, schedule.PauseCode:
		return n.pauseService(ctx, i)
	case schedule.PauseHost, schedule.FreezeHost:
		return n.pauseHost(ctx, i)
	case schedule.KillEnding, schedule.KillEnded:
		return n.killEnding(ctx, i)
	case schedule.PauseTemplate, schedule.PauseChild, schedule.PauseRunWorker:
		return n.pauseBelow(ctx, i)
	case schedule.PostgresRestart:
		return n.restartPostgres(i)
	case schedule.PostgresPause:
		return n.pausePostgres(ctx, i)
	case schedule.SQSOutage:
		return n.sqsOutage(ctx, i)
	case schedule.SQSPurge:
		return n.purge(ctx, i)
	case schedule.ClockOffset:
		return n.stepClock(ctx, i)
	case schedule.Cancel:
		return n.cancel(ctx, i)
	case schedule.RollingRestart:
		return n.rollingRestart(ctx, i)
	case schedule.ZombieLease, schedule.ZombieRun:
		return n.zombie(ctx, i)
	}
	if mode := i.Kind.Mode(); mode != "" {
		return n.breakLink(ctx, i, mode)
	}
	if kind, ok := sqsRules[i.Kind]; ok {
		return n.sqsRule(ctx, i, kind)
	}
	return fmt.Errorf("no injector for the kind %s", i.Kind)
}

// hold waits as long as the fault lasts.
func hold(ctx context.Context, wait time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(wait):
	}
}

// breakLink breaks the edge whose turn it is.
func (n *nemesis) breakLink(ctx context.Context, i *Injected, mode proxy.Mode) error {
	return n.breakEdge(ctx, i, n.net.edges[i.Victim%len(n.net.edges)], mode)
}

// breakEdge puts a proxy's fault in force on an edge, if that is free.
func (n *nemesis) breakEdge(ctx context.Context, i *Injected, edge *proxy.Edge, mode proxy.Mode) error {
	fault := proxy.Fault{Mode: mode, Byte: i.Byte, Delay: i.Delay}
	if mode == proxy.Reset {
		fault.Times = 1
	}
	injection, err := edge.Inject(fault)
	if errors.Is(err, proxy.ErrBusy) {
		return errNoVictim
	}
	if err != nil {
		return err
	}
	if n.net.isQuiet(edge) {
		within(quietWait, func() bool { return injection.Hits() > 0 || ctx.Err() != nil })
	}
	i.Target, i.Landed = edge.Name, time.Now()
	hold(ctx, i.Hold)
	i.Hits = injection.Hits()
	injection.Heal()
	i.Healed = time.Now()
	if i.Hits == 0 {
		i.Landed, i.Healed = time.Time{}, time.Time{}
		return fmt.Errorf("%w: nothing passed %s in %s", errNoVictim, edge.Name, i.Hold)
	}
	return nil
}
