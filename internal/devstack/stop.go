package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/stepfleet/stepfleet/internal/supervise"
)

// The parts of stopping, 10 s together: what starts steps (3 s by supervise.DefaultStopWait), the
// deaths, server and local AWS (3 s), PostgreSQL.
const (
	deathsWait   = time.Second
	postgresWait = 3 * time.Second
)

// stopFirst has Stop end this child before the server.
func (s *Stack) stopFirst(p *supervise.Process) {
	s.stages.mu.Lock()
	defer s.stages.mu.Unlock()
	s.stages.first = append(s.stages.first, p)
}

// Stop ends everything in order, so that what ends is still recorded: first whatever starts or runs
// steps, then the server, which has heard of the workers' deaths by then, then the local AWS and
// PostgreSQL. At last it kills whatever carries the mark and gives the lock back.
func (s *Stack) Stop() error {
	s.out.line("Stopping ...")
	close(s.stopping)
	s.stages.mu.Lock()
	first := s.stages.first
	s.stages.mu.Unlock()
	supervise.StopAll(first...)
	supervise.Sweep(s.id, s.lasting()...)
	s.deaths.finish(deathsWait)
	s.supervisor.Stop()
	s.watchers.Wait()
	s.stopPostgres()
	err := s.leave()
	if err == nil {
		s.out.line("Stopped.")
	}
	return err
}

// lasting are the processes that end after the others.
func (s *Stack) lasting() []int {
	var pids []int
	for _, p := range append(slices.Clone(s.stages.servers), s.stages.aws) {
		if p != nil && p.PID() > 0 {
			pids = append(pids, p.PID())
		}
	}
	if database := s.database(); database != nil {
		pids = append(pids, database.PID)
	}
	return pids
}

func (s *Stack) stopPostgres() {
	database := s.database()
	if database == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), postgresWait)
	defer cancel()
	if err := database.Stop(ctx); err != nil {
		s.log.Warn("stop PostgreSQL, killing it", "error", err)
	}
}

// leave removes the last traces.
func (s *Stack) leave() error {
	supervise.Sweep(s.id)
	var errs []error
	if s.warden != nil {
		errs = append(errs, s.warden.Dismiss())
		_ = os.Unsetenv(supervise.MarkVariable)
	}
	if err := os.Remove(s.layout.State()); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove dev.json: %w", err))
	}
	return errors.Join(append(errs, s.lock.Close())...)
}
