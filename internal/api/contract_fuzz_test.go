package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/api"
	"github.com/stepfleet/stepfleet/internal/dispatch"
	"github.com/stepfleet/stepfleet/internal/memory"
)

// TestRandomCallsOfTheContract sends what openapi.yaml describes, whole and broken, with the token and
// without, between the acts of a worker. Whatever comes: no panic, no 5xx, answers keep the contract,
// and behind a 4xx nothing has changed.
func TestRandomCallsOfTheContract(t *testing.T) {
	rules := loadContract(t)
	operations := rules.operations()
	if len(operations) < 14 {
		t.Fatalf("%d operations: the contract is read wrongly", len(operations))
	}
	answered := map[string]map[int]int{}
	rapid.Check(t, func(rt *rapid.T) {
		f := newFuzzed(t)
		f.worker(rt)
		if rapid.IntRange(0, 3).Draw(rt, "begun") > 0 {
			f.begin(rt)
		}
		for range rapid.IntRange(10, 60).Draw(rt, "calls") {
			if rapid.IntRange(0, 3).Draw(rt, "act") == 0 {
				f.worker(rt)
				continue
			}
			op := rapid.SampledFrom(operations).Draw(rt, "operation")
			status := f.call(rt, rules, op)
			if answered[op.id] == nil {
				answered[op.id] = map[int]int{}
			}
			answered[op.id][status]++
		}
	})
	for _, op := range operations {
		if got := answered[op.id]; got[http.StatusOK]+got[http.StatusNoContent] == 0 {
			t.Errorf("%s never succeeded, so little was tried: %v", op.id, got)
		}
	}
}

// operation is one call of the contract.
type operation struct {
	id, method, path string
	body             map[string]any // its schema, nil without one
	answer           string         // reference to the schema of a success, empty without one
	open             bool           // asks for no token
}

func (c *contract) operations() []operation {
	var out []operation
	for path, item := range c.document["paths"].(map[string]any) {
		for method, raw := range item.(map[string]any) {
			if method == "parameters" {
				continue
			}
			spec := raw.(map[string]any)
			op := operation{id: spec["operationId"].(string), method: strings.ToUpper(method), path: path}
			if _, own := spec["security"]; own {
				op.open = true
			}
			if body := dig(spec, "requestBody", "content", "application/json", "schema"); body != nil {
				op.body = body
			}
			if ref, ok := dig(spec, "responses", "200", "content", "application/json", "schema")["$ref"].(string); ok {
				op.answer = ref
			}
			out = append(out, op)
		}
	}
	slices.SortFunc(out, func(a, b operation) int { return strings.Compare(a.id, b.id) })
	return out
}

func dig(value map[string]any, path ...string) map[string]any {
	for _, name := range path {
		next, ok := value[name].(map[string]any)
		if !ok {
			return nil
		}
		value = next
	}
	return value
}

// fuzzed is the API without a network: a panic is the test's.
type fuzzed struct {
	handler http.Handler
	ledger  *memory.Ledger
	session stepfleet.SessionID
	leased  []stepfleet.Ref
	running []stepfleet.Ref
}

func newFuzzed(t *testing.T) *fuzzed {
	log := slog.New(slog.DiscardHandler)
	ledger := memory.NewLedger()
	server, err := dispatch.New(dispatch.Config{
		Name: "s1", URL: "http://127.0.0.1", Queues: []string{"default", "runs"}, Lifetimes: stepfleet.DefaultLifetimes(),
		MaxPayloadBytes: 1000, Logger: log,
	}, ledger, memory.NewBells("default", "runs"))
	if err != nil {
		t.Fatal(err)
	}
	return &fuzzed{handler: api.New(api.Config{Token: token, Logger: log}, server), ledger: ledger}
}

// begin gives the first run its executor.
func (f *fuzzed) begin(rt *rapid.T) {
	if _, err := f.ledger.TakeEpoch(context.Background(), runIDs[0], stepfleet.Executor{Name: "x"}, ""); err != nil {
		rt.Fatal(err)
	}
}

