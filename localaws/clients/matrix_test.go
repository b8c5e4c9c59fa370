package clients_test

import (
	"cmp"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

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
	query bool   // speaks Query
	needs string // how to get what it needs
	// missing reports what is not there, or nothing.
	missing func() string
	start   func(t *testing.T, endpoint string) client
}

var matrix = []kind{
	{
		name: "go", core: true, typed: true, missing: func() string { return "" },
		start: func(t *testing.T, endpoint string) client { return newGoSDK(t.Context(), endpoint) },
	},
	{
		name: "boto3", core: true, typed: true, needs: "make setup", missing: func() string { return noModule(python(), "boto3") },
		start: func(t *testing.T, endpoint string) client {
			return startPipe(t, endpoint, python(), "boto3_client.py")
		},
	},
	{
		name: "cli1", needs: "scripts/setup-python clients", missing: func() string { return noModule(clientsPython, "awscli") },
		start: func(t *testing.T, endpoint string) client {
			return startPipe(t, endpoint, clientsPython, "cli_client.py", clientsPython, "-m", "awscli")
		},
	},
	{
		name: "cli2", query: true, needs: "apt-get install awscli", missing: func() string { return noProgram(debianCLI) },
		start: func(t *testing.T, endpoint string) client {
			return startPipe(t, endpoint, python(), "cli_client.py", debianCLI)
		},
	},
	{
		name: "js", typed: true, needs: "nodejs 18 or later and npm, then npm ci in localaws/clients/js",
		missing: func() string {
			return cmp.Or(noProgram("node"), noFile("js/node_modules/@aws-sdk/client-sqs"))
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

// serve starts a local AWS whose clock can be moved ahead.
func serve(t *testing.T) (endpoint string, c *clock.Offset) {
	t.Helper()
	c = clock.NewOffset(clock.System())
	server := httptest.NewServer(localaws.New(localaws.Options{Clock: c}))
	t.Cleanup(server.Close)
	return server.URL, c
}

// TestMatrix plays every scenario with every client. A client must meet every operation, unless the
// scenarios say why it cannot.
func TestMatrix(t *testing.T) {
	all := scenarios(t)
	for _, k := range matrix {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			k.available(t)
			endpoint, c := serve(t)
			r := newRunner(k.start(t, endpoint), endpoint)
			r.typed, r.query, r.advance = k.typed, k.query, c.Advance
			for _, s := range all {
				if s.Not[k.name] == "" {
					playAll(t, r, s)
				}
			}
			k.checkCoverage(t, all, r.called)
		})
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

// wanted are the operations that every client must call: all of SQS, and what each client of AWS
// asks STS.
func wanted() []string {
	names := map[string]bool{"sts.GetCallerIdentity": true, "sts.AssumeRole": true}
	for _, s := range localaws.New(localaws.Options{}).Operations() {
		for _, op := range s.Operations {
			if s.Service == "sqs" {
				names["sqs."+op] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
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
