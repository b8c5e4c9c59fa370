package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stepfleet/stepfleet"
)

// work is what a worker holds, as its calls of the ledger tell it.
type work struct {
	claims, claimed, starts, ended, refused *prometheus.CounterVec
	renewals                                *prometheus.CounterVec
	sessions                                *prometheus.CounterVec
	overhead, execution                     *prometheus.HistogramVec

	mu      sync.Mutex
	slots   map[string]int
	held    map[stepfleet.TaskID]held
	renewed time.Time // when the last renewal that came back was sent; zero without a session
}

type held struct {
	queue string
	asked time.Time // when the claim that got it was sent
}

// Worker counts what a worker does. It returns what to put around each of its ledgers: the one for
// claims and the one for renewals are counted together.
func (m *Metrics) Worker() func(stepfleet.Ledger) stepfleet.Ledger {
	w := &work{
		claims:    m.counter("claims_total", "Claims, by what came of them: tasks, empty, or the code of a refusal.", "queue", "result"),
		claimed:   m.counter("tasks_claimed_total", "Tasks that claims have got.", "queue"),
		starts:    m.counter("starts_total", "Starts of user code asked for, by answer: ok or the code of a refusal.", "queue", "code"),
		ended:     m.counter("tasks_total", endedHelp, "queue", "outcome"),
		refused:   m.counter("writes_refused_total", "Writes of this worker that the ledger refused, such as those with an old fence.", "verb", "code"),
		renewals:  m.counter("session_renewals_total", "Renewals of the session, by answer: ok or the code of a refusal.", "code"),
		sessions:  m.counter("sessions_total", "Sessions that this process has begun."),
		overhead:  m.histogram(callBuckets, "task_start_seconds", "From the claim that got a task to its recorded start: what this worker adds to a step.", "queue"),
		execution: m.histogram(taskBuckets, "task_execution_seconds", "How long user code ran.", "queue"),
		held:      map[stepfleet.TaskID]held{},
	}
	slots := m.desc("gauge", "slots", "Slots of this worker.", "queue")
	used := m.desc("gauge", "slots_used", "Slots that hold a task.", "queue")
	age := m.desc("gauge", "session_renewal_age_seconds", "Since the last renewal that came back was sent. The gates close a margin before the session TTL.")
	m.scraped(func(to chan<- prometheus.Metric) {
		w.mu.Lock()
		defer w.mu.Unlock()
		n := map[string]int{}
		for _, h := range w.held {
			n[h.queue]++
		}
		for queue, all := range w.slots {
			to <- gaugeOf(slots, float64(all), queue)
			to <- gaugeOf(used, float64(n[queue]), queue)
		}
		if !w.renewed.IsZero() {
			to <- gaugeOf(age, time.Since(w.renewed).Seconds())
		}
	}, slots, used, age)
	return func(l stepfleet.Ledger) stepfleet.Ledger { return worker{l, w} }
}

// IdleProcesses shows how many processes wait ready for a task.
func (m *Metrics) IdleProcesses(read func() int) {
	idle := m.desc("gauge", "idle_processes", "Warm Python processes that wait for a task.")
	m.scraped(func(to chan<- prometheus.Metric) { to <- gaugeOf(idle, float64(read())) }, idle)
}

// SlotsTaken shows the worker's own count of the slots that are not free.
func (m *Metrics) SlotsTaken(read func() map[string]int) {
	taken := m.desc("gauge", "slots_taken", "Slots that are not free: of a task, of its process until that is gone, or resting since no process was to be had.", "queue")
	m.scraped(func(to chan<- prometheus.Metric) {
		for queue, n := range read() {
			to <- gaugeOf(taken, float64(n), queue)
		}
	}, taken)
}

// LocationsDown shows which code locations do not load. Their names are those of the command line.
func (m *Metrics) LocationsDown(read func() []string) {
	down := m.desc("gauge", "code_location_down", "1 for each code location that does not load in this worker. Its tasks are left to other workers.", "code_location")
	m.scraped(func(to chan<- prometheus.Metric) {
		for _, location := range read() {
			to <- gaugeOf(down, 1, location)
		}
	}, down)
}

// worker is one of a worker's ledgers, counted.
type worker struct {
	stepfleet.Ledger
	w *work
}

func (l worker) Register(ctx context.Context, spec stepfleet.SessionSpec) (stepfleet.Session, error) {
	sent := time.Now()
	session, err := l.Ledger.Register(ctx, spec)
	if err == nil {
		l.w.sessions.WithLabelValues().Inc()
		l.w.mu.Lock()
		l.w.slots, l.w.renewed = spec.Slots, sent
		clear(l.w.held) // of a session that is over
		l.w.mu.Unlock()
	}
	return session, err
}

