package postgres_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/conformance"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// as is the DSN for connections that have the role's rights and no others.
func as(dsn, role string) string { return dsn + "&role=" + role }

// roles is a ledger whose parts each have the rights of those who use them.
type roles struct {
	stepfleet.Intake
	stepfleet.Claims
	stepfleet.Keeper
	stepfleet.Records
}

// ofRoles is env without the owner's rights: server and worker use their own, and what is only read,
// the reader reads.
func ofRoles(t *testing.T) conformance.LedgerEnv {
	dsn := testenv.Migrated(t)
	e := envOn(t, dsn)
	server := open(t, as(dsn, postgres.ServerRole), postgres.Options{MaxConns: 10})
	worker := open(t, as(dsn, postgres.WorkerRole), postgres.Options{MaxConns: 10})
	reader := open(t, as(dsn, postgres.ReaderRole), postgres.Options{MaxConns: 10})
	e.Ledger = roles{Intake: server, Claims: worker, Keeper: server, Records: reader}
	return e
}

func TestConformanceOfRoles(t *testing.T) { conformance.RunLedger(t, ofRoles) }

// The server reads as well as the reader does: it answers GETs.
func TestServerReads(t *testing.T) {
	dsn := testenv.Migrated(t)
	for _, role := range []string{postgres.ServerRole, postgres.ReaderRole} {
		l := open(t, as(dsn, role), postgres.Options{})
		_, tasks := l.RunTasks(t.Context(), "r")
		_, byID := l.Tasks(t.Context(), []stepfleet.TaskID{1})
		_, audit := l.Audit(t.Context(), "r")
		_, epochs := l.Epochs(t.Context(), []string{"r"})
		_, lanes := l.Lanes(t.Context())
		_, sessions := l.Sessions(t.Context(), time.Hour)
		if err := errors.Join(tasks, byID, audit, epochs, lanes, sessions, l.Check(t.Context())); err != nil {
			t.Errorf("%s: %v", role, err)
		}
	}
	if err := open(t, as(dsn, postgres.WorkerRole), postgres.Options{}).Check(t.Context()); err != nil {
		t.Errorf("a worker registers nowhere: %v", err)
	}
}

// calls are what every role can try, by who may. Grants tell tables and columns apart, and not
// transitions: who ends tasks in one way has the rights to end them in another.
var calls = []struct {
	name string
	may  []string
	call func(t *testing.T, l *postgres.Ledger) error
}{
	{"take an epoch", []string{postgres.ServerRole}, func(t *testing.T, l *postgres.Ledger) error {
		_, err := l.TakeEpoch(t.Context(), "r", stepfleet.Executor{Name: "x"}, "")
		return err
	}},
	{"submit", []string{postgres.ServerRole}, func(t *testing.T, l *postgres.Ledger) error {
		_, err := l.Submit(t.Context(), one("r", "a"))
		return err
	}},
	{"cancel", []string{postgres.ServerRole}, func(t *testing.T, l *postgres.Ledger) error {
		_, err := l.Cancel(t.Context(), "r", stepfleet.NoExecutor, nil, "x")
		return err
	}},
	{"close", []string{postgres.ServerRole}, func(t *testing.T, l *postgres.Ledger) error {
		_, err := l.CloseRun(t.Context(), "other", stepfleet.NoExecutor, "x")
		return err
	}},
	{"beat", []string{postgres.ServerRole}, func(t *testing.T, l *postgres.Ledger) error { return second(l.Beat(t.Context(), "s")) }},
	{"declare dead", []string{postgres.ServerRole, postgres.WorkerRole}, func(t *testing.T, l *postgres.Ledger) error {
		_, err := l.DeclareDead(t.Context(), "nobody", "x")
		return err
	}},
	{"sweep", []string{postgres.ServerRole}, func(t *testing.T, l *postgres.Ledger) error {
		_, err := l.Sweep(t.Context(), time.Minute, 1)
		return err
	}},
	{"decide", []string{postgres.ServerRole, postgres.WorkerRole}, func(t *testing.T, l *postgres.Ledger) error {
		return second(l.Decide(t.Context(), []stepfleet.Decision{{Ref: stepfleet.Ref{TaskID: 1, Fence: 1}}}))
	}},
	{"take duty", []string{postgres.ServerRole}, func(t *testing.T, l *postgres.Ledger) error {
		return second(l.TakeDuty(t.Context(), "repair", "s", time.Second))
	}},
	{"abandon", []string{postgres.WorkerRole}, func(t *testing.T, l *postgres.Ledger) error {
		return second(l.Abandon(t.Context(), 999, []stepfleet.Ref{{TaskID: 1, Fence: 1}}, 1, "x"))
	}},
	{"register", []string{postgres.WorkerRole}, func(t *testing.T, l *postgres.Ledger) error {
		_, err := l.Register(t.Context(), stepfleet.SessionSpec{Worker: "w", Instance: "i"})
		return err
	}},
	{"renew", []string{postgres.WorkerRole}, func(t *testing.T, l *postgres.Ledger) error {
		return unless(stepfleet.ErrSessionDead, second(l.Renew(t.Context(), 999, "i")))
	}},
	{"claim", []string{postgres.WorkerRole}, func(t *testing.T, l *postgres.Ledger) error {
		return unless(stepfleet.ErrSessionDead, second(l.Claim(t.Context(), stepfleet.ClaimRequest{Session: 999, Instance: "i", ID: "c", Queue: "default", Max: 1})))
	}},
	{"start", []string{postgres.WorkerRole}, func(t *testing.T, l *postgres.Ledger) error {
		return second(l.Start(t.Context(), 999, []stepfleet.Ref{{TaskID: 1, Fence: 1}}))
	}},
	{"settle", []string{postgres.WorkerRole, postgres.ServerRole}, func(t *testing.T, l *postgres.Ledger) error {
		return second(l.Settle(t.Context(), 999, []stepfleet.Settlement{{Ref: stepfleet.Ref{TaskID: 1, Fence: 1}}}))
	}},
	{"release", []string{postgres.WorkerRole}, func(t *testing.T, l *postgres.Ledger) error {
		return second(l.Release(t.Context(), 999, []stepfleet.Ref{{TaskID: 1, Fence: 1}}, "x"))
	}},
	{"revoke", []string{postgres.WorkerRole, postgres.ServerRole}, func(t *testing.T, l *postgres.Ledger) error {
		return unless(stepfleet.ErrFenced, second(l.Revoke(t.Context(), 999, stepfleet.Ref{TaskID: 1, Fence: 1}, "x")))
	}},
}

