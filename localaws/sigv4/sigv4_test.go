package sigv4_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/sigv4"
)

var (
	signedAt = time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)
	keys     = aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
)

func secret(accessKey, token string) (string, error) {
	if accessKey != keys.AccessKeyID || token != "" && token != "session" {
		return "", sigv4.ErrUnknownKey
	}
	return keys.SecretAccessKey, nil
}

func hashOf(body string) string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:])
}

// request is one as a server sees it, before it is signed.
func request(method, target, body string, headers map[string]string) *http.Request {
	r := httptest.NewRequest(method, "http://sqs.eu-west-1.localhost:9324"+target, strings.NewReader(body))
	for name, value := range headers {
		r.Header.Set(name, value)
	}
	return r
}

func sign(t *testing.T, r *http.Request, body string, c aws.Credentials) {
	t.Helper()
	if err := v4.NewSigner().SignHTTP(t.Context(), c, r, hashOf(body), "sqs", "eu-west-1", signedAt); err != nil {
		t.Fatal(err)
	}
}

// presign signs the query string, and returns the request that a client would send.
func presign(t *testing.T, r *http.Request, body string, c aws.Credentials) *http.Request {
	t.Helper()
	uri, headers, err := v4.NewSigner().PresignHTTP(t.Context(), c, r, hashOf(body), "sqs", "eu-west-1", signedAt)
	if err != nil {
		t.Fatal(err)
	}
	sent := httptest.NewRequest(r.Method, uri, strings.NewReader(body))
	for name, values := range headers {
		sent.Header[name] = values
	}
	return sent
}

