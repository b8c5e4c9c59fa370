package sim

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dispatch"
)

const (
	queue     = stepfleet.DefaultQueue
	sweepTurn = time.Second
	ringTurn  = 50 * time.Millisecond
)

// server is one replica: the product's own, turn by turn.
type server struct {
	s    *simulation
	name string
	p    *process
	role *dispatch.Server
}

// boot starts the replica's next process.
func (x *server) boot() {
	x.p = x.s.world.process(x.name)
	x.p.fragile = true
	x.p.offset = x.s.world.between(-time.Hour, time.Hour)
	x.p.onDeath = func() { x.s.world.after(x.s.world.between(100*time.Millisecond, 4*time.Second), x.boot) }
	p := x.p
	role, err := dispatch.New(dispatch.Config{
		Name: x.name, URL: x.name, Queues: []string{queue}, Lifetimes: lifetimes,
		EventLog: logPort{x.s.log, p}, Dagster: logPort{x.s.log, p}, Now: p.clock, Logger: slog.New(slog.DiscardHandler),
	}, &port{Ledger: x.s.ledger, s: x.s, p: p}, nil)
	if err != nil {
		panic(err)
	}
	x.role = role
	ctx := context.Background()
	var beats dispatch.Streak
	var outage dispatch.LogOutage
	x.every(sweepTurn, func() time.Duration { x.note("sweep", role.SweepTurn(ctx, &beats)); return sweepTurn })
	x.every(sweepTurn, func() time.Duration {
		waiting, err := role.RepairTurn(ctx, &outage)
		x.note("repair", err)
		if waiting && err == nil {
			return sweepTurn / 10
		}
		return sweepTurn
	})
	x.every(2*sweepTurn, func() time.Duration { x.note("re-ring", role.ReringTurn(ctx)); return 2 * sweepTurn })
	x.every(10*sweepTurn, func() time.Duration { x.note("reconcile", role.ReconcileTurn(ctx)); return 10 * sweepTurn })
	x.every(ringTurn, func() time.Duration {
		if n := role.TakeBells(queue); n > 0 {
			if err := x.s.bells.ring(n); err != nil {
				return x.s.world.between(0, 4*time.Second)
			}
		}
		return ringTurn
	})
}

// every takes turns, each after the pause that the one before asked for.
func (x *server) every(first time.Duration, turn func() time.Duration) {
	w := x.s.world
	x.p.spawn(func() {
		for d := w.between(0, first); ; d = turn() {
			w.sleep(d)
		}
	})
}

func (x *server) note(what string, err error) {
	if err != nil {
		x.s.world.say(x.p, "%s: %v", what, err)
	}
}

// ask has a server carry out a call for a client. The client may wait in vain.
func ask[T any](s *simulation, x *server, f func(*dispatch.Server) (T, error)) (T, error) {
	w := s.world
	a := &answer[T]{}
	lost := fmt.Errorf("server %s: %w", x.name, stepfleet.ErrUnavailable)
	role := x.role
	if !s.healed && w.chance(0.03) {
		return a.value, lost
	}
	x.p.spawn(func() {
		v, err := f(role)
		if s.healed || !w.chance(0.03) {
			a.give(v, err)
		}
	})
	gone := x.p
	if w.until(2*callLimit, func() bool { return a.came || gone.dead }, &a.news, &gone.gone) && a.came {
		return a.value, a.err
	}
	return a.value, lost
}
