package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// written is a witness's file with these lines.
func written[T any](t *testing.T, lines ...T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "witness.jsonl")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, line := range lines {
		if err := json.NewEncoder(file).Encode(line); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// acknowledged is the history of a submit that was answered.
func acknowledged(key stepfleet.Key, op int64) []audit.ClientEvent {
	invoke := audit.ClientEvent{At: time.Now(), Type: audit.Invoke, F: audit.OpSubmit, Op: op, Key: key}
	answer := invoke
	answer.Type, answer.TaskID = audit.OK, 4711
	return []audit.ClientEvent{invoke, answer}
}

func began(run, step string, fence audit.Fence) audit.Effect {
	return audit.Effect{
		Event: audit.EffectBegin, Key: stepfleet.Key{RunID: run, StepKey: step}, Fence: fence, PID: 7, Worker: "box",
		At: float64(time.Now().UnixMicro()) / 1e6,
	}
}

// marked is what a step's process writes of attempt 0, for SQL.
const marked = `'{"dagster_event": {"logging_tags": {"stepfleet/attempt": "0"}}}'`

// logged adds events of a step to Dagster's log, with the text of the last one.
func (p *past) logged(run, step, text string, types ...string) {
	p.t.Helper()
	for i, kind := range types {
		event := `'{}'`
		if i == len(types)-1 {
			event = text
		}
		p.sql(p.log, fmt.Sprintf(`INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key)
			VALUES ('%s', %s, '%s', now() AT TIME ZONE 'UTC', '%s')`, run, event, kind, step))
	}
}

// A run or an attempt that the ledger has lost shows where another witness has it.
func TestVerifyFindsWhatTheLedgerHasLost(t *testing.T) {
	p := newPast(t)
	client := written(t, acknowledged(stepfleet.Key{RunID: "gone", StepKey: "a"}, 1)...)
	effects := written(t, began("r", "a", "1"), began("gone", "a", "1"), began("gone", "a", "1"))
	p.logged("gone", "a", marked, "STEP_START", "STEP_SUCCESS")
	for says, args := range map[string][]string{
		"I1 gone/a/0: its submit was acknowledged, and the ledger does not have it": {"--client", client},
		"I1 gone/a/0: its submit was acknowledged, and the ledger does not":         {"--client", client, "--run", "r", "--run", "gone"},
		"I1 gone/a/0: its submit was acknowledged, and the ledger":                  {"--client", client, "--run", "gone"},
		"I2 gone/a/0: its code began 2 times":                                       {"--effects", effects},
		"I5 gone/a/0: user code of process 7 on box ran":                            {"--effects", effects, "--run", "gone", "--run", "r"},
		"I7 gone/a/0: Dagster's log has 1 starts and 1 endings of the step":         {"--dagster-dsn-file", p.dagster},
		"I7 gone/a/0: Dagster's log has 1 starts and 1 endings of":                  {"--dagster-dsn-file", p.dagster, "--run", "gone", "--run", "r"},
	} {
		status, stdout, stderr := stepfleetCommand(append([]string{"verify"}, args...)...)
		if status != exitFail || !strings.Contains(stdout, says) {
			t.Errorf("%v: status %d, want %q\n%s%s", args, status, says, stdout, stderr)
		}
	}
}

// Findings do not hide that a run was not found.
func TestVerifyNamesAnUnknownRunBesideFindings(t *testing.T) {
	p := newPast(t)
	p.sql(p.log, "UPDATE event_logs SET dagster_event_type = 'STEP_FAILURE' WHERE step_key = 'a' AND dagster_event_type = 'STEP_SUCCESS'")
	for _, args := range [][]string{{}, {"--json"}} {
		status, stdout, stderr := stepfleetCommand(append([]string{"verify", "--run", "r", "--run", "typo", "--dagster-dsn-file", p.dagster}, args...)...)
		if status != exitFail || !strings.Contains(stdout, "the ledger has it succeeded") || !strings.Contains(stderr, "nothing was verified of run typo:") {
			t.Errorf("%v: status %d\n%s%s", args, status, stdout, stderr)
		}
	}
}

// What ran before the ledger was there, or beside it under another one, is not its own.
func TestVerifyLeavesOutTheRunsOfAnotherLedger(t *testing.T) {
	p := newPast(t)
	verify := func(want int, args ...string) {
		t.Helper()
		status, stdout, stderr := stepfleetCommand(append([]string{"verify", "--dagster-dsn-file", p.dagster}, args...)...)
		if status != want {
			t.Errorf("%v: status %d, want %d\n%s%s", args, status, want, stdout, stderr)
		}
	}
	p.logged("earlier", "a", marked, "STEP_START", "STEP_SUCCESS")
	p.sql(p.log, "UPDATE event_logs SET timestamp = timestamp - interval '30 min' WHERE run_id = 'earlier'")
	verify(0)
	p.sql(p.dsn, "UPDATE stepfleet.audit SET at = at - interval '40 min' WHERE verb = 'takeover'")
	verify(exitFail)
	p.sql(p.dsn, "UPDATE stepfleet.audit SET at = at - interval '40 min' WHERE verb = 'takeover'")
	verify(exitFail)
	client := written(t, acknowledged(stepfleet.Key{RunID: "gone", StepKey: "a"}, 1)...)
	effects := written(t, began("r", "a", "1"), began("gone", "a", "1"))
	verify(exitFail, "--client", client, "--effects", effects)
	verify(0, "--client", client, "--effects", effects, "--known-runs")
	p.logged("r", "ghost", marked, "STEP_START", "STEP_SUCCESS")
	verify(exitFail, "--known-runs")
}

// So does a step whose rows are gone, in a run of which others are there.
func TestVerifyFindsAStepThatTheLedgerHasLost(t *testing.T) {
	p := newPast(t)
	id := p.leases["b"].TaskID
	for _, table := range []string{"audit", "outcome"} {
		p.sql(p.dsn, fmt.Sprintf("DELETE FROM stepfleet.%s WHERE task_id = %d", table, id))
	}
	p.sql(p.dsn, fmt.Sprintf("DELETE FROM stepfleet.task WHERE id = %d", id))
	for _, args := range [][]string{{}, {"--run", "r"}} {
		status, stdout, stderr := stepfleetCommand(append([]string{"verify", "--dagster-dsn-file", p.dagster}, args...)...)
		if status != exitFail || !strings.Contains(stdout, "I7 r/b/0: Dagster's log has 1 starts and 1 endings") {
			t.Errorf("%v: status %d\n%s%s", args, status, stdout, stderr)
		}
	}
}

// What other executors ran, or what the ledger has outside the window, was not lost.
func TestVerifyTakesNothingElseForLost(t *testing.T) {
	p := newPast(t)
	p.sql(p.dsn, "UPDATE stepfleet.task SET submitted_at = submitted_at - interval '2 h', started_at = started_at - interval '2 h', "+
		"ended_at = ended_at - interval '2 h' WHERE step_key = 'a'")
	p.sql(p.dsn, "UPDATE stepfleet.audit SET at = at - interval '2 h' WHERE task_id = "+fmt.Sprint(p.leases["a"].TaskID))
	again := acknowledged(stepfleet.Key{RunID: "r", StepKey: "a"}, 1)
	again[1].TaskID, again[1].Known = p.leases["a"].TaskID, true
	client := written(t, append(again, acknowledgedBefore(p)...)...)
	effects := written(t, began("r", "a", "1"), began("theirs", "a", ""), began("theirs", "a", ""))
	p.logged("theirs", "a", `'{}'`, "STEP_START", "STEP_SUCCESS")
	status, stdout, stderr := stepfleetCommand("verify", "--client", client, "--effects", effects, "--dagster-dsn-file", p.dagster)
	if status != 0 || !strings.Contains(stdout, "tasks=2 runs=1 violations=0") || !strings.Contains(stdout, "without 2 lines of the effect log") {
		t.Errorf("status %d\n%s%s", status, stdout, stderr)
	}
}

// acknowledgedBefore is what the client of b and c knows.
func acknowledgedBefore(p *past) []audit.ClientEvent {
	var events []audit.ClientEvent
	for op, step := range []string{"b", "c"} {
		asked := acknowledged(stepfleet.Key{RunID: "r", StepKey: step}, int64(op+2))
		asked[1].TaskID = p.leases["a"].TaskID + stepfleet.TaskID(op+1)
		events = append(events, asked...)
	}
	return events
}

// A witness that has nothing of what is verified proves nothing, and the report says so.
func TestVerifySaysWhichWitnessHasNothing(t *testing.T) {
	p := newPast(t)
	empty := written[audit.Effect](t)
	other := testenv.Postgres(t)
	p.sql(other, eventLog)
	file := filepath.Join(t.TempDir(), "other.dsn")
	p.must(os.WriteFile(file, []byte(other), 0o600))
	unchecked := func(id string, args ...string) string {
		t.Helper()
		status, stdout, stderr := stepfleetCommand(append([]string{"verify"}, args...)...)
		if status != 0 || !strings.Contains(stdout, "  -    "+id) {
			t.Errorf("%v: status %d, want %s unchecked\n%s%s", args, status, id, stdout, stderr)
		}
		return stdout
	}
	unchecked("I1", "--client", empty)
	unchecked("I5", "--effects", empty)
	unchecked("I6", "--effects", empty)
	unchecked("P1", "--effects", empty, "--run", "r")
	for _, insert := range []string{"", `INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key) VALUES
		('theirs', '', 'STEP_START', now() AT TIME ZONE 'UTC', 'a'), ('theirs', '', 'STEP_SUCCESS', now() AT TIME ZONE 'UTC', 'a')`} {
		p.sql(other, insert)
		if stdout := unchecked("I7", "--dagster-dsn-file", file); !strings.Contains(stdout, "Dagster's log has nothing, or not the begin, of 1 of these runs") {
			t.Errorf("the runs that are missing are not counted:\n%s", stdout)
		}
	}
}
