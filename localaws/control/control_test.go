package control

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is what the endpoint acts on in these tests.
type world struct {
	*Handler
	faults *fault.Set
	clock  *clock.Manual
	resets int
}

func newWorld() *world {
	w := &world{faults: fault.New(1), clock: clock.NewManual(time.Unix(1_000_000, 0))}
	w.faults.UseClock(w.clock)
	op := api.Op(func(context.Context, *struct{}) (*api.Empty, error) { return &api.Empty{}, nil })
	w.Handler = New(Options{
		Faults: w.faults, Clock: w.clock, Reset: func() { w.resets++ }, Logger: slog.New(slog.DiscardHandler),
		Services: map[string]*api.Service{
			"sqs": {Name: "sqs", Target: "AmazonSQS", Ops: map[string]api.Operation{"SendMessage": op, "ReceiveMessage": op}},
			"sts": {Name: "sts", Ops: map[string]api.Operation{"GetCallerIdentity": op}},
		},
	})
	return w
}

func (w *world) do(method, path, body string) *httptest.ResponseRecorder {
	answer := httptest.NewRecorder()
	w.ServeHTTP(answer, httptest.NewRequest(method, "http://localhost"+path, strings.NewReader(body)))
	return answer
}

// compact drops the spaces between the tokens of an answer.
func compact(t *testing.T, answer *httptest.ResponseRecorder) string {
	t.Helper()
	if answer.Body.Len() == 0 {
		return ""
	}
	var v json.RawMessage
	if err := json.Unmarshal(answer.Body.Bytes(), &v); err != nil {
		t.Fatalf("%v in %s", err, answer.Body)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestAnswers(t *testing.T) {
	w := newWorld()
	for _, test := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/_localaws/health", "", 200, `{"status":"running","services":{"sqs":"running","sts":"running"}}`},
		{"GET", "/_localaws/operations", "", 200, `{"services":[{"name":"sqs","target":"AmazonSQS","operations":["ReceiveMessage","SendMessage"]},` +
			`{"name":"sts","target":"","operations":["GetCallerIdentity"]}]}`},
		{"GET", "/_localaws/faults", "", 200, `{"faults":[],"outages":[]}`},
		{
			"POST", "/_localaws/faults", `{"service":"sqs","kind":"fail","times":2,"error":{"type":"QueueDoesNotExist"}}`, 201,
			`{"name":"fault-1","service":"sqs","kind":"fail","error":{"type":"QueueDoesNotExist","status":400},"times":2,"seen":0,"hits":0,"ended":false}`,
		},
		{
			"POST", "/_localaws/faults/slow", `{"kind":"delay","op":"SendMessage","delay_seconds":0.25,"for_seconds":60,"probability":0.5,"seed":7,"skip":1}`, 201,
			`{"name":"slow","op":"SendMessage","kind":"delay","delay_seconds":0.25,"skip":1,"for_seconds":60,"probability":0.5,"seed":7,"seen":0,"hits":0,` +
				`"until":"1970-01-12T13:47:40Z","ended":false}`,
		},
		{"GET", "/_localaws/faults/slow", "", 200, `"name":"slow"`},
		{"DELETE", "/_localaws/faults/slow", "", 204, ""},
		{"GET", "/_localaws/faults/slow", "", 404, `{"error":"there is no fault named slow"`},
		{"DELETE", "/_localaws/faults/slow", "", 404, `"hint"`},
		{
			"POST", "/_localaws/faults/denied", `{"kind":"fail_after","error":{"type":"AccessDeniedException","common":true,"code":"AccessDenied","status":403,"message":"no","query_message":"never"}}`, 201,
			`"error":{"type":"AccessDeniedException","common":true,"code":"AccessDenied","status":403,"message":"no","query_message":"never"}`,
		},
		{"POST", "/_localaws/outages/sqs", "", 200, `{"outages":[{"service":"sqs","refused":0}]}`},
		{
			"POST", "/_localaws/outages/sts/GetCallerIdentity", `{"for_seconds":10,"times":3}`, 200,
			`{"outages":[{"service":"sqs","refused":0},{"service":"sts","op":"GetCallerIdentity","for_seconds":10,"times":3,"refused":0,"until":"1970-01-12T13:46:50Z"}]}`,
		},
		{"GET", "/_localaws/health", "", 200, `{"status":"running","services":{"sqs":"away","sts":"running"}}`},
		{"POST", "/_localaws/outages", `{"times":2}`, 200, `,{"times":2,"refused":0}]}`},
		{"GET", "/_localaws/health", "", 200, `{"status":"running","services":{"sqs":"away","sts":"away"}}`},
		{"DELETE", "/_localaws/outages/sqs", "", 204, ""},
		{"DELETE", "/_localaws/outages/sqs", "", 204, ""},
		{"DELETE", "/_localaws/outages", "", 204, ""},
		{"GET", "/_localaws/outages", "", 200, `{"outages":[]}`},
		{"DELETE", "/_localaws/faults", "", 204, ""},
		{"GET", "/_localaws/faults", "", 200, `{"faults":[],"outages":[]}`},
		{"GET", "/_localaws/clock", "", 200, `{"now":"1970-01-12T13:46:40Z","movable":true}`},
		{"POST", "/_localaws/clock/advance", `{"seconds":300.5}`, 200, `{"now":"1970-01-12T13:51:40.5Z","movable":true}`},
		{"POST", "/_localaws/reset", "", 204, ""},
		{"GET", "/_localaws/", "", 200, `{"services":["sqs","sts"],"paths":[{"path":"/_localaws/","methods":["GET"]`},
		{"GET", "/_localaws", "", 200, `{"services":["sqs","sts"]`},
		{"HEAD", "/_localaws/health", "", 200, `{"status"`},
	} {
		answer := w.do(test.method, test.path, test.body)
		got := compact(t, answer)
		if answer.Code != test.status || !strings.Contains(got, test.want) || (test.want == "") != (got == "") {
			t.Errorf("%s %s %s: %d %s, want %d %s", test.method, test.path, test.body, answer.Code, got, test.status, test.want)
		}
	}
	if w.resets != 1 {
		t.Errorf("reset %d times", w.resets)
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld()
	for _, test := range []struct {
		method, path, body string
		status             int
		error              string
	}{
		{"POST", "/_localaws/faults", `{"kind":"fail","tims":2}`, 400, `there is no field "tims" here`},
		{"POST", "/_localaws/faults", `{"kind":"fail","error":{"tipe":"X"}}`, 400, `there is no field "tipe" here`},
		{"POST", "/_localaws/faults", `{"kind":"fail","times":"2"}`, 400, "the field times can not be a string"},
		{"POST", "/_localaws/faults", `[]`, 400, "the body is a JSON array"},
		{"POST", "/_localaws/faults", `{`, 400, "not valid JSON"},
		{"POST", "/_localaws/faults", `{"kind":"drop"} x`, 400, "not valid JSON"},
		{"POST", "/_localaws/faults", `{"kind":"drop"}{}`, 400, "something behind"},
		{"POST", "/_localaws/faults", "", 400, "no kind of fault is called"},
		{"POST", "/_localaws/faults", `{"kind":"explode"}`, 400, "the kinds are drop, delay,"},
		{"POST", "/_localaws/faults", `{"kind":"delay"}`, 400, "needs a delay"},
		{"POST", "/_localaws/faults", `{"kind":"drop","delay_seconds":1}`, 400, "takes no delay"},
		{"POST", "/_localaws/faults", `{"kind":"drop","delay_seconds":1e300}`, 400, "delay_seconds is 1e+300"},
		{"POST", "/_localaws/faults", `{"kind":"drop","for_seconds":-1}`, 400, "for_seconds is -1"},
		{"POST", "/_localaws/faults", `{"kind":"drop","probability":2}`, 400, "between 0 and 1"},
		{"POST", "/_localaws/faults", `{"kind":"duplicate","service":"sts"}`, 400, "a fault of kind duplicate acts on sqs SendMessage, sqs SendMessageBatch, sqs ReceiveMessage only"},
		{"POST", "/_localaws/faults", `{"kind":"reorder","op":"SendMessage"}`, 400, "a fault of kind reorder without a delay acts on sqs ReceiveMessage only"},
		{"POST", "/_localaws/faults", `{"kind":"fail","error":{"type":"X","status":200}}`, 400, "from 400 to 599"},
		{"POST", "/_localaws/faults", `{"kind":"drop","service":"sqz"}`, 404, `there is no service "sqz"`},
		{"POST", "/_localaws/faults", `{"kind":"drop","service":"sqs","op":"Send"}`, 404, `sqs has no operation "Send"`},
		{"POST", "/_localaws/faults", `{"kind":"drop","op":"Send"}`, 400, "no service has an operation"},
		{"POST", "/_localaws/faults", `{"kind":"drop","name":"a/b"}`, 400, "can not have its name as a path"},
		{"POST", "/_localaws/faults/a", `{"kind":"drop","name":"b"}`, 400, `the path names the fault "a"`},
		{"POST", "/_localaws/faults", strings.Repeat(" ", maxBodyBytes+1), 413, "more than 65536 bytes"},
		{"POST", "/_localaws/outages/nothing", "", 404, "there is no service"},
		{"POST", "/_localaws/outages/sqs/Nothing", "", 404, "sqs has no operation"},
		{"DELETE", "/_localaws/outages/nothing", "", 404, "there is no service"},
		{"POST", "/_localaws/outages", `{"service":"sqs"}`, 400, `there is no field "service"`},
		{"POST", "/_localaws/outages/sqs", `{"times":-1}`, 400, "must not be negative"},
		{"POST", "/_localaws/clock/advance", "", 400, "how far"},
		{"POST", "/_localaws/clock/advance", `{"seconds":-5}`, 400, "seconds is -5"},
		{"POST", "/_localaws/clock/advance", `{"seconds":1e9}`, 400, "seconds is 1e+09"},
		{"POST", "/_localaws/reset", `{"service":"sqs"}`, 400, `there is no field "service"`},
		{"GET", "/_localaws/nothing", "", 404, "there is nothing at /_localaws/nothing"},
	} {
		answer := w.do(test.method, test.path, test.body)
		var got struct{ Error, Hint string }
		if err := json.Unmarshal(answer.Body.Bytes(), &got); err != nil || got.Hint == "" {
			t.Errorf("%s %s: %q has no hint: %v", test.path, test.body, answer.Body, err)
		}
		if answer.Code != test.status || !strings.Contains(got.Error, test.error) {
			t.Errorf("%s %s %.60s: %d %q, want %d %q", test.method, test.path, test.body, answer.Code, got.Error, test.status, test.error)
		}
	}
	if n := len(w.faults.List()) + len(w.faults.Outages()) + w.resets; n != 0 {
		t.Errorf("%d of the refused calls did something", n)
	}
}

func TestWrongMethodsSayWhichAreRight(t *testing.T) {
	w := newWorld()
	for path, allow := range map[string]string{
		"/_localaws/": "GET", "/_localaws/reset": "POST", "/_localaws/faults": "DELETE, GET, POST", "/_localaws/faults/x": "DELETE, GET, POST",
		"/_localaws/outages/sqs": "DELETE, POST", "/_localaws/clock/advance": "POST",
	} {
		answer := w.do(http.MethodPut, path, "")
		if answer.Code != http.StatusMethodNotAllowed || answer.Header().Get("Allow") != allow {
			t.Errorf("PUT %s: %d, Allow %q, want %q", path, answer.Code, answer.Header().Get("Allow"), allow)
		}
	}
}

func TestThereIsALimitOfFaults(t *testing.T) {
	w := newWorld()
	for range maxRules {
		w.faults.Add(fault.Rule{Kind: fault.Drop})
	}
	if answer := w.do("POST", "/_localaws/faults", `{"kind":"drop"}`); answer.Code != http.StatusConflict {
		t.Errorf("%d %s", answer.Code, answer.Body)
	}
}

func TestTheSystemsClockIsNotMoved(t *testing.T) {
	w := newWorld()
	w.o.Clock = clock.System()
	if answer := w.do("POST", "/_localaws/clock/advance", `{"seconds":1}`); answer.Code != http.StatusConflict || !strings.Contains(answer.Body.String(), "MovableClock") {
		t.Errorf("%d %s", answer.Code, answer.Body)
	}
	moved := clock.NewOffset(clock.System())
	w.o.Clock = moved
	if got := compact(t, w.do("POST", "/_localaws/clock/advance", `{"seconds":43200}`)); !strings.Contains(got, `"ahead_seconds":43200`) {
		t.Errorf("%s", got)
	}
}

// FuzzFault feeds nonsense to the decoder: what is taken must be a rule that can act and that is
// given back as it was read.
func FuzzFault(f *testing.F) {
	for _, body := range []string{
		"", "{}", "null", "[]", "{", `{"kind":"drop"}`, `{"kind":"delay","delay_seconds":1.5}`, `{"kind":"fail","error":{"type":"X","status":503,"message":"m","code":"c"}}`,
		`{"kind":"reorder","delay_seconds":1e-9}`, `{"kind":"drop","times":1e99}`, `{"kind":"drop","probability":-0}`, `{"kind":"drop","seed":18446744073709551615}`,
		`{"KIND":"drop"}`, `{"kind":"drop","kind":"fail"}`, `{"kind":"drop","error":null}`, `{"kind":"fail","error":{}}`, `{"kind":"\ud800"}`, "\xff", `{"kind":"drop"}{}`,
		`{"kind":"drop","name":"a/b"}`, `{"kind":"drop","name":"?#%2f"}`, `{"kind":"drop","for_seconds":2678400}`,
	} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		w := newWorld()
		answer := w.do("POST", "/_localaws/faults", body)
		rules := w.faults.List()
		if answer.Code != http.StatusCreated {
			if answer.Code < 400 || answer.Code > 499 || len(rules) != 0 {
				t.Errorf("%q: %d %s, %v", body, answer.Code, answer.Body, rules)
			}
			return
		}
		if len(rules) != 1 || rules[0].Rule.Check() != nil {
			t.Fatalf("%q became %+v", body, rules)
		}
		var given ruleStatus
		if err := json.Unmarshal(answer.Body.Bytes(), &given); err != nil {
			t.Fatal(err)
		}
		again, err := given.rule.fault()
		if err != nil {
			t.Fatalf("%q is given back as %s, which is refused: %v", body, answer.Body, err)
		}
		if again.Kind != rules[0].Rule.Kind || again.Delay != rules[0].Rule.Delay || again.For != rules[0].Rule.For || again.Times != rules[0].Rule.Times {
			t.Errorf("%q became %+v and is given back as %+v", body, rules[0].Rule, again)
		}
	})
}
