// Package clients shows what real clients of AWS see of localaws: boto3, the AWS command line 1 and
// 2, the Go SDK and the JavaScript SDK run the same scenarios over the wire.
//
// Where to read: scenarios/*.json say what is called and what is answered; this file reads them and
// judges answers. A client is anything that makes one call: pipe_test.go has those in other
// languages, each a small program that reads calls from its input and writes answers
// (boto3_client.py, cli_client.py, js/client.mjs); gosdk_test.go has Go's. matrix_test.go runs every
// client, and sees by which protocol each calls which service; moto_test.go runs boto3 against
// another emulator and explains each difference in moto.md.
//
// `go test` runs the clients of Go and Python; `make test-aws` runs all of them.
package clients_test

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The caller of every scenario. An access key of twelve digits is its own account.
const (
	region  = "eu-west-1"
	account = "123456789012"
)

// scenario is a story of calls that nothing else touches the queues of.
type scenario struct {
	Name string `json:"name"`
	// Not names the clients that cannot run it, each with the reason.
	Not   map[string]string `json:"not"`
	Steps []step            `json:"steps"`
}

// step is one call and its answer, or an advance of the server's clock.
//
// In what is sent, ${name} is what an earlier step saved, ${repeat:x:3} is xxx, {"$bytes": text} is
// binary, {"$base64": text} its base64, {"$json": document} the document as text, {"$time": "-10m"} the
// moment ten minutes before the scenario began and ${now} the text of when it did. In what is expected, "*" is any text that is not empty, "#" any number,
// "~..." a regular expression, "md5:..." the digest of the text, "minute:-10m" the minute of such a
// moment, "time:" any moment, [] also an absent member, and a member whose name ends in ? may be
// absent, as in clients that are older than it; everything else must be as it is written, and nothing
// more may be there.
type step struct {
	Op      string            `json:"op"` // of SQS, or with its service: sts.AssumeRole
	In      map[string]any    `json:"in"`
	Out     map[string]any    `json:"out"`
	Save    map[string]string `json:"save"` // variable: path in the answer
	Error   *failure          `json:"error"`
	Advance string            `json:"advance"`
}

// failure is an error as a client reports it. Type is the class of a modelled error, in clients
// that have one; expected with a ? at its end, not all of them do.
type failure struct {
	Code    string `json:"code"`
	Type    string `json:"type,omitempty"`
	Message string `json:"message"`
}

// answer is what a client makes of an answer: one of its members is set.
type answer struct {
	Out   map[string]any `json:"out"`
	Error *failure       `json:"error"`
}

// client makes one call.
type client interface {
	call(service, op string, in map[string]any) (answer, error)
}

func scenarios(t *testing.T) []scenario {
	t.Helper()
	files, err := filepath.Glob("scenarios/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	var all []scenario
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var some []scenario
		decoder := json.NewDecoder(strings.NewReader(string(text)))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&some); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, some...)
	}
	return all
}

func (s *step) service() (service, op string) {
	if service, op, ok := strings.Cut(s.Op, "."); ok {
		return service, op
	}
	return "sqs", s.Op
}

// movesClock reports whether the scenario needs a server whose clock can be moved.
func (s *scenario) movesClock() bool {
	return slices.ContainsFunc(s.Steps, func(s step) bool { return s.Advance != "" })
}

// runner plays scenarios with one client against one server.
type runner struct {
	client  client
	typed   bool // the client names classes of errors
	query   bool // the client speaks Query, where one text differs
	advance func(time.Duration)
	now     func() time.Time // of the server
	began   time.Time        // when the scenario did
	vars    map[string]string
	called  map[string]bool // operations that were called
}

func newRunner(c client, endpoint string) *runner {
	return &runner{
		client: c, typed: true, called: map[string]bool{}, now: time.Now,
		vars: map[string]string{"endpoint": endpoint, "region": region, "account": account},
	}
}

// difference is where an answer is not what the scenario says.
type difference struct{ step, path, what string }

func (d difference) String() string { return d.step + ": " + d.path + ": " + d.what }

