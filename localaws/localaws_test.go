package localaws_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/smithy-go"
	"go.uber.org/goleak"

	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestImports keeps the tree usable alone: it may import itself, and nothing of the product.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./...").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	const product = "github.com/stepfleet/stepfleet"
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		if strings.HasPrefix(dep, product) && dep != product+"/localaws" && !strings.HasPrefix(dep, product+"/localaws/") {
			t.Errorf("localaws depends on %s: it must stay usable without the product", dep)
		}
		if strings.HasPrefix(dep, "github.com/aws/") {
			t.Errorf("localaws depends on %s: a client's own bugs must not hide in the server", dep)
		}
	}
}

// post sends one raw JSON call.
func post(local http.Handler, target, body string, change func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-amz-json-1.0")
	r.Header.Set("X-Amz-Target", target)
	r.Header.Set("X-Amzn-Query-Mode", "true")
	return answer(local, r, change)
}

// answer has the request answered, after a change if there is one.
func answer(local http.Handler, r *http.Request, change func(*http.Request)) *httptest.ResponseRecorder {
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	local.ServeHTTP(w, r)
	return w
}

func TestErrorsOnTheWire(t *testing.T) {
	local := localaws.New(localaws.Options{})
	w := post(local, "AmazonSQS.GetQueueUrl", `{"QueueName":"none"}`, nil)
	if w.Code != http.StatusBadRequest || w.Body.String() != `{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"The specified queue does not exist."}` {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for name, want := range map[string]string{
		"X-Amzn-Query-Error": "AWS.SimpleQueueService.NonExistentQueue;Sender", "Content-Type": "application/x-amz-json-1.0",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if len(w.Header().Get("X-Amzn-Requestid")) != 36 {
		t.Errorf("request id %q", w.Header().Get("X-Amzn-Requestid"))
	}
	w = post(local, "AmazonSQS.GetQueueUrl", `{}`, func(r *http.Request) { r.Header.Del("X-Amzn-Query-Mode") })
	if w.Body.String() != `{"__type":"com.amazon.coral.service#MissingRequiredParameterException","message":"The request must contain the parameter QueueName."}` ||
		w.Header().Get("X-Amzn-Query-Error") != "" {
		t.Errorf("%s %v", w.Body, w.Header())
	}
}

func TestWhatIsNotEmulatedSaysSo(t *testing.T) {
	var log bytes.Buffer
	local := localaws.New(localaws.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	for _, test := range []struct {
		target, contentType string
		status              int
		body                string
	}{
		{"AmazonSQS.StartEverything", "application/x-amz-json-1.0", 400, "com.amazon.coral.service#UnknownOperationException"},
		{"DynamoDB_20120810.ListTables", "application/x-amz-json-1.0", 400, "com.amazon.coral.service#UnknownOperationException"},
		{"", "application/x-www-form-urlencoded", 400, "<Code>MissingAction</Code>"},
		{"", "text/plain", 404, "<UnknownOperationException/>"},
	} {
		log.Reset()
		w := post(local, test.target, "{}", func(r *http.Request) { r.Header.Set("Content-Type", test.contentType) })
		if w.Code != test.status || !strings.Contains(w.Body.String(), test.body) {
			t.Errorf("%s: %d %s", test.target, w.Code, w.Body)
		}
		if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "not emulated") {
			t.Errorf("%s: log %q", test.target, log.String())
		}
	}
}

func TestOnlyLoopbackNamesAndNoBrowsers(t *testing.T) {
	local := localaws.New(localaws.Options{Hosts: []string{"aws.test"}})
	for host, want := range map[string]int{
		"127.0.0.1:9324": 200, "localhost": 200, "[::1]:80": 200, "sqs.eu-west-1.localhost:1": 200, "aws.test:80": 200,
		"evil.example": 403, "169.254.169.254": 403, "localhost.evil.example": 403, "": 403,
	} {
		w := post(local, "AmazonSQS.ListQueues", "{}", func(r *http.Request) { r.Host = host })
		if w.Code != want {
			t.Errorf("Host %q: %d, want %d", host, w.Code, want)
		}
	}
	w := post(local, "AmazonSQS.ListQueues", "{}", func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") })
	if w.Code != http.StatusForbidden {
		t.Errorf("a call from another page: %d, want 403", w.Code)
	}
}

func TestHealth(t *testing.T) {
	for _, path := range []string{"/livez", "/readyz"} {
		w := httptest.NewRecorder()
		localaws.New(localaws.Options{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil))
		if w.Code != http.StatusOK {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

// FuzzBody feeds nonsense to every operation that has a JSON protocol: each answer is 2xx or 4xx,
// none is a panic.
func FuzzBody(f *testing.F) {
	targets := []string{"AmazonSQS.", "AmazonSQS.."}
	prefixes := map[string]string{"sqs": "AmazonSQS.", "monitoring": "GraniteServiceVersion20100801."}
	for _, s := range localaws.New(localaws.Options{}).Operations() {
		if !slices.ContainsFunc(s.Protocols, func(p string) bool { return strings.HasPrefix(p, "awsJson") }) {
			continue
		}
		if prefixes[s.Service] == "" {
			f.Fatalf("add the target of %s", s.Service)
		}
		for _, op := range s.Operations {
			targets = append(targets, prefixes[s.Service]+op)
		}
	}
	for _, body := range []string{
		"", "null", "[]", "{", `"x"`, "{}", `{"QueueUrl":1}`, `{"QueueUrl":"/000000000000/q"}`, `{"QueueUrl":"/a/b/c"}`, `{"QueueUrl":null}`,
		`{"QueueUrl":"/000000000000/q","Entries":null}`, `{"QueueUrl":"/000000000000/q","Entries":[null]}`,
		`{"QueueUrl":"/000000000000/q","Entries":[{"Id":"a","MessageBody":"x","MessageAttributes":{"a":{"DataType":"String","BinaryValue":"eA=="}}}]}`,
		`{"QueueUrl":"/000000000000/q","MessageBody":"x","MessageAttributes":{"a":null}}`,
		`{"QueueUrl":"/000000000000/q","MessageBody":"x","MessageSystemAttributes":{"AWSTraceHeader":{"DataType":"String"}}}`,
		`{"QueueUrl":"/000000000000/q","ReceiptHandle":"AAAA","VisibilityTimeout":1e99}`, `{"QueueUrl":"/000000000000/q","Attributes":{"VisibilityTimeout":""}}`,
		`{"QueueUrl":"/000000000000/q","Attributes":{"":"x"}}`, `{"NextToken":"%%%"}`, `{"MaxResults":-1}`, `{"QueueName":"\ud800"}`,
		strings.Repeat(`{"a":`, 20000), "\xff\xfe", `{"QueueUrl":"/000000000000/q","MaxNumberOfMessages":9999999999}`,
	} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for _, target := range targets {
			local := localaws.New(localaws.Options{Seed: 1, Clock: clock.NewManual(time.Unix(1_800_000_000, 0))})
			post(local, "AmazonSQS.CreateQueue", `{"QueueName":"q"}`, nil)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			w := post(local, target, body, func(r *http.Request) { *r = *r.WithContext(ctx) })
			cancel()
			if w.Code >= 500 && w.Code != http.StatusServiceUnavailable {
				t.Errorf("%s %q: %d %s", target, body, w.Code, w.Body)
			}
		}
	})
}

// FuzzWebIdentity feeds the claims of tokens, which STS reads: it takes them or refuses them, in XML.
func FuzzWebIdentity(f *testing.F) {
	for _, claims := range []string{
		"", "{}", "null", `{"iss":"https://i","sub":"s"}`, `{"iss":"https://i","sub":"s","aud":["a","b"],"exp":1800000600}`,
		`{"iss":"i","sub":"s","aud":{"a":1},"exp":1e308}`, `{"iss":1}`, `{"iss":"<&>","sub":"\u0000"}`,
	} {
		f.Add(claims)
	}
	local := localaws.New(localaws.Options{Seed: 1, Clock: clock.NewManual(time.Unix(1_800_000_000, 0))})
	f.Fuzz(func(t *testing.T, claims string) {
		form := url.Values{
			"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {"arn:aws:iam::111122223333:role/r"}, "RoleSessionName": {"ss"},
			"WebIdentityToken": {"e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"},
		}
		r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/", strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		local.ServeHTTP(w, r)
		if w.Code != http.StatusOK && (w.Code < 400 || w.Code > 499) {
			t.Errorf("%q: %d %s", claims, w.Code, w.Body)
		}
		var any struct{}
		if err := xml.Unmarshal(w.Body.Bytes(), &any); err != nil {
			t.Errorf("%q: %v in %s", claims, err, w.Body)
		}
	})
}

// A call of some ten kilobytes, compressed, must not take gigabytes.
func TestWhatGrowsInMemoryIsRefused(t *testing.T) {
	local := localaws.New(localaws.Options{})
	entries := `{"QueueUrl":"q","Entries":[` + strings.Repeat("{},", 300_000) + `{}]}`
	if w := post(local, "AmazonSQS.SendMessageBatch", entries, nil); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "more than 500000 values") {
		t.Errorf("%d %.200s", w.Code, w.Body)
	}
	data := "\xa1jMetricData\x9f" + strings.Repeat("\xa0", 1000) + "\xff"
	nested := "\xa2iNamespaceaN\x70EntityMetricData\x9f" + strings.Repeat(data, 400) + "\xff"
	w := post(local, "", nested, func(r *http.Request) {
		r.URL.Path = "/service/GraniteServiceVersion20100801/operation/PutMetricData"
		r.Header.Set("Smithy-Protocol", "rpc-v2-cbor")
	})
	if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "too many elements") {
		t.Errorf("%d %.200s", w.Code, w.Body)
	}
}

// AWS's largest call is no such call.
func TestTheLargestPutMetricDataIsTaken(t *testing.T) {
	list := func(text string, n int) string { return "[" + strings.Repeat(text+",", n-1) + text + "]" }
	names := make([]string, 30)
	for i := range names {
		names[i] = fmt.Sprintf(`{"Name":"d%d","Value":"v"}`, i)
	}
	datum := `{"MetricName":"m","Unit":"Count","StorageResolution":60,"Values":` + list("1", 150) + `,"Counts":` + list("1", 150) + `,"Dimensions":[` + strings.Join(names, ",") + `]}`
	w := post(localaws.New(localaws.Options{}), "GraniteServiceVersion20100801.PutMetricData", `{"Namespace":"N","MetricData":`+list(datum, 1000)+"}", nil)
	if w.Code != http.StatusOK {
		t.Errorf("%d %.200s", w.Code, w.Body)
	}
}

func TestTooLargeABody(t *testing.T) {
	w := post(localaws.New(localaws.Options{}), "AmazonSQS.SendMessage", strings.Repeat(" ", 9<<20), nil)
	if w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// outcome returns an error's code; "none" for a call without an answer, "" for success.
func outcome(err error) string {
	var e smithy.APIError
	switch {
	case errors.As(err, &e):
		return e.ErrorCode()
	case err != nil:
		return "none"
	}
	return ""
}

func TestFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		local := localaws.New(localaws.Options{Seed: 7})
		c := inProcess(local)
		url := create(t, c, "q", nil)
		attempt := func(kind fault.Kind) error {
			rule := local.Faults.Add(fault.Rule{Service: "sqs", Op: "SendMessage", Kind: kind, Delay: 3 * time.Second, Times: 1})
			_, err := c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String(kind.String())})
			if rule.Hits() != 1 {
				t.Errorf("%v hit %d times", kind, rule.Hits())
			}
			return err
		}
		for _, test := range []struct {
			kind      fault.Kind
			code      string // of the answer; "none" for no answer, "" for success
			delivered int
		}{
			{fault.Drop, "none", 0},
			{fault.Delay, "", 1},
			{fault.Duplicate, "", 2},
			{fault.Throttle, "RequestThrottled", 0},
			{fault.Fail, "InternalFailure", 0},
			{fault.FailAfter, "InternalFailure", 1},
			{fault.LoseAnswer, "none", 1},
		} {
			started := time.Now()
			err := attempt(test.kind)
			code := outcome(err)
			got := receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: 10})
			if code != test.code || len(got) != test.delivered {
				t.Errorf("%v: %v, delivered %d, want %q and %d", test.kind, err, len(got), test.code, test.delivered)
			}
			if took := time.Since(started); (took == 3*time.Second) != (test.kind == fault.Delay) {
				t.Errorf("%v took %v", test.kind, took)
			}
		}
		local.Faults.Add(fault.Rule{Op: "ReceiveMessage", Kind: fault.Duplicate, Times: 1})
		send(t, c, url, "twice")
		for range 2 {
			if n := len(receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: url})); n != 1 {
				t.Errorf("a duplicated receive left %d messages for the next", n)
			}
		}
	})
}

