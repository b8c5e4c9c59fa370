package main

import (
	"context"
	"fmt"
)

// memory measures by how much a fresh server's resident memory grows with each message, above the
// message's body.
func (b *bench) memory(ctx context.Context, c contender) figure {
	f := figure{Server: c.name, Name: memoryPerMessage, Unit: "bytes"}
	s, err := start(ctx, c)
	if err != nil {
		return f.failed(err)
	}
	defer s.kill()
	q, err := b.plan.newQueue(ctx, s, b.plan.Connections, standard)
	if err != nil {
		return f.failed(err)
	}
	// What connections and code take is not the messages'.
	if _, err := closedLoop(ctx, s, b.plan.Connections, limit{int64(b.plan.MemoryMessages / 50), b.plan.MemoryTime}, q.sendTen); err != nil {
		return f.failed(err)
	}
	before, err := s.used()
	if err != nil {
		return f.failed(err)
	}
	sent, err := closedLoop(ctx, s, b.plan.Connections, limit{int64(b.plan.MemoryMessages), b.plan.MemoryTime}, q.sendTen)
	if err != nil {
		return f.failed(err)
	}
	after, err := s.used()
	if err != nil {
		return f.failed(err)
	}
	f.Value = float64(after.rss-before.rss)/float64(sent.Messages) - float64(b.plan.BodyBytes)
	f.Note = fmt.Sprintf("%s messages", thousands(sent.Messages))
	return f
}