// play runs a scenario and returns the differences. A step for which an earlier one saved nothing
// is left out.
func (r *runner) play(s scenario) ([]difference, error) {
	var all []difference
	r.began = r.now()
	r.vars["now"] = r.began.UTC().Format(time.RFC3339)
	for i := range s.Steps {
		st := &s.Steps[i]
		if st.Advance != "" {
			d, err := time.ParseDuration(st.Advance)
			if err != nil {
				return nil, err
			}
			r.advance(d)
			continue
		}
		in, ok := r.expand(st.In, true)
		if !ok {
			continue
		}
		service, op := st.service()
		r.called[service+"."+op] = true
		got, err := r.client.call(service, op, in.(map[string]any))
		if err != nil {
			return all, fmt.Errorf("step %d, %s: %w", i+1, op, err)
		}
		for _, d := range r.judge(st, got) {
			d.step = fmt.Sprintf("%d %s", i+1, op)
			all = append(all, d)
		}
		for name, path := range st.Save {
			if value, ok := at(got.Out, path).(string); ok {
				r.vars[name] = value
			}
		}
	}
	for name := range r.vars {
		if name != "endpoint" && name != "region" && name != "account" {
			delete(r.vars, name)
		}
	}
	return all, nil
}

// at follows a path such as Messages.0.ReceiptHandle.
func at(v any, path string) any {
	for name := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[name]
		case []any:
			n, err := strconv.Atoi(name)
			if err != nil || n >= len(x) {
				return nil
			}
			v = x[n]
		}
	}
	return v
}

var variable = regexp.MustCompile(`\$\{([^}]+)\}`)

// expand replaces variables; ok is false if one of them has no value. For sending, documents become
// text and binary values base64.
func (r *runner) expand(v any, sending bool) (_ any, ok bool) {
	ok = true
	switch x := v.(type) {
	case string:
		text := variable.ReplaceAllStringFunc(x, func(found string) string {
			name := found[2 : len(found)-1]
			if args := strings.Split(name, ":"); args[0] == "repeat" {
				n, _ := strconv.Atoi(args[2])
				return strings.Repeat(args[1], n)
			}
			value, known := r.vars[name]
			ok = ok && known
			return value
		})
		return text, ok
	case []any:
		list := make([]any, len(x))
		for i, e := range x {
			var good bool
			list[i], good = r.expand(e, sending)
			ok = ok && good
		}
		return list, ok
	case map[string]any:
		return r.expandMap(x, sending)
	}
	return v, true
}

func (r *runner) expandMap(x map[string]any, sending bool) (_ any, ok bool) {
	m, ok := map[string]any{}, true
	for key, e := range x {
		value, good := r.expand(e, sending)
		ok = ok && good
		m[key] = value
	}
	if !sending {
		return m, ok
	}
	if document, is := m["$json"]; is {
		text, err := json.Marshal(document)
		return string(text), ok && err == nil
	}
	if text, is := m["$base64"].(string); is {
		return base64.StdEncoding.EncodeToString([]byte(text)), ok
	}
	if text, is := m["$bytes"].(string); is {
		return map[string]any{"$bytes": base64.StdEncoding.EncodeToString([]byte(text))}, ok
	}
	if text, is := m["$time"].(string); is {
		at, err := r.moment(text)
		return map[string]any{"$time": at.UTC().Format(time.RFC3339)}, ok && err == nil
	}
	return m, ok
}

// moment returns when it is by the scenario's own clock: so long after it began.
func (r *runner) moment(offset string) (time.Time, error) {
	d, err := time.ParseDuration(offset)
	return r.began.Add(d), err
}

func (r *runner) judge(s *step, got answer) []difference {
	if s.Error == nil {
		if got.Error != nil {
			return []difference{{path: "error", what: fmt.Sprintf("%s: %s", got.Error.Code, shorten(got.Error.Message))}}
		}
		want, _ := r.expand(s.Out, false)
		var all []difference
		r.compare("", want, got.Out, func(path, what string) {
			all = append(all, difference{path: strings.TrimPrefix(path, "."), what: what})
		})
		return all
	}
	if got.Error == nil {
		return []difference{{path: "error", what: "none, want " + s.Error.Code}}
	}
	return r.judgeError(*s.Error, *got.Error)
}

// noQueueQuery is what the Query protocol adds to the text of a queue that does not exist.
const noQueueQuery = "The specified queue does not exist for this wsdl version."

