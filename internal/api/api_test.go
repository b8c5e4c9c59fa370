package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/api"
	"github.com/stepfleet/stepfleet/internal/dispatch"
	"github.com/stepfleet/stepfleet/internal/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "s3cret"

// bench is the API over HTTP, in front of a running server on ports in memory.
type bench struct {
	t      *testing.T
	url    string
	ledger *memory.Ledger
	down   *atomic.Bool // the ledger is
	client *http.Client
}

func newBench(t *testing.T) *bench {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	ledger, down := memory.NewLedger(), &atomic.Bool{}
	ledger.Fail = func(string) error {
		if down.Load() {
			return fmt.Errorf("%w: connection refused", stepfleet.ErrUnavailable)
		}
		return nil
	}
	web := httptest.NewUnstartedServer(nil)
	url := "http://" + web.Listener.Addr().String()
	server, err := dispatch.New(dispatch.Config{
		Name: "s1", URL: url, Queues: []string{"default"}, Lifetimes: stepfleet.DefaultLifetimes(),
		MaxPayloadBytes: 1000, Logger: log,
	}, ledger, memory.NewBells("default"))
	if err != nil {
		t.Fatal(err)
	}
	web.Config.Handler = api.New(api.Config{Token: token, Logger: log}, server)
	web.Start()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	b := &bench{t: t, url: url, ledger: ledger, down: down, client: web.Client()}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		b.client.CloseIdleConnections()
		web.Close()
	})
	return b
}

// call sends a request with the token and decodes the answer.
func (b *bench) call(method, path, body string, change ...func(*http.Request)) (int, map[string]any) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.url+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	for _, c := range change {
		c(req)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	var answer map[string]any
	if len(raw) > 0 && bytes.HasPrefix(raw, []byte("{")) {
		if err := json.Unmarshal(raw, &answer); err != nil {
			b.t.Fatalf("%s: %v", raw, err)
		}
	}
	return resp.StatusCode, answer
}

func code(answer map[string]any) string {
	e, _ := answer["error"].(map[string]any)
	c, _ := e["code"].(string)
	return c
}

// speak makes the test the run's executor; its epoch is 1.
func (b *bench) speak(run string) {
	b.t.Helper()
	if _, err := b.ledger.TakeEpoch(b.t.Context(), run, stepfleet.Executor{Name: "test"}, ""); err != nil {
		b.t.Fatal(err)
	}
}

// submission is one of the executor with epoch 1.
func submission(run string, steps ...string) string {
	payload := `{"args":1}`
	digest := stepfleet.DigestOf([]byte(payload))
	tasks := []stepfleet.Task{}
	for _, s := range steps {
		key := stepfleet.Key{RunID: run, StepKey: s}
		tasks = append(tasks, stepfleet.Task{
			V: 1, Kind: stepfleet.KindStep, Key: key, Op: s, Job: "job", IdempotencyKey: key.IdempotencyKey(),
			Queue: "default", Payload: digest,
		})
	}
	raw, err := json.Marshal(map[string]any{
		"v": 1, "epoch": 1, "identity": "id", "payloads": map[stepfleet.Digest]string{digest: payload}, "tasks": tasks,
	})
	if err != nil {
		panic(err)
	}
	return string(raw)
}

func (b *bench) runOne(outcome stepfleet.State) stepfleet.TaskID {
	b.t.Helper()
	ctx := b.t.Context()
	s, err := b.ledger.Register(ctx, stepfleet.SessionSpec{Worker: "w", Instance: "i", Slots: map[string]int{"default": 1}})
	if err != nil {
		b.t.Fatal(err)
	}
	c, err := b.ledger.Claim(ctx, stepfleet.ClaimRequest{Session: s.ID, Instance: s.Instance, ID: "c", Queue: "default", Max: 1})
	if err != nil || len(c.Leases) != 1 {
		b.t.Fatal(c, err)
	}
	ref := c.Leases[0].Ref
	if errs, err := b.ledger.Start(ctx, s.ID, []stepfleet.Ref{ref}); err != nil || errs[0] != nil {
		b.t.Fatal(errs, err)
	}
	errs, err := b.ledger.Settle(ctx, s.ID, []stepfleet.Settlement{{Ref: ref, Result: stepfleet.Result{
		V: 1, Success: outcome == stepfleet.StateSucceeded, Outcome: outcome, Outputs: []string{}, Worker: "w",
	}}})
	if err != nil || errs[0] != nil {
		b.t.Fatal(errs, err)
	}
	return ref.TaskID
}

