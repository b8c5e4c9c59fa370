package metrics

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/memory"
	"github.com/stepfleet/stepfleet/internal/outage"
)

var update = flag.Bool("update", false, "write docs/metrics.md anew")

const page = "../../docs/metrics.md"

const intro = `# Metrics

Every process answers ` + "`GET /metrics`" + ` for Prometheus: the server and ` + "`stepfleet aws`" + ` on the address
they serve, a worker on that of its probes (` + "`--listen`" + `). Where there is an API token a scrape needs it
as a bearer token (` + "`authorization: {credentials_file: ...}`" + ` in Prometheus), and a Host header other than a
loopback name must be allowed with ` + "`--allow-host`" + `. The local AWS has no token and answers on loopback
only.

Histograms have classic buckets, and native ones for a Prometheus that scrapes them
(` + "`scrape_native_histograms`" + `). There is no autoscaler yet, and so no series of one.

No run, step, task or session is a label: queues, outcomes and error codes are few. For one task there
is the ledger. Beside these there are Go's own series (` + "`go_`" + `) and the process's (` + "`process_`" + `).

This page is written from the code (` + "`go test ./internal/metrics -update`" + `).
`

// roles are the processes as cmd/stepfleet puts them together.
func roles() map[string]*Metrics {
	log := slog.New(slog.DiscardHandler)
	breaker := func(m *Metrics, name string) *outage.Breaker { return outage.New(m.Breaker(name, log)) }
	pool := func() Pool { return Pool{} }

	server := New("test")
	server.Requests()
	server.Pool("server", pool)
	server.Workers(outage.Ledger(server.Server(memory.NewLedger()), breaker(server, "postgres")))
	outage.Ringer(server.Ringer(memory.NewBells()), breaker(server, "sqs"))
	server.HTTP(http.NotFoundHandler())

	worker := New("test")
	worker.Requests()
	worker.Pool("claims", pool)
	worker.Worker(memory.NewLedger())
	worker.Children(func() map[string]int { return map[string]int{"idle": 3} })
	worker.SlotsTaken(func() map[string]int { return map[string]int{"default": 2} })
	worker.LocationsDown(func() []string { return []string{"shop"} })
	outage.Listener(worker.Listener(memory.NewBells()), breaker(worker, "sqs"))

	aws := New("test")
	aws.AWS()
	return map[string]*Metrics{"stepfleet server": server, "stepfleet worker": worker, "stepfleet aws": aws}
}

