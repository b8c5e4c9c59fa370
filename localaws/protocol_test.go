package localaws

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/xml"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/aws/smithy-go/encoding/cbor"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/fault"
	"github.com/stepfleet/stepfleet/localaws/shape"
)

type echoInput struct {
	Text  string   `json:"Text"`
	Names []string `json:"Names"`
	From  string   `json:"From"`
}

type echoOutput struct {
	Text    string   `json:"Text"`
	Names   []string `json:"Names,omitempty"`
	From    string   `json:"From,omitempty"`
	Region  string   `json:"Region"`
	Account string   `json:"Account"`
}

func echo(ctx context.Context, in *echoInput) (*echoOutput, error) {
	if in.Text == "" {
		return nil, &api.Error{Type: "Missing", Code: "Legacy.Missing", Status: http.StatusBadRequest, Message: "no text", QueryMessage: "no text here"}
	}
	c := api.CallOf(ctx)
	return &echoOutput{in.Text, in.Names, in.From, c.Region, c.Account}, nil
}

// withEchoes returns an AWS that has, besides its own, a service in every protocol.
func withEchoes(log *bytes.Buffer) *AWS {
	a := New(Options{Logger: slog.New(slog.NewTextHandler(log, nil)), Account: "123456789012"})
	ops := map[string]api.Operation{"Echo": api.Op(echo)}
	a.add(api.Service{
		Name: "echo", Target: "Echo_20260101", Namespace: "com.amazonaws.echo", JSONVersion: "1.1", Shape: "GraniteEcho", Ops: ops,
		Query: &api.Query{
			Version: "2026-01-01", Others: []string{"2025-01-01"}, Namespace: "urn:echo",
			FromPath: func(op, path string) (map[string]string, bool) {
				return map[string]string{"From": path}, path != "/nothing"
			},
		},
	})
	a.add(api.Service{
		Name: "ec2", Namespace: "com.amazonaws.ec2", Ops: map[string]api.Operation{"Echo": api.Op(echo), "Say": api.Op(echo)},
		Query: &api.Query{Version: "2016-11-15", Namespace: "urn:ec2", EC2: true},
	})
	return a
}

const (
	formType = "application/x-www-form-urlencoded"
	signed   = "AWS4-HMAC-SHA256 Credential=AKID/20260101/eu-west-1/%s/aws4_request, SignedHeaders=host, Signature=0"
)

// send makes a call; headers are "Name: value".
func send(t *testing.T, a *AWS, method, target, body string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, "http://127.0.0.1"+target, strings.NewReader(body))
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	if len(w.Header().Get("X-Amzn-Requestid")) != 36 {
		t.Errorf("%s %s: request id %q", method, target, w.Header().Get("X-Amzn-Requestid"))
	}
	return w
}

func by(service string) string { return "Authorization: " + strings.Replace(signed, "%s", service, 1) }

