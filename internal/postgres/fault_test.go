package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/conformance"
	"github.com/stepfleet/stepfleet/internal/pglocal"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// A server that cuts all connections, as in a failover, is not seen by idempotent calls.
func TestCutConnectionsAreRetried(t *testing.T) {
	dsn := testenv.Migrated(t)
	l := open(t, dsn, postgres.Options{MaxConns: 2})
	pool := rawPool(t, dsn)
	for i := range 10 {
		if _, err := l.Submit(t.Context(), one("r", "a")); err != nil {
			t.Fatalf("submit %d: %v", i, err)
		}
		_, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'stepfleet'`)
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Where the budget for repeats is used up, a lost connection is the caller's to wait out, who hears what it is.
func TestRepeatsKeepToTheBudget(t *testing.T) {
	dsn := testenv.Migrated(t)
	pool := rawPool(t, dsn)
	left := 1
	l := open(t, dsn, postgres.Options{MaxConns: 1, MayRepeat: func() bool { left--; return left >= 0 }})
	for i, want := range []error{nil, nil, stepfleet.ErrUnavailable} {
		if _, err := l.Submit(t.Context(), one("r", "a")); !errors.Is(err, want) {
			t.Fatalf("submit %d: %v, want %v", i, err, want)
		}
		_, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'stepfleet'`)
		if err != nil {
			t.Fatal(err)
		}
	}
	if left != -1 {
		t.Errorf("the budget was asked %d times, want once for each lost connection", 1-left)
	}
}

// killable is a PostgreSQL of the test's own.
type killable struct {
	*pglocal.Server
	cfg pglocal.Config
}

func ownServer(t *testing.T) *killable {
	dir, err := os.MkdirTemp("", "stepfleet-fault-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	k := &killable{cfg: pglocal.Config{Dir: dir}}
	k.start(t)
	t.Cleanup(func() { k.Stop(context.Background()) })
	k.cfg.Port = k.Port()
	if _, err := postgres.Migrate(t.Context(), k.DSN("postgres"), postgres.Options{}); err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *killable) start(t *testing.T) {
	server, err := pglocal.Start(t.Context(), k.cfg)
	if err != nil {
		t.Fatal(err)
	}
	k.Server = server
}

func (k *killable) kill(t *testing.T) {
	if err := syscall.Kill(k.PID(), syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	<-k.Done()
}

// What was acknowledged before the server was killed is there when it is back, and the same
// ledger goes on.
func TestKilledServer(t *testing.T) {
	server := ownServer(t)
	l := open(t, server.DSN("postgres"), postgres.Options{})
	if _, err := l.Submit(t.Context(), one("r", "a")); err != nil {
		t.Fatal(err)
	}
	server.kill(t)
	// Backends outlive their server for the moment it takes them to notice, and what they
	// acknowledge meanwhile counts.
	acked := 1
	for deadline := time.Now().Add(20 * time.Second); ; acked++ {
		_, err := l.Submit(t.Context(), one("r", fmt.Sprint("late ", acked)))
		if errors.Is(err, stepfleet.ErrUnavailable) {
			break
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("submit to a killed server: %v", err)
		}
	}
	if err := l.Check(t.Context()); !errors.Is(err, stepfleet.ErrUnavailable) {
		t.Errorf("check of a killed server: %v", err)
	}
	server.start(t)
	if err := l.Check(t.Context()); err != nil {
		t.Error(err)
	}
	// The last one was not acknowledged; it may be there all the same.
	if views, err := l.RunTasks(t.Context(), "r"); err != nil || len(views) < acked || len(views) > acked+1 {
		t.Errorf("%d tasks after the restart, %d were acknowledged: %v", len(views), acked, err)
	}
}

// A caller's deadline ends a call that waits for a lock, and says that the outcome is open.
func TestDeadline(t *testing.T) {
	dsn := testenv.Migrated(t)
	l := open(t, dsn, postgres.Options{})
	if _, err := l.Submit(t.Context(), one("r", "a")); err != nil {
		t.Fatal(err)
	}
	tx, err := rawPool(t, dsn).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), "SELECT FROM stepfleet.run FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = l.Submit(ctx, one("r", "b"))
	if !errors.Is(err, stepfleet.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// Behind a transaction pooler a connection changes its server between transactions; the ledger
// must work in every mode that needs no prepared statement on the server, and with them.
func TestQueryModes(t *testing.T) {
	for _, mode := range []string{"exec", "cache_describe", "cache_statement", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			l := open(t, testenv.Migrated(t)+"&default_query_exec_mode="+mode, postgres.Options{})
			runAll(t, l, "r", 30)
			if lanes, err := l.Lanes(t.Context()); err != nil || len(lanes) != 0 {
				t.Errorf("%+v %v", lanes, err)
			}
			if err := l.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// Answers come after their commits.
func TestWhatWasAnsweredOutlivesCrashes(t *testing.T) {
	server := ownServer(t)
	env := func() conformance.LedgerEnv { return envOn(t, server.DSN("postgres")) }
	conformance.CrashLedger(t, env(), func() func() conformance.LedgerEnv {
		server.kill(t)
		return func() conformance.LedgerEnv {
			server.start(t)
			return env()
		}
	})
}