func TestSubmitIsIdempotentAndAnswersEachTask(t *testing.T) {
	b := newBench(t)
	b.speak("r1")
	for i := range 2 {
		status, answer := b.call("POST", "/v1/runs/r1/tasks", submission("r1", "a", "b"))
		if status != http.StatusOK {
			t.Fatalf("%d %v", status, answer)
		}
		receipts := answer["receipts"].([]any)
		for j, step := range []string{"a", "b"} {
			r := receipts[j].(map[string]any)
			if r["step_key"] != step || r["state"] != "queued" || r["known"] != (i == 1) {
				t.Errorf("receipt %v", r)
			}
		}
	}
	_, answer := b.call("GET", "/v1/runs/r1/tasks", "")
	if n := len(answer["tasks"].([]any)); n != 2 {
		t.Errorf("%d tasks", n)
	}
}

func TestRefusals(t *testing.T) {
	b := newBench(t)
	b.speak("r1")
	if status, answer := b.call("POST", "/v1/runs/r1/tasks", submission("r1", "a")); status != 200 {
		t.Fatal(status, answer)
	}
	b.speak("taken")
	b.call("POST", "/v1/runs/taken/epoch", `{"v":1,"executor":"another"}`)
	big := `{"v":1,"identity":"id","payloads":{},"tasks":[],"more":1}`
	other := strings.Replace(submission("r1", "a"), `"identity":"id"`, `"identity":"other"`, 1)
	cases := []struct {
		name, method, path, body string
		status                   int
		code                     string
		change                   func(*http.Request)
	}{
		{name: "no token", method: "GET", path: "/v1/queues", status: 401, code: "unauthorized", change: func(r *http.Request) { r.Header.Del("Authorization") }},
		{name: "wrong token", method: "GET", path: "/v1/queues", status: 401, code: "unauthorized", change: func(r *http.Request) { r.Header.Set("Authorization", "Bearer no") }},
		{name: "foreign host", method: "GET", path: "/livez", status: 421, change: func(r *http.Request) { r.Host = "evil.example" }},
		{name: "cross origin", method: "POST", path: "/v1/runs/r1/close", body: `{"v":1,"reason":"x"}`, status: 403, change: func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }},
		{name: "unknown field", method: "POST", path: "/v1/runs/r1/tasks", body: big, status: 400, code: "task_invalid"},
		{name: "not JSON", method: "POST", path: "/v1/runs/r1/tasks", body: "hello", status: 400, code: "task_invalid"},
		{name: "two values", method: "POST", path: "/v1/runs/r1/close", body: `{"v":1,"reason":"x"}{}`, status: 400, code: "task_invalid"},
		{name: "other version", method: "POST", path: "/v1/runs/r1/close", body: `{"v":2,"reason":"x"}`, status: 400, code: "task_invalid"},
		{name: "superseded", method: "POST", path: "/v1/runs/taken/cancel", body: `{"v":1,"epoch":1,"tasks":null,"reason":"x"}`, status: 409, code: "superseded"},
		{name: "superseded too", method: "POST", path: "/v1/runs/taken/close", body: `{"v":1,"epoch":1,"reason":"x"}`, status: 409, code: "superseded"},
		{name: "stream of nobody", method: "GET", path: "/v1/runs/r1/stream", status: 400, code: "task_invalid"},
		{name: "other stream", method: "GET", path: "/v1/runs/taken/stream?epoch=1", status: 409, code: "superseded"},
		{name: "stream of another ledger's", method: "GET", path: "/v1/runs/r1/stream?epoch=7", status: 404, code: "not_found"},
		{name: "unknown kind", method: "GET", path: "/v1/runs/r1/tasks?kind=runs", status: 400, code: "task_invalid"},
		{name: "one unknown kind", method: "GET", path: "/v1/runs/r1/tasks?kind=step&kind=", status: 400, code: "task_invalid"},
		{name: "unknown filter", method: "GET", path: "/v1/runs/r1/tasks?kinds=run", status: 400, code: "task_invalid"},
		{name: "broken filter", method: "GET", path: "/v1/runs/r1/tasks?kind=%zz", status: 400, code: "task_invalid"},
		{name: "other identity", method: "POST", path: "/v1/runs/r1/tasks", body: other, status: 409, code: "conflict"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			change := c.change
			if change == nil {
				change = func(*http.Request) {}
			}
			status, answer := b.call(c.method, c.path, c.body, change)
			if status != c.status || code(answer) != c.code {
				t.Errorf("%d %v, want %d %s", status, answer, c.status, c.code)
			}
		})
	}
	if _, answer := b.call("GET", "/v1/runs/r1/tasks", ""); len(answer["tasks"].([]any)) != 1 {
		t.Errorf("a refused request has left something: %v", answer)
	}
}