// worker takes one step of a worker's, so that calls find tasks in every state.
func (f *fuzzed) worker(rt *rapid.T) {
	ctx := context.Background()
	if f.session == 0 {
		s, err := f.ledger.Register(ctx, stepfleet.SessionSpec{Worker: "w", Instance: "i1", Slots: map[string]int{"default": 9, "runs": 9}})
		if err != nil {
			rt.Fatal(err)
		}
		f.session = s.ID
	}
	switch act := rapid.IntRange(0, 2).Draw(rt, "worker"); {
	case act == 0:
		queue := rapid.SampledFrom([]string{"default", "runs"}).Draw(rt, "queue")
		claimed, err := f.ledger.Claim(ctx, stepfleet.ClaimRequest{Session: f.session, Instance: "i1", ID: "c", Queue: queue, Max: 2})
		if err != nil {
			f.session, f.leased, f.running = 0, nil, nil // it was declared dead
			return
		}
		for _, l := range claimed.Leases {
			f.leased = append(f.leased, l.Ref)
		}
	case act == 1 && len(f.leased) > 0:
		_, _ = f.ledger.Start(ctx, f.session, f.leased) // refusals are part of it
		f.running, f.leased = append(f.running, f.leased...), nil
	case act == 2 && len(f.running) > 0:
		outcome := rapid.SampledFrom([]stepfleet.State{stepfleet.StateSucceeded, stepfleet.StateFailed, stepfleet.StateLost}).Draw(rt, "outcome")
		_, _ = f.ledger.Settle(ctx, f.session, []stepfleet.Settlement{{Ref: f.running[0], Result: stepfleet.Result{
			V: 1, Success: outcome == stepfleet.StateSucceeded, Outcome: outcome, Outputs: []string{}, Worker: "w",
		}}})
		f.running = f.running[1:]
	}
}

// What is drawn where a schema leaves the choice, so that calls meet each other.
var (
	runIDs   = []string{"r1", "r2", "r3"}
	stepKeys = []string{"a", "b", "c[x]", "@run"}
	payloads = []string{`{"args":1}`, `{}`, strings.Repeat("[", 70) + strings.Repeat("]", 70), "no JSON", strings.Repeat("x", 1001)}
	oddities = []any{
		nil, true, -1, 0, 1e300, json.Number("1" + strings.Repeat("0", 400)), json.Number("9223372036854775808"), 0.5, "", "\x00", "\u2028\ufffd", "../../etc",
		strings.Repeat("k", 3000),
		[]any{},
		[]any{nil},
		map[string]any{},
		map[string]any{"v": 1},
	}
)

// call makes one call and judges what comes back. It returns the status.
func (f *fuzzed) call(rt *rapid.T, rules *contract, op operation) int {
	run := rapid.SampledFrom(slices.Concat(runIDs, []string{runIDs[0], runIDs[0]})).Draw(rt, "run")
	target := strings.NewReplacer("{run_id}", run, "{instance}", rapid.SampledFrom([]string{"i1", "i2"}).Draw(rt, "instance")).Replace(op.path)
	switch op.id {
	case "stream":
		target += "?epoch=" + url.QueryEscape(rapid.SampledFrom([]string{"1", "2", "7", "0", "-1", "x", ""}).Draw(rt, "epoch"))
	case "runTasks":
		target += rapid.SampledFrom([]string{"", "?kind=run", "?kind=step&kind=run", "?kind=x", "?sort=1"}).Draw(rt, "query")
	}
	var body string
	if op.body != nil {
		body = f.body(rt, rules, op, run)
	}
	known := rapid.IntRange(0, 9).Draw(rt, "stranger") > 0
	before := f.snapshot(rt)
	answer := f.send(op.method, target, body, known)
	told := fmt.Sprintf("%s %s with token: %t, body %.500s\nanswer %d %.500s", op.method, target, known, body, answer.Code, answer.Body)
	switch {
	case op.id == "stream" && strings.Contains(answer.Body.String(), context.DeadlineExceeded.Error()):
		// This test's own, on a machine that was busy elsewhere.
	case answer.Code >= 500:
		rt.Fatal(told)
	case !known && !op.open && answer.Code != http.StatusUnauthorized:
		rt.Fatalf("served a stranger: %s", told)
	case answer.Code >= 400:
		if err := rules.violation("#/components/schemas/Error", answer.Body.Bytes()); err != nil {
			rt.Fatalf("%v: %s", err, told)
		}
		if diff := cmp.Diff(before, f.snapshot(rt)); diff != "" {
			rt.Fatalf("refused, and changed something: %s\n%s", told, diff)
		}
	case op.answer != "":
		if err := rules.violation(op.answer, answer.Body.Bytes()); err != nil {
			rt.Fatalf("%v: %s", err, told)
		}
	}
	return answer.Code
}

