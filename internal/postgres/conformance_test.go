package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/conformance"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

func env(t *testing.T) conformance.LedgerEnv { return envOn(t, testenv.Migrated(t)) }

func envOn(t *testing.T, dsn string) conformance.LedgerEnv {
	l := open(t, dsn, postgres.Options{MaxConns: 10})
	pool := rawPool(t, dsn)
	age := func(sql string, id int64, d time.Duration) {
		t.Helper()
		if _, err := pool.Exec(context.Background(), sql, id, d.Seconds()); err != nil {
			t.Fatal(err)
		}
	}
	return conformance.LedgerEnv{
		Ledger: l,
		AgeSession: func(id stepfleet.SessionID, d time.Duration) {
			age(`UPDATE stepfleet.session SET renewed_at = renewed_at - make_interval(secs => $2) WHERE id = $1`, int64(id), d)
		},
		AgeLease: func(id stepfleet.TaskID, d time.Duration) {
			age(`UPDATE stepfleet.task SET claimed_at = claimed_at - make_interval(secs => $2) WHERE id = $1`, int64(id), d)
		},
	}
}

// rawPool is a connection to look behind the ledger.
func rawPool(t testing.TB, dsn string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func TestConformance(t *testing.T) { conformance.RunLedger(t, env) }

func TestSameAsInMemory(t *testing.T) { conformance.CompareLedgers(t, env) }
