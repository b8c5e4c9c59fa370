//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/pglocal"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

// secrets are those of a stack, by what they are.
type secrets map[string]string

// in returns what of them is in the text.
func (all secrets) in(text []byte) []string {
	var found []string
	for name, secret := range all {
		if bytes.Contains(text, []byte(secret)) {
			found = append(found, name)
		}
	}
	return found
}

// TestSecretsStayWhereTheyBelong runs steps that end well, fail and die, with every log at its most
// talkative and PostgreSQL killed in between. The token and the passwords are then in their own files,
// in the environment of those who need them, and nowhere else.
func TestSecretsStayWhereTheyBelong(t *testing.T) {
	t.Parallel()
	dir, err := stackDir()
	if err != nil {
		t.Fatal(err)
	}
	s, err := startStack(dir, stackOptions{workers: 1, queues: []string{"default:4"}, environ: []string{"STEPFLEET_LOG_LEVEL=debug", "STEPFLEET_TOKEN=the user's own"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	s.use(t)
	known := s.secrets(t)

	file, give := release(t)
	failing := s.dagster.launch(t, "one", config{ops: map[string]any{"work_0": behaviour{"fail_attempts": 1}}})
	s.dagster.awaitEnd(t, runTimeout, failing, dagsterapi.RunFailure)
	crashing := s.dagster.launch(t, "one", config{ops: map[string]any{"work_0": behaviour{"crash": true}}})
	s.dagster.awaitEnd(t, runTimeout, crashing, dagsterapi.RunFailure)
	run := s.dagster.launch(t, "three", config{ops: numbered("work", 3, behaviour{"release": file}, nil)})
	s.awaitBegins(t, runTimeout, 3, run)
	s.checkProcesses(t, known)
	s.signal(t, "postgres", syscall.SIGKILL)
	await(t, healthyTimeout, "the server to miss PostgreSQL", func() (bool, string) { return s.server.ready() != nil, "it is ready" })
	s.awaitHealthy(t)
	give()
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	s.awaitHealthy(t)
	s.checkProcesses(t, known)

	for _, id := range []string{failing, crashing, run} {
		s.checkAnswers(t, known, id)
	}
	s.checkFiles(t, known)
	s.checkDumps(t, known)
}

// secrets finds out what must not be seen: the stack has made it up.
func (s *stack) secrets(t *testing.T) secrets {
	t.Helper()
	state := s.state()
	return secrets{
		"token":              s.server.token,
		"owner's password":   passwordOf(t, readLine(t, state.LedgerURL)),
		"Dagster's password": passwordOf(t, readLine(t, state.DagsterURL)),
		"server's password":  passwordOf(t, variableOf(t, s.pid(t, "server"), "STEPFLEET_DATABASE_URL")),
		"worker's password":  passwordOf(t, variableOf(t, s.pid(t, "worker-1"), "STEPFLEET_DATABASE_URL")),
		"user's token":       "the user's own",
	}
}

func passwordOf(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal("the DSN is no URL")
	}
	password, ok := u.User.Password()
	if !ok || len(password) < 16 {
		t.Fatalf("the DSN of user %s has no password to speak of", u.User.Username())
	}
	return password
}

func variableOf(t *testing.T, pid int, name string) string {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	for variable := range bytes.SplitSeq(raw, []byte{0}) {
		if key, value, _ := strings.Cut(string(variable), "="); key == name {
			return value
		}
	}
	t.Fatalf("process %d has no %s", pid, name)
	return ""
}

// checkProcesses looks at the argument list and the environment of every process of the stack.
func (s *stack) checkProcesses(t *testing.T, known secrets) {
	t.Helper()
	state := s.state()
	needs := map[int]string{state.PIDs["server"]: "server's password", state.PIDs["worker-1"]: "worker's password"}
	seen := 0
	for _, p := range proctable.Descendants(s.cmd.Process.Pid) {
		if found := known.in([]byte(p.Command)); len(found) > 0 {
			t.Errorf("the argument list of process %d has the %v: %s", p.PID, found, p.Command)
		}
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID))
		if err != nil {
			continue // it has just ended
		}
		seen++
		for _, name := range known.in(environ) {
			dagsters := name == "Dagster's password" && (p.PID == state.PIDs["worker-1"] || strings.Contains(p.Command, "python"))
			if needs[p.PID] != name && !dagsters {
				t.Errorf("process %d has the %s in its environment, and needs it not: %s", p.PID, name, p.Command)
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d processes were looked at", seen)
	}
}

// checkAnswers looks at what the servers tell of a run, and Dagster's events among it.
func (s *stack) checkAnswers(t *testing.T, known secrets, run string) {
	t.Helper()
	for _, path := range []string{"/v1/sessions", "/v1/queues", "/readyz", "/v1/runs/" + run + "/tasks", "/v1/runs/" + run + "/audit"} {
		var answer json.RawMessage
		if err := s.server.get(path, &answer); err != nil {
			t.Error(err)
		}
		if found := known.in(answer); len(found) > 0 {
			t.Errorf("GET %s tells the %v", path, found)
		}
	}
	events := fmt.Sprint(s.dagster.events(t, run))
	if found := known.in([]byte(events)); len(found) > 0 || len(events) < 100 {
		t.Errorf("Dagster's events tell the %v: %s", found, events)
	}
}

// checkFiles looks at everything the stack has written, but for the files that are there to keep secrets.
func (s *stack) checkFiles(t *testing.T, known secrets) {
	t.Helper()
	keep := []string{filepath.Join(s.dir, "dev", "secrets"), filepath.Join(s.dir, "dev", "postgres", "password")}
	logs := 0
	err := filepath.WalkDir(s.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil // files of PostgreSQL come and go
		}
		for _, place := range keep {
			if strings.HasPrefix(path, place) {
				info, err := entry.Info()
				if err == nil && info.Mode().Perm()&0o077 != 0 {
					t.Errorf("others may read %s: %s", path, info.Mode())
				}
				return nil
			}
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		if found := known.in(text); len(found) > 0 {
			t.Errorf("%s holds the %v", path, found)
		}
		if strings.HasSuffix(path, ".log") && len(text) > 0 {
			logs++
		}
		return nil
	})
	if err != nil || logs < 5 {
		t.Errorf("%d logs were looked at: %v", logs, err)
	}
}

// checkDumps looks at what pg_dump writes of both databases.
func (s *stack) checkDumps(t *testing.T, known secrets) {
	t.Helper()
	install, err := pglocal.Find(pglocal.FindOptions{Python: python})
	if err != nil {
		t.Fatal(err)
	}
	owner, err := url.Parse(readLine(t, s.state().LedgerURL))
	if err != nil {
		t.Fatal("the DSN is no URL")
	}
	password, _ := owner.User.Password()
	for _, database := range []string{"stepfleet", "dagster"} {
		dump := exec.Command(filepath.Join(install.BinDir, "pg_dump"), "-h", owner.Hostname(), "-p", owner.Port(), "-U", owner.User.Username(), database)
		dump.Env = append(os.Environ(), "PGPASSWORD="+password)
		text, err := dump.Output()
		if err != nil || len(text) < 10_000 {
			t.Errorf("the dump of %s has %d bytes: %v", database, len(text), err)
		}
		if found := known.in(text); len(found) > 0 {
			t.Errorf("the dump of %s holds the %v", database, found)
		}
	}
}
