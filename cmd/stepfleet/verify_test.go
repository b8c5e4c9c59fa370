package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// past is a ledger with a history, and Dagster's event log beside it.
type past struct {
	t       *testing.T
	ledger  *postgres.Ledger
	dsn     string
	log     string // Dagster's database
	dagster string // a file with that address
	session stepfleet.SessionID
	leases  map[string]stepfleet.Lease
}

// eventLog is what verify reads of Dagster's schema.
const eventLog = `
CREATE TABLE event_logs (id bigserial PRIMARY KEY, run_id varchar(255), event text NOT NULL, dagster_event_type text,
    timestamp timestamp, step_key text, asset_key text, partition text)`

// newPast plays run "r": a succeeds, b is released once and fails, c is cancelled while it waits.
func newPast(t *testing.T) *past {
	t.Helper()
	p := &past{t: t, dsn: testenv.Migrated(t), leases: map[string]stepfleet.Lease{}}
	t.Setenv("STEPFLEET_DATABASE_URL", p.dsn)
	log := testenv.Postgres(t)
	p.dagster = filepath.Join(t.TempDir(), "dagster.dsn")
	if err := os.WriteFile(p.dagster, []byte(log+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.log = log
	p.sql(log, eventLog)
	p.sql(log, `INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key) VALUES
		('r', '', 'PIPELINE_START', now() AT TIME ZONE 'UTC', NULL), ('r', '', NULL, now() AT TIME ZONE 'UTC', 'a'),
		('r', '', 'STEP_START', now() AT TIME ZONE 'UTC', 'a'), ('r', '', 'STEP_SUCCESS', now() AT TIME ZONE 'UTC', 'a'),
		('r', '', 'STEP_START', now() AT TIME ZONE 'UTC', 'b'), ('r', '', 'STEP_FAILURE', now() AT TIME ZONE 'UTC', 'b')`)
	ledger, err := postgres.Open(t.Context(), p.dsn, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ledger.Close)
	p.ledger = ledger
	p.play()
	return p
}

func (p *past) play() {
	ctx := p.t.Context()
	s, err := p.ledger.Register(ctx, stepfleet.SessionSpec{Worker: "box", Instance: "i", Slots: map[string]int{"default": 4}})
	p.must(err)
	p.session = s.ID
	_, err = p.ledger.TakeEpoch(ctx, "r", stepfleet.Executor{Name: "x"}, "")
	p.must(err)
	p.submit("a", "b", "c")
	p.claim(2)
	p.all(p.ledger.Release(ctx, p.session, []stepfleet.Ref{p.leases["b"].Ref}, "no room"))
	p.settle("a", stepfleet.StateSucceeded, "STEP_SUCCESS")
	_, err = p.ledger.Cancel(ctx, "r", 1, []stepfleet.Key{{RunID: "r", StepKey: "c"}}, "asked for")
	p.must(err)
	stale := p.leases["b"]
	p.claim(1)
	if errs, err := p.ledger.Start(ctx, p.session, []stepfleet.Ref{stale.Ref}); err != nil || errs[0] == nil {
		p.t.Fatal("a stale start was accepted", err)
	}
	p.settle("b", stepfleet.StateFailed, "STEP_FAILURE")
}

func (p *past) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *past) all(errs []error, err error) {
	p.t.Helper()
	p.must(err)
	for _, err := range errs {
		p.must(err)
	}
}

func (p *past) submit(steps ...string) { p.submitTo("r", steps...) }

func (p *past) submitTo(run string, steps ...string) {
	p.t.Helper()
	payload := []byte("{}")
	d := stepfleet.DigestOf(payload)
	b := stepfleet.Batch{RunID: run, Epoch: 1, Identity: "id", Payloads: map[stepfleet.Digest][]byte{d: payload}}
	for _, step := range steps {
		key := stepfleet.Key{RunID: run, StepKey: step}
		b.Tasks = append(b.Tasks, stepfleet.Task{
			V: stepfleet.TaskVersion, Kind: stepfleet.KindStep, Key: key, Op: step, Job: "job",
			IdempotencyKey: key.IdempotencyKey(), Queue: stepfleet.DefaultQueue, CodeLocation: "loc", Payload: d,
		})
	}
	_, err := p.ledger.Submit(p.t.Context(), b)
	p.must(err)
}

func (p *past) claim(n int) {
	claimed, err := p.ledger.Claim(p.t.Context(), stepfleet.ClaimRequest{Session: p.session, Instance: "i", ID: "c", Queue: "default", Max: n})
	p.must(err)
	for _, l := range claimed.Leases {
		p.leases[l.StepKey] = l
	}
}

func (p *past) settle(step string, outcome stepfleet.State, event string) {
	ref := p.leases[step].Ref
	p.all(p.ledger.Start(p.t.Context(), p.session, []stepfleet.Ref{ref}))
	p.all(p.ledger.Settle(p.t.Context(), p.session, []stepfleet.Settlement{{Ref: ref, Result: stepfleet.Result{
		V: stepfleet.TaskVersion, Success: outcome == stepfleet.StateSucceeded, Outcome: outcome, Event: event,
	}}}))
}

func (p *past) sql(dsn, text string) {
	p.t.Helper()
	execSQL(p.t, dsn, text)
}

// stepfleetCommand runs a command as main does.
func stepfleetCommand(args ...string) (status int, stdout, stderr string) {
	var out, diag bytes.Buffer
	status = run(args, &out, &diag)
	return status, out.String(), diag.String()
}

func TestVerifyOfARealLedger(t *testing.T) {
	p := newPast(t)
	for name, args := range map[string][]string{
		"window":         {"verify", "--since", "5m"},
		"run":            {"verify", "--run", "r"},
		"with Dagster":   {"verify", "--dagster-dsn-file", p.dagster},
		"run and log":    {"verify", "--run", "r", "--dagster-dsn-file", p.dagster},
		"ends with time": {"verify", "--until", time.Now().Add(time.Hour).Format(time.RFC3339)},
	} {
		status, stdout, stderr := stepfleetCommand(args...)
		if status != 0 || !strings.Contains(stdout, "verify: PASS rows=") || !strings.Contains(stdout, " tasks=3 runs=1 violations=0") {
			t.Errorf("%s: status %d\n%s%s", name, status, stdout, stderr)
		}
		if checked := !strings.Contains(stdout, "-    I7"); checked != strings.Contains(strings.Join(args, " "), "dagster") {
			t.Errorf("%s: I7 checked %t\n%s", name, checked, stdout)
		}
	}
}

func TestVerifyFindsViolations(t *testing.T) {
	p := newPast(t)
	id := p.leases["a"].TaskID
	for name, c := range map[string]struct{ spoil, invariant string }{
		"a row that was changed behind the ledger's back": {
			fmt.Sprintf("UPDATE stepfleet.task SET state = 'failed' WHERE id = %d", id), "I8",
		},
		"an audit row that is missing": {
			fmt.Sprintf("UPDATE stepfleet.task SET state = 'succeeded' WHERE id = %d; DELETE FROM stepfleet.audit WHERE task_id = %[1]d AND verb = 'claim'", id), "I8",
		},
	} {
		p.sql(p.dsn, c.spoil)
		dir := filepath.Join(t.TempDir(), "timelines")
		status, stdout, stderr := stepfleetCommand("verify", "--json", "--timelines", dir, "--dagster-dsn-file", p.dagster)
		var report audit.Report
		if err := json.Unmarshal([]byte(stdout), &report); err != nil {
			t.Fatalf("%s: %v\n%s%s", name, err, stdout, stderr)
		}
		if status != exitFail || report.Verdict != audit.Fail || len(report.Violations) == 0 || report.Violations[0].Invariant != c.invariant {
			if len(report.Violations) == 0 || !strings.Contains(stdout, `"invariant": "`+c.invariant) {
				t.Errorf("%s: status %d\n%s%s", name, status, stdout, stderr)
			}
		}
		for _, v := range report.Violations {
			page, err := os.ReadFile(filepath.Join(dir, v.Timeline))
			if err != nil || !bytes.Contains(page, []byte("submitted it")) {
				t.Errorf("%s: the timeline of %s: %v", name, v.Invariant, err)
			}
		}
		if !strings.Contains(stderr, "docs/verify.md") {
			t.Errorf("%s: stderr does not lead on: %s", name, stderr)
		}
	}
}

func TestVerifyFindsWhatDagsterSaysOtherwise(t *testing.T) {
	p := newPast(t)
	raw, err := os.ReadFile(p.dagster)
	p.must(err)
	p.sql(strings.TrimSpace(string(raw)), "UPDATE event_logs SET dagster_event_type = 'STEP_FAILURE' WHERE step_key = 'a' AND dagster_event_type = 'STEP_SUCCESS'")
	status, stdout, stderr := stepfleetCommand("verify", "--run", "r", "--dagster-dsn-file", p.dagster)
	if status != exitFail || !strings.Contains(stdout, "I7 r/a/0") || !strings.Contains(stdout, "dagster_disagreements=1") {
		t.Errorf("status %d\n%s%s", status, stdout, stderr)
	}
}

// A task that hangs is found whatever the window is, be it that its session is silent, or that nobody has
// decided on it.
func TestVerifyFindsTasksThatHang(t *testing.T) {
	p := newPast(t)
	p.submit("d", "e")
	p.claim(2)
	for _, step := range []string{"d", "e"} {
		p.all(p.ledger.Start(t.Context(), p.session, []stepfleet.Ref{p.leases[step].Ref}))
	}
	p.all(p.ledger.Abandon(t.Context(), p.session, []stepfleet.Ref{p.leases["e"].Ref}, 7, "it is gone"))
	for _, args := range [][]string{{"verify"}, {"verify", "--run", "r"}} {
		if status, stdout, stderr := stepfleetCommand(args...); status != 0 {
			t.Errorf("%v, before: status %d\n%s%s", args, status, stdout, stderr)
		}
	}
	p.sql(p.dsn, "UPDATE stepfleet.session SET renewed_at = renewed_at - interval '3 h'; UPDATE stepfleet.held SET abandoned_at = abandoned_at - interval '3 h'")
	want := []string{"I12 r/d/0 (task 4): it is running, and its session 1 is silent for 3h0m", "I12 r/e/0 (task 5): it is running, session 1 has abandoned it 3h0m"}
	for _, state := range []string{"alive", "suspect"} {
		p.sql(p.dsn, fmt.Sprintf("UPDATE stepfleet.session SET state = '%s'", state))
		for _, args := range [][]string{{"verify"}, {"verify", "--run", "r"}} {
			status, stdout, stderr := stepfleetCommand(args...)
			if status != exitFail || !strings.Contains(stdout, want[0]) || !strings.Contains(stdout, want[1]) {
				t.Errorf("%v, session %s: status %d\n%s%s", args, state, status, stdout, stderr)
			}
		}
	}
	p.sql(p.dsn, "UPDATE stepfleet.audit SET at = at - interval '2 h' WHERE run_id = 'r'")
	_, err := p.ledger.TakeEpoch(t.Context(), "other", stepfleet.Executor{Name: "x"}, "")
	p.must(err)
	p.submitTo("other", "a")
	if status, stdout, stderr := stepfleetCommand("verify"); status != exitFail || !strings.Contains(stdout, want[0]) {
		t.Errorf("before the window: status %d\n%s%s", status, stdout, stderr)
	}
	if status, stdout, stderr := stepfleetCommand("verify", "--run", "other"); status != 0 {
		t.Errorf("another run: status %d\n%s%s", status, stdout, stderr)
	}
}

func TestVerifyFindsARunThatEndedTwice(t *testing.T) {
	p := newPast(t)
	raw, err := os.ReadFile(p.dagster)
	p.must(err)
	for i, kind := range []string{"PIPELINE_SUCCESS", "PIPELINE_FAILURE", "PIPELINE_SUCCESS"} {
		p.sql(strings.TrimSpace(string(raw)), fmt.Sprintf(`INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp)
			VALUES ('r', '', '%s', now() AT TIME ZONE 'UTC')`, kind))
		status, stdout, stderr := stepfleetCommand("verify", "--dagster-dsn-file", p.dagster)
		if (status == exitFail) != (i == 2) || strings.Contains(stdout, "R3 run r: Dagster's log has 3 ends") != (i == 2) {
			t.Errorf("after %s: status %d\n%s%s", kind, status, stdout, stderr)
		}
	}
}

// The system goes on while verify reads: what Dagster's log has of a task that the snapshot has not is
// looked up, and only what the ledger does not have then either is a violation.
func TestVerifyLooksAgainAtWhatDagsterHasMoreOf(t *testing.T) {
	p := newPast(t)
	p.submit("d")
	p.claim(1)
	now := fmt.Sprint(time.Now().Add(-time.Minute).UnixMilli()) // of a clock that is slow
	var meanwhile func()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		meanwhile()
		events := ""
		for _, e := range [][2]string{{"RUN_START", ""}, {"STEP_START", "a"}, {"STEP_SUCCESS", "a"}, {"STEP_START", "b"}, {"STEP_FAILURE", "b"}, {"STEP_START", "d"}, {"STEP_SUCCESS", "d"}} {
			events += fmt.Sprintf(`{"eventType":%q,"stepKey":%q,"timestamp":%q},`, e[0], e[1], now)
		}
		fmt.Fprintf(w, `{"data":{"logsForRun":{"__typename":"EventConnection","cursor":"c","hasMore":false,"events":[%s]}}}`, strings.TrimSuffix(events, ","))
	}))
	defer server.Close()
	meanwhile = func() {}
	status, stdout, stderr := stepfleetCommand("verify", "--dagster-url", server.URL)
	if status != exitFail || !strings.Contains(stdout, "I7 r/d/0 (task 4): the ledger has it leased and never started, and Dagster's log has STEP_SUCCESS") {
		t.Errorf("without leave: status %d\n%s%s", status, stdout, stderr)
	}
	var once sync.Once
	meanwhile = func() { once.Do(func() { p.settle("d", stepfleet.StateSucceeded, "STEP_SUCCESS") }) }
	if status, stdout, stderr := stepfleetCommand("verify", "--dagster-url", server.URL); status != 0 {
		t.Errorf("started meanwhile: status %d\n%s%s", status, stdout, stderr)
	}
}

