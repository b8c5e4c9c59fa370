// Package metrics counts what a process does, for Prometheus. It is put around the root's ports, as
// internal/outage is, so that no role and no adapter knows of it. docs/metrics.md is written from it.
//
// Labels are few and bounded: queues, outcomes, error codes, what was called. No run, step, task or
// session is one; for those there is the ledger.
package metrics

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/outage"
)

// Prefix begins every name of ours.
const Prefix = "stepfleet_"

// maxScrape bounds what a scrape waits for the ledger.
const maxScrape = 2 * time.Second

// Histograms have classic buckets, and native ones for a Prometheus that asks for them: each a tenth wider
// than the one before, and no more than so many.
const (
	nativeFactor  = 1.1
	nativeBuckets = 160
)

// The classic buckets, in seconds: of one call or of what the fleet adds to a step, and of what a step
// or its wait for a slot may take.
var (
	callBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, 1, 5, 20}
	taskBuckets = []float64{.01, .025, .05, .1, .25, 1, 5, 30, 120, 600, 3600, 21600}
)

// Metrics is one process's.
type Metrics struct {
	registry *prometheus.Registry
	series   []series

	calls       *prometheus.HistogramVec // of a dependency
	callResults *prometheus.CounterVec
	breakers    *prometheus.GaugeVec
	refused     *prometheus.CounterVec
	pools       pools
	work        *work
}

// series is what docs/metrics.md says of one name.
type series struct {
	name, kind, help string
	labels           []string
}

// New returns what every process has: its version, Go's and the process's own series. Those of
// dependencies come with Breaker and Pool, those of a role with Server and Worker.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.gauge("build_info", "Always 1, with the version of the binary.", "version").WithLabelValues(version).Set(1)
	return m
}

// Handler answers a scrape. Whoever serves it checks who asks.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

func (m *Metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.note("counter", name, help, labels), Help: help}, labels)
	m.registry.MustRegister(c)
	return c
}

func (m *Metrics) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: m.note("gauge", name, help, labels), Help: help}, labels)
	m.registry.MustRegister(g)
	return g
}

func (m *Metrics) histogram(buckets []float64, name, help string, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: m.note("histogram", name, help, labels), Help: help, Buckets: buckets,
		NativeHistogramBucketFactor: nativeFactor, NativeHistogramMaxBucketNumber: nativeBuckets,
	}, labels)
	m.registry.MustRegister(h)
	return h
}

// desc is for a series whose values are read when it is scraped.
func (m *Metrics) desc(kind, name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(m.note(kind, name, help, labels), help, labels, nil)
}

func (m *Metrics) note(kind, name, help string, labels []string) string {
	m.series = append(m.series, series{Prefix + name, kind, help, labels})
	return Prefix + name
}

// scraped collects series whose values are read when they are scraped.
type scraped struct {
	descs   []*prometheus.Desc
	collect func(chan<- prometheus.Metric)
}

func (s scraped) Describe(to chan<- *prometheus.Desc) {
	for _, d := range s.descs {
		to <- d
	}
}

func (s scraped) Collect(to chan<- prometheus.Metric) { s.collect(to) }

func (m *Metrics) scraped(collect func(chan<- prometheus.Metric), descs ...*prometheus.Desc) {
	m.registry.MustRegister(scraped{descs, collect})
}

// counts shows how many there are of each value of a label, whenever it is scraped.
func (m *Metrics) counts(read func() map[string]int, name, help, label string) {
	d := m.desc("gauge", name, help, label)
	m.scraped(func(to chan<- prometheus.Metric) {
		for value, n := range read() {
			to <- gaugeOf(d, float64(n), value)
		}
	}, d)
}

func gaugeOf(d *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

func counterOf(d *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.CounterValue, value, labels...)
}

// codeOf is the label of how a call ended.
func codeOf(err error) string {
	if err == nil {
		return "ok"
	}
	if errors.Is(err, context.Canceled) {
		return "canceled"
	}
	if refusal := stepfleet.RefusalOf(err); refusal != nil {
		return refusal.Code
	}
	return "error"
}

// Breaker returns how to watch a dependency so that its calls and its breakers are counted, and logged
// when they open and close.
func (m *Metrics) Breaker(dependency string, log *slog.Logger) outage.Config {
	if m.calls == nil {
		m.dependencies()
	}
	was := outage.Closed
	return outage.Config{
		Dependency: dependency,
		OnState: func(is outage.State) {
			m.moved(dependency, was, -1)
			m.moved(dependency, is, 1)
			switch {
			case was == outage.Closed:
				log.Warn("dependency is out: calls are refused until a probe is answered", "dependency", dependency)
			case is == outage.Closed:
				log.Info("dependency answers again", "dependency", dependency)
			}
			was = is
		},
		OnCall: func(op string, took time.Duration, err error) {
			m.calls.WithLabelValues(dependency, op).Observe(took.Seconds())
			m.callResults.WithLabelValues(dependency, op, codeOf(err)).Inc()
		},
		OnRefused: func() { m.refused.WithLabelValues(dependency).Inc() },
	}
}