func TestFaultRulesSkipEndAndRepeat(t *testing.T) {
	count := func(r fault.Rule) string {
		s := fault.New(3)
		s.Add(r)
		var hits strings.Builder
		for range 8 {
			c := s.Begin(t.Context(), "sqs", "Op")
			c.End()
			if c.Rule().Kind == 0 {
				hits.WriteByte('.')
			} else {
				hits.WriteByte('x')
			}
		}
		return hits.String()
	}
	if got := count(fault.Rule{Kind: fault.Drop, Skip: 2, Times: 3}); got != "..xxx..." {
		t.Errorf("skip 2, times 3: %s", got)
	}
	if got := count(fault.Rule{Kind: fault.Drop, Service: "ecs"}); got != "........" {
		t.Errorf("another service: %s", got)
	}
	half := fault.Rule{Kind: fault.Drop, Probability: 0.5}
	if a, b := count(half), count(half); a != b || !strings.Contains(a, "x") || !strings.Contains(a, ".") {
		t.Errorf("half of the calls: %s, then %s with the same seed", a, b)
	}
}

func TestOutageEndsLongPollsAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		local := localaws.New(localaws.Options{})
		c := inProcess(local)
		url := create(t, c, "q", nil)
		failed := make(chan error)
		go func() {
			_, err := c.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: url, WaitTimeSeconds: 20})
			failed <- err
		}()
		synctest.Wait()
		local.Faults.Outage("sqs", true)
		if err := <-failed; err == nil {
			t.Error("the long poll survived the outage")
		}
		if _, err := c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String("x")}); err == nil {
			t.Error("a send during the outage succeeded")
		}
		local.Faults.Outage("sqs", false)
		send(t, c, url, "y")
		if got := receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: 10}); len(got) != 1 || *got[0].Body != "y" {
			t.Errorf("after the outage: %v", got)
		}
	})
}