// Without access to Dagster's database its webserver is the witness.
func TestVerifyAsksDagstersWebserver(t *testing.T) {
	newPast(t)
	answers := `{"data":{"logsForRun":{"__typename":"EventConnection","cursor":"c","hasMore":false,"events":[
		{"eventType":"RUN_START","stepKey":null,"timestamp":"%[1]d"},{"eventType":"RUN_SUCCESS","stepKey":null,"timestamp":"%[1]d"},
		{"eventType":"RUN_FAILURE","stepKey":null,"timestamp":"%[1]d"},{"eventType":"RUN_SUCCESS","stepKey":null,"timestamp":"%[1]d"},
		{"eventType":"STEP_START","stepKey":"a","timestamp":"%[1]d"},{"eventType":"STEP_FAILURE","stepKey":"a","timestamp":"%[1]d"},
		{"eventType":null,"stepKey":"a","timestamp":"%[1]d"}]}}}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, answers, time.Now().UnixMilli())
	}))
	defer server.Close()
	status, stdout, stderr := stepfleetCommand("verify", "--dagster-url", server.URL)
	if status != exitFail || !strings.Contains(stdout, "I7 r/a/0") || !strings.Contains(stdout, "R3 run r: Dagster's log has 3 ends") {
		t.Errorf("status %d\n%s%s", status, stdout, stderr)
	}
}

// The effect log says that code ran twice; what another executor's steps write does not count.
func TestVerifyReadsAnEffectLog(t *testing.T) {
	newPast(t)
	now := float64(time.Now().UnixMicro()) / 1e6
	line := func(run, fence string) string {
		return fmt.Sprintf(`{"event":"begin","run_id":%q,"step_key":"a","attempt":0,"fence":%q,"pid":1,"worker":"box","at":%f}`+"\n", run, fence, now)
	}
	path := filepath.Join(t.TempDir(), "effects.jsonl")
	if err := os.WriteFile(path, []byte(line("r", "1")+line("other", "")+line("other", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, stdout, stderr := stepfleetCommand("verify", "--effects", path); status != 0 {
		t.Errorf("status %d\n%s%s", status, stdout, stderr)
	}
	if err := os.WriteFile(path, []byte(line("r", "1")+line("r", "1")), 0o600); err != nil {
		t.Fatal(err)
	}
	status, stdout, stderr := stepfleetCommand("verify", "--effects", path)
	if status != exitFail || !strings.Contains(stdout, "began 2 times") || !strings.Contains(stdout, "double_starts=1") {
		t.Errorf("status %d\n%s%s", status, stdout, stderr)
	}
}

func TestVerifySaysWhatIsWrongWithTheQuestion(t *testing.T) {
	newPast(t)
	bad := filepath.Join(t.TempDir(), "bad.dsn")
	if err := os.WriteFile(bad, []byte("postgres://nobody:hush@127.0.0.1:1/none"), 0o600); err != nil {
		t.Fatal(err)
	}
	for says, args := range map[string][]string{
		"of run nobody":         {"--run", "nobody"},
		"of run typo, nobody:":  {"--run", "r", "--run", "typo", "--run", "nobody"},
		"audit has no row from": {"--from", "2020-01-01T00:00:00Z", "--until", "2020-01-02T00:00:00Z"},
		"--run is empty":        {"--run", ""},
		"is empty: give the id": {"--run", "r", "--run="},
		"is empty":              {"--from", "2030-01-01T00:00:00Z"},
		"leave out --from":      {"--run", "r", "--from", "2020-01-01T00:00:00Z"},
		"--until and --since":   {"--run", "r", "--since", "2h"},
		"leave one out":         {"--since", "2h", "--from", "2020-01-01T00:00:00Z"},
		"takes those of the":    {"--run", "r", "--known-runs"},
		"dagster's event log":   {"--dagster-dsn-file", bad},
		"--dagster-url":         {"--dagster-url", "http://127.0.0.1:1"},
	} {
		status, stdout, stderr := stepfleetCommand(append([]string{"verify"}, args...)...)
		if status != 1 || !strings.Contains(stderr, says) {
			t.Errorf("%v: status %d, want %q\n%s%s", args, status, says, stdout, stderr)
		}
		if strings.Contains(stdout+stderr, "hush") {
			t.Errorf("%v: a password is printed: %s", args, stderr)
		}
	}
	t.Setenv("STEPFLEET_DATABASE_URL", "")
	if status, _, stderr := stepfleetCommand("verify"); status != 1 || !strings.Contains(stderr, "STEPFLEET_DATABASE_URL") {
		t.Errorf("status %d: %s", status, stderr)
	}
}

func TestTaskExplain(t *testing.T) {
	p := newPast(t)
	status, stdout, stderr := stepfleetCommand("task", "explain", "r/b/0")
	for _, want := range []string{
		"r/b/0", "failed with fence 3", "executor 1 took over the run", "executor 1 submitted it", "session 1 (worker box) claimed it",
		"gave it back unstarted: it waits again, at its old place (no room)",
		"wanted to start it, and was refused: the fence it named is not the owner's any more", "settled it: it failed",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("status %d: no %q in\n%s%s", status, want, stdout, stderr)
		}
	}
	if strings.Contains(stdout, "succeeded") {
		t.Errorf("it tells of another task:\n%s", stdout)
	}
	if _, byNumber, _ := stepfleetCommand("task", "explain", fmt.Sprint(p.leases["b"].TaskID)); byNumber != stdout {
		t.Errorf("by its number it reads otherwise:\n%s", byNumber)
	}
	for key, says := range map[string]string{
		"r/none/0": "not found", "r/b": "give RUN/STEP/ATTEMPT", "r/b/x": "the first is 0", "4711": "not found", "r": "give RUN/STEP/ATTEMPT",
		"r/b/2147483648": "none is above 2147483647",
	} {
		if status, _, stderr := stepfleetCommand("task", "explain", key); status != 1 || !strings.Contains(stderr, says) {
			t.Errorf("%s: status %d, %s", key, status, stderr)
		}
	}
}

// Without a schema there is one thing to do, and the key is not in doubt.
func TestTaskExplainWithoutASchema(t *testing.T) {
	t.Setenv("STEPFLEET_DATABASE_URL", testenv.Postgres(t))
	status, _, stderr := stepfleetCommand("task", "explain", "r/b/0")
	if status != 1 || !strings.Contains(stderr, "stepfleet migrate") || strings.Contains(stderr, "whole key") {
		t.Errorf("status %d: %s", status, stderr)
	}
}

func TestKeysOfTasks(t *testing.T) {
	for text, want := range map[string]stepfleet.Key{
		"r/s/0":             {RunID: "r", StepKey: "s"},
		"r/graph.op[a/b]/3": {RunID: "r", StepKey: "graph.op[a/b]", Attempt: 3},
	} {
		if key, err := parseKey(text); err != nil || key != want {
			t.Errorf("%s: %+v, %v", text, key, err)
		}
	}
}

// The million rows that verify must read in 30 s, in a real PostgreSQL: 200,000 tasks of 2,000 runs,
// with their events in Dagster's log.
const (
	millionTasks = `
INSERT INTO stepfleet.session (worker, instance, host, pid, version, slots) VALUES ('w', 'i', 'h', 1, 'v', '{}');
INSERT INTO stepfleet.task (fence, session_id, state, submitted_at, claimed_at, started_at, ended_at, turn, priority, attempt,
    policy_retries, lost_retries, payload, step_hash, run_id, step_key, queue, kind, op, job, code_location)
SELECT 1, 1, 'succeeded', at, at, at, at, i, 0, 0, 0, 0, '\x00'::bytea, decode(md5(step), 'hex'), run, step, 'default', 'step', 'op', 'job', 'loc'
FROM (SELECT i, now() - interval '10 min' + i * interval '1 ms' AS at, 'run-0c5a7c1e-7d0b-4d0e-' || i % 2000 AS run, 'load_users_' || i / 2000 AS step
    FROM generate_series(0, 199999) i) g;
INSERT INTO stepfleet.outcome (task_id, result) SELECT id,
    '{"v":1,"success":true,"outcome":"succeeded","event":"STEP_SUCCESS","outputs":["result"],"worker":"w","exit_code":0}' FROM stepfleet.task`
	millionRows = `
INSERT INTO stepfleet.audit (at, task_id, run_id, verb, actor, from_state, to_state, fence)
SELECT t.submitted_at + v.n * interval '1 ms', t.id, t.run_id, v.verb, v.actor, v.was, v.became, least(v.n, 1)
FROM (VALUES (0, 'submit', 'executor 1', '', 'queued'), (1, 'claim', 'session 1', 'queued', 'leased'),
    (2, 'start', 'session 1', 'leased', 'running'), (3, 'cancel', 'executor 1', 'running', 'running'),
    (4, 'settle', 'session 1', 'running', 'succeeded')) v (n, verb, actor, was, became), stepfleet.task t
ORDER BY t.id / 20, v.n, t.id;
ANALYZE stepfleet.task; ANALYZE stepfleet.audit`
	millionEvents = `
INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp)
SELECT 'run-0c5a7c1e-7d0b-4d0e-' || i, '', 'PIPELINE_START', (now() - interval '9 min') AT TIME ZONE 'UTC' FROM generate_series(0, 1999) i;
INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key)
SELECT 'run-0c5a7c1e-7d0b-4d0e-' || i % 2000, '', e.type, (now() - interval '9 min') AT TIME ZONE 'UTC', 'load_users_' || i / 2000
FROM generate_series(0, 199999) i, (VALUES (1, 'STEP_START'), (2, 'STEP_SUCCESS')) e (n, type) ORDER BY i, e.n;
CREATE INDEX ON event_logs (run_id, id); ANALYZE event_logs`
)

// BenchmarkVerifyAMillionRows measures the command whole: go test ./cmd/stepfleet -run - -bench Million -benchtime 1x
func BenchmarkVerifyAMillionRows(b *testing.B) {
	dsn, log := testenv.Migrated(b), testenv.Postgres(b)
	b.Setenv("STEPFLEET_DATABASE_URL", dsn)
	file := filepath.Join(b.TempDir(), "dagster.dsn")
	if err := os.WriteFile(file, []byte(log), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, s := range []struct{ dsn, text string }{{dsn, millionTasks}, {dsn, millionRows}, {log, eventLog}, {log, millionEvents}} {
		execSQL(b, s.dsn, s.text)
	}
	for b.Loop() {
		status, stdout, stderr := stepfleetCommand("verify", "--dagster-dsn-file", file)
		if status != 0 || !strings.Contains(stdout, "rows=1000000 tasks=200000") || !strings.Contains(stdout, "  ok   I7 ") {
			b.Fatalf("status %d\n%s%s", status, stdout, stderr)
		}
		b.Log(stderr)
	}
	if raw, err := os.ReadFile("/proc/self/status"); err == nil {
		_, rest, _ := strings.Cut(string(raw), "VmHWM:")
		var peak float64
		fmt.Sscan(rest, &peak)
		b.ReportMetric(peak/1024, "peak-MB")
	}
}

func execSQL(t testing.TB, dsn, text string) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, text); err != nil {
		t.Fatal(err)
	}
}
