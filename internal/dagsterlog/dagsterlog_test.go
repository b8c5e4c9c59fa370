package dagsterlog_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterlog"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// eventLogs is what the package reads of Dagster's table.
const eventLogs = `
CREATE TABLE event_logs (id serial PRIMARY KEY, run_id varchar(255) NOT NULL, event text NOT NULL DEFAULT '',
    dagster_event_type text, step_key text);
CREATE INDEX idx_events_by_run_id ON event_logs (run_id, id);`

// fixture is a log, and a connection that writes to it.
type fixture struct {
	*testing.T
	dsn  string
	conn *pgx.Conn
	log  *dagsterlog.Log
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{T: t, dsn: testenv.Postgres(t)}
	f.conn = f.connect()
	f.exec(eventLogs)
	f.log = f.open(f.dsn)
	return f
}

func (f *fixture) connect() *pgx.Conn {
	f.Helper()
	conn, err := pgx.Connect(f.Context(), f.dsn)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = conn.Close(f.Context()) })
	return conn
}

func (f *fixture) open(dsn string) *dagsterlog.Log {
	f.Helper()
	log, err := dagsterlog.Open(f.Context(), dsn)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(log.Close)
	return log
}

func (f *fixture) exec(sql string, args ...any) {
	f.Helper()
	if _, err := f.conn.Exec(f.Context(), sql, args...); err != nil {
		f.Fatal(err)
	}
}

const insert = `INSERT INTO event_logs (run_id, step_key, dagster_event_type) VALUES ($1, $2, $3)`

func orphan(run, step string, attempt, first int, gone time.Duration) stepfleet.Orphan {
	return stepfleet.Orphan{
		Key: stepfleet.Key{RunID: run, StepKey: step, Attempt: attempt}, Kind: stepfleet.KindStep, FirstAttempt: first, Gone: gone,
	}
}

func (f *fixture) ending(log *dagsterlog.Log, o stepfleet.Orphan) stepfleet.Ending {
	f.Helper()
	endings, err := log.Endings(f.Context(), []stepfleet.Orphan{o})
	if err != nil || len(endings) != 1 {
		f.Fatal(endings, err)
	}
	return endings[0]
}

func TestEachAttemptHasItsOwnEnd(t *testing.T) {
	f := newFixture(t)
	for _, e := range [][3]string{
		{"r", "a", "STEP_START"},
		{"r", "a", stepfleet.EventResources},
		{"r", "a", stepfleet.EventRetry},
		{"other", "a", stepfleet.EventFailure},
		{"r", "b", stepfleet.EventSuccess},
		{"r", "a", "STEP_OUTPUT"},
		{"r", "a", stepfleet.EventSuccess},
		{"r", "c", stepfleet.EventResources},
	} {
		f.exec(insert, e[0], e[1], e[2])
	}
	asked := []stepfleet.Orphan{
		orphan("r", "a", 2, 2, time.Hour), orphan("r", "a", 3, 2, time.Hour), orphan("r", "a", 4, 2, time.Hour),
		orphan("r", "b", 0, 0, time.Hour), orphan("r", "c", 0, 0, time.Hour), orphan("r", "d", 0, 0, time.Hour),
	}
	want := []string{stepfleet.EventRetry, stepfleet.EventSuccess, "", stepfleet.EventSuccess, stepfleet.EventResources, ""}
	got, err := f.log.Endings(t.Context(), asked)
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range asked {
		if got[i].Event != want[i] || !got[i].Final {
			t.Errorf("%s: %+v, want %q", o.Key, got[i], want[i])
		}
	}
}

