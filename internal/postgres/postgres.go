// Package postgres is the ledger on PostgreSQL, and the only package that knows SQL.
//
// Every method is one round trip and one commit (CloseRun is two). Most are a pipeline of the
// same shape:
//
//  1. lock what decides (the session, the run, then the tasks in id order);
//  2. decide and act in one statement, whose snapshot is younger than the locks, so that it reads
//     what it has locked as plain data; winners and refusals are audited by the same statement.
//
// Claim, Sweep and Decide lock and act in one statement instead; their comments say why that is safe.
//
// Files, in the order of a task's life: submit.go, claim.go, start.go, settle.go, release.go,
// cancel.go; session.go, sweep.go and repair.go for sessions and what they leave; records.go for readers; migrate.go and
// check.go for the schema. Only the database's clock counts.
//
// It works behind PgBouncer in transaction mode: no LISTEN, no session advisory locks, no SET, no
// temporary tables, no named prepared statements unless the DSN asks for them.
package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/stepfleet/stepfleet"
)

// DefaultMinServerVersion is PostgreSQL 15, as server_version_num says it.
const DefaultMinServerVersion = 150000

// defaultMaxConns is room for one role's concurrent calls; a fleet multiplies it by its processes.
const defaultMaxConns = 8

// Options of Open.
type Options struct {
	// MaxConns bounds the pool; 0 is 8.
	MaxConns int
	// MinServerVersion as in server_version_num; 0 is PostgreSQL 15.
	MinServerVersion int
	// Prepare keeps statements prepared on their connection, which halves the database's work for
	// a single task. Not behind a pooler in transaction mode, unless it tracks prepared statements.
	Prepare bool
	// AppName is shown in pg_stat_activity; empty is "stepfleet".
	AppName string
	// MayRepeat is asked before a call is repeated within itself: the retry budget of whoever watches the
	// database. Nil always lets it.
	MayRepeat func() bool
	// Logger hears of retries and of partitions that could not be made; nil is quiet.
	Logger *slog.Logger
}

// Ledger is the ledger on PostgreSQL.
type Ledger struct {
	pool *pgxpool.Pool
	opts Options
	log  *slog.Logger
	// partitionsDue is when Beat next looks after the audit's partitions, in Unix seconds.
	partitionsDue atomic.Int64
}

var _ stepfleet.Ledger = (*Ledger)(nil)

// Open prepares a ledger on the database. It does not wait for the database to be there: Check
// says whether it is, and every method returns ErrUnavailable until it is.
func Open(ctx context.Context, dsn string, opts Options) (*Ledger, error) {
	if opts.MaxConns == 0 {
		opts.MaxConns = defaultMaxConns
	}
	if opts.MinServerVersion == 0 {
		opts.MinServerVersion = DefaultMinServerVersion
	}
	if opts.MayRepeat == nil {
		opts.MayRepeat = func() bool { return true }
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil || foreign(dsn) {
		return nil, fmt.Errorf("open ledger: %w", errDSN)
	}
	cfg.MaxConns = int32(opts.MaxConns)
	adjust(cfg.ConnConfig, dsn, opts)
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	return &Ledger{pool: pool, opts: opts, log: opts.Logger}, nil
}

// errDSN keeps to itself why a connection string cannot be read: pgx leaves out what it takes for the
// password, and what makes the string hard to read may be that.
var errDSN = errors.New("the connection string cannot be read: want postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=..., " +
	"with other characters than letters and digits percent-encoded (a space as %20) and without a driver's name (as in postgresql+psycopg2), " +
	"or keywords such as host=HOST password=PASSWORD")

// foreign reports whether it is an address of another kind, which pgx would take for a keyword.
func foreign(dsn string) bool {
	scheme, _, found := strings.Cut(dsn, "://")
	return found && scheme != "postgres" && scheme != "postgresql" && !strings.Contains(scheme, "=")
}

// adjust sets what stepfleet wants of a connection and the DSN does not say. Unnamed statements
// work behind any pooler.
func adjust(cfg *pgx.ConnConfig, dsn string, opts Options) {
	if _, ok := cfg.RuntimeParams["application_name"]; !ok {
		cfg.RuntimeParams["application_name"] = cmp.Or(opts.AppName, "stepfleet")
	}
	if !opts.Prepare && !strings.Contains(dsn, "default_query_exec_mode") {
		cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 5 * time.Second
	}
}

// Close ends the ledger's connections, after the calls that use them.
func (l *Ledger) Close() { l.pool.Close() }
