package localaws_test

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/fault"
)

// control calls the control endpoint.
func control(local http.Handler, method, path, body string, change func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://127.0.0.1/_localaws/"+path, strings.NewReader(body))
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	local.ServeHTTP(w, r)
	return w
}

func TestControlIsProtectedAsTheRest(t *testing.T) {
	local := localaws.New(localaws.Options{Hosts: []string{"aws.test"}})
	for host, want := range map[string]int{"127.0.0.1:9324": 204, "aws.test": 204, "evil.example": 403} {
		if w := control(local, "POST", "reset", "", func(r *http.Request) { r.Host = host }); w.Code != want {
			t.Errorf("Host %s: %d, want %d", host, w.Code, want)
		}
	}
	w := control(local, "POST", "reset", "", func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") })
	if w.Code != http.StatusForbidden {
		t.Errorf("a call from another page: %d", w.Code)
	}
}

func TestFaultsOverHTTP(t *testing.T) {
	local := localaws.New(localaws.Options{})
	for _, test := range []struct{ rule, target, want string }{
		{`{"kind":"throttle","times":1,"service":"sqs"}`, "AmazonSQS.ListQueues", `{"__type":"com.amazonaws.sqs#RequestThrottled"`},
		{`{"kind":"throttle","times":1}`, "GraniteServiceVersion20100801.ListMetrics", `{"__type":"com.amazon.coral.service#ThrottlingException","message":"Rate exceeded"}`},
		{`{"kind":"fail","times":1}`, "AmazonSQS.ListQueues", `{"__type":"com.amazon.coral.service#InternalFailure"`},
		{
			`{"kind":"fail","times":1,"op":"ListQueues","error":{"type":"OverLimit","status":403,"message":"no"}}`, "AmazonSQS.ListQueues",
			`{"__type":"com.amazonaws.sqs#OverLimit","message":"no"}`,
		},
		{`{"kind":"fail_after","times":1,"error":{"type":"Odd"}}`, "AmazonSQS.ListQueues", `{"__type":"com.amazonaws.sqs#Odd"}`},
	} {
		if w := control(local, "POST", "faults/f", test.rule, nil); w.Code != http.StatusCreated {
			t.Fatalf("%s: %d %s", test.rule, w.Code, w.Body)
		}
		if w := post(local, test.target, "{}", nil); !strings.HasPrefix(w.Body.String(), test.want) {
			t.Errorf("%s: %d %s", test.rule, w.Code, w.Body)
		}
		if w := post(local, test.target, "{}", nil); w.Code != http.StatusOK {
			t.Errorf("%s acts twice: %s", test.rule, w.Body)
		}
		if w := control(local, "GET", "faults/f", "", nil); !strings.Contains(w.Body.String(), `"hits": 1`) || !strings.Contains(w.Body.String(), `"ended": true`) {
			t.Errorf("%s: %s", test.rule, w.Body)
		}
	}
}

func TestOutagesOverHTTP(t *testing.T) {
	local := localaws.New(localaws.Options{})
	c := inProcess(local)
	url := create(t, c, "q", nil)
	if w := control(local, "POST", "outages/sqs/SendMessage", `{"times":1}`, nil); w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	attempt := func() error {
		_, err := c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String("x")})
		return err
	}
	if _, err := c.ListQueues(t.Context(), nil); err != nil {
		t.Errorf("another operation: %v", err)
	}
	if err := attempt(); err == nil || !strings.Contains(err.Error(), "without an answer") {
		t.Errorf("%v", err)
	}
	if err := attempt(); err != nil {
		t.Errorf("after the outage: %v", err)
	}
}

