package clients_test

import (
	"bytes"
	"cmp"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/clock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// everything makes a client that is missing a failure, and runs those that are slow.
var everything = os.Getenv("LOCALAWS_CLIENTS") == "all"

// kind is one client of the matrix.
type kind struct {
	name  string
	core  bool   // runs in `go test`, where it is installed
	typed bool   // names classes of errors
	needs string // how to get what it needs
	// speaks is the protocol by which the client calls each service.
	speaks map[string]string
	// missing reports what is not there, or nothing.
	missing func() string
	start   func(t *testing.T, endpoint string) client
}

var matrix = []kind{
	{
		name: "go", core: true, typed: true, speaks: map[string]string{"sqs": "json", "sts": "query", "cloudwatch": "cbor"}, missing: func() string { return "" },
		start: func(t *testing.T, endpoint string) client { return newGoSDK(t.Context(), endpoint) },
	},
	{
		name: "boto3", core: true, typed: true, needs: "make setup", speaks: map[string]string{"sqs": "json", "sts": "query", "cloudwatch": "json"},
		missing: func() string { return noModule(python(), "boto3") },
		start: func(t *testing.T, endpoint string) client {
			return startPipe(t, endpoint, python(), "boto3_client.py")
		},
	},
	{
		name: "cli1", needs: "scripts/setup-python clients", speaks: map[string]string{"sqs": "json", "sts": "query", "cloudwatch": "json"},
		missing: func() string { return noModule(clientsPython, "awscli") },
		start: func(t *testing.T, endpoint string) client {
			return startPipe(t, endpoint, clientsPython, "cli_client.py", clientsPython, "-m", "awscli")
		},
	},
	{
		name: "cli2", needs: "apt-get install awscli", speaks: map[string]string{"sqs": "query", "sts": "query", "cloudwatch": "query"},
		missing: func() string { return noProgram(debianCLI) },
		start: func(t *testing.T, endpoint string) client {
			return startPipe(t, endpoint, python(), "cli_client.py", debianCLI)
		},
	},
	{
		name: "js", typed: true, needs: "nodejs 18 or later and npm, then npm ci in localaws/clients/js",
		speaks: map[string]string{"sqs": "json", "sts": "query", "cloudwatch": "json"},
		missing: func() string {
			return cmp.Or(noProgram("node"), noFile("js/node_modules/@aws-sdk/client-cloudwatch"))
		},
		start: func(t *testing.T, endpoint string) client { return startPipe(t, endpoint, "node", "js/client.mjs") },
	},
}

// Where `make test-aws` puts what is not part of every setup.
const (
	clientsPython = "../../.venv-clients/bin/python"
	debianCLI     = "/usr/bin/aws"
)

func python() string { return cmp.Or(os.Getenv("STEPFLEET_PYTHON"), "python3") }

func noModule(python, module string) string {
	if out, err := exec.Command(python, "-c", "import "+module).CombinedOutput(); err != nil {
		return "no " + module + " in " + python + ": " + err.Error() + " " + lastLine(string(out))
	}
	return ""
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

func noProgram(name string) string {
	if _, err := exec.LookPath(name); err != nil {
		return err.Error()
	}
	return ""
}

func noFile(path string) string {
	if _, err := os.Stat(path); err != nil {
		return err.Error()
	}
	return ""
}

// available skips or fails the test for a client that is not there.
func (k *kind) available(t *testing.T) {
	t.Helper()
	if !k.core && !everything {
		t.Skip("runs in make test-aws")
	}
	missing := k.missing()
	switch {
	case missing == "":
	case everything || os.Getenv("CI") != "":
		t.Fatalf("the client %s is not here: %s; install it: %s", k.name, missing, k.needs)
	default:
		t.Skip(missing)
	}
}

// target is a local AWS whose clock can be moved ahead, and what was said to it.
type target struct {
	endpoint string
	clock    *clock.Offset

	mu     sync.Mutex
	spoken map[string][]string // service: the protocols by which it was called
}

func serve(t *testing.T) *target {
	t.Helper()
	s := &target{clock: clock.NewOffset(clock.System()), spoken: map[string][]string{}}
	local := localaws.New(localaws.Options{Clock: s.clock, Metrics: true})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.hear(r)
		local.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.endpoint = server.URL
	return s
}

// Marks of a call that name its service: in the target of JSON, in the path of CBOR, and as the
// version of the API in a form.
var serviceMarks = map[string]string{
	"AmazonSQS": "sqs", "2012-11-05": "sqs", "2011-06-15": "sts",
	"GraniteServiceVersion20100801": "cloudwatch", "2010-08-01": "cloudwatch",
}

// hear notes the protocol of a call, as its headers have it.
func (s *target) hear(r *http.Request) {
	protocol, mark := "", ""
	switch target, _, ok := strings.Cut(r.Header.Get("X-Amz-Target"), "."); {
	case ok:
		protocol, mark = "json", target
	case r.Header.Get("Smithy-Protocol") == "rpc-v2-cbor":
		protocol, mark = "cbor", strings.Split(r.URL.Path+"//", "/")[2]
	case strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded"):
		body, _ := io.ReadAll(r.Body) // what is wrong with it, the server sees too
		r.Body = io.NopCloser(bytes.NewReader(body))
		form, _ := url.ParseQuery(string(body))
		protocol, mark = "query", form.Get("Version")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if service := serviceMarks[mark]; !slices.Contains(s.spoken[service], protocol) {
		s.spoken[service] = append(s.spoken[service], protocol)
	}
}

// TestMatrix plays every scenario with every client. A client must meet every operation, unless the
// scenarios say why it cannot, and must do so by the protocol that is its own: each of them is some
// client's only one.
func TestMatrix(t *testing.T) {
	all := scenarios(t)
	for _, k := range matrix {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			k.available(t)
			s := serve(t)
			r := newRunner(k.start(t, s.endpoint), s.endpoint)
			r.typed, r.query, r.advance, r.now = k.typed, k.speaks["sqs"] == "query", s.clock.Advance, s.clock.Now
			for _, s := range all {
				if s.Not[k.name] == "" {
					playAll(t, r, s)
				}
			}
			k.checkCoverage(t, all, r.called)
			k.checkProtocols(t, s.spoken)
		})
	}
}

// checkProtocols compares how the services were called with how the client does it.
func (k *kind) checkProtocols(t *testing.T, spoken map[string][]string) {
	t.Helper()
	want := map[string][]string{}
	for service, protocol := range k.speaks {
		want[service] = []string{protocol}
	}
	if diff := gocmp.Diff(want, spoken); diff != "" {
		t.Errorf("the protocols of %s (-want +got):\n%s", k.name, diff)
	}
}

func playAll(t *testing.T, r *runner, s scenario) {
	t.Helper()
	differences, err := r.play(s)
	for _, d := range differences {
		t.Errorf("%s: %v", s.Name, d)
	}
	if err != nil {
		t.Fatalf("%s: %v", s.Name, err)
	}
}

// checkCoverage compares what was called with what is emulated.
func (k *kind) checkCoverage(t *testing.T, all []scenario, called map[string]bool) {
	t.Helper()
	excused := map[string]bool{}
	for _, s := range all {
		for i := range s.Steps {
			if service, op := s.Steps[i].service(); s.Not[k.name] != "" {
				excused[service+"."+op] = true
			}
		}
	}
	for _, name := range wanted() {
		if !called[name] && !excused[name] {
			t.Errorf("%s never called %s: add it to a scenario", k.name, name)
		}
	}
}

// wanted are the operations that every client must call: all that there are.
func wanted() []string {
	clientNames := map[string]string{"monitoring": "cloudwatch"}
	var names []string
	for _, s := range localaws.New(localaws.Options{}).Operations() {
		for _, op := range s.Operations {
			names = append(names, cmp.Or(clientNames[s.Service], s.Service)+"."+op)
		}
	}
	return names
}

// TestLocksNameNoRegistry keeps addresses of package registries out of the locks.
func TestLocksNameNoRegistry(t *testing.T) {
	for _, path := range []string{"js/package-lock.json", "requirements.lock"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "://") && !strings.Contains(line, `"url": "https://github.com/sponsors`) {
				t.Errorf("%s: %s", filepath.Base(path), strings.TrimSpace(line))
			}
		}
	}
}
