package main

import (
	"context"
	"fmt"
	"io"
	"time"
)

// bench is a run.
type bench struct {
	plan       plan
	contenders []contender
	progress   io.Writer
	result     *result
}

// run measures every contender. It fails only when ours cannot be started or ctx ends: what a peer
// cannot do is a line of the result.
func (b *bench) run(ctx context.Context) (*result, error) {
	began := time.Now()
	b.result = &result{Meta: newMeta(ctx, began), Plan: b.plan}
	started, err := b.startAll(ctx)
	defer func() {
		for _, s := range started {
			s.kill()
		}
	}()
	if err != nil {
		return nil, err
	}
	b.loads(ctx, started)
	for _, c := range b.contenders {
		if s := started[c.name]; s != nil {
			b.singly(ctx, c, s)
			s.kill()
			delete(started, c.name)
		}
	}
	b.result.Meta.LoadAfter = loadAverage()
	b.result.Meta.Seconds = time.Since(began).Seconds()
	return b.result, ctx.Err()
}

func (b *bench) startAll(ctx context.Context) (map[string]*server, error) {
	started := map[string]*server{}
	for _, c := range b.contenders {
		b.say("start %s", c.name)
		s, err := start(ctx, c)
		described := contenderResult{Name: c.name, Version: c.version, SilentBatches: c.silentBatches}
		switch {
		case err == nil:
			started[c.name] = s
		case c.name == ours || ctx.Err() != nil:
			return started, err
		default:
			described.Missing = err.Error()
			b.say("NOT MEASURED: %v", err)
		}
		b.result.Servers = append(b.result.Servers, described)
	}
	return started, nil
}

// loads measures the rates, in each repetition with another server first.
func (b *bench) loads(ctx context.Context, started map[string]*server) {
	n := len(b.contenders)
	for number := range b.plan.Repetitions + 1 {
		var servers []*server
		for i := range n {
			if s := started[b.contenders[(i+number)%n].name]; s != nil {
				servers = append(servers, s)
			}
		}
		b.repetition(ctx, number, servers)
	}
}

// singly measures once what needs no comparison within the same minute.
func (b *bench) singly(ctx context.Context, c contender, s *server) {
	add := func(what string, measure func() []figure) {
		if ctx.Err() != nil {
			return
		}
		b.say("%s: %s", c.name, what)
		b.result.Figures = append(b.result.Figures, measure()...)
	}
	add("long polls", func() []figure { return []figure{b.longPoll(ctx, s)} })
	add("visibility", func() []figure { return []figure{b.lateness(ctx, s)} })
	add("idle polls", func() []figure { return []figure{b.idlePolls(ctx, s)} })
	add("memory", func() []figure { return []figure{b.memory(ctx, c)} })
	if c.flat {
		add("cycles", func() []figure { return b.flat(ctx, c) })
	}
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