func TestEveryProtocolReachesTheSameOperation(t *testing.T) {
	const prologue = "<?xml version=\"1.0\"?>\n"
	id := strings.Repeat("i", 36)
	for name, test := range map[string]struct {
		method, target, body string
		headers              []string
		kind, want           string
	}{
		"json": {
			"POST", "/", `{"Text":"<hi>","Names":["a","b"]}`,
			[]string{"X-Amz-Target: Echo_20260101.Echo", by("echo")},
			"application/x-amz-json-1.1", `{"Text":"<hi>","Names":["a","b"],"Region":"eu-west-1","Account":"123456789012"}`,
		},
		"query, a form": {
			"POST", "/", "Action=Echo&Version=2026-01-01&Text=%3Chi%3E&Names.member.2=b&Names.member.1=a",
			[]string{"Content-Type: " + formType + "; charset=utf-8", by("echo")},
			"text/xml", prologue + `<EchoResponse xmlns="urn:echo"><EchoResult><Text>&lt;hi&gt;</Text><Names><member>a</member><member>b</member></Names><Region>eu-west-1</Region><Account>123456789012</Account></EchoResult><ResponseMetadata><RequestId>` + id + `</RequestId></ResponseMetadata></EchoResponse>`,
		},
		"query, by version alone, at a path": {
			"GET", "/some/path?Action=Echo&Version=2025-01-01&Text=hi", "", nil,
			"text/xml", prologue + `<EchoResponse xmlns="urn:echo"><EchoResult><Text>hi</Text><From>/some/path</From><Region>us-east-1</Region><Account>123456789012</Account></EchoResult><ResponseMetadata><RequestId>` + id + `</RequestId></ResponseMetadata></EchoResponse>`,
		},
		"query, presigned, in JSON": {
			"GET", "/x?Action=Echo&Version=2026-01-01&Text=hi&From=me&X-Amz-Credential=AKID%2F20260101%2Feu-west-1%2Fecho%2Faws4_request", "",
			[]string{"Accept: application/json"},
			"application/json", `{"EchoResponse":{"EchoResult":{"Account":"123456789012","From":"me","Names":null,"Region":"eu-west-1","Text":"hi"},"ResponseMetadata":{"RequestId":"` + id + `"}}}`,
		},
		"query, a form whose Action is in the query string": {
			"POST", "/?Action=Echo", "Version=2026-01-01&Text=hi",
			[]string{"Content-Type: " + formType, by("echo")},
			"text/xml", prologue + `<EchoResponse xmlns="urn:echo"><EchoResult><Text>hi</Text><Region>eu-west-1</Region><Account>123456789012</Account></EchoResult><ResponseMetadata><RequestId>` + id + `</RequestId></ResponseMetadata></EchoResponse>`,
		},
		"ec2": {
			"POST", "/", "Action=Say&Version=2016-11-15&Text=hi&Names.1=a",
			[]string{"Content-Type: " + formType, by("ec2")},
			"text/xml;charset=UTF-8", prologue + `<SayResponse xmlns="urn:ec2"><requestId>` + id + `</requestId><Text>hi</Text><Names><item>a</item></Names><Region>eu-west-1</Region><Account>123456789012</Account></SayResponse>`,
		},
		"ec2, by operation alone, without a version": {
			"POST", "/", "Action=Say&Text=hi",
			[]string{"Content-Type: " + formType},
			"text/xml;charset=UTF-8", prologue + `<Response><Errors><Error><Code>InvalidAction</Code><Message>Could not find operation Say for version NO_VERSION_SPECIFIED</Message></Error></Errors><RequestID>` + id + `</RequestID></Response>`,
		},
	} {
		w := send(t, withEchoes(new(bytes.Buffer)), test.method, test.target, test.body, test.headers...)
		got := strings.ReplaceAll(w.Body.String(), w.Header().Get("X-Amzn-Requestid"), id)
		if got != test.want || w.Header().Get("Content-Type") != test.kind {
			t.Errorf("%s: %d %s\ngot  %s\nwant %s", name, w.Code, w.Header().Get("Content-Type"), got, test.want)
		}
	}
}