// start runs the server on a free port and returns its URL and how to stop it.
func start(t *testing.T, c localaws.Config) (url string, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan net.Addr, 1), make(chan error, 1)
	c.Addr, c.Ready = "127.0.0.1:0", func(a net.Addr) { ready <- a }
	go func() { done <- localaws.Run(ctx, c) }()
	select {
	case addr := <-ready:
		return "http://" + addr.String(), func() error { cancel(); return <-done }
	case err := <-done:
		t.Fatal(err)
	}
	return "", nil
}

// playPython runs a script of testdata on a server, where boto3 is; it is a second client that
// shares no code with the first.
func playPython(t *testing.T, script string, c localaws.Config) {
	t.Helper()
	python := cmp.Or(os.Getenv("STEPFLEET_PYTHON"), "python3")
	if exec.Command(python, "-c", "import boto3").Run() != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("boto3 is missing, and this is CI")
		}
		t.Skip("no boto3 here")
	}
	url, stop := start(t, c)
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	out, err := exec.Command(python, "testdata/"+script, url).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "ok" {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestRunServesAndStopsInTheMiddleOfALongPoll(t *testing.T) {
	url, stop := start(t, localaws.Config{})
	c := newClient("eu-west-1", "key", func(o *sqs.Options) { o.BaseEndpoint = &url })
	queue := create(t, c, "q", nil)
	if !strings.HasPrefix(*queue, url+"/") {
		t.Errorf("queue URL %s is not below %s", *queue, url)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := c.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: queue, WaitTimeSeconds: 20})
		failed <- err
	}()
	time.Sleep(20 * time.Millisecond) // the poll is probably under way; if not, it fails to connect
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := <-failed; err == nil {
		t.Error("the long poll ended without an error")
	}
}

