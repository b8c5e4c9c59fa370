package metrics

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stepfleet/stepfleet"
)

// work is what a worker holds, as its calls of the ledger and of the host tell it.
type work struct {
	claims, deliveries, starts, ended, fenced *prometheus.CounterVec
	renewals                                  *prometheus.CounterVec
	sessions                                  *prometheus.CounterVec
	claim, overhead, execution                *prometheus.HistogramVec

	mu      sync.Mutex
	slots   map[string]int
	held    map[stepfleet.TaskID]held
	renewed time.Time // when the last renewal that came back was sent; zero without a session
}

type held struct {
	queue string
	asked time.Time     // when the claim that got it was sent
	mode  string        // warm or cold, once it has a process
	took  time.Duration // from the claim to the recorded start, once there is one
}

// Worker counts what a worker does with its ledgers: the one for claims and the one for renewals are
// counted together.
func (m *Metrics) Worker(l stepfleet.Ledger) stepfleet.Ledger { return worker{l, m.worker()} }

func (m *Metrics) worker() *work {
	if m.work != nil {
		return m.work
	}
	w := &work{
		claims:     m.counter("claims_total", "Claims, by what came of them: tasks, empty, or the code of a refusal.", "queue", "result"),
		claim:      m.histogram(callBuckets, "task_claim_seconds", "From asking the ledger for tasks to having them, for each task that was got.", "queue"),
		deliveries: m.counter("task_deliveries_total", "Tasks got by claims: first, or a redelivery of one that a worker had held and not started. Of both, those are counted as duplicate once more that were another's when this worker wanted to start them.", "queue", "kind"),
		starts:     m.counter("starts_total", "Starts of user code asked for, by answer: ok or the code of a refusal.", "queue", "code"),
		ended:      m.counter("tasks_total", endedHelp, "queue", "outcome"),
		fenced:     m.counter("fenced_writes_total", "Writes of this worker that the ledger refused, such as those with an old fence.", "verb", "code"),
		renewals:   m.counter("lease_renewals_total", "Renewals of the session, by result: ok or the code of a refusal.", "result"),
		sessions:   m.counter("sessions_total", "Sessions that this process has begun."),
		overhead:   m.histogram(callBuckets, "step_start_overhead_seconds", "From the claim that got a task to its recorded start: what this worker adds to a step. Warm, when a process waited ready for it, else cold.", "queue", "mode"),
		execution:  m.histogram(taskBuckets, "task_execution_seconds", "How long user code ran.", "queue"),
		held:       map[stepfleet.TaskID]held{},
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
	m.work = w
	return w
}

// Host notes which tasks found a process that waited for them.
func (m *Metrics) Host(h stepfleet.Host) stepfleet.Host { return host{h, m.worker()} }

type host struct {
	stepfleet.Host
	w *work
}

func (h host) Launch(ctx context.Context, job stepfleet.Job, gate stepfleet.Gate) (stepfleet.Process, error) {
	process, err := h.Host.Launch(ctx, job, gate)
	if err == nil {
		mode := "cold"
		if process.Warm() {
			mode = "warm"
		}
		h.w.started(job.TaskID, func(held *held) { held.mode = mode })
	}
	return process, err
}

// started notes one of two things that are told of a task's start in either order, and with the second
// how long it has taken.
func (w *work) started(id stepfleet.TaskID, note func(*held)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h, ok := w.held[id]
	if !ok {
		return // of a session that is over
	}
	known := h.mode != "" && h.took != 0
	note(&h)
	w.held[id] = h
	if !known && h.mode != "" && h.took != 0 {
		w.overhead.WithLabelValues(h.queue, h.mode).Observe(h.took.Seconds())
	}
}

// Children shows how many step processes there are in each state.
func (m *Metrics) Children(read func() map[string]int) {
	m.counts(read, "python_children", "Step processes: starting, idle while they wait for a task, or busy with one.", "state")
}

// SlotsTaken shows the worker's own count of the slots that are not free.
func (m *Metrics) SlotsTaken(read func() map[string]int) {
	m.counts(read, "slots_taken", "Slots that are not free: of a task, of its process until that is gone, or resting since no process was to be had.", "queue")
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

func (l worker) Renew(ctx context.Context, id stepfleet.SessionID, instance string) (stepfleet.Renewal, error) {
	sent := time.Now()
	renewal, err := l.Ledger.Renew(ctx, id, instance)
	l.w.renewals.WithLabelValues(codeOf(err)).Inc()
	if err == nil {
		l.w.mu.Lock()
		l.w.renewed = sent
		l.w.mu.Unlock()
	}
	return renewal, err
}

func (l worker) EndSession(ctx context.Context, id stepfleet.SessionID, instance, reason string) error {
	err := l.Ledger.EndSession(ctx, id, instance, reason)
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
		l.w.got(req.Queue, asked, claimed.Leases)
	}
	l.w.claims.WithLabelValues(req.Queue, result).Inc()
	return claimed, err
}

func (w *work) got(queue string, asked time.Time, leases []stepfleet.Lease) {
	took := time.Since(asked)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, lease := range leases {
		kind := "first"
		if lease.Fence > 1 { // each change of owner raises it
			kind = "redelivery"
		}
		w.deliveries.WithLabelValues(queue, kind).Inc()
		w.claim.WithLabelValues(queue).Observe(took.Seconds())
		w.held[lease.TaskID] = held{queue: queue, asked: asked}
	}
}

func (l worker) Start(ctx context.Context, session stepfleet.SessionID, refs []stepfleet.Ref) ([]error, error) {
	errs, err := l.Ledger.Start(ctx, session, refs)
	for i, each := range errs {
		h := l.w.get(refs[i].TaskID)
		l.w.starts.WithLabelValues(h.queue, codeOf(each)).Inc()
		if errors.Is(each, stepfleet.ErrFenced) {
			l.w.deliveries.WithLabelValues(h.queue, "duplicate").Inc()
		}
		if refusal := stepfleet.RefusalOf(each); refusal != nil && !refusal.Retry {
			l.w.refuse(stepfleet.VerbStart, each)
			l.w.drop(refs[i].TaskID)
		} else if each == nil {
			l.w.started(refs[i].TaskID, func(h *held) { h.took = max(time.Since(h.asked), 1) })
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

func (l worker) Abandon(ctx context.Context, session stepfleet.SessionID, refs []stepfleet.Ref, process int, reason string) ([]error, error) {
	errs, err := l.Ledger.Abandon(ctx, session, refs, process, reason)
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
	w.fenced.WithLabelValues(string(verb), codeOf(err)).Inc()
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
