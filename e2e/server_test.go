//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepfleet/stepfleet"
)

// server speaks to the stepfleet server's API.
type server struct{ url, token string }

func (s *server) get(path string, into any) error {
	body, err := s.read(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}

func (s *server) read(path string) ([]byte, error) {
	request, err := http.NewRequest(http.MethodGet, s.url+path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+s.token)
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %.300s", path, response.Status, body)
	}
	return body, err
}

func (s *server) ready() error { return s.get("/readyz", &struct{}{}) }

func (s *server) sessions() ([]stepfleet.Session, error) {
	var answer struct{ Sessions []stepfleet.Session }
	err := s.get("/v1/sessions", &answer)
	return answer.Sessions, err
}

// tasks returns the tasks of the run's steps, in the order of their submission.
func (s *server) tasks(t *testing.T, run string) views {
	t.Helper()
	return s.allTasks(t, run).kind(stepfleet.KindStep)
}

// runWorkers returns the tasks of the run's run workers.
func (s *server) runWorkers(t *testing.T, run string) views {
	t.Helper()
	return s.allTasks(t, run).kind(stepfleet.KindRun)
}

func (s *server) allTasks(t *testing.T, run string) views {
	t.Helper()
	var answer struct{ Tasks views }
	if err := s.get("/v1/runs/"+run+"/tasks", &answer); err != nil {
		t.Fatalf("tasks of run %s: %v", run, err)
	}
	return answer.Tasks
}

// views are tasks as the ledger shows them.
type views []stepfleet.View

// of returns the one attempt of a step.
func (v views) of(t *testing.T, step string, attempt int) stepfleet.View {
	t.Helper()
	for _, view := range v {
		if view.StepKey == step && view.Attempt == attempt {
			return view
		}
	}
	t.Fatalf("no task of step %s, attempt %d, in %s", step, attempt, v)
	return stepfleet.View{}
}

func (v views) in(states ...stepfleet.State) views {
	return slices.DeleteFunc(slices.Clone(v), func(view stepfleet.View) bool { return !slices.Contains(states, view.State) })
}

func (v views) kind(kind stepfleet.Kind) views {
	return slices.DeleteFunc(slices.Clone(v), func(view stepfleet.View) bool { return view.Kind != kind })
}

func (v views) open() views {
	return v.in(stepfleet.StateQueued, stepfleet.StateLeased, stepfleet.StateRunning)
}

func (v views) String() string {
	lines := []string{}
	for _, view := range v {
		lines = append(lines, fmt.Sprintf("%s/%d %s on %s %s", view.StepKey, view.Attempt, view.State, view.Worker, view.Reason))
	}
	return strings.Join(lines, "; ")
}

// checkAudit holds the run's audit against the state machine: every transition is one of
// stepfleet.Transitions, begins where the one before it ended, and does to the fence what the
// machine says; and the last one leads to where the task stands.
func (s *server) checkAudit(t *testing.T, run string) []stepfleet.AuditRow {
	t.Helper()
	var answer struct{ Audit []stepfleet.AuditRow }
	tasks := s.allTasks(t, run)
	for {
		if err := s.get("/v1/runs/"+run+"/audit", &answer); err != nil {
			t.Fatalf("audit of run %s: %v", run, err)
		}
		// A run worker may end in between: its run has ended before.
		now := s.allTasks(t, run)
		if cmp.Equal(tasks, now) {
			break
		}
		tasks, answer.Audit = now, nil
	}
	slices.SortFunc(answer.Audit, func(a, b stepfleet.AuditRow) int { return int(a.ID - b.ID) })
	state := map[stepfleet.TaskID]stepfleet.State{}
	fence := map[stepfleet.TaskID]stepfleet.Fence{}
	for _, row := range answer.Audit {
		if row.Refused != "" || row.TaskID == 0 {
			continue
		}
		rule := ruleOf(row)
		if rule == nil {
			t.Errorf("audit row %+v is no transition of the state machine", row)
			continue
		}
		if row.From != state[row.TaskID] {
			t.Errorf("audit row %+v: the task was %q before", row, state[row.TaskID])
		}
		want := map[stepfleet.FenceRule]stepfleet.Fence{
			stepfleet.FenceZero: 0, stepfleet.FenceKeep: fence[row.TaskID], stepfleet.FenceRaise: fence[row.TaskID] + 1,
		}[rule.Fence]
		if row.Fence != want {
			t.Errorf("audit row %+v: want fence %d", row, want)
		}
		state[row.TaskID], fence[row.TaskID] = row.To, row.Fence
	}
	for _, view := range tasks {
		if state[view.ID] != view.State {
			t.Errorf("task %s is %s, its audit ends at %q", view.Key, view.State, state[view.ID])
		}
	}
	return answer.Audit
}

func ruleOf(row stepfleet.AuditRow) *stepfleet.Transition {
	for i, rule := range stepfleet.Transitions {
		if rule.Verb == row.Verb && rule.From == row.From && rule.To == row.To {
			return &stepfleet.Transitions[i]
		}
	}
	return nil
}
