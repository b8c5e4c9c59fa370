package sim

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
)

// child is a step's process: it asks its gates, runs user code, writes its end into Dagster's log, and
// tells its worker.
type child struct {
	s        *simulation
	t        *task
	p        *process
	result   *stepfleet.Result
	ended    bool // the worker was told that the end is stored
	reported bool
	status   int
	began    bool
	died     time.Time
	news     signal
}

// How Dagster calls the start of a step's first attempt, and that of a later one.
const (
	stepStart     = "STEP_START"
	stepRestarted = "STEP_RESTARTED"
)

func startOf(key stepfleet.Key) string {
	if key.Attempt > 0 {
		return stepRestarted
	}
	return stepStart
}

func newChild(t *task) *child {
	x := t.l.x
	c := &child{s: x.s, t: t, p: x.s.world.process(fmt.Sprintf("%s/task-%d", x.name, t.job.TaskID)), status: -9}
	x.s.born = append(x.s.born, c)
	c.p.onDeath = func() {
		c.died = x.s.world.time()
		x.children = slices.DeleteFunc(x.children, func(other *child) bool { return other == c })
	}
	x.children = append(x.children, c)
	c.p.spawn(c.run)
	return c
}

// exit is how it ended.
func (c *child) exit() stepfleet.Exit { return stepfleet.Exit{Result: c.result, Status: c.status} }

// leave is an exit by itself.
func (c *child) leave(status int) {
	c.status = status
	c.p.kill()
}

// gate asks the worker, which may be stopped meanwhile.
func (c *child) gate(question func() error) error {
	a := &answer[struct{}]{}
	c.t.l.p.spawn(func() { a.give(struct{}{}, question()) })
	c.s.world.until(forever, func() bool { return a.came }, &a.news)
	return a.err
}

func (c *child) run() {
	w, key := c.s.world, c.t.job.Key
	w.sleep(w.between(time.Millisecond, 200*time.Millisecond))
	if !c.s.healed && w.chance(0.02) {
		c.leave(pick(w, -9, 1)) // before its start
	}
	if err := c.gate(c.t.start); err != nil && c.s.cfg.Mutant != NoStart {
		c.leave(1)
	}
	c.s.log.append(key, startOf(key))
	c.began = true
	c.effect(audit.EffectBegin)
	if limit := time.Duration(c.t.job.TimeoutSeconds) * time.Second; limit > 0 {
		c.watch(limit)
	}
	takes := w.between(10*time.Millisecond, 4*time.Second)
	if !c.s.healed && w.chance(0.15) {
		takes = w.between(0, 2*lifetimes.RunLease)
	}
	w.sleep(takes)
	if w.chance(0.03) {
		c.leave(pick(w, -11, 3)) // in user code
	}
	event := stepfleet.EventSuccess
	if w.chance(0.2) {
		event = pick(w, stepfleet.EventFailure, stepfleet.EventRetry)
	}
	if event == stepfleet.EventRetry && key.Attempt >= maxAttempt {
		event = stepfleet.EventFailure
	}
	c.effect(audit.EffectEnd)
	c.store(event)
	c.tell(event)
	w.sleep(w.between(0, 300*time.Millisecond)) // hooks
	c.reported = true
	c.news.send()
	w.sleep(forever)
}

// watch is the worker's watch over the attempt's timeout.
func (c *child) watch(limit time.Duration) {
	c.t.l.p.spawn(func() {
		if !c.s.world.until(limit, func() bool { return c.reported || c.p.dead }, &c.news, &c.p.gone) {
			c.t.timeOut()
		}
	})
}

func (c *child) effect(event string) {
	at := c.s.world.time()
	c.s.effects = append(c.s.effects, audit.Effect{
		Event: event, Key: c.t.job.Key, Fence: audit.Fence(strconv.FormatInt(int64(c.t.job.Fence), 10)),
		Worker: c.t.l.x.name, At: float64(at.UnixMicro()) / 1e6,
	})
	c.s.world.say(c.p, "user code: %s of %s with fence %d", event, c.t.job.Key, c.t.job.Fence)
}

// store writes the ending event. A connection that breaks is made anew: the gate is asked again, and the
// event written unless it is there.
func (c *child) store(event string) {
	w, key, log := c.s.world, c.t.job.Key, c.s.log
	for again := false; ; again = true {
		if c.s.cfg.Mutant != NoEventGate && c.gate(func() error { return c.t.event(event) }) != nil {
			c.leave(1)
		}
		w.sleep(w.between(0, time.Millisecond))
		if log.away() {
			w.sleep(w.between(0, time.Second))
			continue
		}
		committed, lost := &answer[struct{}]{}, !c.s.healed && w.chance(0.1)
		c.s.write(key, event, again, committed)
		w.until(statementTimeout, func() bool { return committed.came }, &committed.news)
		if committed.came && !lost {
			return
		}
	}
}

// tell says to the worker that the end is in Dagster's log.
func (c *child) tell(event string) {
	outcome := stepfleet.StateFailed
	if event == stepfleet.EventSuccess {
		outcome = stepfleet.StateSucceeded
	}
	c.result = &stepfleet.Result{Outcome: outcome, Event: event}
	c.ended = true
	c.news.send()
}

// write has Dagster's database insert the attempt's event; a repeat looks whether it is there. From now on the client
// may die: the statement is carried out all the same, or broken off when its time is over.
func (s *simulation) write(key stepfleet.Key, event string, look bool, committed *answer[struct{}]) {
	w := s.world
	s.log.underway[key]++
	takes := w.between(time.Millisecond, 20*time.Millisecond)
	if !s.healed && w.chance(0.2) {
		takes = w.between(0, 2*statementTimeout)
	}
	w.after(min(takes, statementTimeout), func() {
		s.log.underway[key]--
		if takes < statementTimeout {
			if !look || s.log.ending(key) == "" {
				s.log.append(key, event)
			}
			committed.give(struct{}{}, nil)
		}
	})
}
