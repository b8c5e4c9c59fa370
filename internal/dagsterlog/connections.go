package dagsterlog

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stepfleet/stepfleet"
)

// remains are the connections of each name that were made before its time: a name that ends in a slash
// is what those of all of a worker's processes begin with. Everybody may see names, and only some the
// times.
const remains = `
FROM unnest($1::text[], $2::float8[]) WITH ORDINALITY o (name, gone, number)
JOIN pg_stat_activity a ON o.name <> '' AND a.datname = current_database() AND a.pid <> pg_backend_pid()
    AND CASE WHEN right(o.name, 1) = '/' THEN left(a.application_name, length(o.name)) ELSE a.application_name END = o.name
    AND (a.backend_start <= clock_timestamp() - make_interval(secs => o.gone)) IS NOT FALSE`

// remaining says of which of them there are some. Like the look at transactions it goes before the look at
// the log.
const remaining = `SELECT DISTINCT o.number::integer - 1 ` + remains

// terminate ends those that wait for a statement, and the others once that takes longer than it may. It leaves
// out what this role may not end, which would be an error in the database's log at each look.
const terminate = `SELECT count(pg_terminate_backend(a.pid)) ` + remains + `
    AND (a.state LIKE 'idle%' AND ($3::boolean[])[o.number] OR ($4::boolean[])[o.number])
JOIN pg_roles r ON r.oid = a.usesysid
    AND (pg_has_role(r.oid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE'))
    AND (NOT r.rolsuper OR current_setting('is_superuser')::boolean)`

const insufficientPrivilege = "42501"

// connections are those that the orphans' processes may have left.
type connections struct {
	names   []string
	gone    []float64 // seconds
	settled []bool    // what was sent just before the end has been read, so that those which do nothing wait in vain
	overdue []bool    // no statement may still run
}

func connectionsOf(orphans []stepfleet.Orphan) connections {
	var c connections
	for _, o := range orphans {
		c.names, c.gone = append(c.names, o.Connections), append(c.gone, o.Gone.Seconds())
		c.settled, c.overdue = append(c.settled, o.Gone >= settled), append(c.overdue, o.Gone >= o.InFlight)
	}
	return c
}

// remaining says which orphans have some.
func (c connections) remaining(ctx context.Context, tx pgx.Tx) (map[int]bool, error) {
	rows, err := tx.Query(ctx, remaining, c.names, c.gone)
	if err != nil {
		return nil, err
	}
	left := map[int]bool{}
	var number int
	_, err = pgx.ForEachRow(rows, []any{&number}, func() error {
		left[number] = true
		return nil
	})
	return left, err
}

// terminate ends them, as far as this role may. They are gone at one of the next looks.
func (l *Log) terminate(ctx context.Context, c connections) error {
	_, err := l.pool.Exec(ctx, terminate, c.names, c.gone, c.settled, c.overdue)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == insufficientPrivilege {
		return nil // a superuser's among them, or a rule of the provider's: they are waited for
	}
	return err
}
