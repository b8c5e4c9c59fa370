package postgres

import (
	"context"
	"database/sql"
	_ "embed" // the roles' grants
	"log/slog"

	"github.com/jackc/pgx/v5"
)

// The roles besides the owner, which is whoever migrates. They cannot log in: make the users of the
// processes members of them.
const (
	WorkerRole = "stepfleet_worker"
	ServerRole = "stepfleet_server"
	ReaderRole = "stepfleet_reader"
)

//go:embed roles.sql
var grants string

// createRoles makes the roles that are not there. They are the cluster's, so another database's
// migration may be making them too. Who may not create roles goes without.
const createRoles = `
DO $$
DECLARE
    missing text;
BEGIN
    FOREACH missing IN ARRAY ARRAY['` + WorkerRole + `', '` + ServerRole + `', '` + ReaderRole + `'] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = missing);
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', missing);
        EXCEPTION WHEN duplicate_object OR unique_violation OR insufficient_privilege THEN
            NULL;
        END;
    END LOOP;
END $$`

const countRoles = `
SELECT count(*) FROM pg_roles WHERE rolname = ANY (ARRAY['` + WorkerRole + `', '` + ServerRole + `', '` + ReaderRole + `'])`

// grantRoles gives the roles what they need, and nothing else. It is harmless to repeat.
func grantRoles(ctx context.Context, db *sql.DB, log *slog.Logger) error {
	if _, err := db.ExecContext(ctx, createRoles); err != nil {
		return err
	}
	var there int
	if err := db.QueryRowContext(ctx, countRoles).Scan(&there); err != nil {
		return err
	}
	if there < 3 {
		log.Warn("no separate roles: this one may not create them, so server and workers must use the owner's. "+
			"Have an administrator create them with NOLOGIN, and migrate again", "roles", []string{WorkerRole, ServerRole, ReaderRole})
		return nil
	}
	// The simple protocol takes several statements, and makes one transaction of them.
	_, err := db.ExecContext(ctx, grants, pgx.QueryExecModeSimpleProtocol)
	return err
}
