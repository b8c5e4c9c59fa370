//go:build linux

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

// Dagster's log has the step's success when the hook begins, and the ledger must not say otherwise.
func TestAStepWhoseProcessDiesInAHookHasSucceeded(t *testing.T) {
	s := shared(t)
	run := s.dagster.launch(t, "killed_in_a_hook", config{ops: map[string]any{"work": behaviour{}}})
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	task := s.server.tasks(t, run).of(t, "work", 0)
	if task.State != stepfleet.StateSucceeded || task.Result == nil || task.Result.Event != "STEP_SUCCESS" {
		t.Errorf("task is %s with %+v, want succeeded", task.State, task.Result)
	}
	s.server.checkAudit(t, run)
}

// oneWaiting starts a run of one step that waits for its release, and returns its worker.
func (s *stack) oneWaiting(t *testing.T) (run, worker string, give func()) {
	t.Helper()
	file, give := release(t)
	run = s.dagster.launch(t, "one", config{
		executor: map[string]any{"lost_step_retries": 1}, ops: numbered("work", 1, behaviour{"release": file}, nil),
	})
	s.awaitBegins(t, runTimeout, 1, run)
	return run, s.server.tasks(t, run)[0].Worker, give
}

// awaitAnotherAttempt waits until the step that was lost runs again, and has the run end.
func (s *stack) awaitAnotherAttempt(t *testing.T, run string, give func()) {
	t.Helper()
	s.awaitBegins(t, runTimeout, 2, run)
	give()
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	if task := s.server.tasks(t, run).of(t, "work_0", 0); task.State != stepfleet.StateLost {
		t.Errorf("the first attempt is %s, want lost", task.State)
	}
	s.server.checkAudit(t, run)
}

func (s *stack) session(t *testing.T, fits func(stepfleet.Session) bool) (found stepfleet.Session, ok bool) {
	t.Helper()
	sessions, err := s.server.sessions()
	if err != nil {
		return found, false // the server may be busy: whoever waits asks again
	}
	for _, session := range sessions {
		if fits(session) {
			return session, true
		}
	}
	return found, false
}

// A template that is stopped reaps no children; their worker must not wait for that.
func TestAWorkerWhoseTemplateIsStoppedBeginsANewLife(t *testing.T) {
	s := defaultLauncher(t)
	run, victim, give := s.oneWaiting(t)
	pid := s.pid(t, victim)
	old, _ := s.session(t, func(session stepfleet.Session) bool {
		return session.Worker == victim && session.State == stepfleet.SessionAlive
	})
	template := templateOf(t, pid)
	if err := syscall.Kill(template, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(template, syscall.SIGCONT) })
	s.server.declareDead(t, old.Instance)
	await(t, recoverWithin, victim+" to begin a new session", func() (bool, string) {
		now, ok := s.session(t, func(session stepfleet.Session) bool {
			return session.Worker == victim && session.State == stepfleet.SessionAlive && session.ID > old.ID
		})
		return ok, fmt.Sprintf("session %+v after %d", now, old.ID)
	})
	if s.pid(t, victim) != pid {
		t.Errorf("%s was started again: only its session had died", victim)
	}
	if err := syscall.Kill(template, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.awaitAnotherAttempt(t, run, give)
}

// declareDead says that the processes of a worker are gone, which need not be true.
func (s *server) declareDead(t *testing.T, instance string) {
	t.Helper()
	request, err := http.NewRequest(http.MethodPost, s.url+"/v1/instances/"+instance+"/dead", strings.NewReader(`{"v":1,"reason":"a test says so"}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+s.token)
	request.Header.Set("Content-Type", "application/json")
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("declare %s dead: %s", instance, response.Status)
	}
}

// abortWithin is what a worker may take that is told to stop at once.
const abortWithin = 3 * time.Second

func TestASecondSIGTERMStopsAWorkerAtOnce(t *testing.T) {
	s := defaultLauncher(t)
	run, victim, give := s.oneWaiting(t)
	pid := s.pid(t, victim)
	worker, ok := proctable.Read(pid)
	if !ok {
		t.Fatalf("%s is not there", victim)
	}
	all := append(proctable.Descendants(pid), worker)
	s.signal(t, victim, syscall.SIGTERM)
	var draining stepfleet.Session
	await(t, healthyTimeout, victim+" to drain", func() (bool, string) {
		draining, ok = s.session(t, func(session stepfleet.Session) bool { return session.Worker == victim && session.Draining })
		return ok, ""
	})
	if len(living(all)) != len(all) {
		t.Error("the drain has ended a process: its step still runs")
	}
	told := time.Now()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d processes were gone %s after the second signal", len(all), awaitGone(t, abortWithin, told, all))
	await(t, healthyTimeout, "the session's end", func() (bool, string) {
		now, ok := s.session(t, func(session stepfleet.Session) bool { return session.ID == draining.ID })
		return ok && now.State == stepfleet.SessionDead && now.EndReason == "stopped at once", fmt.Sprintf("%+v", now)
	})
	await(t, healthyTimeout, "the worker's exit status", func() (bool, string) {
		out, err := os.ReadFile(filepath.Join(s.dir, "dev.out"))
		_, died, _ := strings.Cut(string(out), fmt.Sprintf("process %d: ", pid))
		reason, _, _ := strings.Cut(died, ";")
		return reason == "exit status 1", fmt.Sprintf("%q %v", reason, err)
	})
	s.awaitAnotherAttempt(t, run, give)
}
