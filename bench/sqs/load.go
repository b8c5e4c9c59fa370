package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// limit ends a load: at a number of messages, or after a time.
type limit struct {
	messages int64
	time     time.Duration
}

// closedLoop has every connection do op again as soon as it is answered, until the limit, and
// returns what was done. The first error ends it.
func closedLoop(ctx context.Context, s *server, connections int, l limit, op func(context.Context) (int, error)) (load, error) {
	before, err := s.used()
	if err != nil {
		return load{}, err
	}
	clientBefore, err := ownCPU()
	if err != nil {
		return load{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var done atomic.Int64
	began := time.Now()
	end := began.Add(l.time)
	var workers sync.WaitGroup
	for range connections {
		workers.Go(func() {
			for done.Load() < l.messages && time.Now().Before(end) && ctx.Err() == nil {
				n, err := op(ctx)
				if err != nil {
					cancel(err)
					return
				}
				done.Add(int64(n))
			}
		})
	}
	workers.Wait()
	took := time.Since(began)
	if err := context.Cause(ctx); err != nil {
		return load{}, err
	}
	clientAfter, err := ownCPU()
	if err != nil {
		return load{}, err
	}
	after, err := s.used()
	return load{int(done.Load()), took.Seconds(), (after.cpu - before.cpu).Seconds(), (clientAfter - clientBefore).Seconds()}, err
}

// ownCPU is what this process, the client, has taken.
func ownCPU() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// unlimited is the number of messages of a load that only time ends.
const unlimited = 1 << 60

// lane is one server with one kind of queue in one repetition.
type lane struct {
	server *server
	stage  stage // what its stages have in common
	queue  *queue
	failed bool
}

// repetition measures each load on every server, one server right after the other: what the
// machine does besides is then much the same for all of them.
func (b *bench) repetition(ctx context.Context, number int, servers []*server) {
	var lanes []*lane
	for _, s := range servers {
		for _, kind := range []string{standard, fifo} {
			lanes = append(lanes, &lane{server: s, stage: stage{Server: s.name, Kind: kind, Repetition: number}})
		}
	}
	for _, op := range ops {
		for _, l := range lanes {
			if l.failed || ctx.Err() != nil {
				continue
			}
			b.say("repetition %d, %s: %s, %s", number, op, l.server.name, l.stage.Kind)
			b.result.Stages = append(b.result.Stages, b.measure(ctx, l, op))
		}
	}
	for _, l := range lanes {
		if l.queue == nil || l.failed {
			continue
		}
		if err := l.queue.remove(ctx); err != nil && ctx.Err() == nil {
			b.result.Stages = append(b.result.Stages, l.stage.failed(opTake, err))
		}
	}
}

// maxBroken is how many lost connections a load of a peer may have: with ElasticMQ one in a whole run
// has been seen, in the middle of an answer.
const maxBroken = 5

// forgiving counts a call whose connection broke, and takes it for one that did nothing.
func forgiving(do func(context.Context) (int, error), broken *atomic.Int64) func(context.Context) (int, error) {
	return func(ctx context.Context) (int, error) {
		n, err := do(ctx)
		if isBroken(err) && ctx.Err() == nil && broken.Add(1) <= maxBroken {
			return 0, nil
		}
		return n, err
	}
}

func isBroken(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// measure does one load. The receives end with what the loads before them have sent.
func (b *bench) measure(ctx context.Context, l *lane, op string) stage {
	measured, most := l.stage, limit{unlimited, b.plan.Stage}
	measured.Op, measured.LoadBefore = op, loadAverage()
	if l.stage.Repetition == 0 {
		most.time = b.plan.Warm
	}
	var err error
	if l.queue == nil {
		l.queue, err = b.plan.newQueue(ctx, l.server, b.plan.Connections, l.stage.Kind)
	}
	if err == nil {
		do := map[string]func(context.Context) (int, error){opSend: l.queue.sendOne, opBatch: l.queue.sendTen, opTake: l.queue.takeTen}[op]
		if op == opTake {
			most.messages = l.queue.last.Load()
		}
		var broken atomic.Int64
		if l.server.name != ours {
			do = forgiving(do, &broken)
		}
		measured.load, err = closedLoop(ctx, l.server, b.plan.Connections, most, do)
		measured.Broken = broken.Load()
	}
	if err != nil {
		l.failed = true
		return measured.failed(op, err)
	}
	return measured
}
