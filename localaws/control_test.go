package localaws_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
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
	return answer(local, r, change)
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
		{
			`{"kind":"fail","times":1,"error":{"type":"AccessDeniedException","common":true,"code":"AccessDenied","status":403}}`, "AmazonSQS.ListQueues",
			`{"__type":"com.amazon.coral.service#AccessDeniedException"}`,
		},
		{`{"kind":"fail","times":1}`, "AmazonSQS.Unknown", `{"__type":"com.amazon.coral.service#InternalFailure"`},
		{`{"kind":"fail_after","times":1,"error":{"type":"Odd"}}`, "AmazonSQS.ListQueues", `{"__type":"com.amazonaws.sqs#Odd"}`},
	} {
		if w := control(local, "POST", "faults/f", test.rule, nil); w.Code != http.StatusCreated {
			t.Fatalf("%s: %d %s", test.rule, w.Code, w.Body)
		}
		if w := post(local, test.target, "{}", nil); !strings.HasPrefix(w.Body.String(), test.want) {
			t.Errorf("%s: %d %s", test.rule, w.Code, w.Body)
		}
		if w := post(local, test.target, "{}", nil); strings.HasPrefix(w.Body.String(), test.want) {
			t.Errorf("%s acts twice: %s", test.rule, w.Body)
		}
		if w := control(local, "GET", "faults/f", "", nil); !strings.Contains(w.Body.String(), `"hits": 1`) || !strings.Contains(w.Body.String(), `"ended": true`) {
			t.Errorf("%s: %s", test.rule, w.Body)
		}
	}
}

// Each kind is set over HTTP for one send; another follows.
func TestEveryKindOverHTTP(t *testing.T) {
	outcomes := map[string]struct {
		setting   string
		code      string // of the answer; "none" for no answer, "" for success
		delivered string
		took      time.Duration
	}{
		"drop":        {code: "none", delivered: "2"},
		"delay":       {setting: `,"delay_seconds":3`, delivered: "2 1", took: 3 * time.Second},
		"duplicate":   {delivered: "1 1 2"},
		"throttle":    {code: "RequestThrottled", delivered: "2"},
		"fail":        {code: "InternalFailure", delivered: "2"},
		"fail_after":  {code: "InternalFailure", delivered: "1 2"},
		"lose_answer": {code: "none", delivered: "1 2"},
		"reorder":     {setting: `,"delay_seconds":3`, delivered: "2 1"},
	}
	for _, kind := range fault.Kinds() {
		want, ok := outcomes[kind]
		if !ok {
			t.Errorf("no test of %s", kind)
		}
		synctest.Test(t, func(t *testing.T) {
			local := localaws.New(localaws.Options{})
			c := inProcess(local)
			queue := create(t, c, "q", nil)
			rule := `{"service":"sqs","op":"SendMessage","times":1,"kind":"` + kind + `"` + want.setting + "}"
			if w := control(local, "POST", "faults/f", rule, nil); w.Code != http.StatusCreated {
				t.Fatalf("%s: %s", rule, w.Body)
			}
			started, failed := time.Now(), make(chan error)
			go func() {
				_, err := c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: queue, MessageBody: aws.String("1")})
				failed <- err
			}()
			synctest.Wait()
			second := make(chan struct{})
			go func() {
				send(t, c, queue, "2")
				close(second)
			}()
			code := outcome(<-failed)
			<-second
			took := time.Since(started)
			var got []string
			for _, m := range receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: queue, MaxNumberOfMessages: 10}) {
				got = append(got, *m.Body)
			}
			if delivered := strings.Join(got, " "); code != want.code || delivered != want.delivered || took != want.took {
				t.Errorf("%s: %q, delivered %s after %v, want %+v", kind, code, delivered, took, want)
			}
			if w := control(local, "GET", "faults/f", "", nil); !strings.Contains(w.Body.String(), `"hits": 1`) {
				t.Errorf("%s: %s", kind, w.Body)
			}
		})
	}
}

