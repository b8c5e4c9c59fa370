// Package dagsterlog reads Dagster's event log in PostgreSQL, for the server's sweep: how attempts
// ended whose workers cannot say. It writes nothing; a role that may read event_logs is enough. One
// that may also see what others run and end their connections (pg_read_all_stats and
// pg_signal_backend, or Dagster's own role) makes verdicts of lost attempts faster.
//
// A process that is gone may have sent a statement that the network still holds. While a connection lives
// that has its name, no answer is final, and one that does nothing is ended: PostgreSQL then reads nothing
// that comes on it later. A connection that is only being made brings nothing: a client sends no statement
// before the server has let it in.
package dagsterlog

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/stepfleet/stepfleet"
)

const (
	// settled is how long what a process sent before it was gone may stay unread by PostgreSQL.
	settled = 400 * time.Millisecond
	// settledBlind is the same where open transactions cannot be seen.
	settledBlind = 3 * time.Second
	maxConns     = 2
)

// underway looks for transactions that write or are about to, the oldest first, and says whether
// some backends do not show what they do. It goes before the look at the log: what is not underway here
// is in that one's snapshot, or was rolled back.
const underway = `
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)) FILTER (
        WHERE backend_xid IS NOT NULL OR state = 'active' AND query ~* '^\s*(insert|with|update)'), 0)::float8,
    coalesce(bool_or(query = '<insufficient privilege>'), false)
FROM pg_stat_activity
WHERE datname = current_database() AND coalesce(backend_type, 'client backend') = 'client backend' AND pid <> pg_backend_pid()`

// endings finds the ends of the steps' attempts, by the index on the run. A process puts its attempt's
// number among the tags of its event (attempts.py); -1 is what says nothing of it. In a text of the
// user's the quotes would be escaped.
const endings = `
SELECT e.run_id, e.step_key, e.dagster_event_type,
    coalesce(substring(e.event from '"stepfleet/attempt": ?"([0-9]{1,9})"')::integer, -1)
FROM (SELECT DISTINCT * FROM unnest($1::text[], $2::text[]) s (run_id, step_key)) s
JOIN event_logs e USING (run_id, step_key)
WHERE e.dagster_event_type = ANY ($3::text[])
ORDER BY e.id`

// Log is Dagster's event log.
type Log struct{ pool *pgxpool.Pool }

var _ stepfleet.EventLog = (*Log)(nil)

// driver is what SQLAlchemy has in a URL and others do not know.
var driver = regexp.MustCompile(`^(postgres(?:ql)?)\+\w+://`)

// Open prepares to read the log in Dagster's database. It does not wait for the database.
func Open(ctx context.Context, dsn string) (*Log, error) {
	cfg, err := pgxpool.ParseConfig(driver.ReplaceAllString(dsn, "$1://"))
	if err != nil {
		// Why it cannot be read may hold what is meant for a password.
		return nil, errors.New("open Dagster's event log: the connection string cannot be read: want postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
	}
	cfg.MaxConns = maxConns
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = 5 * time.Second
	}
	if _, ok := cfg.ConnConfig.RuntimeParams["application_name"]; !ok {
		cfg.ConnConfig.RuntimeParams["application_name"] = "stepfleet server"
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open Dagster's event log: %w", err)
	}
	return &Log{pool}, nil
}

// Close ends the log's connections.
func (l *Log) Close() { l.pool.Close() }

// step is a step of a run.
type step struct{ run, key string }

// end is an ending event of a step, and which attempt's it says that it is.
type end struct {
	event   string
	attempt int
}

// timely returns the events of the ends, oldest first, without those of attempts that had an end
// before: their processes were given up, and have written after the verdict.
func timely(ends []end, attempt int) []string {
	events := make([]string, 0, len(ends))
	for _, e := range ends {
		if e.attempt >= 0 && e.attempt < attempt {
			continue
		}
		events = append(events, e.event)
		if e.event != stepfleet.EventResources { // which the end of the same attempt follows
			attempt++
		}
	}
	return events
}

// Endings implements stepfleet.EventLog.
func (l *Log) Endings(ctx context.Context, orphans []stepfleet.Orphan) ([]stepfleet.Ending, error) {
	began := time.Now()
	runs, keys := make([]string, len(orphans)), make([]string, len(orphans))
	for i, o := range orphans {
		runs[i], keys[i] = o.RunID, o.StepKey
	}
	var oldest float64
	var blind bool
	var remaining map[int]bool
	connections := connectionsOf(orphans)
	ends := map[step][]end{}
	err := pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, underway).Scan(&oldest, &blind); err != nil {
			return err
		}
		var err error
		if remaining, err = connections.remaining(ctx, tx); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, endings, runs, keys, stepfleet.Endings)
		if err != nil {
			return err
		}
		var s step
		var e end
		_, err = pgx.ForEachRow(rows, []any{&s.run, &s.key, &e.event, &e.attempt}, func() error {
			ends[s] = append(ends[s], e)
			return nil
		})
		return err
	})
	if err == nil && len(remaining) > 0 {
		err = l.terminate(ctx, connections)
	}
	if err != nil {
		return nil, wrap(err)
	}
	// What began before a process was gone is older than the process is gone.
	least := settled
	if blind {
		least = settledBlind
	}
	out := make([]stepfleet.Ending, len(orphans))
	for i, o := range orphans {
		out[i] = stepfleet.Ending{
			Event: o.EndingOf(timely(ends[step{o.RunID, o.StepKey}], o.FirstAttempt)),
			Final: o.Gone+time.Since(began) >= least && !remaining[i] && time.Duration(oldest*float64(time.Second)) < o.Gone,
		}
	}
	return out, nil
}

// wrap says what to do about an error that waiting does not mend.
func wrap(err error) error {
	var pgErr *pgconn.PgError
	hint := ""
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case "42P01":
			hint = ": --dagster-dsn-file must name the database of Dagster's event log"
		case "42501":
			hint = ": grant SELECT on event_logs to the role of --dagster-dsn-file"
		}
	}
	return fmt.Errorf("dagster's event log %w: %w%s", stepfleet.ErrUnavailable, err, hint)
}
