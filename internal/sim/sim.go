// Package sim is a simulator of the whole protocol: workers, servers, executors and step processes on
// one ledger, in virtual time and in one thread, with faults at every step. All chance comes from a
// seed, so a history that went wrong can be had again.
//
// What the roles decide is the product's own code: the server's turns (internal/dispatch), and the
// worker's Attempt, Holdings, Look and deadlines (internal/worker); the ledger is internal/memory's,
// which passes the suite that PostgreSQL's passes. What is the simulator's own is what is around it: processes,
// links, bells, user code, Dagster's log, and the executor.
//
// Files: world.go has the clock and processes, port.go and fate.go the links and faults, server.go,
// worker.go, task.go, child.go, executor.go and log.go who takes part, judge.go the verdict.
package sim

import (
	"errors"
	"fmt"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/dispatch"
	"github.com/stepfleet/stepfleet/internal/memory"
)

type (
	roleServer = *dispatch.Server
	answerOf   = dispatch.Answer
)

// Config is one history.
type Config struct {
	Seed   uint64
	Mutant Mutant
	// Tell is given every line of the history; nil: nobody wants it.
	Tell func(line string)
}

// Mutant is a mistake that is built in on purpose, to see that it is found.
type Mutant string

// The mutants.
const (
	SweepSuspects      Mutant = "sweep-suspects"       // a session that missed its TTL is taken for dead
	CountedBeats       Mutant = "counted-beats"        // the sweep counts its beats, whether or when they went through
	SettleWithoutFence Mutant = "settle-without-fence" // whoever settles is taken for the owner
	NoSelfFence        Mutant = "no-self-fence"        // a worker goes on beyond its run lease
	NoStart            Mutant = "no-start"             // user code begins although its start was refused
	NoEventGate        Mutant = "no-event-gate"        // ending events are written without asking
	RepairBlind        Mutant = "repair-blind"         // the server decides without Dagster's log
	OldFence           Mutant = "old-fence"            // a revoke without an answer is taken for not done
	AckEarly           Mutant = "ack-early"            // a submit without an answer is taken for done
	NoOrder            Mutant = "no-order"             // executors do not say which resume of the run they are of
)

// Mutants are all of them.
var Mutants = []Mutant{
	SweepSuspects, CountedBeats, SettleWithoutFence, NoSelfFence, NoStart, NoEventGate, RepairBlind, OldFence, AckEarly,
	NoOrder,
}

// The deadlines are short, so that a history sees all of them pass.
var lifetimes = stepfleet.Lifetimes{
	Renew: 500 * time.Millisecond, SessionTTL: 3 * time.Second, RunLease: 12 * time.Second, Margin: time.Second,
	StartWithin: 4 * time.Second,
}

const (
	statementTimeout = 2 * time.Second
	drainTimeout     = 3 * time.Second
	killGrace        = time.Second
	// endsWithin is how long after the faults everything has to have ended: a run lease, and a step's
	// attempts one after the other.
	endsWithin = 90 * time.Second
	// afterwards is how long a history is watched when all is over: calls that were under way still land.
	afterwards = 10 * time.Second
)

// simulation is one history as it happens.
type simulation struct {
	cfg        Config
	world      *world
	ledger     *memory.Ledger
	ledgerBack time.Duration // nobody reaches the ledger until then
	outages    time.Duration
	network    *process // carries calls, and does not die
	bells      *bells
	log        *dagster
	servers    []*server
	workers    []*fleetWorker
	runs       []*run
	born       []*child // all that there were
	lives      map[stepfleet.SessionID]*life
	wronged    []string // sessions that were taken for gone without a reason
	healed     bool
	healedAt   time.Duration
	effects    []audit.Effect
	client     []audit.ClientEvent
	ops        int64
}

func newSimulation(cfg Config) *simulation {
	w := newWorld(cfg.Seed)
	w.tell = cfg.Tell
	s := &simulation{cfg: cfg, world: w, ledger: memory.NewLedger(), network: w.process("network"), lives: map[stepfleet.SessionID]*life{}}
	s.ledger.Now = w.time
	s.bells = &bells{s: s}
	s.log = &dagster{s: s, underway: map[stepfleet.Key]int{}}
	for i := range 2 {
		s.servers = append(s.servers, &server{s: s, name: fmt.Sprintf("server-%d", i+1)})
	}
	for i := range 3 {
		s.workers = append(s.workers, &fleetWorker{s: s, name: fmt.Sprintf("worker-%d", i+1)})
	}
	for i := range 2 + w.rng.IntN(2) {
		r := &run{s: s, id: fmt.Sprintf("run-%d", i+1)}
		for step := range 2 + w.rng.IntN(3) {
			r.steps = append(r.steps, fmt.Sprintf("step_%d", step))
		}
		s.runs = append(s.runs, r)
	}
	return s
}

// play makes the history.
func (s *simulation) play() {
	w := s.world
	for _, x := range s.servers {
		x.boot()
	}
	for _, x := range s.workers {
		x.boot()
	}
	for _, r := range s.runs {
		w.after(w.between(0, 10*time.Second), r.execute)
	}
	s.network.spawn(s.nemesis)
	never := func() bool { return false }
	w.run(w.between(10*time.Second, 40*time.Second), never)
	s.heal()
	w.run(w.now+endsWithin, s.over)
	w.run(w.now+afterwards, never)
}

// heal ends all faults.
func (s *simulation) heal() {
	s.world.say(nil, "the faults are over")
	s.healed, s.healedAt = true, s.world.now
	s.ledgerBack, s.log.back = 0, 0
	for _, x := range s.workers {
		x.p.cut = 0
	}
}

// over says whether nothing is left to happen.
func (s *simulation) over() bool {
	for _, r := range s.runs {
		if !r.ended {
			return false
		}
	}
	return len(s.open()) == 0
}

// invoke writes into the client history that somebody asks.
func (s *simulation) invoke(process string, f audit.Operation, key stepfleet.Key) audit.ClientEvent {
	s.ops++
	e := audit.ClientEvent{Process: process, Type: audit.Invoke, F: f, Op: s.ops, Key: key}
	s.record(e)
	return e
}

// answered writes the answer.
func (s *simulation) answered(e audit.ClientEvent, err error) {
	switch {
	case err == nil, s.cfg.Mutant == AckEarly:
		e.Type = audit.OK
	case errors.Is(err, stepfleet.ErrUnavailable):
		e.Type, e.Error = audit.Info, err.Error()
	default:
		e.Type, e.Error = audit.Failed, err.Error()
	}
	s.record(e)
}

func (s *simulation) record(e audit.ClientEvent) {
	e.I, e.At = int64(len(s.client)+1), s.world.time()
	s.client = append(s.client, e)
	s.world.say(nil, "%s %s %s: %s %s", e.Process, e.F, e.Key, e.Type, e.Error)
}
