package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stepfleet/stepfleet/internal/supervise"
)

// How long each thing may take to be ready. Beyond its bound the stack's own services fail the start;
// what runs the user's code is waited for no longer, with a message, and may become ready later.
const (
	serviceTimeout = 60 * time.Second
	userTimeout    = 60 * time.Second
	storageTimeout = 120 * time.Second
	dagsterTimeout = 120 * time.Second
)

// up starts everything. Two cores carry it, so what does not depend on each other starts together.
func (s *Stack) up(ctx context.Context) error {
	if err := s.startWarden(); err != nil {
		return err
	}
	base, baseCtx := errgroup.WithContext(ctx)
	base.Go(func() error { return s.startPostgres(baseCtx) })
	base.Go(func() error { return s.startAWS(baseCtx) })
	if err := base.Wait(); err != nil {
		return err
	}
	s.writeState()
	rest, restCtx := errgroup.WithContext(ctx)
	rest.Go(func() error { return s.startFleet(restCtx) })
	rest.Go(func() error { return s.startDagster(restCtx) })
	return rest.Wait()
}

// startWarden marks this process's children, including those that others start for it, and has the
// warden watch over them. Go's environment changes, the process's own does not: it stays unmarked.
func (s *Stack) startWarden() error {
	if err := os.Setenv(supervise.MarkVariable, s.id); err != nil {
		return fmt.Errorf("mark the environment: %w", err)
	}
	warden, err := supervise.StartWarden([]string{s.config.Executable, "warden"}, s.id, s.layout.Log("warden"))
	if err != nil {
		return err
	}
	s.warden = warden
	s.writeState()
	return nil
}

func (s *Stack) startPostgres(ctx context.Context) error {
	began := time.Now()
	database, err := s.config.StartPostgres(ctx, s.layout.Postgres(), s.ports.postgres, s.config.Python)
	if err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	s.setDatabase(database)
	s.watchers.Go(s.keepPostgres)
	if err := writeSecret(s.layout.LedgerURLFile(), database.OwnerURL+"\n"); err != nil {
		return fmt.Errorf("write the ledger's URL: %w", err)
	}
	if err := writeSecret(s.layout.DagsterURLFile(), database.DagsterURL+"\n"); err != nil {
		return fmt.Errorf("write Dagster's database URL: %w", err)
	}
	s.out.up("PostgreSQL", database.Address, began)
	return nil
}

func (s *Stack) startAWS(ctx context.Context) error {
	if s.config.AWSEndpoint != "" {
		return nil
	}
	began := time.Now()
	address := loopback(s.ports.aws)
	p, err := s.start(supervise.Spec{
		Name:    "aws",
		Command: s.command("aws", s.plain, s.config.Executable, "aws", "--listen", address),
		Ready:   supervise.TCP(address),
	})
	if err != nil {
		return err
	}
	s.stages.aws = p
	return s.await(ctx, p, "local AWS", address, serviceTimeout, began)
}

// startFleet brings up the ledger's schema, the server and the workers.
func (s *Stack) startFleet(ctx context.Context) error {
	began := time.Now()
	if err := s.config.Migrate(ctx, s.database().OwnerURL); err != nil {
		return fmt.Errorf("migrate the ledger: %w", err)
	}
	s.out.up("ledger", "schema is current", began)
	if err := s.startServers(ctx); err != nil {
		return err
	}
	select {
	case <-s.prepared: // the workers' templates open Dagster's storage
	case <-ctx.Done():
		return ctx.Err()
	}
	var workers errgroup.Group
	for i := range s.config.Workers {
		workers.Go(func() error { return s.startWorker(ctx, i) })
	}
	return workers.Wait()
}

// startServers starts the servers. The first is "server", the others "server-2" and so on.
func (s *Stack) startServers(ctx context.Context) error {
	began := time.Now()
	for i, url := range s.serverURLs() {
		args := []string{
			s.config.Executable, "server", "--listen", loopback(s.ports.servers[i]), "--create-queues",
		}
		for _, queue := range s.config.Queues {
			args = append(args, "--queue", queue.Name)
		}
		name := "server"
		if i > 0 {
			name = fmt.Sprintf("server-%d", i+1)
		}
		p, err := s.start(supervise.Spec{
			Name: name, Command: s.command(name, s.ofServer, args...), Ready: supervise.HTTP(url + "/readyz"),
		})
		if err != nil {
			return err
		}
		s.stages.servers = append(s.stages.servers, p)
	}
	for i, p := range s.stages.servers {
		if err := s.await(ctx, p, p.Name(), s.serverURLs()[i], serviceTimeout, began); err != nil {
			return err
		}
	}
	return nil
}

// await waits for a child of the stack's own; it must become ready.
func (s *Stack) await(ctx context.Context, p *supervise.Process, name, where string, timeout time.Duration, began time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := p.WaitReady(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, logTail(p.LogPath()))
	}
	s.out.up(name, where, began)
	s.writeState()
	return nil
}

// awaitUser waits for a child that loads the user's code; a broken project must not stop the stack
// from coming up, since Dagster's UI shows what is wrong with it.
func (s *Stack) awaitUser(ctx context.Context, p *supervise.Process, name, where string, began time.Time) error {
	limited, cancel := context.WithTimeout(ctx, userTimeout)
	defer cancel()
	err := p.WaitReady(limited)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		s.out.wait(name, err, p.LogPath())
		return nil
	}
	s.out.up(name, where, began)
	s.writeState()
	return nil
}

// start starts a child with what all children of the stack share.
func (s *Stack) start(spec supervise.Spec) (*supervise.Process, error) {
	spec.LogPath = s.layout.Log(spec.Name)
	spec.Restart = true
	spec.RestartAfter = s.config.RestartAfter
	report := spec.Exited
	spec.Exited = func(e supervise.Exit) {
		if !e.Stopped {
			s.out.line("  DIED   %-18s process %d: %s; starting it again in %.0f s, its log: %s",
				e.Name, e.PID, e.Reason, e.RestartIn.Seconds(), spec.LogPath)
		}
		if report != nil {
			report(e)
		}
	}
	spec.Restarted = func(p *supervise.Process) {
		s.writeState()
		s.watchers.Go(func() { s.again(p) })
	}
	return s.supervisor.Start(spec)
}

// again says when a restarted child is ready.
func (s *Stack) again(p *supervise.Process) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), userTimeout)
	defer cancel()
	var exited *supervise.ExitedError
	switch err := p.WaitReady(ctx); {
	case err == nil:
		s.out.up(p.Name(), "again", began)
	case !errors.As(err, &exited): // an exit has its own line
		s.out.wait(p.Name(), err, p.LogPath())
	}
}

// logTail returns the end of a log for an error message.
func logTail(path string) string {
	const most = 4 << 10
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Sprintf("its log: %v", err)
	}
	if len(text) > most {
		text = text[len(text)-most:]
	}
	return fmt.Sprintf("the end of its log, %s:\n%s", path, text)
}
