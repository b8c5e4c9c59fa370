package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

// side is one of two queues, each on a server of its own, whose cycles are compared.
type side struct {
	name    string // of its figure
	kind    string
	groups  int
	backlog int

	server  *server
	queue   *queue
	reached int
	micros  []int
	cpu     time.Duration
}

// cycles measures a send, a receive and a delete, one after the other on one connection, at both
// sizes of backlog or of the number of groups. The sides take turns, so that a slow moment of the
// machine is in both.
func (b *bench) cycles(ctx context.Context, c contender, sides [2]*side) []figure {
	err := b.prepare(ctx, c, sides)
	defer func() {
		for _, s := range sides {
			if s.server != nil {
				s.server.kill()
			}
		}
	}()
	if err == nil {
		err = b.alternate(ctx, sides)
	}
	figures := make([]figure, 0, len(sides))
	for _, s := range sides {
		figures = append(figures, s.figure(c.name, err))
	}
	return figures
}

func (b *bench) prepare(ctx context.Context, c contender, sides [2]*side) error {
	fill := b.plan.Fill
	if c.name != ours {
		fill = min(fill, peerFill)
	}
	for _, s := range sides {
		var err error
		if s.server, err = start(ctx, c); err != nil {
			return err
		}
		if s.queue, err = b.plan.newQueue(ctx, s.server, b.plan.Connections, s.kind); err != nil {
			return err
		}
		s.queue.groups = s.groups
		if _, err = closedLoop(ctx, s.server, b.plan.Connections, limit{int64(s.backlog), fill}, s.queue.sendTen); err != nil {
			return fmt.Errorf("fill a queue: %w", err)
		}
		s.reached = int(s.queue.last.Load())
	}
	return nil
}

func (b *bench) alternate(ctx context.Context, sides [2]*side) error {
	end := time.Now().Add(b.plan.CyclesTime)
	for done := 0; done < b.plan.Cycles && time.Now().Before(end); done += b.plan.Block {
		for _, s := range sides {
			if err := s.block(ctx, b.plan.Block, end); err != nil {
				return err
			}
		}
	}
	return nil
}

// block does n cycles, fewer if the time is over.
func (s *side) block(ctx context.Context, n int, end time.Time) error {
	before, err := s.server.used()
	if err != nil {
		return err
	}
	for i := 0; i < n && (i == 0 || time.Now().Before(end)); i++ {
		began := time.Now()
		if err := s.queue.cycle(ctx); err != nil {
			return err
		}
		s.micros = append(s.micros, int(time.Since(began).Microseconds()))
	}
	after, err := s.server.used()
	s.cpu += after.cpu - before.cpu
	return err
}

func (q *queue) cycle(ctx context.Context) error {
	if _, err := q.sendOne(ctx); err != nil {
		return err
	}
	got, err := q.receive(ctx, &sqs.ReceiveMessageInput{MaxNumberOfMessages: 1})
	if err != nil {
		return err
	}
	if len(got) != 1 {
		return errors.New("a receive from a backlog got nothing")
	}
	return q.delete(ctx, got[0])
}

func (s *side) figure(server string, err error) figure {
	f := figure{Server: server, Name: s.name, Unit: "ms", Samples: s.micros}
	if err != nil {
		return f.failed(err)
	}
	f.Value = quantile(milliseconds(s.micros), 0.99)
	f.CPUMicros = micros(s.cpu.Seconds(), len(s.micros))
	f.Note = fmt.Sprintf("%d cycles", len(s.micros))
	if s.reached < s.backlog {
		f.Short = true
		f.Note += fmt.Sprintf(", at %s of %s messages: no more were sent in the time", thousands(s.reached), thousands(s.backlog))
	}
	return f
}

// flat measures both pairs of sides.
func (b *bench) flat(ctx context.Context, c contender) []figure {
	p := b.plan
	backlog := func(i int) *side {
		return &side{name: cycleBacklog[i], kind: standard, groups: 1, backlog: p.Backlogs[i]}
	}
	groups := func(i int) *side {
		return &side{name: cycleGroups[i], kind: fifo, groups: p.CycleGroup[i], backlog: p.CycleGroup[1]}
	}
	return append(b.cycles(ctx, c, [2]*side{backlog(0), backlog(1)}), b.cycles(ctx, c, [2]*side{groups(0), groups(1)})...)
}