func TestMetricsPageIsComplete(t *testing.T) {
	var text strings.Builder
	text.WriteString(intro)
	all := roles()
	for _, role := range []string{"stepfleet server", "stepfleet worker", "stepfleet aws"} {
		fmt.Fprintf(&text, "\n## %s\n\n| name | type | labels | meaning |\n|---|---|---|---|\n", role)
		rows := slices.SortedFunc(slices.Values(all[role].series), func(a, b series) int { return cmp.Compare(a.name, b.name) })
		for _, s := range rows {
			fmt.Fprintf(&text, "| `%s` | %s | %s | %s |\n", s.name, s.kind, strings.Join(s.labels, ", "), s.help)
		}
	}
	if *update {
		if err := os.WriteFile(page, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stored, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(stored) != text.String() {
		t.Error("docs/metrics.md is not what the code says: run go test ./internal/metrics -update")
	}
}

// core are the series that dashboards and alerts are built on, by the process that has them.
var core = map[string][]string{
	"stepfleet server": {
		"tasks_total", "task_queue_wait_seconds", "queue_oldest_age_seconds", "workers", "sqs_requests_total",
		"db_pool_connections", "db_pool_max_connections", "db_pool_waits_total", "db_pool_wait_seconds_total", "build_info",
	},
	"stepfleet worker": {
		"tasks_total", "task_claim_seconds", "step_start_overhead_seconds", "task_execution_seconds", "task_deliveries_total",
		"fenced_writes_total", "lease_renewals_total", "python_children", "sqs_requests_total",
		"db_pool_connections", "db_pool_max_connections", "db_pool_waits_total", "db_pool_wait_seconds_total", "build_info",
	},
	"stepfleet aws": {"build_info"},
}

func TestTheCoreSeriesAreThere(t *testing.T) {
	all := roles()
	for role, names := range core {
		for _, name := range names {
			if !slices.ContainsFunc(all[role].series, func(s series) bool { return s.name == Prefix+name }) {
				t.Errorf("%s has no series %s", role, name)
			}
		}
	}
}

// A Prometheus that asks for native histograms gets them beside the classic ones.
func TestHistogramsAreNativeToo(t *testing.T) {
	m := New("test")
	m.histogram(callBuckets, "probe_seconds", "A probe.").WithLabelValues().Observe(.3)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != Prefix+"probe_seconds" {
			continue
		}
		h := f.GetMetric()[0].GetHistogram()
		if len(h.GetPositiveSpan()) == 0 || len(h.GetBucket()) != len(callBuckets) {
			t.Errorf("%d native spans and %d classic buckets", len(h.GetPositiveSpan()), len(h.GetBucket()))
		}
	}
}

// bounded are the labels there may be: each has few values, whatever runs.
var bounded = []string{"queue", "outcome", "state", "code", "result", "verb", "kind", "op", "dependency", "pool", "mode", "route", "status", "version", "service", "code_location"}

func TestLabelsAreBounded(t *testing.T) {
	for role, m := range roles() {
		for _, s := range m.series {
			for _, label := range s.labels {
				if !slices.Contains(bounded, label) {
					t.Errorf("%s of %s has the label %s: a label needs few values, whatever runs", s.name, role, label)
				}
			}
			if s.help == "" {
				t.Errorf("%s of %s has no help", s.name, role)
			}
		}
	}
}

// scrape asks as Prometheus does, and holds the answer against its own rules.
func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if answer.Code != http.StatusOK {
		t.Fatalf("%d %s", answer.Code, answer.Body)
	}
	text := answer.Body.String()
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, Prefix) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	return text
}

func want(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, "\n"+line+"\n") {
			name, _, _ := strings.Cut(line, "{")
			has := regexp.MustCompile("(?m)^"+regexp.QuoteMeta(name)+`[{ ].*$`).FindAllString(text, 12)
			t.Errorf("no line %q; there are\n%s", line, strings.Join(has, "\n"))
		}
	}
}