// endless is a body that goes on after a beginning, and counts what was read of it.
type endless struct {
	begin string
	read  int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.begin)
	e.begin = e.begin[n:]
	for i := range p[n:] {
		p[n+i] = 'x'
	}
	e.read += len(p)
	return len(p), nil
}

// The server reads no more of a request than the limit, whatever the client sends.
func TestBodiesAreLimited(t *testing.T) {
	handler, _ := idle(t)
	for _, call := range posts {
		body := &endless{begin: `{"v":1,"reason":"`}
		request := httptest.NewRequest(http.MethodPost, path(call, "r1"), body)
		request.Host = "127.0.0.1"
		request.Header.Set("Authorization", "Bearer "+token)
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		if answer.Code != http.StatusRequestEntityTooLarge || !strings.Contains(answer.Body.String(), "payload_too_big") {
			t.Errorf("%s: %d %s", call, answer.Code, answer.Body)
		}
		if body.read > 65<<20 {
			t.Errorf("%s: the server has read %d bytes", call, body.read)
		}
	}
}

// A browser that was led here is refused by where it comes from, with and without the newer header, and
// on the probes' neighbours too; a caller without a browser is let in.
func TestOrigins(t *testing.T) {
	b := newBench(t)
	for name, c := range map[string]struct {
		header, value string
		status        int
	}{
		"another site":           {"Sec-Fetch-Site", "cross-site", http.StatusForbidden},
		"another host's page":    {"Sec-Fetch-Site", "same-site", http.StatusForbidden},
		"an old browser's":       {"Origin", "http://evil.example", http.StatusForbidden},
		"a page without origin":  {"Origin", "null", http.StatusForbidden},
		"our own page":           {"Sec-Fetch-Site", "same-origin", http.StatusOK},
		"typed into the browser": {"Sec-Fetch-Site", "none", http.StatusOK},
		"no browser":             {"Accept", "*/*", http.StatusOK},
	} {
		status, answer := b.call("POST", "/v1/runs/"+strings.ReplaceAll(name, " ", "-")+"/close", `{"v":1,"reason":"x"}`,
			func(r *http.Request) { r.Header.Set(c.header, c.value) })
		if status != c.status {
			t.Errorf("%s: %d %v, want %d", name, status, answer, c.status)
		}
	}
}

