package localaws_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/awsquery"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/page"
	"github.com/stepfleet/stepfleet/localaws/seal"
	localsqs "github.com/stepfleet/stepfleet/localaws/sqs"
	localsts "github.com/stepfleet/stepfleet/localaws/sts"
)

// The requests that the SDK's own tests record have every member of every operation set. Each of
// them must be understood, and each member must be one that the operation reads.

// reserved are members of SQS that AWS itself does not implement.
var reserved = []string{"StringListValues", "BinaryListValues"}

// TestRecordedRequests is about SQS.
func TestRecordedRequests(t *testing.T) {
	service, err := localsqs.New(localsqs.Options{Clock: clock.System(), IDs: api.NewIDs(1), Tokens: page.NewTokens(seal.NewKey(1))})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range snapshots(t, "sqs", 23) {
		target, body := recorded(t, file)
		op := strings.TrimPrefix(target, "AmazonSQS.")
		d := json.NewDecoder(strings.NewReader(withoutMembers(t, body, reserved)))
		d.DisallowUnknownFields()
		if err := d.Decode(operation(t, service.API(), op).NewIn()); err != nil {
			t.Errorf("%s: %v", op, err)
		}
		w := post(localaws.New(localaws.Options{}), target, body, nil)
		unknown := strings.Contains(w.Body.String(), "UnknownOperationException")
		if unknown || strings.Contains(w.Body.String(), "SerializationException") || w.Code >= http.StatusInternalServerError {
			t.Errorf("%s: %d %s", op, w.Code, w.Body)
		}
	}
}

func TestRecordedSTSRequests(t *testing.T) {
	service := localsts.New(localsts.Options{Clock: clock.System(), IDs: api.NewIDs(1), Key: seal.NewKey(1)})
	for _, file := range snapshots(t, "sts", 11) {
		_, body := recorded(t, file)
		op, _, _ := strings.Cut(filepath.Base(file), ".")
		for _, parameter := range unread(t, operation(t, service.API(), op), body) {
			t.Errorf("%s: nobody reads %s", op, parameter)
		}
		r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		localaws.New(localaws.Options{}).ServeHTTP(w, r)
		unknown := strings.Contains(w.Body.String(), "InvalidAction")
		if unknown || strings.Contains(w.Body.String(), "MalformedInput") || w.Code >= http.StatusInternalServerError {
			t.Errorf("%s: %d %s", op, w.Code, w.Body)
		}
	}
}

// TestUnreadParametersAreFound is about the test itself.
func TestUnreadParametersAreFound(t *testing.T) {
	type in struct {
		Name string `json:"Name"`
		List []struct {
			Key string `json:"Key"`
		} `json:"List"`
	}
	op := api.Op(func(context.Context, *in) (*api.Empty, error) { return nil, nil })
	got := unread(t, op, "Action=X&Version=1&Name=n&Other=o&List.member.1.Key=k&List.member.1.Value=v&List.member.2.Key=k")
	if want := []string{"Other=o", "List.member.1.Value=v"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// withoutMembers returns a JSON text without the members of those names, at any depth.
func withoutMembers(t *testing.T, text string, names []string) string {
	t.Helper()
	var value any
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatal(err)
	}
	drop(value, names)
	left, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(left)
}

func drop(value any, names []string) {
	switch v := value.(type) {
	case []any:
		for _, element := range v {
			drop(element, names)
		}
	case map[string]any:
		for _, name := range names {
			delete(v, name)
		}
		for _, member := range v {
			drop(member, names)
		}
	}
}

// unread returns the parameters of a call that make no difference to the operation's input.
func unread(t *testing.T, op api.Operation, body string) (parameters []string) {
	t.Helper()
	decode := func(body string) any {
		params, err := awsquery.Parse(body)
		if err != nil {
			t.Fatal(err)
		}
		in := op.NewIn()
		if err := (&awsquery.Codec{Params: params}).Decode(in); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		return in
	}
	all := strings.Split(body, "&")
	whole := decode(body)
	for i, parameter := range all {
		name, _, _ := strings.Cut(parameter, "=")
		without := slices.Delete(slices.Clone(all), i, i+1)
		if name != "Action" && name != "Version" && reflect.DeepEqual(decode(strings.Join(without, "&")), whole) {
			parameters = append(parameters, parameter)
		}
	}
	return parameters
}

func operation(t *testing.T, service api.Service, name string) api.Operation {
	t.Helper()
	op, ok := service.Ops[name]
	if !ok {
		t.Fatalf("%s has no operation %s", service.Name, name)
	}
	return op
}

// snapshots returns the files of a service, which must be as many as that: a new one is an operation
// that is new.
func snapshots(t *testing.T, service string, want int) []string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/aws/aws-sdk-go-v2/service/"+service).Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "request_snapshot", "*.request.snap"))
	if err != nil || len(files) != want {
		t.Fatalf("%d recorded requests of %s, want %d: %v", len(files), service, want, err)
	}
	return files
}

// recorded reads a snapshot: request line, headers, an empty line, the body.
func recorded(t *testing.T, file string) (target, body string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "X-Amz-Target: "); ok {
			target = value
		}
		body = lines.Text()
	}
	return target, body
}
