package pgrelay_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/pgrelay"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// relay is one that serves until the test ends.
func relay(t *testing.T, mayWrite func() bool, keepIdle time.Duration) *pgrelay.Relay {
	t.Helper()
	r, err := pgrelay.Listen(pgrelay.Config{Parent: shortDir(t), MayWrite: mayWrite, KeepIdle: keepIdle, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(r.Dir()); !os.IsNotExist(err) {
			t.Errorf("the relay has left %s: %v", r.Dir(), err)
		}
	})
	return r
}

func always() bool { return true }

// dial connects through the relay, as a step's process does.
func dial(t *testing.T, r *pgrelay.Relay, dsn string) (*pgx.Conn, error) {
	t.Helper()
	direct, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	told := fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=%s sslmode=disable",
		direct.Host, direct.Port, direct.User, direct.Password, direct.Database)
	cfg := direct.Copy()
	cfg.Host, cfg.Port, cfg.Password, cfg.TLSConfig = r.Dir(), pgrelay.Port, told, nil
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return pgx.ConnectConfig(ctx, cfg)
}

func mustDial(t *testing.T, r *pgrelay.Relay, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := dial(t, r, dsn)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func pid(t *testing.T, conn *pgx.Conn) (pid int) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

func hangUp(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// direct connects without the relay.
func direct(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// await looks until as many server processes as wanted have the pid and are as the condition says.
func await(t *testing.T, watcher *pgx.Conn, pid int, condition string, wanted int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		var found int
		err := watcher.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND "+condition, pid).Scan(&found)
		if err != nil {
			t.Fatal(err)
		}
		if found == wanted {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d server processes %d with %s, want %d", found, pid, condition, wanted)
		}
	}
}

// next connects until the connection that was given back is on hand: that follows the goodbye.
func next(t *testing.T, r *pgrelay.Relay, dsn string, wanted int) *pgx.Conn {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		conn := mustDial(t, r, dsn)
		if pid(t, conn) == wanted {
			return conn
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
	}
	t.Fatalf("server process %d has not come back", wanted)
	return nil
}

func TestTheNextClientGetsTheConnectionWithoutItsSession(t *testing.T) {
	dsn := testenv.Postgres(t)
	r := relay(t, always, 0)
	first := mustDial(t, r, dsn)
	backend := pid(t, first)
	if _, err := first.Exec(t.Context(), "SET work_mem = '77MB'; CREATE TEMP TABLE mine (n int); SELECT pg_advisory_lock(7)"); err != nil {
		t.Fatal(err)
	}
	hangUp(t, first)
	second := next(t, r, dsn, backend)
	defer hangUp(t, second)
	var memory string
	var tables, locks int
	err := second.QueryRow(t.Context(), `SELECT current_setting('work_mem'),
		(SELECT count(*) FROM pg_class WHERE relname = 'mine'),
		(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')`).Scan(&memory, &tables, &locks)
	if err != nil {
		t.Fatal(err)
	}
	if memory == "77MB" || tables != 0 || locks != 0 {
		t.Errorf("the session was handed on: work_mem %s, %d tables, %d locks", memory, tables, locks)
	}
}

// Connections pass from one process to the next, and what is said of a process by the name must not pass on.
func TestAConnectionHasTheNameOfWhoHasIt(t *testing.T) {
	dsn := testenv.Postgres(t)
	r := relay(t, always, 0)
	named := func(process int) string {
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		q.Set("options", "-c statement_timeout=60s -c application_name="+stepfleet.ConnectionNameOf("i", process))
		u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
		return u.String()
	}
	is := func(name string) string { return "application_name = '" + name + "'" }
	watcher := direct(t, dsn)
	first := mustDial(t, r, named(11))
	backend := pid(t, first)
	await(t, watcher, backend, is(stepfleet.ConnectionNameOf("i", 11)), 1)
	hangUp(t, first)
	await(t, watcher, backend, is(stepfleet.ConnectionName("i")), 1)
	second := next(t, r, named(22), backend)
	await(t, watcher, backend, is(stepfleet.ConnectionNameOf("i", 22)), 1)
	var timeout string
	if err := second.QueryRow(t.Context(), "SHOW statement_timeout").Scan(&timeout); err != nil || timeout != "1min" {
		t.Errorf("statement_timeout %q, %v", timeout, err)
	}
	hangUp(t, second)
	await(t, watcher, backend, is(stepfleet.ConnectionName("i")), 1)
	stranger := mustDial(t, r, dsn)
	defer hangUp(t, stranger)
	if pid(t, stranger) == backend {
		t.Error("one that names no connection has got one with a name")
	}
}

func TestWhatATransactionHasLeftIsRolledBack(t *testing.T) {
	dsn := testenv.Postgres(t)
	r := relay(t, always, 0)
	first := mustDial(t, r, dsn)
	if _, err := first.Exec(t.Context(), "CREATE TABLE kept (n int)"); err != nil {
		t.Fatal(err)
	}
	backend := pid(t, first)
	if _, err := first.Exec(t.Context(), "BEGIN; INSERT INTO kept VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	hangUp(t, first)
	second := mustDial(t, r, dsn)
	defer hangUp(t, second)
	if pid(t, second) == backend {
		t.Error("a connection in a transaction was handed on")
	}
	var rows int
	if err := second.QueryRow(t.Context(), "SELECT count(*) FROM kept").Scan(&rows); err != nil || rows != 0 {
		t.Errorf("%d rows, %v", rows, err)
	}
}

func TestNothingPassesOnceTheLeaseIsOver(t *testing.T) {
	dsn := testenv.Postgres(t)
	var over atomic.Bool
	r := relay(t, func() bool { return !over.Load() }, 0)
	conn := mustDial(t, r, dsn)
	if _, err := conn.Exec(t.Context(), "CREATE TABLE fenced (n int)"); err != nil {
		t.Fatal(err)
	}
	over.Store(true)
	if _, err := conn.Exec(t.Context(), "INSERT INTO fenced VALUES (1)"); err == nil {
		t.Error("a statement passed")
	}
	over.Store(false)
	second := mustDial(t, r, dsn)
	defer hangUp(t, second)
	var rows int
	if err := second.QueryRow(t.Context(), "SELECT count(*) FROM fenced").Scan(&rows); err != nil || rows != 0 {
		t.Errorf("%d rows, %v", rows, err)
	}
}

func TestAConnectionThatHasDiedIsNotHandedOn(t *testing.T) {
	dsn := testenv.Postgres(t)
	r := relay(t, always, 0)
	first := mustDial(t, r, dsn)
	dead := pid(t, first)
	hangUp(t, first)
	first = next(t, r, dsn, dead)
	hangUp(t, first)
	watcher := direct(t, dsn)
	await(t, watcher, dead, "query = 'DISCARD ALL' AND state = 'idle'", 1)
	if _, err := watcher.Exec(t.Context(), "SELECT pg_terminate_backend($1, 20000)", dead); err != nil {
		t.Fatal(err)
	}
	second := mustDial(t, r, dsn)
	defer hangUp(t, second)
	if pid(t, second) == dead {
		t.Error("a dead connection answers")
	}
}

func TestAConnectionThatNobodyUsesIsClosedInTheEnd(t *testing.T) {
	dsn := testenv.Postgres(t)
	r := relay(t, always, 100*time.Millisecond)
	conn := mustDial(t, r, dsn)
	backend := pid(t, conn)
	hangUp(t, conn)
	await(t, direct(t, dsn), backend, "true", 0)
}

func TestAnUnknownDatabaseIsRefusedInPostgresWords(t *testing.T) {
	dsn := testenv.Postgres(t)
	r := relay(t, always, 0)
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	_, err = dial(t, r, fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=nowhere sslmode=disable",
		cfg.Host, cfg.Port, cfg.User, cfg.Password))
	if err == nil || !strings.Contains(err.Error(), `database "nowhere" does not exist`) {
		t.Errorf("got %v", err)
	}
}

func TestAWrongPasswordGetsNoConnectionThatWaits(t *testing.T) {
	dsn := testenv.Postgres(t)
	r := relay(t, always, 0)
	hangUp(t, mustDial(t, r, dsn))
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	_, err = dial(t, r, fmt.Sprintf("host=%s port=%d user=%s password=wrong dbname=%s sslmode=disable",
		cfg.Host, cfg.Port, cfg.User, cfg.Database))
	if err == nil || !strings.Contains(err.Error(), "28P01") {
		t.Errorf("got %v", err)
	}
}

func TestAStatementCanBeCancelled(t *testing.T) {
	dsn := testenv.Postgres(t)
	r := relay(t, always, 0)
	conn := mustDial(t, r, dsn)
	defer hangUp(t, conn)
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), "SELECT pg_sleep(60)")
		ended <- err
	}()
	for {
		if err := conn.PgConn().CancelRequest(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if err == nil || !strings.Contains(err.Error(), "57014") {
				t.Errorf("got %v", err)
			}
			return
		case <-time.After(50 * time.Millisecond): // it had not begun yet
		}
	}
}
