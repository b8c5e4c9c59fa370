package pglocal

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// CreateLogin makes a user that is let in with LoginDSN and has the rights of the group, which is
// made too; without a group it has none but its own.
func (s *Server) CreateLogin(ctx context.Context, login, group string) error {
	conn, err := pgx.Connect(ctx, s.DSN("postgres"))
	if err != nil {
		return fmt.Errorf("create user %s: %w", login, err)
	}
	defer conn.Close(ctx)
	if group != "" {
		if err := ensureRole(ctx, conn, group); err != nil {
			return err
		}
	}
	if err := ensureRole(ctx, conn, login); err != nil {
		return err
	}
	user := pgx.Identifier{login}.Sanitize()
	// The password is hex; statements that define roles take no parameters.
	if _, err := conn.Exec(ctx, "ALTER ROLE "+user+" LOGIN PASSWORD '"+s.passwordOf(login)+"'"); err != nil {
		return fmt.Errorf("create user %s: %w", login, err)
	}
	if group == "" {
		return nil
	}
	if _, err := conn.Exec(ctx, "GRANT "+pgx.Identifier{group}.Sanitize()+" TO "+user); err != nil {
		return fmt.Errorf("make user %s a member of %s: %w", login, group, err)
	}
	return nil
}

func ensureRole(ctx context.Context, conn *pgx.Conn, name string) error {
	var there bool
	err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", name).Scan(&there)
	if err == nil && !there {
		_, err = conn.Exec(ctx, "CREATE ROLE "+pgx.Identifier{name}.Sanitize()+" NOLOGIN")
	}
	if err != nil {
		return fmt.Errorf("create role %s: %w", name, err)
	}
	return nil
}

// Restrict lets only these users connect to the database, and the superuser.
func (s *Server) Restrict(ctx context.Context, database string, logins ...string) error {
	name := pgx.Identifier{database}.Sanitize()
	statements := []string{"REVOKE CONNECT ON DATABASE " + name + " FROM PUBLIC"}
	for _, login := range logins {
		statements = append(statements, "GRANT CONNECT ON DATABASE "+name+" TO "+pgx.Identifier{login}.Sanitize())
	}
	return s.alter(ctx, database, statements...)
}

// Own gives the database to the user, with what lies in its schema public: an earlier release's was the
// superuser's.
func (s *Server) Own(ctx context.Context, database, login string) error {
	return s.alter(ctx, database,
		"ALTER DATABASE "+pgx.Identifier{database}.Sanitize()+" OWNER TO "+pgx.Identifier{login}.Sanitize(),
		strings.ReplaceAll(handOver, "NEW_OWNER", "'"+strings.ReplaceAll(login, "'", "''")+"'"))
}

// handOver changes the owner of tables and views; a table's indexes and sequences follow it.
const handOver = `
DO $$
DECLARE
    thing regclass;
BEGIN
    FOR thing IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')
        AND pg_get_userbyid(relowner) <> NEW_OWNER
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO %I', thing, NEW_OWNER);
    END LOOP;
END $$`

func (s *Server) alter(ctx context.Context, database string, statements ...string) error {
	conn, err := pgx.Connect(ctx, s.DSN(database))
	if err != nil {
		return fmt.Errorf("set up database %s: %w", database, err)
	}
	defer conn.Close(ctx)
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("set up database %s: %w", database, err)
		}
	}
	return nil
}