func second[T any](_ T, err error) error { return err }

// unless passes over the refusal that a call which was let in ends with.
func unless(refusal *stepfleet.Refusal, err error) error {
	if errors.Is(err, refusal) {
		return nil
	}
	return err
}

func TestEachRoleMakesItsOwnCalls(t *testing.T) {
	dsn := testenv.Migrated(t)
	for _, role := range []string{postgres.ServerRole, postgres.WorkerRole, postgres.ReaderRole} {
		l := open(t, as(dsn, role), postgres.Options{})
		for _, c := range calls {
			err := c.call(t, l)
			allowed := false
			for _, who := range c.may {
				allowed = allowed || who == role
			}
			var said *pgconn.PgError
			denied := errors.As(err, &said) && said.Code == "42501"
			if allowed && err != nil || !allowed && !denied {
				t.Errorf("%s as %s: %v", c.name, role, err)
			}
		}
	}
}

// What no call does, no role may do by itself, and who has none of the roles may do nothing.
func TestNoRoleGoesBehindTheLedger(t *testing.T) {
	dsn := testenv.Migrated(t)
	if _, err := open(t, dsn, postgres.Options{}).Submit(t.Context(), one("r", "a")); err != nil {
		t.Fatal(err)
	}
	owner := rawPool(t, dsn)
	if _, err := owner.Exec(t.Context(), `DO $$ BEGIN CREATE ROLE stepfleet_test_stranger NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$`); err != nil {
		t.Fatal(err)
	}
	everybody := []string{postgres.ServerRole, postgres.WorkerRole, postgres.ReaderRole, "stepfleet_test_stranger"}
	for sql, allowed := range map[string]string{
		"DELETE FROM stepfleet.audit":                                 "",
		"UPDATE stepfleet.audit SET actor = 'nobody'":                 "",
		"TRUNCATE stepfleet.task":                                     "",
		"DELETE FROM stepfleet.task":                                  "",
		"UPDATE stepfleet.task SET payload = 'x'":                     "",
		"UPDATE stepfleet.task SET step_key = 'x'":                    "",
		"UPDATE stepfleet.payload SET data = 'x'":                     "",
		"DELETE FROM stepfleet.payload":                               "",
		"UPDATE stepfleet.outcome SET result = '{}'":                  "",
		"DELETE FROM stepfleet.run":                                   "",
		"DELETE FROM stepfleet.session":                               "",
		"SELECT setval('stepfleet.audit_id', 1)":                      "",
		"DROP TABLE stepfleet.task":                                   "",
		"CREATE TABLE stepfleet.mine (a int)":                         "",
		"INSERT INTO stepfleet.goose_db_version VALUES (99, 9, true)": "",
		"UPDATE stepfleet.run SET epoch = 9":                          postgres.ServerRole,
		"UPDATE stepfleet.session SET renewed_at = now()":             postgres.WorkerRole,
		"SELECT stepfleet.audit_ahead(1)":                             postgres.ServerRole,
		"SELECT data FROM stepfleet.payload":                          postgres.ServerRole + postgres.WorkerRole,
		"SELECT * FROM stepfleet.audit":                               postgres.ServerRole + postgres.ReaderRole,
		"SELECT * FROM stepfleet.task":                                postgres.ServerRole + postgres.WorkerRole + postgres.ReaderRole,
	} {
		for _, role := range everybody {
			err := rolledBack(t, rawPool(t, as(dsn, role)), sql)
			if may := strings.Contains(allowed, role); may != (err == nil) {
				t.Errorf("%s: %s: %v", role, sql, err)
			}
		}
	}
}

func rolledBack(t *testing.T, pool *pgxpool.Pool, sql string) error {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	_, err = tx.Exec(t.Context(), sql)
	return err
}

// A later release may take a right away: migrating again does.
func TestMigratingTakesWhatIsNotGranted(t *testing.T) {
	dsn := testenv.Migrated(t)
	pool := rawPool(t, dsn)
	if _, err := pool.Exec(t.Context(), "GRANT DELETE ON stepfleet.audit TO stepfleet_worker"); err != nil {
		t.Fatal(err)
	}
	if _, err := postgres.Migrate(t.Context(), dsn, postgres.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := rolledBack(t, rawPool(t, as(dsn, postgres.WorkerRole)), "DELETE FROM stepfleet.audit"); err == nil {
		t.Error("the worker may still delete audit rows")
	}
}
