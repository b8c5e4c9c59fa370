package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stepfleet/stepfleet"
)

// server is the ledger as the server uses it, counted.
type server struct {
	stepfleet.Ledger
	submitted *prometheus.CounterVec
	ended     *prometheus.CounterVec
	swept     *prometheus.CounterVec
	expired   *prometheus.CounterVec
	waited    *prometheus.HistogramVec

	mu    sync.Mutex
	lanes []stepfleet.Lane
	seen  time.Time
}

// laneAge is how long a look at the queues is shown: the server takes one every 2 s while it can.
const laneAge = 15 * time.Second

const endedHelp = "Tasks that this process brought to their end, by outcome. Workers settle; the server cancels and sweeps."

// Server counts what the server does with the ledger.
func (m *Metrics) Server(ledger stepfleet.Ledger) stepfleet.Ledger {
	s := &server{
		Ledger:    ledger,
		submitted: m.counter("tasks_submitted_total", "Tasks taken into the ledger that it did not know.", "queue"),
		ended:     m.counter("tasks_total", endedHelp, "queue", "outcome"),
		swept:     m.counter("tasks_swept_total", "Tasks taken from sessions that went silent or died, by the state they came to.", "queue", "state"),
		expired:   m.counter("sessions_expired_total", "Sessions marked suspect or dead.", "state"),
		waited:    m.histogram(taskBuckets, "task_queue_wait_seconds", "From submit to claim, of tasks that workers told of, by the ledger's clock.", "queue"),
	}
	ready := m.desc("gauge", "queue_ready", "Tasks that wait.", "queue")
	oldest := m.desc("gauge", "queue_oldest_age_seconds", "Age of the oldest task that waits, 0 when none does.", "queue")
	held := m.desc("gauge", "queue_held", "Tasks that workers hold, leased or running.", "queue", "state")
	slots := m.desc("gauge", "queue_slots", "Slots of alive workers that are not draining.", "queue")
	m.scraped(func(to chan<- prometheus.Metric) {
		for _, lane := range s.look() {
			to <- gaugeOf(ready, float64(lane.Ready), lane.Queue)
			to <- gaugeOf(oldest, lane.OldestAge.Seconds(), lane.Queue)
			to <- gaugeOf(held, float64(lane.Leased), lane.Queue, string(stepfleet.StateLeased))
			to <- gaugeOf(held, float64(lane.Running), lane.Queue, string(stepfleet.StateRunning))
			to <- gaugeOf(slots, float64(lane.Slots), lane.Queue)
		}
	}, ready, oldest, held, slots)
	return s
}

// Workers counts sessions whenever it is scraped, by a call of the ledger; none are shown while it
// cannot be asked.
func (m *Metrics) Workers(ledger stepfleet.Records) {
	workers := m.desc("gauge", "workers", "Sessions of workers: alive, draining or suspect.", "state")
	m.scraped(func(to chan<- prometheus.Metric) {
		ctx, cancel := context.WithTimeout(context.Background(), maxScrape)
		defer cancel()
		sessions, err := ledger.Sessions(ctx, 0)
		if err != nil {
			return // the breaker's series and the calls' say so
		}
		n := map[string]int{string(stepfleet.SessionAlive): 0, string(stepfleet.SessionSuspect): 0, "draining": 0}
		for _, s := range sessions {
			switch {
			case s.State == stepfleet.SessionDead:
			case s.Draining:
				n["draining"]++
			default:
				n[string(s.State)]++
			}
		}
		for state, count := range n {
			to <- gaugeOf(workers, float64(count), state)
		}
	}, workers)
}

func (s *server) look() []stepfleet.Lane {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.seen) > laneAge {
		return nil
	}
	return s.lanes
}

func (s *server) Lanes(ctx context.Context) ([]stepfleet.Lane, error) {
	lanes, err := s.Ledger.Lanes(ctx)
	if err == nil {
		s.mu.Lock()
		s.lanes, s.seen = lanes, time.Now()
		s.mu.Unlock()
	}
	return lanes, err
}

func (s *server) Submit(ctx context.Context, b stepfleet.Batch) ([]stepfleet.Receipt, error) {
	receipts, err := s.Ledger.Submit(ctx, b)
	for i, r := range receipts {
		if !r.Known {
			s.submitted.WithLabelValues(b.Tasks[i].Queue).Inc()
		}
	}
	return receipts, err
}

func (s *server) Cancel(ctx context.Context, runID string, epoch stepfleet.Epoch, keys []stepfleet.Key, reason string) ([]stepfleet.Change, error) {
	changes, err := s.Ledger.Cancel(ctx, runID, epoch, keys, reason)
	s.end(changes)
	return changes, err
}

func (s *server) CloseRun(ctx context.Context, runID string, epoch stepfleet.Epoch, reason string) ([]stepfleet.Change, error) {
	changes, err := s.Ledger.CloseRun(ctx, runID, epoch, reason)
	s.end(changes)
	return changes, err
}

func (s *server) Sweep(ctx context.Context, startWithin time.Duration, max int) ([]stepfleet.Change, error) {
	changes, err := s.Ledger.Sweep(ctx, startWithin, max)
	s.sweep(changes)
	return changes, err
}

func (s *server) Decide(ctx context.Context, decisions []stepfleet.Decision) ([]stepfleet.Change, error) {
	changes, err := s.Ledger.Decide(ctx, decisions)
	s.sweep(changes)
	return changes, err
}

func (s *server) sweep(changes []stepfleet.Change) {
	for _, c := range changes {
		s.swept.WithLabelValues(c.Queue, string(c.To)).Inc()
	}
	s.end(changes)
}

func (s *server) end(changes []stepfleet.Change) {
	for _, c := range changes {
		if c.To.Terminal() {
			s.ended.WithLabelValues(c.Queue, string(c.To)).Inc()
		}
	}
}

func (s *server) ExpireSessions(ctx context.Context, beats stepfleet.Beats) ([]stepfleet.Session, error) {
	changed, err := s.Ledger.ExpireSessions(ctx, beats)
	s.expire(changed)
	return changed, err
}

func (s *server) DeclareDead(ctx context.Context, instance, reason string) ([]stepfleet.Session, error) {
	changed, err := s.Ledger.DeclareDead(ctx, instance, reason)
	s.expire(changed)
	return changed, err
}

func (s *server) expire(changed []stepfleet.Session) {
	for _, c := range changed {
		s.expired.WithLabelValues(string(c.State)).Inc()
	}
}

// Tasks is asked once for each task of whose end a worker tells.
func (s *server) Tasks(ctx context.Context, ids []stepfleet.TaskID) ([]stepfleet.View, error) {
	views, err := s.Ledger.Tasks(ctx, ids)
	for _, v := range views {
		if !v.ClaimedAt.IsZero() {
			s.waited.WithLabelValues(v.Queue).Observe(v.ClaimedAt.Sub(v.SubmittedAt).Seconds())
		}
	}
	return views, err
}