func (r *runner) judgeError(want, got failure) []difference {
	message, _ := r.expand(want.Message, false)
	if r.query && want.Type == "QueueDoesNotExist" {
		message = noQueueQuery
	}
	class, optional := strings.CutSuffix(want.Type, "?")
	if want.Type = class; !r.typed || optional && got.Type == "" {
		want.Type, got.Type = "", ""
	}
	var all []difference
	note := func(path, what string) { all = append(all, difference{path: path, what: what}) }
	r.compare("error.code", want.Code, got.Code, note)
	r.compare("error.type", want.Type, got.Type, note)
	r.compare("error.message", message, got.Message, note)
	return all
}

// compare reports where got is not what is wanted.
func (r *runner) compare(path string, want, got any, note func(path, what string)) {
	switch w := want.(type) {
	case map[string]any:
		r.compareMap(path, w, got, note)
	case []any:
		g, _ := got.([]any)
		if got != nil && g == nil || len(g) != len(w) {
			note(path, fmt.Sprintf("%s, want %d elements", show(got), len(w)))
			return
		}
		for i := range w {
			r.compare(path+"."+strconv.Itoa(i), w[i], g[i], note)
		}
	case string:
		if !r.matches(w, got) {
			note(path, fmt.Sprintf("%s, want %s", show(got), show(w)))
		}
	default:
		if !reflect.DeepEqual(want, got) {
			note(path, fmt.Sprintf("%s, want %s", show(got), show(want)))
		}
	}
}

func (r *runner) compareMap(path string, want map[string]any, got any, note func(path, what string)) {
	if document, ok := want["$json"]; ok {
		var parsed any
		text, _ := got.(string)
		if json.Unmarshal([]byte(text), &parsed) != nil {
			note(path, show(got)+" is no document")
			return
		}
		r.compare(path, document, parsed, note)
		return
	}
	if text, ok := want["$bytes"].(string); ok {
		r.compare(path, base64.StdEncoding.EncodeToString([]byte(text)), got, note)
		return
	}
	g, ok := got.(map[string]any)
	if !ok && got != nil {
		note(path, show(got)+" is no structure")
		return
	}
	want = withoutAbsent(want, g)
	for _, key := range sorted(want, g) {
		if _, expected := want[key]; !expected {
			note(path+"."+key, show(g[key])+", want nothing")
			continue
		}
		r.compare(path+"."+key, want[key], g[key], note)
	}
}

// withoutAbsent leaves out the members that may be absent and are.
func withoutAbsent(want, got map[string]any) map[string]any {
	kept := map[string]any{}
	for name, value := range want {
		plain, optional := strings.CutSuffix(name, "?")
		if _, there := got[plain]; there || !optional {
			kept[plain] = value
		}
	}
	return kept
}

func sorted(a, b map[string]any) []string {
	var keys []string
	for key := range a {
		keys = append(keys, key)
	}
	for key := range b {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// matches compares a value with the pattern that a string in a scenario is.
func (r *runner) matches(want string, got any) bool {
	if want == "#" {
		_, ok := got.(float64)
		return ok
	}
	if want == "time:" {
		_, ok := parseTime(got)
		return ok
	}
	if offset, is := strings.CutPrefix(want, "minute:"); is {
		at, err := r.moment(offset)
		moment, ok := parseTime(got)
		return ok && err == nil && moment.Equal(at.Truncate(time.Minute))
	}
	text, ok := got.(string)
	if !ok {
		return false
	}
	if pattern, is := strings.CutPrefix(want, "~"); is {
		return regexp.MustCompile(`(?s)^(?:` + pattern + `)$`).MatchString(text)
	}
	if of, is := strings.CutPrefix(want, "md5:"); is {
		sum := md5.Sum([]byte(of))
		return text == hex.EncodeToString(sum[:])
	}
	return want == "*" && text != "" || want == text
}

// parseTime reads a time as any of the clients writes it: as RFC 3339 has it, as Python does, or, as
// the command line 1 does, in the way that it came, which in JSON is in seconds since 1970.
func parseTime(v any) (time.Time, bool) {
	switch x := v.(type) {
	case float64:
		return time.UnixMilli(int64(math.Round(x * 1000))), true
	case string:
		for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05.999999-07:00"} {
			if at, err := time.Parse(layout, x); err == nil {
				return at, true
			}
		}
	}
	return time.Time{}, false
}

// show writes a value for a person.
func show(v any) string {
	if v == nil {
		return "nothing"
	}
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return shorten(string(text))
}

func shorten(text string) string {
	if len(text) > 300 {
		return text[:300] + "..."
	}
	return text
}