func TestCBOR(t *testing.T) {
	body := string(cbor.Encode(cbor.Map{"Text": cbor.String("hi"), "Names": cbor.List{cbor.String("a")}}))
	headers := []string{"Smithy-Protocol: rpc-v2-cbor", "Content-Type: application/cbor", by("echo"), "X-Amzn-Query-Mode: true"}
	w := send(t, withEchoes(new(bytes.Buffer)), "POST", "/service/GraniteEcho/operation/Echo", body, headers...)
	got, err := cbor.Decode(w.Body.Bytes())
	want := cbor.Map{"Text": cbor.String("hi"), "Names": cbor.List{cbor.String("a")}, "Region": cbor.String("eu-west-1"), "Account": cbor.String("123456789012")}
	if err != nil || !reflect.DeepEqual(got, cbor.Value(want)) || w.Header().Get("Smithy-Protocol") != "rpc-v2-cbor" {
		t.Errorf("%d %v %v %v", w.Code, got, err, w.Header())
	}
	for path, want := range map[string]string{
		"/service/GraniteEcho/operation/Echo": "400 com.amazonaws.echo#Missing", "/service/GraniteEcho/operation/None": "404 com.amazon.coral.service#UnknownOperationException",
		"/service/Other/operation/Echo": "404 com.amazon.coral.service#UnknownOperationException",
	} {
		w := send(t, withEchoes(new(bytes.Buffer)), "POST", path, "", headers...)
		got, err := cbor.Decode(w.Body.Bytes())
		if err != nil {
			t.Fatal(path, err)
		}
		kind, _ := got.(cbor.Map)["__type"].(cbor.String)
		if got := w.Result().Status[:3] + " " + string(kind); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if w := send(t, withEchoes(new(bytes.Buffer)), "POST", "/service/GraniteEcho/operation/Echo", "", headers...); w.Header().Get("X-Amzn-Query-Error") != "Legacy.Missing;Sender" {
		t.Error(w.Header())
	}
}

func TestErrorsInEveryProtocol(t *testing.T) {
	for name, test := range map[string]struct {
		method, target, body string
		headers              []string
		status               int
		want, log            string
	}{
		"json": {"POST", "/", "{}", []string{"X-Amz-Target: Echo_20260101.Echo"}, 400, `{"__type":"com.amazonaws.echo#Missing","message":"no text"}`, ""},
		"json, no such operation": {
			"POST", "/", "{}", []string{"X-Amz-Target: Echo_20260101.None"}, 400, "com.amazon.coral.service#UnknownOperationException", "not emulated",
		},
		"json, a wrong type": {"POST", "/", `{"Text":1}`, []string{"X-Amz-Target: Echo_20260101.Echo"}, 400, "SerializationException", ""},
		"query": {
			"GET", "/?Action=Echo&Version=2026-01-01", "", nil, 400,
			`<ErrorResponse xmlns="urn:echo"><Error><Type>Sender</Type><Code>Legacy.Missing</Code><Message>no text here</Message><Detail/></Error><RequestId>`, "",
		},
		"query, in JSON": {
			"GET", "/?Action=Echo&Version=2026-01-01", "",
			[]string{"Accept: application/json"},
			400,
			`{"Error":{"Code":"Legacy.Missing","Message":"no text here","Type":"Sender"},"RequestId":"`, "",
		},
		"query, no such operation": {
			"GET", "/?Action=No%3Cne&Version=2026-01-01", "", nil, 400,
			"<Code>InvalidAction</Code><Message>The action No&lt;ne is not valid for this endpoint.</Message>", "not emulated",
		},
		"query, not at this path": {
			"GET", "/nothing?Action=Echo&Version=2026-01-01&Text=x", "", nil, 400, "<Message>The action Echo is not valid for this endpoint.</Message>", "not emulated",
		},
		"query, no such version": {
			"GET", "/?Action=Echo&Version=1999-01-01&Text=x", "", []string{by("echo")}, 400, "<Message>Could not find operation Echo for version 1999-01-01</Message>", "not emulated",
		},
		"query, no such service":     {"GET", "/?Action=Echo", "", []string{by("redshift")}, 400, "<Code>InvalidAction</Code>", "redshift"},
		"query, operation of two":    {"GET", "/?Action=Echo&Text=x", "", nil, 400, "<Code>InvalidAction</Code>", "not emulated"},
		"query, no action in a form": {"POST", "/", "Version=2026-01-01", []string{"Content-Type: " + formType}, 400, "<Code>MissingAction</Code>", "not emulated"},
		"query, a broken form":       {"POST", "/", "Action=%", []string{"Content-Type: " + formType}, 404, "<Code>MalformedQueryString</Code>", ""},
		"query, a broken list":       {"GET", "/?Action=Echo&Version=2026-01-01&Names.member.x=1", "", nil, 400, "<Code>MalformedInput</Code>", ""},
		"ec2": {
			"GET", "/?Action=Say&Version=2016-11-15", "", nil, 400, "<Response><Errors><Error><Code>Legacy.Missing</Code><Message>no text here</Message></Error></Errors><RequestID>", "",
		},
		"ec2, no such operation": {
			"GET", "/?Action=None&Version=2016-11-15", "", nil, 400, "<Message>The action None is not valid for this web service.</Message>", "not emulated",
		},
		"nothing":              {"GET", "/queue", "", nil, 404, "<UnknownOperationException/>", "not emulated"},
		"nothing, as JSON":     {"GET", "/queue", "", []string{"Accept: application/json"}, 404, "<UnknownOperationException/>", "not emulated"},
		"nothing, as a DELETE": {"DELETE", "/?Action=Echo", "", nil, 404, "<UnknownOperationException/>", "not emulated"},
		"too large, JSON":      {"POST", "/", strings.Repeat(" ", MaxBodyBytes+1), []string{"X-Amz-Target: Echo_20260101.Echo"}, 413, "RequestEntityTooLargeException", ""},
		"too large, a form":    {"POST", "/?Action=Echo&Version=2026-01-01", strings.Repeat("a", MaxBodyBytes+1), []string{"Content-Type: " + formType}, 413, "<Code>RequestEntityTooLargeException</Code>", ""},
	} {
		var log bytes.Buffer
		w := send(t, withEchoes(&log), test.method, test.target, test.body, test.headers...)
		if w.Code != test.status || !strings.Contains(w.Body.String(), test.want) {
			t.Errorf("%s: %d %s\nwant %d %s", name, w.Code, w.Body, test.status, test.want)
		}
		if !strings.Contains(log.String(), test.log) || test.log == "" && log.Len() > 0 {
			t.Errorf("%s: log %q, want %q", name, log.String(), test.log)
		}
	}
}

func TestCompressedBodies(t *testing.T) {
	zip := func(text string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write([]byte(text))
		_ = z.Close()
		return b.String()
	}
	headers := []string{"X-Amz-Target: Echo_20260101.Echo", "Content-Encoding: gzip"}
	for body, want := range map[string]int{
		zip(`{"Text":"hi"}`): 200, "no gzip": 400, zip(`{"Text":"hi"}`)[:20]: 400, zip(strings.Repeat(" ", MaxBodyBytes+1)): 413,
	} {
		if w := send(t, withEchoes(new(bytes.Buffer)), "POST", "/", body, headers...); w.Code != want {
			t.Errorf("%.20q: %d %s, want %d", body, w.Code, w.Body, want)
		}
	}
}

// TestSQSInTheQueryProtocol is about the frame; what the operations do is tested in JSON.
func TestSQSInTheQueryProtocol(t *testing.T) {
	a := New(Options{})
	for _, test := range []struct {
		method, target, body string
		status               int
		want                 string
	}{
		{"POST", "/", "Action=CreateQueue&QueueName=q&Version=2012-11-05", 200, `<CreateQueueResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"><CreateQueueResult><QueueUrl>http://127.0.0.1/000000000000/q</QueueUrl></CreateQueueResult>`},
		{"GET", "/000000000000/q?Action=SendMessage&MessageBody=a%22b", "", 200, "<SendMessageResult><MD5OfMessageBody>"},
		{"GET", "/000000000000/q?Action=ReceiveMessage&Version=2012-11-05", "", 200, "<Body>a&quot;b</Body>"},
		{"GET", "/000000000000/q?Action=ReceiveMessage&Version=2012-11-05", "", 200, "<ReceiveMessageResult/>"},
		{"POST", "/000000000000/q", "Action=PurgeQueue", 200, "<PurgeQueueResponse"},
		{"GET", "/000000000000/q?Action=SendMessage", "", 400, "<Type>Sender</Type><Code>MissingParameter</Code><Message>The request must contain the parameter MessageBody.</Message>"},
		{"GET", "/000000000000/q?Action=ListQueues", "", 400, "<Code>InvalidAction</Code><Message>The action ListQueues is not valid for this endpoint.</Message>"},
		{"GET", "/000000000000/none?Action=PurgeQueue", "", 400, "<Code>AWS.SimpleQueueService.NonExistentQueue</Code>"},
		{"GET", "/000000000000/none?Action=PurgeQueue&QueueUrl=http%3A%2F%2Fx%2F000000000000%2Fq", "", 403, "<Code>AWS.SimpleQueueService.PurgeQueueInProgress</Code>"},
	} {
		w := send(t, a, test.method, test.target, test.body, "Content-Type: "+formType)
		if w.Code != test.status || !strings.Contains(w.Body.String(), test.want) {
			t.Errorf("%s %s: %d %s\nwant %d %s", test.method, test.target, w.Code, w.Body, test.status, test.want)
		}
	}
}

// A page may make a browser send a GET anywhere, by an image; in the Query protocol that is a call.
func TestNoCallsFromOtherPages(t *testing.T) {
	a := New(Options{})
	for header, want := range map[string]int{
		"": 200, "Sec-Fetch-Site: none": 200, "Sec-Fetch-Site: same-origin": 200, "Origin: http://127.0.0.1": 200,
		"Sec-Fetch-Site: cross-site": 403, "Sec-Fetch-Site: same-site": 403, "Origin: https://evil.example": 403, "Origin: null": 403,
	} {
		r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1/?Action=ListQueues&Version=2012-11-05", nil)
		if name, value, ok := strings.Cut(header, ": "); ok {
			r.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		if a.ServeHTTP(w, r); w.Code != want {
			t.Errorf("%s: %d, want %d", header, w.Code, want)
		}
	}
}

// On a name that is no loopback name, browsers do not say which page makes them GET.
func TestNoUnknownOriginsOnOtherNames(t *testing.T) {
	a := New(Options{Hosts: []string{"aws.test"}})
	const call = "/?Action=ListQueues&Version=2012-11-05"
	for _, test := range []struct {
		method, target, header string
		want                   int
	}{
		{"GET", "http://aws.test" + call, "", 403},
		{"GET", "http://aws.test:9324" + call, "", 403},
		{"GET", "http://AWS.test" + strings.Replace(call, "A", "%41", 1), "", 403},
		{"GET", "http://aws.test" + call, "Sec-Fetch-Site: cross-site", 403},
		{"GET", "http://aws.test" + call, "Sec-Fetch-Site: none", 200},
		{"GET", "http://aws.test" + call, by("sqs"), 200},
		{"GET", "http://aws.test/livez", "", 200},
		{"GET", "http://aws.test/_localaws/health", "", 200},
		{"POST", "http://aws.test" + call, "", 200},
		{"GET", "http://localhost" + call, "", 200},
		{"GET", "http://[::1]:9324" + call, "", 200},
	} {
		r := httptest.NewRequest(test.method, test.target, nil)
		if name, value, ok := strings.Cut(test.header, ": "); ok {
			r.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		if a.ServeHTTP(w, r); w.Code != test.want {
			t.Errorf("%s %s %s: %d %s, want %d", test.method, test.target, test.header, w.Code, w.Body, test.want)
		}
	}
}

// A service that is away answers nobody, whatever is wrong with the call.
func TestAnOutageTakesWhatIsRefusedToo(t *testing.T) {
	form := "Content-Type: " + formType
	for name, test := range map[string]struct {
		target, body string
		headers      []string
		status       int // when the service is there
	}{
		"unknown operation": {"/", "{}", []string{"X-Amz-Target: Echo_20260101.None"}, 400},
		"wrong version":     {"/", "Action=Echo&Version=1999-01-01", []string{form, by("echo")}, 400},
		"broken body":       {"/", "{", []string{"X-Amz-Target: Echo_20260101.Echo"}, 400},
		"too large":         {"/", strings.Repeat(" ", MaxBodyBytes+1), []string{"X-Amz-Target: Echo_20260101.Echo"}, 413},
		"not signed":        {"/", "{}", []string{"X-Amz-Target: Echo_20260101.Echo"}, 403},
	} {
		a := withEchoes(new(bytes.Buffer))
		if name == "not signed" {
			a.credentials = map[string]string{"key": "secret"}
		}
		a.Faults.Outage("echo", true)
		if !isDropped(func() { send(t, a, "POST", test.target, test.body, test.headers...) }) {
			t.Errorf("%s: answered by a service that is away", name)
		}
		a.Faults.Outage("echo", false)
		if w := send(t, a, "POST", test.target, test.body, test.headers...); w.Code != test.status {
			t.Errorf("%s: %d %s, want %d", name, w.Code, w.Body, test.status)
		}
		rule := a.Faults.Add(fault.Rule{Kind: fault.Throttle, Service: "echo"})
		if w := send(t, a, "POST", test.target, test.body, test.headers...); !strings.Contains(w.Body.String(), "Throttling") || rule.Hits() != 1 {
			t.Errorf("%s: a rule made %d %s of it", name, w.Code, w.Body)
		}
	}
}

// isDropped reports whether f ends as a handler that closes the connection.
func isDropped(f func()) (dropped bool) {
	defer func() {
		if v := recover(); v != nil {
			dropped = v == http.ErrAbortHandler
		}
	}()
	f()
	return false
}

// What is too large is not read, so it cannot be said to be signed wrongly.
func TestTooLargeWhereSignaturesAreVerified(t *testing.T) {
	a := New(Options{Credentials: map[string]string{"key": "secret"}})
	headers := []string{"X-Amz-Target: AmazonSQS.SendMessage", by("sqs")}
	if w := send(t, a, "POST", "/", strings.Repeat(" ", MaxBodyBytes+1), headers...); w.Code != 413 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := send(t, a, "POST", "/", "{}", headers...); w.Code != 403 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestEveryStructGoesOverEveryWire(t *testing.T) {
	a := New(Options{})
	for _, s := range a.services {
		for name, op := range s.Ops {
			in, out := op.Types()
			for _, each := range []reflect.Type{in, out} {
				if err := shape.Check(each); err != nil {
					t.Errorf("%s %s: %v", s.Name, name, err)
				}
			}
		}
	}
}

// FuzzRequest feeds nonsense in every protocol: each answer is a 2xx or 4xx, or no answer for want
// of time; what claims to be XML is.
func FuzzRequest(f *testing.F) {
	f.Add("POST", "/", "", formType, "", "Action=Echo&Version=2026-01-01&Text=x", "")
	f.Add("GET", "/000000000000/q?Action=GetQueueUrl&QueueName=q", "", "", "", "", "")
	f.Add("POST", "/service/GraniteEcho/operation/Echo", "", "application/cbor", "rpc-v2-cbor", "\xa1dTextax", "")
	f.Add("POST", "/", "Echo_20260101.Echo", "application/x-amz-json-1.1", "", `{"Text":"x"}`, by("echo")[len("Authorization: "):])
	f.Add("POST", "/?Action=Say&Version=2016-11-15", "", formType, "", "Names.1=a&Text.1=%00", "Credential=///")
	f.Add("POST", "/?Action=AssumeRole&Version=2011-06-15", "", formType, "", "Tags.member.1.Key=%ff&RoleArn=arn:aws:iam::111122223333:role/x&RoleSessionName=xx", "")
	a := withEchoes(new(bytes.Buffer))
	a.log = slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, method, target, amzTarget, contentType, smithy, body, authorization string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || u.Host != "" {
			return
		}
		r := &http.Request{Method: method, URL: u, Host: "127.0.0.1", Body: http.NoBody, Header: http.Header{}}
		if body != "" {
			r = httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
			r.Method, r.URL, r.Host = method, u, "127.0.0.1"
		}
		for name, value := range map[string]string{
			"X-Amz-Target": amzTarget, "Content-Type": contentType, "Smithy-Protocol": smithy, "Authorization": authorization,
		} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r.WithContext(ctx))
		if w.Code >= 500 && w.Code != http.StatusServiceUnavailable {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if strings.HasPrefix(w.Header().Get("Content-Type"), "text/xml") {
			var any struct{}
			if err := xml.Unmarshal(w.Body.Bytes(), &any); err != nil {
				t.Errorf("%v: %s", err, w.Body)
			}
		}
	})
}
