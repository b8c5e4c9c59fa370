package pglocal

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
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
	known, err := verifier(s.passwordOf(login))
	if err != nil {
		return fmt.Errorf("create user %s: %w", login, err)
	}
	// Statements that define roles take no parameters, and a verifier has nothing to quote.
	if _, err := conn.Exec(ctx, "ALTER ROLE "+user+" LOGIN PASSWORD '"+known+"'"); err != nil {
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

// verifier is what PostgreSQL keeps of a password (RFC 5803). The password itself must not be in a
// statement: the server logs those that fail, or that it dies over.
func verifier(password string) (string, error) {
	const iterations = 4096 // as PostgreSQL itself
	salt := make([]byte, 16)
	if _, err := rand.Read(salt); err != nil {
		return "", err
	}
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", err
	}
	stored := sha256.Sum256(keyed(salted, "Client Key"))
	text := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, text(salt), text(stored[:]), text(keyed(salted, "Server Key"))), nil
}

func keyed(key []byte, text string) []byte {
	sum := hmac.New(sha256.New, key)
	sum.Write([]byte(text))
	return sum.Sum(nil)
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