func (l worker) Renew(ctx context.Context, id stepfleet.SessionID) (stepfleet.Renewal, error) {
	sent := time.Now()
	renewal, err := l.Ledger.Renew(ctx, id)
	l.w.renewals.WithLabelValues(codeOf(err)).Inc()
	if err == nil {
		l.w.mu.Lock()
		l.w.renewed = sent
		l.w.mu.Unlock()
	}
	return renewal, err
}

func (l worker) EndSession(ctx context.Context, id stepfleet.SessionID, reason string) error {
	err := l.Ledger.EndSession(ctx, id, reason)
	if err == nil {
		l.w.mu.Lock()
		l.w.renewed = time.Time{}
		l.w.mu.Unlock()
	}
	return err
}

func (l worker) Claim(ctx context.Context, req stepfleet.ClaimRequest) (stepfleet.Claimed, error) {
	asked := time.Now()
	claimed, err := l.Ledger.Claim(ctx, req)
	result := codeOf(err)
	switch {
	case err != nil:
	case len(claimed.Leases) == 0:
		result = "empty"
	default:
		result = "tasks"
		l.w.claimed.WithLabelValues(req.Queue).Add(float64(len(claimed.Leases)))
		l.w.mu.Lock()
		for _, lease := range claimed.Leases {
			l.w.held[lease.TaskID] = held{req.Queue, asked}
		}
		l.w.mu.Unlock()
	}
	l.w.claims.WithLabelValues(req.Queue, result).Inc()
	return claimed, err
}

func (l worker) Start(ctx context.Context, session stepfleet.SessionID, refs []stepfleet.Ref) ([]error, error) {
	errs, err := l.Ledger.Start(ctx, session, refs)
	for i, each := range errs {
		h := l.w.get(refs[i].TaskID)
		l.w.starts.WithLabelValues(h.queue, codeOf(each)).Inc()
		if refusal := stepfleet.RefusalOf(each); refusal != nil && !refusal.Retry {
			l.w.refuse(stepfleet.VerbStart, each)
			l.w.drop(refs[i].TaskID)
		} else if each == nil && !h.asked.IsZero() {
			l.w.overhead.WithLabelValues(h.queue).Observe(time.Since(h.asked).Seconds())
		}
	}
	return errs, err
}

func (l worker) Settle(ctx context.Context, session stepfleet.SessionID, ends []stepfleet.Settlement) ([]error, error) {
	errs, err := l.Ledger.Settle(ctx, session, ends)
	for i, each := range errs {
		h := l.w.drop(ends[i].TaskID)
		if each != nil {
			l.w.refuse(stepfleet.VerbSettle, each)
			continue
		}
		r := ends[i].Result
		l.w.ended.WithLabelValues(h.queue, string(r.Outcome)).Inc()
		l.w.execution.WithLabelValues(h.queue).Observe(r.ExecutionSeconds)
	}
	return errs, err
}

func (l worker) Release(ctx context.Context, session stepfleet.SessionID, refs []stepfleet.Ref, reason string) ([]error, error) {
	errs, err := l.Ledger.Release(ctx, session, refs, reason)
	l.w.givenUp(stepfleet.VerbRelease, refs, errs)
	return errs, err
}

// givenUp notes tasks that this worker has given out of its hands.
func (w *work) givenUp(verb stepfleet.Verb, refs []stepfleet.Ref, errs []error) {
	for i, each := range errs {
		if each == nil {
			w.drop(refs[i].TaskID)
		} else {
			w.refuse(verb, each)
		}
	}
}

func (l worker) Abandon(ctx context.Context, session stepfleet.SessionID, refs []stepfleet.Ref, reason string) ([]error, error) {
	errs, err := l.Ledger.Abandon(ctx, session, refs, reason)
	l.w.givenUp(stepfleet.VerbAbandon, refs, errs)
	return errs, err
}

func (l worker) Revoke(ctx context.Context, session stepfleet.SessionID, ref stepfleet.Ref, reason string) (stepfleet.Fence, error) {
	fence, err := l.Ledger.Revoke(ctx, session, ref, reason)
	if refusal := stepfleet.RefusalOf(err); refusal != nil && !refusal.Retry {
		l.w.refuse(stepfleet.VerbRevoke, err)
	}
	return fence, err
}

func (w *work) refuse(verb stepfleet.Verb, err error) {
	w.refused.WithLabelValues(string(verb), codeOf(err)).Inc()
}

func (w *work) get(id stepfleet.TaskID) held {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held[id]
}

// drop forgets a task that this worker no longer holds.
func (w *work) drop(id stepfleet.TaskID) held {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.held[id]
	delete(w.held, id)
	return h
}