// Every route asks for the token but the probes; the body of a caller without it is not read.
func TestEveryRouteAsksForTheToken(t *testing.T) {
	handler, _ := idle(t)
	targets := map[string]string{"/v1/queues": "GET", "/v1/sessions": "GET", "/v1/runs/r/stream": "GET", "/v1/runs/r/tasks": "GET", "/v1/runs/r/audit": "GET"}
	for _, call := range posts {
		if call != "tasks" {
			targets[path(call, "r")] = "POST"
		}
	}
	for target, method := range targets {
		for _, authorization := range []string{"", "Bearer", "Bearer ", "Bearer " + token + "x", "Basic " + token, "bearer " + token[1:]} {
			body := &endless{}
			request := httptest.NewRequest(method, target, body)
			request.Host = "127.0.0.1"
			request.Header.Set("Authorization", authorization)
			answer := httptest.NewRecorder()
			handler.ServeHTTP(answer, request)
			if answer.Code != http.StatusUnauthorized || body.read > 0 {
				t.Errorf("%s with %q: %d, %d bytes read", target, authorization, answer.Code, body.read)
			}
			if strings.Contains(answer.Body.String(), token) {
				t.Errorf("%s says the token: %s", target, answer.Body)
			}
		}
	}
	for _, probe := range []string{"/livez", "/readyz"} {
		request := httptest.NewRequest("GET", probe, nil)
		request.Host = "127.0.0.1"
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		if answer.Code == http.StatusUnauthorized {
			t.Errorf("%s asks for the token", probe)
		}
	}
}

func TestTasksAreFilteredByKind(t *testing.T) {
	b := newBench(t)
	b.speak("r1")
	if status, answer := b.call("POST", "/v1/runs/r1/tasks", submission("r1", "a", "b")); status != 200 {
		t.Fatal(status, answer)
	}
	for query, want := range map[string]int{"": 2, "?kind=step": 2, "?kind=run": 0, "?kind=run&kind=step": 2} {
		status, answer := b.call("GET", "/v1/runs/r1/tasks"+query, "")
		if tasks, _ := answer["tasks"].([]any); status != 200 || len(tasks) != want {
			t.Errorf("%q: %d %v, want %d tasks", query, status, answer, want)
		}
	}
}

func TestABadTaskIsAnsweredAlone(t *testing.T) {
	b := newBench(t)
	b.speak("r1")
	body := strings.Replace(submission("r1", "a", "b"), `"queue":"default"`, `"queue":"gpu"`, 1)
	_, answer := b.call("POST", "/v1/runs/r1/tasks", body)
	receipts := answer["receipts"].([]any)
	if code(receipts[0].(map[string]any)) != "unknown_queue" || receipts[1].(map[string]any)["state"] != "queued" {
		t.Errorf("%v", receipts)
	}
}

func TestAnUnreachableLedgerIsSaidSo(t *testing.T) {
	b := newBench(t)
	b.speak("r1")
	b.down.Store(true)
	status, answer := b.call("POST", "/v1/runs/r1/tasks", submission("r1", "a"))
	if status != 503 || code(answer) != "unavailable" {
		t.Errorf("%d %v", status, answer)
	}
	status, answer = b.call("GET", "/readyz", "")
	if reasons, _ := answer["reasons"].([]any); status != 503 || len(reasons) != 1 || !strings.Contains(reasons[0].(string), "ledger") {
		t.Errorf("%d %v", status, answer)
	}
	if status, _ := b.call("GET", "/livez", ""); status != 200 {
		t.Errorf("livez %d: it must not depend on the ledger", status)
	}
}

func TestStream(t *testing.T) {
	b := newBench(t)
	b.speak("r1")
	b.call("POST", "/v1/runs/r1/tasks", submission("r1", "a", "b"))
	first := b.runOne(stepfleet.StateSucceeded)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", b.url+"/v1/runs/r1/stream?epoch=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := b.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	rules := loadContract(t)
	next := func() map[string]any {
		t.Helper()
		for lines.Scan() {
			var line map[string]any
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				t.Fatal(err)
			}
			rules.check("StreamLine", line)
			if line["type"] != "ping" {
				return line
			}
		}
		t.Fatal(lines.Err())
		return nil
	}
	if l := next(); l["type"] != "hello" || l["v"] != 1.0 || l["epoch"] != 1.0 {
		t.Errorf("%v", l)
	}
	if l := next(); l["type"] != "task" || l["task_id"] != float64(first) || l["state"] != "succeeded" {
		t.Errorf("%v", l)
	}
	if l := next(); l["type"] != "snapshot_end" {
		t.Errorf("%v", l)
	}
	second := b.runOne(stepfleet.StateFailed)
	notifier := api.Notifier{Token: token, Client: b.client}
	if err := notifier.Notify(ctx, b.url, []stepfleet.Lease{{Ref: stepfleet.Ref{TaskID: second}}}); err != nil {
		t.Fatal(err)
	}
	if l := next(); l["task_id"] != float64(second) || l["state"] != "failed" {
		t.Errorf("%v", l)
	}
	b.call("POST", "/v1/runs/r1/tasks", submission("r1", "c"))
	b.call("POST", "/v1/runs/r1/cancel", `{"v":1,"tasks":null,"reason":"asked"}`)
	if l := next(); l["step_key"] != "c" || l["state"] != "cancelled" || l["reason"] != "asked" {
		t.Errorf("%v", l)
	}
	b.call("POST", "/v1/runs/r1/epoch", `{"v":1,"executor":"another"}`)
	if l := next(); l["type"] != "superseded" {
		t.Errorf("%v", l)
	}
	if lines.Scan() {
		t.Errorf("after the takeover: %s", lines.Text())
	}
}

func TestEpochs(t *testing.T) {
	b := newBench(t)
	epoch := func(body string) any {
		t.Helper()
		status, answer := b.call("POST", "/v1/runs/r1/epoch", body)
		if status != http.StatusOK {
			return code(answer)
		}
		return answer["epoch"]
	}
	for i, c := range []struct {
		body string
		want any
	}{
		{`{"v":1,"executor":"a"}`, 1.0},
		{`{"v":1,"executor":"a"}`, 1.0},
		{`{"v":1,"executor":"a","epoch":1}`, 1.0},
		{`{"v":1,"executor":"b"}`, 2.0},
		{`{"v":1,"executor":"a","epoch":1}`, "superseded"},
		{`{"v":1}`, "task_invalid"},
		{`{"v":1,"executor":"a","resume":1}`, 3.0},
		{`{"v":1,"executor":"b"}`, "superseded"},
		{`{"v":1,"executor":"b","resume":0}`, "superseded"},
		{`{"v":1,"executor":"b","resume":1}`, 4.0},
		{`{"v":1,"executor":"c","resume":-1}`, "task_invalid"},
		{`{"v":1,"executor":"c","resume":2147483648}`, "task_invalid"},
	} {
		if got := epoch(c.body); got != c.want {
			t.Errorf("%d: %v, want %v", i, got, c.want)
		}
	}
	if status, answer := b.call("POST", "/v1/runs/r1/tasks", submission("r1", "a")); status != 409 || code(answer) != "superseded" {
		t.Errorf("%d %v", status, answer)
	}
	b.call("POST", "/v1/runs/r1/close", `{"v":1,"reason":"over"}`)
	if got := epoch(`{"v":1,"executor":"c","resume":1}`); got != "run_closed" {
		t.Errorf("%v", got)
	}
}

