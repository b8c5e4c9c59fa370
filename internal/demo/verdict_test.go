package demo

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func key(step string, attempt int) stepfleet.Key {
	return stepfleet.Key{RunID: "run", StepKey: step, Attempt: attempt}
}

func task(step string, attempt int, state stepfleet.State, worker string) stepfleet.View {
	v := stepfleet.View{
		Task: stepfleet.Task{Key: key(step, attempt)}, State: state, Worker: worker,
		SubmittedAt: noon, ClaimedAt: noon.Add(time.Second), StartedAt: noon.Add(2 * time.Second),
	}
	if state.Terminal() {
		v.EndedAt = noon.Add(3 * time.Second)
	}
	return v
}

// history is what the witnesses say; good is one in which a worker died and everything came right.
type history struct {
	effects []Effect
	tasks   []stepfleet.View
	runs    []RunRecord
	bells   int
}

func good() history {
	effect := func(event string, k stepfleet.Key) Effect { return Effect{Event: event, Key: k} }
	return history{
		effects: []Effect{
			effect("begin", key("a", 0)), effect("end", key("a", 0)),
			effect("begin", key("b", 0)),
			effect("begin", key("b", 1)), effect("end", key("b", 1)),
		},
		tasks: []stepfleet.View{
			task("a", 0, stepfleet.StateSucceeded, "worker-1"),
			task("b", 0, stepfleet.StateLost, "worker-2"),
			task("b", 1, stepfleet.StateSucceeded, "worker-1"),
		},
		runs:  []RunRecord{{ID: "run", Job: "recover", Want: dagsterapi.RunSuccess, Status: dagsterapi.RunSuccess}},
		bells: 1,
	}
}

func TestJudge(t *testing.T) {
	for _, test := range []struct {
		name    string
		change  func(*history)
		want    string // the verdict's line
		problem string // a part of one of its problems; empty for PASS
	}{
		{
			name: "good", change: func(*history) {},
			want: "demo: PASS runs=1 steps=2 attempts=3 lost=1 doubled=0 missing=0",
		},
		{
			name:    "doubled",
			change:  func(h *history) { h.effects = append(h.effects, Effect{Event: "begin", Key: key("a", 0)}) },
			want:    "demo: FAIL runs=1 steps=2 attempts=3 lost=1 doubled=1 missing=0",
			problem: "code of run/a/0 began 2 times",
		},
		{
			name:    "missing",
			change:  func(h *history) { h.effects = slices.Delete(h.effects, 4, 5) },
			want:    "demo: FAIL runs=1 steps=2 attempts=3 lost=1 doubled=0 missing=1",
			problem: "run/b/1 is succeeded, but its code never came to its end",
		},
		{
			name:    "run of wrong status",
			change:  func(h *history) { h.runs[0].Status = dagsterapi.RunFailure },
			want:    "demo: FAIL runs=1 steps=2 attempts=3 lost=1 doubled=0 missing=0",
			problem: "ended FAILURE, expected SUCCESS",
		},
		{
			name:    "run that should have failed",
			change:  func(h *history) { h.runs[0].Want = dagsterapi.RunFailure },
			want:    "demo: FAIL runs=1 steps=2 attempts=3 lost=1 doubled=0 missing=0",
			problem: "ended SUCCESS, expected FAILURE",
		},
		{
			name: "nothing lost",
			change: func(h *history) {
				h.tasks[1].State = stepfleet.StateFailed
			},
			want:    "demo: FAIL runs=1 steps=2 attempts=3 lost=0 doubled=0 missing=0",
			problem: "no attempt was lost",
		},
		{
			name:    "one worker",
			change:  func(h *history) { h.tasks[1].Worker = "worker-1" },
			want:    "demo: FAIL runs=1 steps=2 attempts=3 lost=1 doubled=0 missing=0",
			problem: "steps ran on 1 worker(s)",
		},
		{
			name:    "run outside the fleet",
			change:  func(h *history) { h.runs = append(h.runs, RunRecord{ID: "other", Job: "fast"}) },
			want:    "demo: FAIL runs=2 steps=2 attempts=3 lost=1 doubled=0 missing=0",
			problem: "run other of fast has no task in the ledger",
		},
		{
			name:    "code without a task",
			change:  func(h *history) { h.effects = append(h.effects, Effect{Event: "begin", Key: key("c", 0)}) },
			want:    "demo: FAIL runs=1 steps=2 attempts=3 lost=1 doubled=0 missing=0",
			problem: "code of run/c/0 ran, and the ledger does not know it",
		},
		{
			name:    "code before its start",
			change:  func(h *history) { h.tasks[0].StartedAt = time.Time{} },
			want:    "demo: FAIL runs=1 steps=2 attempts=3 lost=1 doubled=0 missing=0",
			problem: "code of run/a/0 ran, and the ledger has no start of it",
		},
		{
			name:    "queue that delivers nothing",
			change:  func(h *history) { h.bells = 0 },
			want:    "demo: FAIL runs=1 steps=2 attempts=3 lost=1 doubled=0 missing=0",
			problem: "no bell led to a claim",
		},
		{
			name:    "open task",
			change:  func(h *history) { h.tasks[0].State = stepfleet.StateRunning },
			want:    "demo: FAIL runs=1 steps=2 attempts=3 lost=1 doubled=0 missing=0",
			problem: "task run/a/0 is still running",
		},
		{
			name:    "nothing at all",
			change:  func(h *history) { *h = history{} },
			want:    "demo: FAIL runs=0 steps=0 attempts=0 lost=0 doubled=0 missing=0",
			problem: "no run was launched",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := good()
			test.change(&h)
			v := Judge(h.effects, h.tasks, h.runs, h.bells)
			if got := v.String(); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			found := slices.ContainsFunc(v.Problems, func(p string) bool { return strings.Contains(p, test.problem) })
			if test.problem != "" && !found {
				t.Errorf("problems = %q, want one with %q", v.Problems, test.problem)
			}
			if (test.problem == "") != v.Pass() {
				t.Errorf("pass = %t with problems %q", v.Pass(), v.Problems)
			}
		})
	}
}

