package sqs

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/clock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fuzzed(t testing.TB) *Service {
	t.Helper()
	s, err := New(Options{Clock: clock.NewManual(time.Unix(1_000_000, 0)), IDs: api.NewIDs(1), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// FuzzQueueURL reads queue URLs: what is read is the queue of the URL that is made of it again.
func FuzzQueueURL(f *testing.F) {
	for _, url := range []string{
		"", "/", "q", "q.fifo", "/000000000000/q", "http://127.0.0.1:9324/000000000000/q", "https://sqs.eu-west-1.amazonaws.com/123456789012/q",
		"https://eu-west-1.queue.amazonaws.com/123456789012/q", "http://sqs.eu-west-1.localhost:1/a/b", "http://", "http://h", "http://[::1]:1/a/b",
		"://a/b/c", "http://h//q", "a/b/c/d", "http://sqs..x/a/b",
	} {
		f.Add(url)
	}
	f.Fuzz(func(t *testing.T, url string) {
		c := &api.Call{Region: "us-east-1", Account: "000000000000"}
		key, ok := parseURL(c, url)
		if !ok {
			return
		}
		if key.region == "" || strings.Contains(key.name, "/") {
			t.Fatalf("%q is %+v", url, key)
		}
		if key.account == "" || key.name == "" {
			return // a bare name may be empty; no queue has it
		}
		again, ok := parseURL(c, DomainURL.expand("http://localhost:1", key))
		if !ok || again != key {
			t.Errorf("%q is %+v, and its own URL %+v", url, key, again)
		}
	})
}

// FuzzHandle reads receipt handles and handles of move tasks: only what was given out is read.
func FuzzHandle(f *testing.F) {
	for _, handle := range []string{string(newQueue(fuzzed(f), 1, queueKey{"r", "a", "q"}, defaults(false), nil).appendHandle(nil, receipt{7, 8})), "", "AAAA", "nonsense", strings.Repeat("A", 40), taskHandle{"id", "arn:aws:sqs:r:a:q"}.String(), "e30=", "bnVsbA=="} {
		f.Add(handle)
	}
	f.Fuzz(func(t *testing.T, handle string) {
		q := newQueue(fuzzed(t), 1, queueKey{"r", "a", "q"}, defaults(false), nil)
		if r, err := q.parseHandle(handle); err == nil {
			made := string(q.appendHandle(nil, r))
			if again, err := q.parseHandle(made); err != nil || again != r {
				t.Errorf("%q is %+v, and its own handle %+v, %v", handle, r, again, err)
			}
		}
		if h, err := parseTaskHandle(handle); err == nil {
			if again, err := parseTaskHandle(h.String()); err != nil || again != h {
				t.Errorf("%q is %+v, and its own handle %+v, %v", handle, h, again, err)
			}
		}
	})
}

// FuzzAttribute sets attributes: what is accepted is accepted again as it is answered, and the same.
func FuzzAttribute(f *testing.F) {
	for _, seed := range [][2]string{
		{"RedrivePolicy", `{"deadLetterTargetArn":"arn:aws:sqs:r:a:dlq","maxReceiveCount":"3"}`},
		{"RedrivePolicy", `{"deadLetterTargetArn":"arn:aws:sqs:r:a:dlq","maxReceiveCount":1e300}`},
		{"RedrivePolicy", `{"deadLetterTargetArn":1,"maxReceiveCount":{}}`},
		{"RedriveAllowPolicy", `{"redrivePermission":"byQueue","sourceQueueArns":["arn:aws:sqs:r:a:q"]}`},
		{"RedriveAllowPolicy", `{"redrivePermission":"denyAll"}`},
		{"Policy", `{"Statement":[null]}`},
		{"VisibilityTimeout", "007"},
		{"VisibilityTimeout", "+3"},
		{"KmsDataKeyReusePeriodSeconds", "60"},
		{"SqsManagedSseEnabled", "false"},
		{"", ""},
		{"RedrivePolicy", "null"},
		{"RedriveAllowPolicy", "null"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		merged, err := merge(defaults(false), map[string]string{name: value}, false)
		if err != nil {
			return
		}
		settings := settingsOf(merged)
		again, err := merge(defaults(false), map[string]string{name: merged[name]}, false)
		if value != "" && (err != nil || again[name] != merged[name]) {
			t.Errorf("%s %q is kept as %q and that as %q, %v", name, value, merged[name], again[name], err)
		}
		if settings.visibility < 0 || settings.retention < time.Minute || settings.maxSize < 1024 {
			t.Errorf("%s %q makes %+v", name, value, settings)
		}
	})
}

// FuzzRecord replays what a journal may hold, a record a line. A record that is no record is an
// error; no other makes the queues fall over, and what they say of themselves is what they were
// told.
func FuzzRecord(f *testing.F) {
	for _, text := range []string{
		"", "{}", "null", "[]", `{"q":1}`, `{"q":1,"gone":true}`, `{"q":1,"put":{"seq":1}}`,
		`{"q":1,"queue":{"region":"r","account":"a","name":"q"}}` + "\n" + `{"q":1,"put":{"seq":1,"id":"i","body":"b"}}` + "\n" + `{"q":1,"upd":[{"seq":1,"n":1,"flying":true,"due":"2030-01-01T00:00:00Z"}]}`,
		`{"q":1,"queue":{"region":"r","account":"a","name":"q.fifo","attributes":{"FifoQueue":"true"}}}` + "\n" + `{"q":1,"put":{"seq":3,"group":"g"},"dedup":{"key":"k","until":"2030-01-01T00:00:00Z"}}` + "\n" + `{"q":2,"queue":{"region":"r","account":"a","name":"p"}}` + "\n" + `{"q":2,"put":{"seq":9},"from":1,"left":3}`,
		`{"deleted":[{"region":"r","account":"a","name":"q","at":"2030-01-01T00:00:00Z"}]}`, `{"q":1,"del":[0,1]}`, `{"q":1,"purge":true}`,
		`{"q":1,"queue":{"attributes":{"VisibilityTimeout":"-1","RedrivePolicy":"x"}}}` + "\n" + `{"q":1,"upd":[{}]}`,
		`{"q":1,"queue":{"attributes":{"FifoQueue":"true"}}}` + "\n" + `{"q":1,"put":{"seq":1}}` + "\n" + `{"q":1,"queue":{"attributes":{"FifoQueue":"true","DelaySeconds":"9"}},"delayed":true}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		first := replayed(t, bytes.Split(text, []byte("\n")))
		if first == nil {
			return
		}
		second := replayed(t, first)
		if diff := cmp.Diff(asSet(first), asSet(second)); diff != "" {
			t.Errorf("a snapshot of what was replayed replays as something else (-first +second):\n%s", diff)
		}
	})
}

// replayed makes queues of records and returns the records of a snapshot of them; nil if one is no
// record.
func replayed(t *testing.T, records [][]byte) [][]byte {
	all := &restored{queues: map[uint64]*restoredQueue{}}
	for _, r := range records {
		if all.apply(r) != nil {
			return nil
		}
	}
	s := fuzzed(t)
	for uid, r := range all.queues {
		s.queues.put(s.rebuild(uid, r))
	}
	snapshot := [][]byte{}
	if err := s.emit(func(r []byte) error { snapshot = append(snapshot, bytes.Clone(r)); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, q := range s.queues.all() {
		if now, err := q.enter(); err == nil {
			q.leave(now)
		}
	}
	return snapshot
}

func asSet(records [][]byte) map[string]bool {
	set := map[string]bool{}
	for _, r := range records {
		set[string(r)] = true
	}
	return set
}