// streamFor is how long a stream is listened to; it does not end by itself.
const streamFor = 2 * time.Millisecond

func (f *fuzzed) send(method, target, body string, known bool) *httptest.ResponseRecorder {
	ctx := context.Background()
	if strings.Contains(target, "/stream") {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, streamFor)
		defer cancel()
	}
	request := httptest.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	request.Host = "localhost"
	if known {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	answer := httptest.NewRecorder()
	f.handler.ServeHTTP(answer, request)
	return answer
}

// snapshot is all that callers can change. Refusals leave an audit row, which is no change.
func (f *fuzzed) snapshot(rt *rapid.T) map[string]any {
	ctx, must := context.Background(), func(err error) {
		if err != nil {
			rt.Fatal(err)
		}
	}
	out := map[string]any{}
	for _, run := range runIDs {
		views, err := f.ledger.RunTasks(ctx, run)
		must(err)
		rows, err := f.ledger.Audit(ctx, run)
		must(err)
		rows = slices.DeleteFunc(rows, func(r stepfleet.AuditRow) bool { return r.Refused != "" })
		out[run], out[run+" audit"] = views, append([]stepfleet.AuditRow{}, rows...)
	}
	epochs, err := f.ledger.Epochs(ctx, runIDs)
	must(err)
	sessions, err := f.ledger.Sessions(ctx, time.Hour)
	must(err)
	open, err := f.ledger.OpenRuns(ctx, "", 100)
	must(err)
	out["epochs"], out["sessions"], out["open"] = epochs, sessions, append([]stepfleet.OpenRun{}, open...)
	return out
}

// body draws a body by the operation's schema and, in every third call, breaks it somewhere.
func (f *fuzzed) body(rt *rapid.T, rules *contract, op operation, run string) string {
	value := rules.draw(rt, op.body, "body")
	if op.id == "submit" {
		value = coherent(rt, value.(map[string]any), run)
	}
	if rapid.IntRange(0, 2).Draw(rt, "broken") == 0 {
		value = spoil(rt, value)
	}
	raw, err := json.Marshal(value)
	if err != nil {
		rt.Fatal(err)
	}
	if rapid.IntRange(0, 19).Draw(rt, "torn") == 0 {
		return string(raw[:rapid.IntRange(0, len(raw)).Draw(rt, "length")])
	}
	return string(raw)
}

// coherent makes what a schema cannot say true of most submissions: they are of their run, and their
// payloads are what their digests say.
func coherent(rt *rapid.T, body map[string]any, run string) map[string]any {
	payload := rapid.SampledFrom(payloads).Draw(rt, "payload")
	if rapid.Bool().Draw(rt, "plain") {
		payload = payloads[0]
	}
	digest := string(stepfleet.DigestOf([]byte(payload)))
	body["payloads"], body["identity"] = map[string]any{digest: payload}, "id"
	tasks, _ := body["tasks"].([]any)
	for _, raw := range tasks {
		task := raw.(map[string]any)
		key := stepfleet.Key{RunID: run, StepKey: task["step_key"].(string)}
		task["run_id"], task["payload"], task["idempotency_key"] = run, digest, key.IdempotencyKey()
	}
	return body
}

