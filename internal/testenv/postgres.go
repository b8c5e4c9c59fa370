// Package testenv gives tests the outside things they need, each thrown away with the test.
package testenv

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet/internal/pglocal"
	"github.com/stepfleet/stepfleet/internal/postgres"
)

// DSNEnv names a server to use instead of starting one. Its role must be allowed to create
// databases.
const DSNEnv = "STEPFLEET_TEST_DSN"

// Postgres returns the DSN of an empty database of its own, dropped at the end of the test. One
// server serves the whole test binary and ends with it, also when it is killed. Without
// PostgreSQL the test fails.
func Postgres(t testing.TB) string {
	t.Helper()
	return shared(t).create(t, "")
}

// Migrated is Postgres with the ledger's schema in the database.
func Migrated(t testing.TB) string {
	t.Helper()
	s := shared(t)
	return s.create(t, s.template(t))
}

// server is the one PostgreSQL of this test binary.
type server struct {
	dsn func(database string) string

	templateOnce sync.Once
	templateName string
	templateErr  error
}

var (
	once     sync.Once
	theOne   *server
	startErr error
)

func shared(t testing.TB) *server {
	t.Helper()
	once.Do(func() { theOne, startErr = start() })
	if startErr != nil {
		t.Fatalf("a PostgreSQL for tests: %v", startErr)
	}
	return theOne
}

func start() (*server, error) {
	if dsn := os.Getenv(DSNEnv); dsn != "" {
		base, err := url.Parse(dsn)
		if err != nil || base.Scheme == "" {
			return nil, fmt.Errorf("%s must be a URL: %w", DSNEnv, err)
		}
		return &server{dsn: func(database string) string {
			u := *base
			if database != "postgres" {
				u.Path = "/" + database
			}
			return u.String()
		}}, nil
	}
	dir, err := scratch()
	if err != nil {
		return nil, err
	}
	pg, err := pglocal.Start(context.Background(), pglocal.Config{Dir: dir, Settings: map[string]string{
		"max_wal_size": "256MB", "min_wal_size": "80MB", "shared_buffers": "64MB", "autovacuum_naptime": "10s",
	}})
	if err != nil {
		return nil, err
	}
	return &server{dsn: pg.DSN}, nil
}

// scratch makes the server's directory, in memory where possible (a sync is free there), and
// removes those that earlier test binaries left: their servers died with them.
func scratch() (string, error) {
	base := os.TempDir()
	if probe, err := os.MkdirTemp("/dev/shm", "stepfleet-probe-"); err == nil {
		os.Remove(probe)
		base = "/dev/shm"
	}
	const prefix = "stepfleet-test-pg-"
	old, _ := filepath.Glob(filepath.Join(base, prefix+"*"))
	for _, dir := range old {
		var pid int
		_, err := fmt.Sscanf(strings.TrimPrefix(filepath.Base(dir), prefix), "%d-", &pid)
		if _, statErr := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil && os.IsNotExist(statErr) {
			os.RemoveAll(dir)
		}
	}
	dir, err := os.MkdirTemp(base, fmt.Sprintf("%s%d-", prefix, os.Getpid()))
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

func (s *server) exec(database, sql string) error {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, s.dsn(database))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

func newName() string {
	raw := make([]byte, 8)
	rand.Read(raw)
	return "stepfleet_test_" + hex.EncodeToString(raw)
}

// create makes a database from the template and drops it after the test.
func (s *server) create(t testing.TB, template string) string {
	t.Helper()
	name := newName()
	sql := "CREATE DATABASE " + name
	if template != "" {
		sql += " TEMPLATE " + template + " STRATEGY WAL_LOG"
	}
	if err := s.exec("postgres", sql); err != nil {
		t.Fatalf("create test database: %v", err)
	}
	t.Cleanup(func() {
		if err := s.exec("postgres", "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
			t.Logf("drop test database: %v", err)
		}
	})
	return s.dsn(name)
}

// template migrates one database that the others are copied from.
func (s *server) template(t testing.TB) string {
	t.Helper()
	s.templateOnce.Do(func() {
		s.templateName = newName()
		if s.templateErr = s.exec("postgres", "CREATE DATABASE "+s.templateName); s.templateErr != nil {
			return
		}
		_, s.templateErr = postgres.Migrate(context.Background(), s.dsn(s.templateName), postgres.Options{})
	})
	if s.templateErr != nil {
		t.Fatalf("migrate test database: %v", s.templateErr)
	}
	return s.templateName
}