func TestClaimsByBell(t *testing.T) {
	dir := t.TempDir()
	if _, err := claimsByBell(dir); err == nil || !strings.Contains(err.Error(), "no worker in "+dir) {
		t.Errorf("without logs: %v", err)
	}
	for name, text := range map[string]string{
		"worker-1.log": `level=INFO msg="session begins" session_id=2` + "\nof a step: claims_by_bell=9\n" +
			`level=INFO msg="session over" session_id=2 reason="session dead" claims_by_bell=3` + "\n" +
			`level=INFO msg="session over" session_id=3 reason=drained claims_by_bell=0` + "\n",
		"worker-2.log": `level=INFO msg="session over" session_id=1 reason=drained claims_by_bell=12` + "\n",
		"server.log":   `level=INFO msg="session over" session_id=4 reason=drained claims_by_bell=100` + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := claimsByBell(dir); err != nil || n != 15 {
		t.Errorf("%d, %v", n, err)
	}
}

func TestParseEffects(t *testing.T) {
	log := `{"event":"begin","run_id":"r","step_key":"s","attempt":1,"fence":"2","pid":7,"worker":"w","at":1.5,"op":"o"}

{"event":"end","run_id":"r","step_key":"s","attempt":1,"fence":"2","pid":7,"worker":"w","at":2.5,"op":"o"}
`
	effects, err := ParseEffects(strings.NewReader(log))
	if err != nil || len(effects) != 2 || effects[0].Key != (stepfleet.Key{RunID: "r", StepKey: "s", Attempt: 1}) {
		t.Errorf("effects = %+v, %v", effects, err)
	}
	for _, damaged := range []string{"{", `{"event":"begin"}`, `{"event":"other","run_id":"r"}`} {
		if _, err := ParseEffects(strings.NewReader(damaged)); err == nil || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%s: err = %v", damaged, err)
		}
	}
}

func TestPickTakesTheWorkerInTheMiddleOfMost(t *testing.T) {
	running := func(step, worker string, after time.Duration) stepfleet.View {
		v := task(step, 0, stepfleet.StateRunning, worker)
		v.StartedAt = noon.Add(after)
		return v
	}
	for name, test := range map[string]struct {
		tasks []stepfleet.View
		want  string
		steps int
	}{
		"none":   {nil, "", 0},
		"leased": {[]stepfleet.View{task("a", 0, stepfleet.StateLeased, "w1")}, "", 0},
		"most": {[]stepfleet.View{
			running("a", "w1", 9), running("b", "w2", 1), running("c", "w2", 2), task("d", 0, stepfleet.StateSucceeded, "w1"),
		}, "w2", 2},
		"latest": {[]stepfleet.View{running("a", "w1", 1), running("b", "w2", 2)}, "w2", 1},
	} {
		if worker, victims := pick(test.tasks); worker != test.want || len(victims) != test.steps {
			t.Errorf("%s: picked %q with %d steps, want %q with %d", name, worker, len(victims), test.want, test.steps)
		}
	}
}

func TestRecordsShowEveryStateWithItsTime(t *testing.T) {
	got := records([]stepfleet.View{task("b", 0, stepfleet.StateLost, "w"), {State: stepfleet.StateQueued, SubmittedAt: noon}})
	var states []string
	for _, reached := range got[0].States {
		states = append(states, string(reached.State))
	}
	if strings.Join(states, " ") != "queued leased running lost" || got[0].Outcome != stepfleet.StateLost {
		t.Errorf("record = %+v", got[0])
	}
	if len(got[1].States) != 1 {
		t.Errorf("a queued task reached %+v", got[1].States)
	}
}
