package outage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet"
)

type ringer struct {
	stepfleet.Ringer
	b *Breaker
}

// Ringer puts the breaker before the server's side of the bells.
func Ringer(r stepfleet.Ringer, b *Breaker) stepfleet.Ringer { return ringer{r, b} }

func (r ringer) Ring(ctx context.Context, queue string, n int) error {
	return try(ctx, r.b, guarded, "ring", func() error { return r.Ringer.Ring(ctx, queue, n) })
}

type listener struct {
	stepfleet.Listener
	b *Breaker
}

// Listener puts the breaker before the worker's side of the bells.
func Listener(l stepfleet.Listener, b *Breaker) stepfleet.Listener { return listener{l, b} }

func (l listener) Receive(ctx context.Context, queue string, max int, wait time.Duration) ([]stepfleet.RungBell, error) {
	return do(ctx, l.b, guarded, "receive", func() ([]stepfleet.RungBell, error) {
		return l.Listener.Receive(ctx, queue, max, wait)
	})
}

func (l listener) Answer(ctx context.Context, queue string, bells []stepfleet.RungBell) error {
	return try(ctx, l.b, guarded, "answer", func() error { return l.Listener.Answer(ctx, queue, bells) })
}

func (l listener) Return(ctx context.Context, queue string, bells []stepfleet.RungBell) error {
	return try(ctx, l.b, guarded, "return", func() error { return l.Listener.Return(ctx, queue, bells) })
}

type orchestrator struct {
	stepfleet.Orchestrator
	b *Breaker
}

// Orchestrator puts the breaker before Dagster.
func Orchestrator(o stepfleet.Orchestrator, b *Breaker) stepfleet.Orchestrator {
	return orchestrator{o, b}
}

func (o orchestrator) KnownRuns(ctx context.Context, runIDs []string) (map[string]bool, error) {
	return do(ctx, o.b, guarded, "known_runs", func() (map[string]bool, error) { return o.Orchestrator.KnownRuns(ctx, runIDs) })
}

func (o orchestrator) CancelingRuns(ctx context.Context) ([]string, error) {
	return do(ctx, o.b, guarded, "canceling_runs", func() ([]string, error) { return o.Orchestrator.CancelingRuns(ctx) })
}

func (o orchestrator) MarkCanceled(ctx context.Context, runID string) error {
	return try(ctx, o.b, guarded, "mark_canceled", func() error { return o.Orchestrator.MarkCanceled(ctx, runID) })
}

// Notify tells the server at url of ended tasks.
type Notify func(ctx context.Context, url string, ended []stepfleet.Lease) error

// maxServers bounds the breakers of a Notifier: replicas come and go under new addresses.
const maxServers = 64

// Notifier puts a breaker before each server that is told of ended tasks: one that is gone must not
// silence those that are there, nor delay them by its time to time out.
type Notifier struct {
	notify Notify
	open   func() *Breaker

	mu      sync.Mutex
	servers map[string]*Breaker
}

// NewNotifier returns a Notifier that makes its breakers with open.
func NewNotifier(notify Notify, open func() *Breaker) *Notifier {
	return &Notifier{notify: notify, open: open, servers: map[string]*Breaker{}}
}

// Notify tells the server, unless that one has not answered lately.
func (n *Notifier) Notify(ctx context.Context, url string, ended []stepfleet.Lease) error {
	return try(ctx, n.server(url), guarded, "notify", func() error {
		err := n.notify(ctx, url, ended)
		if err != nil && !errors.Is(err, stepfleet.ErrUnavailable) {
			err = fmt.Errorf("server %w: %w", stepfleet.ErrUnavailable, err)
		}
		return err
	})
}

func (n *Notifier) server(url string) *Breaker {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := n.servers[url]
	if b == nil {
		if len(n.servers) >= maxServers {
			for _, forgotten := range n.servers {
				forgotten.answered() // so that it is counted as open no more
			}
			clear(n.servers)
		}
		b = n.open()
		n.servers[url] = b
	}
	return b
}