func submit(t *testing.T, l stepfleet.Ledger, run string, steps ...string) {
	t.Helper()
	epoch, err := l.TakeEpoch(t.Context(), run, stepfleet.Executor{Name: "executor"}, "")
	if err != nil {
		t.Fatal(err)
	}
	payload := []byte("{}")
	b := stepfleet.Batch{RunID: run, Epoch: epoch, Identity: "id", Payloads: map[stepfleet.Digest][]byte{stepfleet.DigestOf(payload): payload}}
	for _, step := range steps {
		key := stepfleet.Key{RunID: run, StepKey: step}
		b.Tasks = append(b.Tasks, stepfleet.Task{
			V: stepfleet.TaskVersion, Kind: stepfleet.KindStep, Key: key, IdempotencyKey: key.IdempotencyKey(),
			Queue: "default", Payload: stepfleet.DigestOf(payload),
		})
	}
	for range 2 { // the second finds them known
		if _, err := l.Submit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAFleetIsCounted(t *testing.T) {
	ledger := memory.NewLedger()
	serving, working := New("1.2.3"), New("1.2.3")
	server := serving.Server(ledger)
	serving.Workers(server)
	worker, renewals := working.Worker(ledger), working.Worker(ledger)
	ctx := t.Context()

	submit(t, server, "run-1", "a", "b", "c", "d")
	session, err := renewals.Register(ctx, stepfleet.SessionSpec{Worker: "w", Instance: "i", Slots: map[string]int{"default": 4}})
	if err != nil {
		t.Fatal(err)
	}
	claimed, err := worker.Claim(ctx, stepfleet.ClaimRequest{Session: session.ID, Instance: session.Instance, ID: "c", Queue: "default", Max: 3})
	if err != nil || len(claimed.Leases) != 3 {
		t.Fatal(claimed, err)
	}
	if _, err := server.Lanes(ctx); err != nil {
		t.Fatal(err)
	}
	refs := []stepfleet.Ref{claimed.Leases[0].Ref, claimed.Leases[1].Ref}
	if _, err := worker.Start(ctx, session.ID, refs); err != nil {
		t.Fatal(err)
	}
	if _, err := renewals.Renew(ctx, session.ID, session.Instance); err != nil {
		t.Fatal(err)
	}
	want(t, scrape(t, working),
		`stepfleet_build_info{version="1.2.3"} 1`,
		`stepfleet_task_deliveries_total{kind="first",queue="default"} 3`,
		`stepfleet_task_claim_seconds_count{queue="default"} 3`,
		`stepfleet_claims_total{queue="default",result="tasks"} 1`,
		`stepfleet_starts_total{code="ok",queue="default"} 2`,
		`stepfleet_slots{queue="default"} 4`,
		`stepfleet_slots_used{queue="default"} 3`,
		`stepfleet_lease_renewals_total{result="ok"} 1`,
		`stepfleet_sessions_total 1`,
	)
	want(t, scrape(t, serving),
		`stepfleet_tasks_submitted_total{queue="default"} 4`,
		`stepfleet_queue_ready{queue="default"} 1`,
		`stepfleet_queue_held{queue="default",state="leased"} 3`,
		`stepfleet_queue_slots{queue="default"} 4`,
		`stepfleet_workers{state="alive"} 1`,
	)

	end := stepfleet.Result{V: stepfleet.TaskVersion, Success: true, Outcome: stepfleet.StateSucceeded, Outputs: []string{}, ExecutionSeconds: 2}
	old := stepfleet.Ref{TaskID: refs[1].TaskID, Fence: refs[1].Fence - 1}
	ends := []stepfleet.Settlement{{Ref: refs[0], Result: end}, {Ref: old, Result: end}}
	if errs, err := worker.Settle(ctx, session.ID, ends); err != nil || errs[0] != nil || errs[1] == nil {
		t.Fatal(errs, err)
	}
	if _, err := worker.Release(ctx, session.ID, []stepfleet.Ref{claimed.Leases[2].Ref}, "why"); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Tasks(ctx, []stepfleet.TaskID{refs[0].TaskID}); err != nil {
		t.Fatal(err)
	}
	if _, err := server.DeclareDead(ctx, "i", "killed"); err != nil {
		t.Fatal(err)
	}
	orphans, err := server.Orphans(ctx, 0, 10)
	if err != nil || len(orphans) != 1 {
		t.Fatal(orphans, err)
	}
	if _, err := server.Decide(ctx, []stepfleet.Decision{orphans[0].Decide("", "the log shows no end")}); err != nil {
		t.Fatal(err)
	}
	want(t, scrape(t, working),
		`stepfleet_tasks_total{outcome="succeeded",queue="default"} 1`,
		`stepfleet_task_execution_seconds_sum{queue="default"} 2`,
		`stepfleet_fenced_writes_total{code="fenced",verb="settle"} 1`,
		`stepfleet_slots_used{queue="default"} 0`,
	)
	want(t, scrape(t, serving),
		`stepfleet_tasks_total{outcome="lost",queue="default"} 1`,
		`stepfleet_tasks_swept_total{queue="default",state="lost"} 1`,
		`stepfleet_sessions_expired_total{state="dead"} 1`,
		`stepfleet_task_queue_wait_seconds_count{queue="default"} 1`,
		`stepfleet_workers{state="alive"} 0`,
	)
}

// launcher is a host whose processes waited ready when it is warm.
type launcher struct {
	stepfleet.Host
	warm bool
}

func (l launcher) Launch(context.Context, stepfleet.Job, stepfleet.Gate) (stepfleet.Process, error) {
	return launched{warm: l.warm}, nil
}

type launched struct {
	stepfleet.Process
	warm bool
}

func (l launched) Warm() bool { return l.warm }

// The start may be recorded before the worker hears that its process has the task.
func TestOverheadIsShownByMode(t *testing.T) {
	ledger, m := memory.NewLedger(), New("test")
	worker := m.Worker(ledger)
	submit(t, ledger, "run-1", "a", "b", "c")
	leases, session := claim(t, worker, "w", 3)
	launch := func(i int, warm bool) {
		if _, err := m.Host(launcher{warm: warm}).Launch(t.Context(), stepfleet.Job{Lease: leases[i]}, nil); err != nil {
			t.Fatal(err)
		}
	}
	launch(0, true)
	start(t, worker, session, leases[0].Ref, leases[1].Ref)
	start(t, worker, session, leases[0].Ref) // its answer was lost
	launch(1, false)
	launch(2, true) // it never starts
	want(t, scrape(t, m),
		`stepfleet_step_start_overhead_seconds_count{mode="warm",queue="default"} 1`,
		`stepfleet_step_start_overhead_seconds_count{mode="cold",queue="default"} 1`,
	)
}

func claim(t *testing.T, l stepfleet.Ledger, instance string, max int) ([]stepfleet.Lease, stepfleet.SessionID) {
	t.Helper()
	session, err := l.Register(t.Context(), stepfleet.SessionSpec{Worker: instance, Instance: instance, Slots: map[string]int{"default": 4}})
	if err != nil {
		t.Fatal(err)
	}
	claimed, err := l.Claim(t.Context(), stepfleet.ClaimRequest{Session: session.ID, Instance: session.Instance, ID: instance, Queue: "default", Max: max})
	if err != nil || len(claimed.Leases) == 0 {
		t.Fatal(claimed, err)
	}
	return claimed.Leases, session.ID
}

func start(t *testing.T, l stepfleet.Ledger, session stepfleet.SessionID, refs ...stepfleet.Ref) {
	t.Helper()
	errs, err := l.Start(t.Context(), session, refs)
	if err := errors.Join(append(errs, err)...); err != nil {
		t.Fatal(err)
	}
}

// One task is delivered again after its worker gave it back, and a second time while it had it.
func TestDeliveriesAreShownByKind(t *testing.T) {
	ledger := memory.NewLedger()
	first, second := New("test"), New("test")
	one, two := first.Worker(ledger), second.Worker(ledger)
	submit(t, ledger, "run-1", "a")
	leases, session := claim(t, one, "one", 1)
	if errs, err := ledger.Release(t.Context(), session, []stepfleet.Ref{leases[0].Ref}, "behind its back"); err != nil || errs[0] != nil {
		t.Fatal(errs, err)
	}
	claim(t, two, "two", 1)
	if errs, err := one.Start(t.Context(), session, []stepfleet.Ref{leases[0].Ref}); err != nil || !errors.Is(errs[0], stepfleet.ErrFenced) {
		t.Fatal(errs, err)
	}
	want(t, scrape(t, first),
		`stepfleet_task_deliveries_total{kind="first",queue="default"} 1`,
		`stepfleet_task_deliveries_total{kind="duplicate",queue="default"} 1`,
		`stepfleet_fenced_writes_total{code="fenced",verb="start"} 1`,
	)
	want(t, scrape(t, second), `stepfleet_task_deliveries_total{kind="redelivery",queue="default"} 1`)
}

func TestBellsAreCounted(t *testing.T) {
	serving, working := New("test"), New("test")
	bells := memory.NewBells("default")
	ringer, listener := serving.Ringer(bells), working.Listener(bells)
	if err := ringer.Ring(t.Context(), "default", 3); err != nil {
		t.Fatal(err)
	}
	heard, err := listener.Receive(t.Context(), "default", 3, 0)
	if err != nil || len(heard) != 3 {
		t.Fatal(heard, err)
	}
	if err := listener.Answer(t.Context(), "default", heard[:1]); err != nil {
		t.Fatal(err)
	}
	if err := listener.Return(t.Context(), "default", heard[1:]); err != nil {
		t.Fatal(err)
	}
	want(t, scrape(t, serving), `stepfleet_bells_total{kind="rung",queue="default"} 3`)
	want(t, scrape(t, working),
		`stepfleet_bells_total{kind="received",queue="default"} 3`,
		`stepfleet_bells_total{kind="answered",queue="default"} 1`,
		`stepfleet_bells_total{kind="returned",queue="default"} 2`,
	)
}

func TestBreakersAreShown(t *testing.T) {
	m := New("test")
	down := true
	ledger := memory.NewLedger()
	ledger.Fail = func(string) error {
		if down {
			return stepfleet.ErrUnavailable
		}
		return nil
	}
	l := outage.Ledger(ledger, outage.New(m.Breaker("postgres", slog.New(slog.DiscardHandler))))
	for range 7 {
		_, _ = l.Lanes(t.Context())
	}
	want(t, scrape(t, m),
		`stepfleet_breakers{dependency="postgres",state="open"} 1`,
		`stepfleet_dependency_calls_total{code="unavailable",dependency="postgres",op="lanes"} 5`,
		`stepfleet_breaker_refused_total{dependency="postgres"} 2`,
	)
	down = false
	if _, err := l.Beat(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	want(t, scrape(t, m),
		`stepfleet_breakers{dependency="postgres",state="open"} 0`,
		`stepfleet_dependency_call_seconds_count{dependency="postgres",op="beat"} 1`,
	)
}

// Its error may speak of the dependency, which has done nothing wrong.
func TestACallThatWasBrokenOffIsNoFailure(t *testing.T) {
	m := New("test")
	ledger := memory.NewLedger()
	ctx, leave := context.WithCancel(t.Context())
	ledger.Fail = func(string) error { leave(); return fmt.Errorf("%w: %w", stepfleet.ErrUnavailable, context.Canceled) }
	l := outage.Ledger(ledger, outage.New(m.Breaker("postgres", slog.New(slog.DiscardHandler))))
	_, _ = l.Lanes(ctx)
	want(t, scrape(t, m), `stepfleet_dependency_calls_total{code="canceled",dependency="postgres",op="lanes"} 1`)
}

func TestRequestsAreCountedByRoute(t *testing.T) {
	m := New("test")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/runs/{run}/tasks", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	mux.HandleFunc("GET /v1/runs/{run}/stream", func(w http.ResponseWriter, _ *http.Request) {
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
	})
	h := m.HTTP(mux)
	for _, path := range []string{"/v1/runs/one/tasks", "/v1/runs/two/tasks", "/v1/runs/one/stream", "/nothing"} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil))
	}
	text := scrape(t, m)
	want(t, text,
		`stepfleet_http_requests_total{route="GET /v1/runs/{run}/tasks",status="418"} 2`,
		`stepfleet_http_requests_total{route="GET /v1/runs/{run}/stream",status="200"} 1`,
		`stepfleet_http_requests_total{route="none",status="404"} 1`,
		`stepfleet_http_request_seconds_count{route="GET /v1/runs/{run}/tasks"} 2`,
	)
	if strings.Contains(text, `seconds_count{route="GET /v1/runs/{run}/stream"}`) {
		t.Error("a stream's duration is among those of requests")
	}
}