func TestAdjudication(t *testing.T) {
	b := newBench(t)
	b.speak("r1")
	b.call("POST", "/v1/runs/r1/tasks", submission("r1", "a", "b"))
	b.runOne(stepfleet.StateLost)
	ask := `{"v":1,"epoch":%d,"tasks":[{"step_key":"a","attempt":0},{"step_key":"b","attempt":0}]}`
	for epoch, earlier := range []float64{0, 1} {
		status, answer := b.call("POST", "/v1/runs/r1/adjudicate", fmt.Sprintf(ask, epoch+1))
		if status != http.StatusOK {
			t.Fatal(status, answer)
		}
		rulings := answer["rulings"].([]any)
		a, open := rulings[0].(map[string]any), rulings[1].(map[string]any)
		if a["granted"] != true || a["earlier_epoch"] != earlier || a["state"] != "lost" || open["granted"] != false {
			t.Errorf("epoch %d: %v", epoch+1, rulings)
		}
		b.call("POST", "/v1/runs/r1/epoch", `{"v":1,"executor":"another"}`)
	}
	if status, answer := b.call("POST", "/v1/runs/r1/adjudicate", fmt.Sprintf(ask, 1)); status != 409 || code(answer) != "superseded" {
		t.Errorf("%d %v", status, answer)
	}
}

func TestKeysThatNoTaskCanHaveAreRefused(t *testing.T) {
	b := newBench(t)
	b.speak("r1")
	for _, key := range []string{
		`{"step_key":"a","attempt":-1}`, `{"step_key":"a","attempt":2147483648}`, `{"step_key":"","attempt":0}`, `{"step_key":"\u0000","attempt":0}`,
	} {
		for _, call := range []string{"adjudicate", "cancel"} {
			body := fmt.Sprintf(`{"v":1,"epoch":1,"tasks":[{"step_key":"a","attempt":0},%s]}`, key)
			if status, answer := b.call("POST", "/v1/runs/r1/"+call, body); status != http.StatusBadRequest || code(answer) != "task_invalid" {
				t.Errorf("%s of %s: %d %v", call, key, status, answer)
			}
		}
	}
}

func TestProofOfDeath(t *testing.T) {
	b := newBench(t)
	if _, err := b.ledger.Register(t.Context(), stepfleet.SessionSpec{Worker: "w", Instance: "i-7", Slots: map[string]int{"default": 1}}); err != nil {
		t.Fatal(err)
	}
	status, answer := b.call("POST", "/v1/instances/i-7/dead", `{"v":1,"reason":"signal: killed"}`)
	sessions, _ := answer["sessions"].([]any)
	if status != 200 || len(sessions) != 1 || sessions[0].(map[string]any)["end_reason"] != "signal: killed" {
		t.Errorf("%d %v", status, answer)
	}
}

func TestMetricsAreForThoseWhoMay(t *testing.T) {
	counted := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("stepfleet_x 1\n")) })
	cfg := api.Config{Token: "secret", Hosts: []string{"worker.internal"}, Metrics: counted, Logger: slog.New(slog.DiscardHandler)}
	for name, h := range map[string]http.Handler{
		"server": api.New(cfg, nil), "worker": api.Probes(cfg, func(context.Context) []string { return nil }),
	} {
		for _, c := range []struct {
			what, host, token string
			status            int
		}{
			{"with the token", "127.0.0.1:1", "secret", 200},
			{"by an allowed name", "worker.internal:1", "secret", 200},
			{"without a token", "127.0.0.1:1", "", 401},
			{"with a wrong token", "127.0.0.1:1", "no", 401},
			{"by a rebound name", "evil.example", "secret", 421},
		} {
			r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
			r.Host = c.host
			if c.token != "" {
				r.Header.Set("Authorization", "Bearer "+c.token)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != c.status || strings.Contains(w.Body.String(), "stepfleet_x") != (c.status == 200) {
				t.Errorf("%s, %s: %d %s, want %d", name, c.what, w.Code, w.Body, c.status)
			}
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/livez", nil)
	r.Host = "10.0.0.7:9000" // as a container's health check asks
	w := httptest.NewRecorder()
	if api.Probes(cfg, nil).ServeHTTP(w, r); w.Code != http.StatusOK {
		t.Errorf("a worker's probe: %d", w.Code)
	}
}