// spoil puts an oddity somewhere into the value, or takes or adds a property.
func spoil(rt *rapid.T, value any) any {
	switch v := value.(type) {
	case map[string]any:
		names := slices.Sorted(maps.Keys(v))
		switch act := rapid.IntRange(0, 3).Draw(rt, "spoil"); {
		case act == 0 || len(names) == 0:
			v[rapid.SampledFrom([]string{"more", "V", "", "__proto__"}).Draw(rt, "name")] = 1
		case act == 1:
			delete(v, rapid.SampledFrom(names).Draw(rt, "dropped"))
		default:
			name := rapid.SampledFrom(names).Draw(rt, "inside")
			v[name] = spoil(rt, v[name])
		}
		return v
	case []any:
		if len(v) > 0 && rapid.Bool().Draw(rt, "deeper") {
			i := rapid.IntRange(0, len(v)-1).Draw(rt, "item")
			v[i] = spoil(rt, v[i])
			return v
		}
	}
	return rapid.SampledFrom(oddities).Draw(rt, "oddity")
}

// draw makes a value of a schema. Names say what to draw where the schema leaves it open.
func (c *contract) draw(rt *rapid.T, schema map[string]any, name string) any {
	if ref, ok := schema["$ref"].(string); ok {
		return c.draw(rt, c.resolve(rt, ref), name)
	}
	if value, ok := schema["const"]; ok {
		return value
	}
	if values, ok := schema["enum"].([]any); ok {
		return rapid.SampledFrom(values).Draw(rt, name)
	}
	if options, ok := schema["anyOf"].([]any); ok {
		return c.draw(rt, rapid.SampledFrom(options).Draw(rt, name+" is").(map[string]any), name)
	}
	switch kind := schema["type"]; kind {
	case "object":
		return c.drawObject(rt, schema)
	case "array":
		items := make([]any, rapid.IntRange(0, 3).Draw(rt, name+" length"))
		for i := range items {
			items[i] = c.draw(rt, schema["items"].(map[string]any), name)
		}
		return items
	case "string":
		return drawString(rt, name)
	case "integer":
		return rapid.IntRange(0, 2).Draw(rt, name)
	case "null":
		return nil
	default:
		rt.Fatalf("%s has the type %v, which this test cannot draw: teach it", name, kind)
		return nil
	}
}

func (c *contract) drawObject(rt *rapid.T, schema map[string]any) map[string]any {
	out := map[string]any{}
	required, _ := schema["required"].([]any)
	properties, _ := schema["properties"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		if slices.Contains(required, any(name)) || rapid.IntRange(0, 3).Draw(rt, "with "+name) > 0 {
			out[name] = c.draw(rt, properties[name].(map[string]any), name)
		}
	}
	return out
}

func drawString(rt *rapid.T, name string) string {
	pools := map[string][]string{
		"run_id": runIDs, "step_key": stepKeys, "queue": {"default", "default", "runs", "gpu"}, "executor": {"x", "y"},
		"identity": {"id", "id", "other"}, "payload": {string(stepfleet.DigestOf([]byte(payloads[0])))},
	}
	if pool, ok := pools[name]; ok {
		return rapid.SampledFrom(pool).Draw(rt, name)
	}
	return rapid.StringN(0, 12, 40).Draw(rt, name)
}

func (c *contract) resolve(rt *rapid.T, ref string) map[string]any {
	if ref == "urn:stepfleet:task:1" {
		raw, err := os.ReadFile("../../docs/schema/task.schema.json")
		if err != nil {
			rt.Fatal(err)
		}
		var schema map[string]any
		if err := json.Unmarshal(raw, &schema); err != nil {
			rt.Fatal(err)
		}
		return schema
	}
	schema := dig(c.document, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
	if schema == nil {
		rt.Fatalf("the contract has no %s", ref)
	}
	return schema
}

func TestADeepBodyIsRefused(t *testing.T) {
	f := newFuzzed(t)
	for _, depth := range []int{100, 20_000, 5_000_000} {
		for _, body := range []string{
			`{"v":1,"reason":` + strings.Repeat("[", depth) + strings.Repeat("]", depth) + `}`,
			strings.Repeat(`{"v":`, depth) + "1" + strings.Repeat("}", depth),
		} {
			answer := f.send(http.MethodPost, "/v1/runs/r1/close", body, true)
			if answer.Code != http.StatusBadRequest {
				t.Errorf("depth %d: %d %.200s", depth, answer.Code, answer.Body)
			}
		}
	}
}
