package sim

import (
	"errors"
	"fmt"
	"time"

	"github.com/stepfleet/stepfleet"
)

// fate is what becomes of one call.
type fate int

const (
	fine        fate = iota
	slow             // answered late, or too late
	refused          // the connection breaks before the call arrives
	dropped          // the call is lost, and nobody says so
	answerLost       // carried out, and the connection breaks before the answer
	answerEarly      // the connection breaks, and the call is carried out seconds later
	dieBefore        // the caller is killed before it
	dieAfter         // carried out, and the caller is killed before the answer
)

var remarks = map[fate]string{
	slow: " (slow)", answerLost: " (the answer is lost)", answerEarly: " (long after its connection broke)",
	dieAfter: " (its caller is killed)",
}

// fate draws what becomes of a call.
func (s *simulation) fate(p *process, op string) fate {
	w := s.world
	if s.healed {
		return fine
	}
	if s.away(p) {
		return pick(w, refused, dropped)
	}
	weight := 1.0
	if critical[op] {
		weight = 8
	}
	switch x := w.rng.Float64() / weight; {
	case p.fragile && x < 0.0004:
		return dieBefore
	case p.fragile && x < 0.0010:
		return dieAfter
	case x < 0.0020:
		return refused
	case x < 0.0026:
		return dropped
	case x < 0.0046:
		return answerLost
	case x < 0.0062:
		return answerEarly
	case x < 0.0080:
		return slow
	}
	return fine
}

// away says whether the process cannot reach the ledger now.
func (s *simulation) away(p *process) bool { return max(s.ledgerBack, p.cut) > s.world.now }

// latency is one way of a call.
func (s *simulation) latency(f fate) time.Duration {
	if f == slow {
		return s.world.between(50*time.Millisecond, 2*time.Second)
	}
	return s.world.between(100*time.Microsecond, 3*time.Millisecond)
}

func (s *simulation) remark(f fate, err error) string {
	if err == nil {
		return remarks[f]
	}
	if r := stepfleet.RefusalOf(err); r != nil && !errors.Is(err, stepfleet.ErrUnavailable) {
		return fmt.Sprintf("%s: refused, %s", remarks[f], err)
	}
	return fmt.Sprintf("%s: %v", remarks[f], err)
}

// nemesis makes faults until the world is healed. Each history has some kinds of them and not the others,
// and its own pace: where everything fails at once, one fault hides another.
func (s *simulation) nemesis() {
	w := s.world
	var kinds []func()
	for _, kind := range []func(){
		s.killWorker, s.stopWorker, s.cutWorker, s.drainWorker, s.killChild, s.stopChild, s.killServer, s.stopServer,
		s.failover, s.jumpServer, s.loseLog, s.bells.purge, s.killExecutor, s.takeOver, s.takeLate, s.cancel,
	} {
		if w.chance(0.4) {
			kinds = append(kinds, kind)
		}
	}
	gap := w.between(300*time.Millisecond, 5*time.Second)
	for w.sleep(w.between(gap/2, 2*gap)); !s.healed && len(kinds) > 0; w.sleep(w.between(gap/2, 2*gap)) {
		pick(w, kinds...)()
	}
}

// ttls is a time of 0.5 to 3 session TTLs, and now and then beyond the run lease.
func (s *simulation) ttls() time.Duration {
	if s.world.chance(0.15) {
		return s.world.between(lifetimes.RunLease-2*lifetimes.Margin, lifetimes.RunLease+lifetimes.Margin)
	}
	return s.world.between(lifetimes.SessionTTL/2, 3*lifetimes.SessionTTL)
}

func (s *simulation) killWorker() { pick(s.world, s.workers...).p.kill() }

func (s *simulation) stopWorker() {
	x, d := pick(s.world, s.workers...), s.ttls()
	s.world.say(x.p, "is stopped for %s", d)
	x.harm()
	x.p.stop(d)
}

func (s *simulation) cutWorker() {
	x, d := pick(s.world, s.workers...), s.ttls()
	if s.world.chance(0.2) {
		d = s.world.between(lifetimes.RunLease, 2*lifetimes.RunLease)
	}
	s.world.say(x.p, "is cut from the ledger for %s", d)
	x.harm()
	x.p.cut = max(x.p.cut, s.world.now+d)
}

func (s *simulation) drainWorker() { pick(s.world, s.workers...).drain() }

func (s *simulation) killChild() {
	if x := pick(s.world, s.workers...); len(x.children) > 0 {
		x.harm()
		pick(s.world, x.children...).p.kill()
	}
}

// stopChild stops a child for less than a margin: one that is stopped for longer between the grant of
// an event and its write is the residual window.
func (s *simulation) stopChild() {
	if x := pick(s.world, s.workers...); len(x.children) > 0 {
		c := pick(s.world, x.children...)
		d := s.world.between(0, lifetimes.Margin/2)
		s.world.say(c.p, "is stopped for %s", d)
		c.p.stop(d)
	}
}

func (s *simulation) killServer() { pick(s.world, s.servers...).p.kill() }

func (s *simulation) stopServer() {
	x, d := pick(s.world, s.servers...), s.ttls()
	s.world.say(x.p, "is stopped for %s", d)
	x.p.stop(d)
}

// jumpServer sets a server's wall clock wrong.
func (s *simulation) jumpServer() {
	x := pick(s.world, s.servers...)
	x.p.offset = s.world.between(-time.Hour, time.Hour)
	s.world.say(x.p, "has its clock set by %s", x.p.offset)
}

// failover takes the ledger away from everybody.
func (s *simulation) failover() {
	d := pick(s.world, s.ttls(), s.world.between(lifetimes.SessionTTL, 2*lifetimes.SessionTTL))
	s.ledgerBack = max(s.ledgerBack, s.world.now+d)
	s.outages += d
	s.world.say(nil, "the ledger is away for %s", d)
}

func (s *simulation) loseLog() {
	d := s.ttls()
	s.log.back = max(s.log.back, s.world.now+d)
	s.world.say(nil, "Dagster's log is away for %s", d)
}

func (s *simulation) killExecutor() {
	if x := s.executing(); x != nil {
		x.p.kill()
	}
}

// takeOver starts a second executor of a run while the first one is alive, and may be stopped.
func (s *simulation) takeOver() {
	x := s.executing()
	if x == nil {
		return
	}
	if s.world.chance(0.7) {
		x.p.stop(s.ttls())
	}
	x.run.execute()
}

// takeLate delivers the request of an executor for its run, which the network has held up until now, after
// another has followed the executor.
func (s *simulation) takeLate() {
	r := pick(s.world, s.runs...)
	if len(r.executors) < 2 {
		return
	}
	x, at := pick(s.world, r.executors[:len(r.executors)-1]...), pick(s.world, s.servers...)
	s.network.spawn(func() {
		_, err := ask(s, at, x.takes)
		s.world.say(x.p, "asked for its run long ago, and is answered now: %v", err)
	})
}

func (s *simulation) executing() *executor {
	var alive []*executor
	for _, r := range s.runs {
		alive = append(alive, r.alive()...)
	}
	if len(alive) == 0 {
		return nil
	}
	return pick(s.world, alive...)
}

func (s *simulation) cancel() {
	if s.world.chance(0.3) {
		pick(s.world, s.runs...).cancel()
	}
}