func TestResetEmptiesAllAndEndsFaults(t *testing.T) {
	const list, put = "GraniteServiceVersion20100801.ListMetrics", "GraniteServiceVersion20100801.PutMetricData"
	local := localaws.New(localaws.Options{})
	if w := post(local, put, `{"Namespace":"N","MetricData":[{"MetricName":"m","Value":1}]}`, nil); w.Code != http.StatusOK {
		t.Fatalf("%s", w.Body)
	}
	local.Faults.Add(fault.Rule{Kind: fault.Drop})
	local.Faults.Outage("sqs", true)
	if w := control(local, "POST", "reset", "", nil); w.Code != http.StatusNoContent {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w := post(local, list, "{}", nil); w.Body.String() != `{"Metrics":[]}` {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := post(local, "AmazonSQS.ListQueues", "{}", nil); w.Code != http.StatusOK {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestDelaysAreOnTheClockOfTheServices(t *testing.T) {
	c := clock.NewManual(time.Unix(1_800_000_000, 0))
	local := localaws.New(localaws.Options{Clock: c})
	local.Faults.Add(fault.Rule{Kind: fault.Delay, Delay: time.Hour, Op: "ListQueues", For: 2 * time.Hour})
	synctest.Test(t, func(t *testing.T) {
		done := make(chan int)
		go func() { done <- post(local, "AmazonSQS.ListQueues", "{}", nil).Code }()
		synctest.Wait()
		if w := control(local, "POST", "clock/advance", `{"seconds":3600}`, nil); w.Code != http.StatusOK {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if code := <-done; code != http.StatusOK {
			t.Errorf("%d", code)
		}
	})
	control(local, "POST", "clock/advance", `{"seconds":3600}`, nil)
	if w := post(local, "AmazonSQS.ListQueues", "{}", nil); w.Code != http.StatusOK {
		t.Errorf("%d", w.Code)
	}
}

func TestReorderedSendsArriveInTheOtherOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		local := localaws.New(localaws.Options{})
		c := inProcess(local)
		url := create(t, c, "q", nil)
		rule := local.Faults.Add(fault.Rule{Service: "sqs", Op: "SendMessage", Kind: fault.Reorder, Delay: time.Minute})
		first := make(chan struct{})
		go func() {
			defer close(first)
			send(t, c, url, "first")
		}()
		synctest.Wait()
		send(t, c, url, "second")
		<-first
		var got []string
		for _, m := range receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: 10}) {
			got = append(got, *m.Body)
		}
		if !slices.Equal(got, []string{"second", "first"}) || rule.Hits() != 1 {
			t.Errorf("%v after %d hits", got, rule.Hits())
		}
	})
}

func TestFaultErrorsMayBeCommon(t *testing.T) {
	local := localaws.New(localaws.Options{})
	local.Faults.Add(fault.Rule{Kind: fault.Fail, Error: &api.Error{Type: "AccessDeniedException", Common: true, Code: "AccessDenied", Status: 403}})
	w := post(local, "AmazonSQS.ListQueues", "{}", nil)
	if w.Code != 403 || w.Header().Get("X-Amzn-Query-Error") != "AccessDenied;Sender" || !strings.Contains(w.Body.String(), "coral.service#AccessDeniedException") {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
}

func TestCompressedBodies(t *testing.T) {
	squeeze := func(body string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write([]byte(body))
		_ = z.Close()
		return b.String()
	}
	compressed := func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") }
	local := localaws.New(localaws.Options{})
	for _, test := range []struct {
		body string
		want int
	}{
		{squeeze(`{"QueueName":"q"}`), 200},
		{`{"QueueName":"q"}`, 400},
		{squeeze(`{"QueueName":"q"}`)[:20], 400},
		{squeeze(strings.Repeat(" ", 9<<20)), 413},
	} {
		if w := post(local, "AmazonSQS.CreateQueue", test.body, compressed); w.Code != test.want {
			t.Errorf("%.40q: %d %s, want %d", test.body, w.Code, w.Body, test.want)
		}
	}
}

// TestPythonSDKOnCloudWatch moves the server's clock.
func TestPythonSDKOnCloudWatch(t *testing.T) {
	playPython(t, "cloudwatch.py", localaws.Config{MovableClock: true})
}
