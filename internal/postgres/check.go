package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// facts are what Check judges the server by.
type facts struct {
	serverVersion            int
	version                  string
	fsync, synchronousCommit string
	inRecovery, readOnly     bool
	schema                   int64 // 0 where nothing has been migrated
}

const serverFacts = `
SELECT current_setting('server_version_num')::integer, current_setting('server_version'), current_setting('fsync'),
    current_setting('synchronous_commit'), pg_is_in_recovery(), current_setting('transaction_read_only')::boolean,
    to_regclass('stepfleet.goose_db_version') IS NOT NULL`

const schemaVersion = `
SELECT coalesce(max(version_id), 0) FROM stepfleet.goose_db_version WHERE is_applied`

// Check implements stepfleet.Records. It changes nothing.
func (l *Ledger) Check(ctx context.Context) error {
	var f facts
	var migrated bool
	err := l.run(ctx, "check ledger", idempotent, func(q *pgx.Batch) {
		q.Queue(serverFacts).QueryRow(func(row pgx.Row) error {
			return row.Scan(&f.serverVersion, &f.version, &f.fsync, &f.synchronousCommit, &f.inRecovery, &f.readOnly, &migrated)
		})
	})
	if err == nil && migrated {
		err = l.run(ctx, "check ledger", idempotent, func(q *pgx.Batch) {
			q.Queue(schemaVersion).QueryRow(func(row pgx.Row) error { return row.Scan(&f.schema) })
		})
	}
	if err != nil {
		return err
	}
	return f.judge(l.opts.MinServerVersion, SchemaVersion())
}

// judge says what is wrong and what to do about it, the first thing first.
func (f facts) judge(minServer int, want int64) error {
	refuse := func(r *stepfleet.Refusal, format string, args ...any) error {
		return fmt.Errorf("check ledger: %w: %s", r, fmt.Sprintf(format, args...))
	}
	switch {
	case f.serverVersion < minServer:
		return refuse(stepfleet.ErrSchema, "PostgreSQL %s is too old: stepfleet needs %d or newer", f.version, minServer/10000)
	case f.inRecovery:
		return refuse(stepfleet.ErrUnavailable, "the server is a replica (or recovers): connect to the primary")
	case f.readOnly:
		return refuse(stepfleet.ErrUnavailable, "transactions are read-only: check default_transaction_read_only of the role, database and server")
	case f.fsync != "on":
		return refuse(stepfleet.ErrSchema, "fsync is off, so acknowledged work can be lost: set fsync = on")
	case f.synchronousCommit == "off":
		return refuse(stepfleet.ErrSchema, "synchronous_commit is off, so acknowledged work can be lost: set it to on for stepfleet's role")
	case f.schema == 0:
		return refuse(stepfleet.ErrSchema, "the schema is not there: run `stepfleet migrate`")
	case f.schema < want:
		return refuse(stepfleet.ErrSchema, "the schema has version %d, this binary needs %d: run `stepfleet migrate`", f.schema, want)
	case f.schema > want:
		return refuse(stepfleet.ErrSchema, "the schema has version %d, this binary knows %d: upgrade this binary", f.schema, want)
	}
	return nil
}