// A rule for every call waits for one that can be duplicated.
func TestDuplicateHitsWhatItDuplicates(t *testing.T) {
	local := localaws.New(localaws.Options{})
	rule := local.Faults.Add(fault.Rule{Kind: fault.Duplicate, Times: 1})
	c := inProcess(local)
	queue := create(t, c, "q", nil)
	if _, err := c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: aws.String("none"), MessageBody: aws.String("x")}); err == nil || rule.Hits() != 0 {
		t.Errorf("%v, %d hits", err, rule.Hits())
	}
	send(t, c, queue, "x")
	send(t, c, queue, "y")
	if got := receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: queue, MaxNumberOfMessages: 10}); len(got) != 3 || rule.Hits() != 1 {
		t.Errorf("%d messages, %d hits", len(got), rule.Hits())
	}
}

func TestOutageOfEverythingOverHTTP(t *testing.T) {
	local := localaws.New(localaws.Options{})
	client := &http.Client{Transport: local.Transport()}
	attempt := func(target string) error {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1/", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Amz-Target", target)
		answer, err := client.Do(r)
		if err == nil {
			err = answer.Body.Close()
		}
		return err
	}
	targets := []string{"AmazonSQS.ListQueues", "GraniteServiceVersion20100801.ListMetrics", "AmazonSQS.Unknown", "DynamoDB_20120810.ListTables"}
	for _, away := range []bool{true, false} {
		method := map[bool]string{true: "POST", false: "DELETE"}[away]
		if w := control(local, method, "outages", "", nil); w.Code > 299 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		for _, target := range targets {
			if err := attempt(target); (err != nil) != away {
				t.Errorf("%s after %s: %v", target, method, err)
			}
		}
	}
}

func TestResetEndsWhatADelayHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		local := localaws.New(localaws.Options{})
		c := inProcess(local)
		queue := create(t, c, "q", nil)
		control(local, "POST", "faults", `{"kind":"delay","delay_seconds":60,"op":"SendMessage"}`, nil)
		failed := make(chan error)
		go func() {
			_, err := c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: queue, MessageBody: aws.String("of the test before")})
			failed <- err
		}()
		synctest.Wait()
		started := time.Now()
		control(local, "POST", "reset", "", nil)
		create(t, c, "q", nil)
		if code := outcome(<-failed); code != "RequestAborted" || time.Since(started) != 0 {
			t.Errorf("%q after %v", code, time.Since(started))
		}
		time.Sleep(time.Hour)
		if got := receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: queue}); len(got) != 0 {
			t.Errorf("the fresh queue has %q", *got[0].Body)
		}
	})
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

// A FIFO queue neither repeats nor reorders, so it is no hit of a fault that would have it do so.
func TestFIFOQueuesAreNoHitOfDuplicates(t *testing.T) {
	local := localaws.New(localaws.Options{})
	twice := local.Faults.Add(fault.Rule{Kind: fault.Duplicate})
	turned := local.Faults.Add(fault.Rule{Kind: fault.Reorder, Service: "sqs", Op: "ReceiveMessage"})
	for _, queue := range []struct {
		name, attributes, group string
		hits                    int
	}{
		{"q.fifo", `{"FifoQueue":"true","ContentBasedDeduplication":"true"}`, `,"MessageGroupId":"g"`, 0},
		{"q", `{}`, "", 1},
	} {
		post(local, "AmazonSQS.CreateQueue", fmt.Sprintf(`{"QueueName":%q,"Attributes":%s}`, queue.name, queue.attributes), nil)
		post(local, "AmazonSQS.SendMessage", fmt.Sprintf(`{"QueueUrl":%q,"MessageBody":"x"%s}`, queue.name, queue.group), nil)
		if n := twice.Hits(); n != queue.hits {
			t.Errorf("%s: %d sends were hits, want %d", queue.name, n, queue.hits)
		}
		twice.Remove()
		post(local, "AmazonSQS.ReceiveMessage", fmt.Sprintf(`{"QueueUrl":%q}`, queue.name), nil)
		if n := turned.Hits(); n != queue.hits {
			t.Errorf("%s: %d receives were hits, want %d", queue.name, n, queue.hits)
		}
		twice = local.Faults.Add(fault.Rule{Kind: fault.Duplicate})
	}
}