var calls = []struct {
	name, method, target, body string
	headers                    map[string]string
}{
	{"JSON", "POST", "/", `{"QueueName":"q"}`, map[string]string{"X-Amz-Target": "AmazonSQS.GetQueueUrl", "Content-Type": "application/x-amz-json-1.0"}},
	{"form", "POST", "/", "Action=ListQueues&Version=2012-11-05", map[string]string{"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}},
	{"query string", "GET", "/000000000000/q.fifo?Action=SendMessage&MessageBody=a%20b%2Fc%7E&b=2&a=1&a=0&empty=", "", nil},
	{"strange path", "POST", "/service/a%20b/operation/c%2Fd+e", "x", nil},
	{"spaces in a header", "POST", "/", "x", map[string]string{"X-Amz-Meta": "  a   b  "}},
	{"no body", "POST", "/", "", nil},
}

func TestTheSDKsSignaturesHold(t *testing.T) {
	session := keys
	session.SessionToken = "session"
	for _, call := range calls {
		for _, c := range []aws.Credentials{keys, session} {
			r := request(call.method, call.target, call.body, call.headers)
			sign(t, r, call.body, c)
			if err := sigv4.Verify(r, []byte(call.body), "sqs", signedAt.Add(time.Minute), secret); err != nil {
				t.Errorf("%s: %v", call.name, err)
			}
			if got := sigv4.ScopeOf(r); got != (sigv4.Scope{AccessKey: "AKIDEXAMPLE", Date: "20261126", Region: "eu-west-1", Service: "sqs"}) {
				t.Errorf("%s: scope %+v", call.name, got)
			}
			r = presign(t, request(call.method, call.target, call.body, call.headers), call.body, c)
			if err := sigv4.Verify(r, []byte(call.body), "sqs", signedAt.Add(14*time.Minute), secret); err != nil {
				t.Errorf("%s, presigned: %v", call.name, err)
			}
			if got := sigv4.ScopeOf(r); got.Region != "eu-west-1" || got.AccessKey != keys.AccessKeyID {
				t.Errorf("%s, presigned: scope %+v", call.name, got)
			}
			if got := sigv4.SessionTokenOf(r); got != c.SessionToken {
				t.Errorf("%s, presigned: session token %q", call.name, got)
			}
		}
	}
}

// Clients may send parameters in any order, and escape more than they must.
func TestTheOrderOfParametersDoesNotMatter(t *testing.T) {
	r := request("GET", "/q?a=0&a=1&b=x%20y&c=", "", nil)
	sign(t, r, "", keys)
	r.URL.RawQuery = "c&b=x+%79&a=1&&a=0"
	if err := sigv4.Verify(r, nil, "sqs", signedAt, secret); err != nil {
		t.Error(err)
	}
}

func TestUnsignedPayload(t *testing.T) {
	r := request("POST", "/", "anything", map[string]string{"X-Amz-Content-Sha256": "UNSIGNED-PAYLOAD"})
	if err := v4.NewSigner().SignHTTP(t.Context(), keys, r, "UNSIGNED-PAYLOAD", "sqs", "eu-west-1", signedAt); err != nil {
		t.Fatal(err)
	}
	if err := sigv4.Verify(r, []byte("something else"), "sqs", signedAt, secret); err != nil {
		t.Error(err)
	}
}

func TestWhatWasChangedIsRefused(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"method":      func(r *http.Request) { r.Method = "PUT" },
		"path":        func(r *http.Request) { r.URL.Path = "/other" },
		"query":       func(r *http.Request) { r.URL.RawQuery += "&x=1" },
		"host":        func(r *http.Request) { r.Host = "elsewhere" },
		"a header":    func(r *http.Request) { r.Header.Set("X-Amz-Target", "AmazonSQS.DeleteQueue") },
		"the time":    func(r *http.Request) { r.Header.Set("X-Amz-Date", "20261126T100001Z") },
		"the region":  func(r *http.Request) { edit(r, "eu-west-1", "us-east-1") },
		"the body":    func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", hashOf("other")) },
		"a signature": func(r *http.Request) { edit(r, "Signature=", "Signature=0") },
	} {
		r := request("POST", "/?a=1", "x", map[string]string{"X-Amz-Target": "AmazonSQS.ListQueues", "X-Amz-Content-Sha256": hashOf("x")})
		sign(t, r, "x", keys)
		change(r)
		if err := sigv4.Verify(r, []byte("x"), "sqs", signedAt, secret); !errors.Is(err, sigv4.ErrMismatch) {
			t.Errorf("%s changed: %v", name, err)
		}
	}
	r := request("POST", "/", "x", nil)
	sign(t, r, "x", keys)
	if err := sigv4.Verify(r, []byte("y"), "sqs", signedAt, secret); !errors.Is(err, sigv4.ErrMismatch) {
		t.Errorf("another body: %v", err)
	}
	sent := presign(t, request("GET", "/?a=1", "", nil), "", keys)
	sent.URL.RawQuery = strings.Replace(sent.URL.RawQuery, "a=1", "a=2", 1)
	if err := sigv4.Verify(sent, nil, "sqs", signedAt, secret); !errors.Is(err, sigv4.ErrMismatch) {
		t.Errorf("another query: %v", err)
	}
}

func edit(r *http.Request, old, text string) {
	r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), old, text, 1))
}

// AWS takes the time from Date where there is no X-Amz-Date, in the same form.
func TestTheTimeMayBeInTheDateHeader(t *testing.T) {
	const date = "20261126T100000Z"
	for _, header := range []string{"Date", "X-Amz-Date"} {
		r := request("GET", "/", "", map[string]string{header: date})
		name := strings.ToLower(header)
		r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261126/eu-west-1/sqs/aws4_request, SignedHeaders="+
			name+";host, Signature="+signatureOf(name+":"+date+"\nhost:"+r.Host+"\n\n"+name+";host", date))
		if err := sigv4.Verify(r, nil, "sqs", signedAt, secret); err != nil {
			t.Errorf("%s: %v", header, err)
		}
	}
	r := request("GET", "/", "", nil)
	sign(t, r, "", keys)
	r.Header.Del("X-Amz-Date")
	r.Header.Set("Date", "Thu, 26 Nov 2026 10:00:00 GMT")
	if got := refusal(sigv4.Verify(r, nil, "sqs", signedAt, secret)); !strings.HasPrefix(got, "IncompleteSignature 403: Date must be in ISO-8601 'basic format'. Got 'Thu,") {
		t.Error(got)
	}
}