// A process that was given up may write its end while the next attempt is under way.
func TestALateEndIsNotTheNextAttempts(t *testing.T) {
	f := newFixture(t)
	write := func(step, event, body string) {
		f.exec(`INSERT INTO event_logs (run_id, step_key, dagster_event_type, event) VALUES ('r', $1, $2, $3)`, step, event, body)
	}
	const of0, of1 = `{"logging_tags": {"stepfleet/attempt": "0"}}`, `{"logging_tags": {"stepfleet/attempt": "1"}}`
	write("late", stepfleet.EventRetry, `{}`) // the executor's verdict on attempt 0
	write("late", stepfleet.EventSuccess, of0)
	write("both", stepfleet.EventRetry, `{}`)
	write("both", stepfleet.EventSuccess, of0)
	write("both", stepfleet.EventFailure, of1)
	write("said", stepfleet.EventRetry, of0)
	write("said", stepfleet.EventSuccess, `{"message": "\"stepfleet/attempt\": \"0\""}`)
	for step, want := range map[string]string{"late": "", "both": stepfleet.EventFailure, "said": stepfleet.EventSuccess} {
		if got := f.ending(f.log, orphan("r", step, 1, 0, time.Hour)); got.Event != want {
			t.Errorf("attempt 1 of %s: %q, want %q", step, got.Event, want)
		}
	}
}

// Nothing is lost before what its process had begun to write is there or gone.
func TestAWriteUnderWayKeepsTheAnswerOpen(t *testing.T) {
	f := newFixture(t)
	writer, err := f.connect().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := writer.Exec(t.Context(), insert, "r", "a", stepfleet.EventSuccess); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // of the database's clock: the transaction is older than the end
	if got := f.ending(f.log, orphan("r", "a", 0, 0, 400*time.Millisecond)); got.Event != "" || got.Final {
		t.Errorf("with a write under way: %+v", got)
	}
	if got := f.ending(f.log, orphan("r", "a", 0, 0, time.Hour)); !got.Final {
		t.Errorf("of a process that was gone before that write began: %+v", got)
	}
	if err := writer.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.ending(f.log, orphan("r", "a", 0, 0, 400*time.Millisecond)); got.Event != stepfleet.EventSuccess {
		t.Errorf("after it: %+v", got)
	}
}

func TestWhatWasSentHasAMomentToBeRead(t *testing.T) {
	f := newFixture(t)
	if got := f.ending(f.log, orphan("r", "a", 0, 0, 0)); got.Final {
		t.Error("an answer about a process that is gone just now is final")
	}
}

// A role that does not see what others run waits longer instead.
func TestARoleThatSeesNoTransactionsWaitsLonger(t *testing.T) {
	f := newFixture(t)
	reader := f.login()
	_, err := reader.Endings(t.Context(), []stepfleet.Orphan{orphan("r", "a", 0, 0, 0)})
	if !errors.Is(err, stepfleet.ErrUnavailable) || !strings.Contains(err.Error(), "grant SELECT") {
		t.Errorf("without the right to read: %v", err)
	}
	f.exec(`GRANT SELECT ON event_logs TO ` + readerRole)
	for gone, want := range map[time.Duration]bool{time.Second: false, 4 * time.Second: true} {
		if got := f.ending(reader, orphan("r", "a", 0, 0, gone)); got.Final != want {
			t.Errorf("%s after the end: %+v", gone, got)
		}
	}
}

const readerRole = "stepfleet_log_reader"

// login is the log as a role without any right has it.
func (f *fixture) login() *dagsterlog.Log {
	f.Helper()
	const password = "x"
	f.exec(`DO $$ BEGIN CREATE ROLE ` + readerRole + ` LOGIN PASSWORD '` + password + `'; EXCEPTION WHEN duplicate_object THEN NULL; END $$`)
	u, err := url.Parse(f.dsn)
	if err != nil {
		f.Fatal(err)
	}
	u.User = url.UserPassword(readerRole, password)
	u.Scheme = "postgresql+psycopg2" // as Dagster's configuration may have it
	return f.open(u.String())
}

func TestALogThatCannotBeAskedIsUnavailable(t *testing.T) {
	away := (&fixture{T: t}).open("postgres://u:secret@127.0.0.1:1/dagster?connect_timeout=1")
	_, err := away.Endings(t.Context(), []stepfleet.Orphan{orphan("r", "a", 0, 0, 0)})
	if !errors.Is(err, stepfleet.ErrUnavailable) || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
	empty := (&fixture{T: t}).open(testenv.Postgres(t))
	_, err = empty.Endings(t.Context(), []stepfleet.Orphan{orphan("r", "a", 0, 0, 0)})
	if !errors.Is(err, stepfleet.ErrUnavailable) || !strings.Contains(err.Error(), "--dagster-dsn-file") {
		t.Errorf("another database: %v", err)
	}
}
