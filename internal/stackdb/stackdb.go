// Package stackdb is the PostgreSQL of a development stack: a local server with two databases, and a user
// with its own rights for each kind of process.
package stackdb

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/stepfleet/stepfleet/internal/devstack"
	"github.com/stepfleet/stepfleet/internal/pglocal"
	"github.com/stepfleet/stepfleet/internal/postgres"
)

// Starter returns what starts the local PostgreSQL with the ledger's database and Dagster's.
func Starter(log *slog.Logger) func(ctx context.Context, dir string, port int, python string) (*devstack.Database, error) {
	return func(ctx context.Context, dir string, port int, python string) (*devstack.Database, error) {
		server, err := pglocal.Start(ctx, pglocal.Config{Dir: dir, Port: port, Python: python, Log: log})
		if err != nil {
			return nil, err
		}
		if err := setUp(ctx, server); err != nil {
			_ = server.Stop(ctx) // the first error says more
			return nil, err
		}
		return &devstack.Database{
			OwnerURL:  server.DSN(ledgerDatabase),
			ServerURL: server.LoginDSN(serverLogin, ledgerDatabase),
			WorkerURL: server.LoginDSN(workerLogin, ledgerDatabase),
			// The driver that dagster-postgres installs; SQLAlchemy 2.1 would look for another one.
			DagsterURL: strings.Replace(server.LoginDSN(dagsterLogin, dagsterDatabase), "postgres://", "postgresql+psycopg2://", 1),
			Address:    fmt.Sprintf("127.0.0.1:%d", server.Port()), Version: fmt.Sprint(server.Version()),
			PID: server.PID(), Done: server.Done(), Stop: server.Stop,
		}, nil
	}
}

// The databases of a development stack and their users. The ledger's owner is the superuser, and only
// migrates.
const (
	ledgerDatabase  = "stepfleet"
	dagsterDatabase = "dagster"
	serverLogin     = "server"
	workerLogin     = "worker"
	dagsterLogin    = "dagster"
)

// setUp makes what is not there yet: databases, and users that each get into their own.
func setUp(ctx context.Context, server *pglocal.Server) error {
	for _, name := range []string{ledgerDatabase, dagsterDatabase} {
		if err := server.CreateDatabase(ctx, name); err != nil {
			return err
		}
	}
	for login, group := range map[string]string{serverLogin: postgres.ServerRole, workerLogin: postgres.WorkerRole, dagsterLogin: ""} {
		if err := server.CreateLogin(ctx, login, group); err != nil {
			return err
		}
	}
	if err := server.Own(ctx, dagsterDatabase, dagsterLogin); err != nil {
		return err
	}
	if err := server.Restrict(ctx, dagsterDatabase, dagsterLogin); err != nil {
		return err
	}
	return server.Restrict(ctx, ledgerDatabase, serverLogin, workerLogin)
}