// signatureOf signs a GET of / without a body: the SDK's signer knows no Date.
func signatureOf(headers, date string) string {
	key := []byte("AWS4" + keys.SecretAccessKey)
	for _, part := range []string{"20261126", "eu-west-1", "sqs", "aws4_request", "AWS4-HMAC-SHA256\n" + date + "\n20261126/eu-west-1/sqs/aws4_request\n" +
		hashOf("GET\n/\n\n"+headers+"\n"+hashOf(""))} {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(part))
		key = m.Sum(nil)
	}
	return hex.EncodeToString(key)
}

// A presigned call whose target was left out of what is signed must not become another one.
func TestAPresignedCallKeepsItsTarget(t *testing.T) {
	sent := presign(t, request("POST", "/", "{}", nil), "{}", keys)
	sent.Header.Set("X-Amz-Target", "AmazonSQS.DeleteQueue")
	if got := refusal(sigv4.Verify(sent, []byte("{}"), "sqs", signedAt, secret)); !strings.HasPrefix(got, "SignatureDoesNotMatch 403: 'X-Amz-Target'") {
		t.Error(got)
	}
}

// refusal is what a caller sees.
func refusal(err error) string {
	var e *api.Error
	if !errors.As(err, &e) {
		return "none"
	}
	return e.QueryCode() + " " + strconv.Itoa(e.Status) + ": " + e.Message
}

func TestRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		change  func(*http.Request)
		now     time.Duration
		service string
		want    string
	}{
		"nothing": {},
		"no signature": {
			change: func(r *http.Request) { r.Header.Del("Authorization") }, want: "MissingAuthenticationToken 403: Request is missing Authentication Token",
		},
		"another kind": {
			change: func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }, want: "IncompleteSignature 403: Unsupported AWS 'algorithm': 'Bearer'.",
		},
		"parts missing": {
			change: func(r *http.Request) {
				r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=x")
				r.Header.Del("X-Amz-Date")
			},
			want: "IncompleteSignature 403: Authorization header requires 'Signature' parameter. Authorization header requires 'SignedHeaders' parameter. Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. Authorization=AWS4-HMAC-SHA256",
		},
		"broken scope": {
			change: func(r *http.Request) { edit(r, "/aws4_request", "") },
			want:   "IncompleteSignature 403: Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got 'AKIDEXAMPLE/20261126/eu-west-1/sqs'",
		},
		"broken date": {
			change: func(r *http.Request) { r.Header.Set("X-Amz-Date", "today") },
			want:   "IncompleteSignature 403: Date must be in ISO-8601 'basic format'. Got 'today'. See http://en.wikipedia.org/wiki/ISO_8601",
		},
		"a target that is not signed": {
			change: func(r *http.Request) { r.Header.Set("X-Amz-Target", "AmazonSQS.DeleteQueue") },
			want:   "SignatureDoesNotMatch 403: 'X-Amz-Target' must be a 'SignedHeader' in the AWS Authorization.",
		},
		"a header of a client's own": {change: func(r *http.Request) { r.Header.Set("X-Amzn-Trace-Id", "Root=1") }},
		"a session token besides":    {change: func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "session") }},
		"host not signed": {
			change: func(r *http.Request) { edit(r, ";host", "") }, want: "SignatureDoesNotMatch 403: 'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.",
		},
		"another day in the scope": {
			change: func(r *http.Request) { edit(r, "20261126", "20261125") },
			want:   "SignatureDoesNotMatch 403: Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '20261125' != '20261126', from '20261126T100000Z'.",
		},
		"another service": {service: "sts", want: "SignatureDoesNotMatch 403: Credential should be scoped to correct service: 'sts'. "},
		"an unknown key": {
			change: func(r *http.Request) { edit(r, "AKIDEXAMPLE", "AKIDOTHER") }, want: "InvalidClientTokenId 403: The security token included in the request is invalid.",
		},
		"five minutes late": {now: 5 * time.Minute},
		"later": {
			now:  5*time.Minute + time.Second,
			want: "SignatureDoesNotMatch 403: Signature expired: 20261126T100000Z is now earlier than 20261126T100001Z (20261126T100501Z - 5 min.)",
		},
		"five minutes early": {now: -5 * time.Minute},
		"earlier": {
			now:  -5*time.Minute - time.Second,
			want: "SignatureDoesNotMatch 403: Signature not yet current: 20261126T100000Z is still later than 20261126T095959Z (20261126T095459Z + 5 min.)",
		},
	} {
		r := request("POST", "/", "x", map[string]string{"X-Amz-Date": "x", "Content-Type": "text/plain"})
		sign(t, r, "x", keys)
		if test.change != nil {
			test.change(r)
		}
		if test.service == "" {
			test.service = "sqs"
		}
		want := test.want
		if want == "" {
			want = "none"
		}
		if got := refusal(sigv4.Verify(r, []byte("x"), test.service, signedAt.Add(test.now), secret)); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, want)
		}
	}
}

func TestPresignedRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		query  string
		change func(string) string
		now    time.Duration
		want   string
	}{
		"the default, held":   {now: 15 * time.Minute, want: "none"},
		"the default, over":   {now: 15*time.Minute + time.Second, want: "RequestExpired 400: Request has expired."},
		"a minute, held":      {query: "X-Amz-Expires=60", now: time.Minute, want: "none"},
		"a minute, over":      {query: "X-Amz-Expires=60", now: 61 * time.Second, want: "RequestExpired 400: Request has expired."},
		"an hour, held":       {query: "X-Amz-Expires=3600", now: time.Hour, want: "none"},
		"longer than a week":  {query: "X-Amz-Expires=604801", want: "IncompleteSignature 403: X-Amz-Expires must be a number of seconds of at most 604800."},
		"no number":           {query: "X-Amz-Expires=x", want: "IncompleteSignature 403: X-Amz-Expires must be a number of seconds of at most 604800."},
		"a signature missing": {change: func(q string) string { return strings.Replace(q, "X-Amz-Signature", "X", 1) }, want: "IncompleteSignature 403: AWS query-string parameters must include 'X-Amz-Signature'. Re-examine the query-string parameters."},
		"an algorithm":        {change: func(q string) string { return strings.Replace(q, "SHA256", "SHA1", 1) }, want: "IncompleteSignature 403: Unsupported AWS 'algorithm': 'AWS4-HMAC-SHA1'."},
	} {
		r := presign(t, request("GET", "/?"+test.query, "", nil), "", keys)
		if test.change != nil {
			r.URL.RawQuery = test.change(r.URL.RawQuery)
		}
		if got := refusal(sigv4.Verify(r, nil, "sqs", signedAt.Add(test.now), secret)); got != test.want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, test.want)
		}
	}
}

func TestScopeOfWhatIsNotSigned(t *testing.T) {
	for _, header := range []string{
		"", "Bearer x", "AWS4-HMAC-SHA256 Credential=", "AWS4-HMAC-SHA256 Credential=a/b/c/d/aws4_request", "AWS4-HMAC-SHA256 Credential=a/20260101/c/d/other",
		"AWS4-HMAC-SHA256 Credential=a/20260101/c/d/aws4_request/x", "AWS4-HMAC-SHA256 Credential=//// /",
	} {
		r := request("GET", "/?X-Amz-Credential=%zz", "", map[string]string{"Authorization": header})
		if got := sigv4.ScopeOf(r); got != (sigv4.Scope{}) {
			t.Errorf("%q: %+v", header, got)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261126/eu-west-1/sqs/aws4_request, SignedHeaders=host;x-amz-date, Signature=00", "20261126T100000Z", "a=1", "")
	f.Add("", "", "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20261126%2Feu-west-1%2Fsqs%2Faws4_request&X-Amz-Date=20261126T100000Z&X-Amz-SignedHeaders=host&X-Amz-Signature=00&X-Amz-Expires=9", "body")
	f.Fuzz(func(t *testing.T, authorization, date, query, body string) {
		r := request("POST", "/", body, map[string]string{"Authorization": authorization, "X-Amz-Date": date})
		r.URL.RawQuery = query
		sigv4.ScopeOf(r)
		if err := sigv4.Verify(r, []byte(body), "sqs", signedAt, secret); err == nil {
			t.Errorf("%q with %q was taken for signed", authorization, query)
		}
	})
}
