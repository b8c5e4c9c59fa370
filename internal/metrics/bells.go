package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stepfleet/stepfleet"
)

type ringer struct {
	stepfleet.Ringer
	bells *prometheus.CounterVec
}

func (m *Metrics) bells() *prometheus.CounterVec {
	return m.counter("bells_total", "Bells rung, received, answered or returned to ring again.", "queue", "kind")
}

// Ringer counts the bells that are rung.
func (m *Metrics) Ringer(r stepfleet.Ringer) stepfleet.Ringer { return ringer{r, m.bells()} }

func (r ringer) Ring(ctx context.Context, queue string, n int) error {
	err := r.Ringer.Ring(ctx, queue, n)
	if err == nil {
		r.bells.WithLabelValues(queue, "rung").Add(float64(n))
	}
	return err
}

type listener struct {
	stepfleet.Listener
	bells *prometheus.CounterVec
}

// Listener counts the bells that are heard.
func (m *Metrics) Listener(l stepfleet.Listener) stepfleet.Listener { return listener{l, m.bells()} }

func (l listener) Receive(ctx context.Context, queue string, max int, wait time.Duration) ([]stepfleet.RungBell, error) {
	bells, err := l.Listener.Receive(ctx, queue, max, wait)
	l.count(queue, "received", bells, nil)
	return bells, err
}

func (l listener) Answer(ctx context.Context, queue string, bells []stepfleet.RungBell) error {
	err := l.Listener.Answer(ctx, queue, bells)
	l.count(queue, "answered", bells, err)
	return err
}

func (l listener) Return(ctx context.Context, queue string, bells []stepfleet.RungBell) error {
	err := l.Listener.Return(ctx, queue, bells)
	l.count(queue, "returned", bells, err)
	return err
}

func (l listener) count(queue, kind string, bells []stepfleet.RungBell, err error) {
	if err == nil && len(bells) > 0 {
		l.bells.WithLabelValues(queue, kind).Add(float64(len(bells)))
	}
}
