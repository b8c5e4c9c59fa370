package localaws_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet/localaws"
)

// silent is a ResponseWriter that keeps nothing.
type silent struct {
	header http.Header
	status int
}

func (w *silent) Header() http.Header         { return w.header }
func (w *silent) Write(b []byte) (int, error) { return len(b), nil }
func (w *silent) WriteHeader(status int)      { w.status = status }

// BenchmarkSend is what one send costs from the request to the answer, without the socket.
func BenchmarkSend(b *testing.B) {
	local := localaws.New(localaws.Options{Seed: 1})
	const authorization = "AWS4-HMAC-SHA256 Credential=key/20261126/eu-west-1/sqs/aws4_request, SignedHeaders=host, Signature=0"
	post(local, "AmazonSQS.CreateQueue", `{"QueueName":"q"}`, func(r *http.Request) { r.Header.Set("Authorization", authorization) })
	for name, call := range map[string]struct{ kind, target, body string }{
		"json":  {"application/x-amz-json-1.0", "AmazonSQS.SendMessage", `{"QueueUrl":"http://127.0.0.1/000000000000/q","MessageBody":"` + strings.Repeat("x", 200) + `"}`},
		"query": {"application/x-www-form-urlencoded", "", "Action=SendMessage&Version=2012-11-05&QueueUrl=http%3A%2F%2F127.0.0.1%2F000000000000%2Fq&MessageBody=" + strings.Repeat("x", 200)},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/", nil)
			r.Header.Set("Content-Type", call.kind)
			r.Header.Set("Authorization", authorization)
			if call.target != "" {
				r.Header.Set("X-Amz-Target", call.target)
			}
			body := strings.NewReader(call.body)
			r.Body, r.ContentLength = http.NoBody, int64(len(call.body))
			for b.Loop() {
				body.Reset(call.body)
				r.Body = readCloser{body}
				w := &silent{header: http.Header{}}
				if local.ServeHTTP(w, r); w.status != http.StatusOK {
					b.Fatal(w.status)
				}
			}
		})
	}
}

// BenchmarkReceiveDelete is what ten messages cost from the two requests to the two answers, out of
// a backlog that does not fit the processor's caches, without the socket.
func BenchmarkReceiveDelete(b *testing.B) {
	local := localaws.New(localaws.Options{Seed: 1})
	call := func(op, body string) []byte {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-amz-json-1.0")
		r.Header.Set("X-Amz-Target", "AmazonSQS."+op)
		if local.ServeHTTP(w, r); w.Code != http.StatusOK {
			b.Fatal(w.Code, w.Body)
		}
		return w.Body.Bytes()
	}
	const url = `"QueueUrl":"http://127.0.0.1/000000000000/q"`
	call("CreateQueue", `{"QueueName":"q"}`)
	var entries []string
	for i := range 10 {
		entries = append(entries, fmt.Sprintf(`{"Id":"%d","MessageBody":"%s"}`, i, strings.Repeat("x", 200)))
	}
	fill := func(batches int) {
		b.StopTimer()
		for range batches {
			call("SendMessageBatch", `{`+url+`,"Entries":[`+strings.Join(entries, ",")+`]}`)
		}
		b.StartTimer()
	}
	left := 0
	b.ReportAllocs()
	for range b.N {
		if left == 0 {
			left = 30_000
			fill(left)
		}
		left--
		var got struct {
			Messages []struct{ ReceiptHandle string }
		}
		answer := call("ReceiveMessage", `{`+url+`,"MaxNumberOfMessages":10}`)
		if err := json.Unmarshal(answer, &got); err != nil || len(got.Messages) != 10 {
			b.Fatal(err, len(got.Messages))
		}
		var handles []string
		for i, m := range got.Messages {
			handles = append(handles, fmt.Sprintf(`{"Id":"%d","ReceiptHandle":"%s"}`, i, m.ReceiptHandle))
		}
		call("DeleteMessageBatch", `{`+url+`,"Entries":[`+strings.Join(handles, ",")+`]}`)
	}
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }
