package postgres_test

import (
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

func TestMigratorsAtOnce(t *testing.T) {
	dsn := testenv.Postgres(t)
	l := open(t, dsn, postgres.Options{})
	if err := l.Check(t.Context()); !errors.Is(err, stepfleet.ErrSchema) || !strings.Contains(err.Error(), "stepfleet migrate") {
		t.Errorf("before: %v", err)
	}
	if _, err := l.Submit(t.Context(), one("r", "a")); !errors.Is(err, stepfleet.ErrSchema) {
		t.Errorf("submit without a schema: %v", err)
	}
	const migrators = 4
	reports := make([]postgres.Report, migrators)
	var wg sync.WaitGroup
	for i := range migrators {
		wg.Go(func() {
			var err error
			if reports[i], err = postgres.Migrate(t.Context(), dsn, postgres.Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	applied := 0
	for _, r := range reports {
		applied += len(r.Applied)
		if r.To != postgres.SchemaVersion() {
			t.Errorf("%+v", r)
		}
	}
	if files, _ := filepath.Glob("migrations/*.sql"); applied != len(files) {
		t.Errorf("%d migrations applied, want each of %d once: %+v", applied, len(files), reports)
	}
	if err := l.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNewerSchemaIsLeftAlone(t *testing.T) {
	dsn := testenv.Migrated(t)
	pool := rawPool(t, dsn)
	if _, err := pool.Exec(t.Context(), "INSERT INTO stepfleet.goose_db_version (version_id, is_applied) VALUES (9999, true)"); err != nil {
		t.Fatal(err)
	}
	if r, err := postgres.Migrate(t.Context(), dsn, postgres.Options{}); err != nil || len(r.Applied) != 0 || r.To != 9999 {
		t.Errorf("%+v %v", r, err)
	}
	err := open(t, dsn, postgres.Options{}).Check(t.Context())
	if !errors.Is(err, stepfleet.ErrSchema) || !strings.Contains(err.Error(), "upgrade this binary") {
		t.Error(err)
	}
}

// The audit's rows lie in partitions of their day, and a write does not fail where there is none.
func TestAuditPartitions(t *testing.T) {
	dsn := testenv.Migrated(t)
	pool := rawPool(t, dsn)
	count := func(sql string) (n int) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), sql).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count("SELECT count(*) FROM pg_inherits WHERE inhparent = 'stepfleet.audit'::regclass"); n != 9 {
		t.Errorf("%d partitions, want eight days and the rest", n)
	}
	l := open(t, dsn, postgres.Options{})
	if _, err := l.Submit(t.Context(), one("r", "a")); err != nil {
		t.Fatal(err)
	}
	if n := count("SELECT count(*) FROM stepfleet.audit_rest"); n != 0 {
		t.Errorf("%d rows in the rest partition", n)
	}
	var today string
	if err := pool.QueryRow(t.Context(), "SELECT to_char(now() AT TIME ZONE 'UTC', '\"stepfleet.audit_\"YYYYMMDD')").Scan(&today); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), "DROP TABLE "+today); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Submit(t.Context(), one("r", "b")); err != nil {
		t.Fatal(err)
	}
	if n := count("SELECT count(*) FROM stepfleet.audit_rest"); n != 1 {
		t.Errorf("%d rows in the rest partition, want 1", n)
	}
	if _, err := l.Beat(t.Context(), "server"); err != nil { // today's cannot be made any more: no error
		t.Error(err)
	}
	if rows, err := l.Audit(t.Context(), "r"); err != nil || len(rows) != 1 {
		t.Errorf("%+v %v", rows, err)
	}
}