func TestListenRefusals(t *testing.T) {
	taken, err := localaws.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for addr, want := range map[string]string{
		taken.Addr().String(): "port " + taken.Addr().String() + " is taken: ",
		"0.0.0.0:0":           "not a loopback address",
		":0":                  "reachable from outside",
		"192.0.2.1:0":         "not a loopback address",
		"nonsense":            "want host:port",
	} {
		if err := localaws.Run(t.Context(), localaws.Config{Addr: addr}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", addr, err, want)
		}
	}
}

func TestPythonSDK(t *testing.T) { playPython(t, "sqs.py", localaws.Config{}) }

func TestServeRefusesAListenerThatIsNotLoopback(t *testing.T) {
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := localaws.New(localaws.Options{}).Serve(t.Context(), ln); err == nil {
		t.Error("served a listener that is reachable from outside")
	}
	if _, err := ln.Accept(); err == nil {
		t.Error("the listener was left open")
	}
}

func TestCallsAreToldAndScraped(t *testing.T) {
	told := map[string]int{}
	a := localaws.New(localaws.Options{
		Seed: 1, OnCall: func(service, op, code string) { told[service+"/"+op+" "+code]++ },
		Scrape: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("counted")) }),
	})
	call := func(method, host, path, target string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, "http://"+host+path, strings.NewReader(`{"QueueName":"q"}`))
		if target != "" {
			r.Header.Set("X-Amz-Target", target)
			r.Header.Set("Content-Type", "application/x-amz-json-1.0")
		}
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		return w
	}
	call("POST", "127.0.0.1", "/", "AmazonSQS.CreateQueue")
	call("POST", "127.0.0.1", "/", "AmazonSQS.GetQueueUrl")
	call("POST", "127.0.0.1", "/", "AmazonSQS.Invented")
	if told["sqs/CreateQueue ok"] != 1 || told["sqs/GetQueueUrl ok"] != 1 || len(told) != 3 {
		t.Errorf("told of %v", told)
	}
	for what := range told {
		if strings.Contains(what, "Invented") {
			t.Errorf("a name that a client made up is told: %s", what)
		}
	}
	if w := call("GET", "127.0.0.1", "/metrics", ""); w.Body.String() != "counted" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := call("GET", "evil.example", "/metrics", ""); w.Code != http.StatusForbidden {
		t.Errorf("a rebound name is answered: %d", w.Code)
	}
}