func (m *Metrics) dependencies() {
	m.calls = m.histogram(callBuckets, "dependency_call_seconds", "How long calls of a dependency took, by what was called.", "dependency", "op")
	m.callResults = m.counter("dependency_calls_total", "Calls of a dependency, by how they ended: ok, the code of a refusal, canceled by who asked, or error.", "dependency", "op", "code")
	m.breakers = m.gauge("breakers", "Breakers that are open, or half-open while a probe is under way. There is one a dependency, and of servers one an address.", "dependency", "state")
	m.refused = m.counter("breaker_refused_total", "Calls that were not made because the breaker was open.", "dependency")
}

func (m *Metrics) moved(dependency string, s outage.State, by float64) {
	if s != outage.Closed {
		m.breakers.WithLabelValues(dependency, s.String()).Add(by)
	}
}

// Pool is how a pool of database connections stands.
type Pool struct {
	Max, Used, Idle int
	// Waits counts the calls that found no free connection, Waited how long all calls waited for one.
	Waits  int64
	Waited time.Duration
}

type pools map[string]func() Pool

// Pool watches a pool of connections.
func (m *Metrics) Pool(name string, read func() Pool) {
	if m.pools != nil {
		m.pools[name] = read
		return
	}
	m.pools = pools{name: read}
	conns := m.desc("gauge", "db_pool_connections", "Connections to PostgreSQL, used or idle.", "pool", "state")
	most := m.desc("gauge", "db_pool_max_connections", "Connections that the pool may have.", "pool")
	waits := m.desc("counter", "db_pool_waits_total", "Calls that found no free connection.", "pool")
	waited := m.desc("counter", "db_pool_wait_seconds_total", "How long calls have waited for a connection.", "pool")
	m.scraped(func(to chan<- prometheus.Metric) {
		for name, read := range m.pools {
			p := read()
			to <- gaugeOf(conns, float64(p.Used), name, "used")
			to <- gaugeOf(conns, float64(p.Idle), name, "idle")
			to <- gaugeOf(most, float64(p.Max), name)
			to <- counterOf(waits, float64(p.Waits), name)
			to <- counterOf(waited, p.Waited.Seconds(), name)
		}
	}, conns, most, waits, waited)
}

// Requests counts the requests of an SQS client, which AWS bills by, and returns what to tell of each.
func (m *Metrics) Requests() func(op, code string) {
	requests := m.counter("sqs_requests_total", "Requests to SQS with their repeats, by how they ended: ok, SQS's error code, or error.", "op", "code")
	return func(op, code string) { requests.WithLabelValues(op, code).Inc() }
}

// AWS counts the calls of the local AWS, and returns what to tell of each.
func (m *Metrics) AWS() func(service, op, code string) {
	calls := m.counter("aws_calls_total", "Calls of the local AWS, by how they ended: ok, an error code, or error. One that is not emulated has no op.", "service", "op", "code")
	return func(service, op, code string) { calls.WithLabelValues(service, op, code).Inc() }
}

// HTTP counts what the handler answers, by route. How long a stream lasts says nothing and is left out.
func (m *Metrics) HTTP(next http.Handler) http.Handler {
	answers := m.counter("http_requests_total", "Requests answered, by route and status.", "route", "status")
	took := m.histogram(callBuckets, "http_request_seconds", "How long a request took; streams are left out.", "route")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		answer := &answer{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(answer, r)
		route := r.Pattern
		if route == "" {
			route = "none"
		}
		answers.WithLabelValues(route, strconv.Itoa(answer.status)).Inc()
		if !answer.flushed {
			took.WithLabelValues(route).Observe(time.Since(began).Seconds())
		}
	})
}

// answer remembers the status, and whether it was sent in pieces.
type answer struct {
	http.ResponseWriter
	status  int
	flushed bool
}

func (a *answer) WriteHeader(status int) {
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

// FlushError is what http.ResponseController calls.
func (a *answer) FlushError() error {
	a.flushed = true
	return http.NewResponseController(a.ResponseWriter).Flush()
}

// Unwrap lets http.ResponseController find the rest.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
