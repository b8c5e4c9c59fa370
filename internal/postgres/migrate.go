package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// versionTable is goose's, inside our schema: a database beside Dagster's gets nothing else.
const versionTable = "stepfleet.goose_db_version"

// migrationLock is the key of the advisory transaction lock that lets one migration run at a time.
const migrationLock = 731086752211701

// Report says what Migrate did.
type Report struct {
	From, To int64    // schema versions
	Applied  []string // the migrations' names, in order
}

// Migrate brings the schema to this binary's version, makes the audit's partitions, and gives each role
// its rights (roles.sql). When two run at once the second waits and finds nothing to do. It needs the
// role that owns the schema. An older binary finds a newer schema and changes nothing; Check tells.
func Migrate(ctx context.Context, dsn string, opts Options) (Report, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil || foreign(dsn) {
		return Report{}, fmt.Errorf("migrate ledger: %w", errDSN)
	}
	adjust(cfg, dsn, opts)
	db := stdlib.OpenDB(*cfg)
	defer db.Close()
	db.SetMaxIdleConns(4)
	logger := opts.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	var report Report
	err = inLockedTx(ctx, db, func() error {
		report, err = migrate(ctx, db, logger)
		return err
	})
	return report, wrap("migrate ledger", err)
}

// inLockedTx calls fn while a transaction of another connection holds the migration lock: unlike a
// session's lock that also works through a transaction pooler, and ends with the connection.
func inLockedTx(ctx context.Context, db *sql.DB, fn func() error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1)", int64(migrationLock)); err != nil {
		return err
	}
	return fn()
}

func migrate(ctx context.Context, db *sql.DB, logger *slog.Logger) (Report, error) {
	var report Report
	if _, err := db.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS stepfleet"); err != nil {
		return report, err
	}
	provider, err := newProvider(db)
	if err != nil {
		return report, err
	}
	if report.From, err = provider.GetDBVersion(ctx); err != nil {
		return report, err
	}
	results, err := provider.Up(ctx)
	for _, r := range results {
		report.Applied = append(report.Applied, r.Source.Path)
		logger.Info("migration applied", "migration", r.Source.Path, "took", r.Duration.Round(time.Millisecond))
	}
	if err != nil {
		return report, err
	}
	if report.To, err = provider.GetDBVersion(ctx); err != nil {
		return report, err
	}
	if report.To > SchemaVersion() {
		return report, nil // newer than this binary: none of its business
	}
	if _, err := db.ExecContext(ctx, "SELECT stepfleet.audit_ahead($1)", partitionDaysAhead); err != nil {
		return report, err
	}
	return report, grantRoles(ctx, db, logger)
}

func newProvider(db *sql.DB) (*goose.Provider, error) {
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName(versionTable),
		goose.WithDisableGlobalRegistry(true))
}

// SchemaVersion is the version of the schema that this binary works with.
func SchemaVersion() int64 {
	names, err := fs.Glob(migrationFiles, "migrations/*.sql")
	if err != nil || len(names) == 0 {
		panic(errors.Join(errors.New("postgres: no migrations are embedded"), err))
	}
	version, err := goose.NumericComponent(names[len(names)-1]) // Glob sorts
	if err != nil {
		panic(err)
	}
	return version
}