func TestPoolsAreShown(t *testing.T) {
	m := New("test")
	m.Pool("claims", func() Pool { return Pool{Max: 4, Used: 1, Idle: 2, Waits: 7, Waited: 1500 * time.Millisecond} })
	m.Pool("renewals", func() Pool { return Pool{Max: 1} })
	want(t, scrape(t, m),
		`stepfleet_db_pool_connections{pool="claims",state="used"} 1`,
		`stepfleet_db_pool_connections{pool="claims",state="idle"} 2`,
		`stepfleet_db_pool_max_connections{pool="renewals"} 1`,
		`stepfleet_db_pool_waits_total{pool="claims"} 7`,
		`stepfleet_db_pool_wait_seconds_total{pool="claims"} 1.5`,
	)
}

func BenchmarkACountedCall(b *testing.B) {
	m := New("test")
	l := outage.Ledger(m.Worker(nothing{}), outage.New(m.Breaker("postgres", slog.New(slog.DiscardHandler))))
	b.ReportAllocs()
	for b.Loop() {
		_, _ = l.Claim(b.Context(), stepfleet.ClaimRequest{Queue: "default"})
	}
}

type nothing struct{ stepfleet.Ledger }

func (nothing) Claim(context.Context, stepfleet.ClaimRequest) (stepfleet.Claimed, error) {
	return stepfleet.Claimed{}, nil
}
