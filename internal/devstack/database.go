package devstack

import (
	"cmp"
	"context"
	"time"
)

// postgresBackoff is the wait before PostgreSQL is started again after it died, where none is set.
const postgresBackoff = time.Second

// database returns the running PostgreSQL, nil before it is up.
func (s *Stack) database() *Database {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

func (s *Stack) setDatabase(d *Database) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = d
}

// keepPostgres starts PostgreSQL again on its port whenever it dies, until the stack stops.
func (s *Stack) keepPostgres() {
	for {
		select {
		case <-s.stopping:
			return
		case <-s.database().Done:
		}
		for !s.restartPostgres() {
			select {
			case <-s.stopping:
				return
			default:
			}
		}
	}
}

// restartPostgres waits, starts it, and says whether it did.
func (s *Stack) restartPostgres() bool {
	wait := cmp.Or(s.config.RestartAfter, postgresBackoff)
	s.out.line("  DIED   %-18s process %d; starting it again in %s", "PostgreSQL", s.database().PID, wait)
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), serviceTimeout)
	defer cancel()
	select {
	case <-s.stopping:
		return false
	case <-time.After(wait):
	}
	go func() {
		select {
		case <-s.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	database, err := s.config.StartPostgres(ctx, s.layout.Postgres(), s.ports.postgres, s.config.Python)
	if err != nil {
		s.log.Error("start PostgreSQL again", "error", err)
		return false
	}
	s.setDatabase(database)
	s.writeState()
	s.out.up("PostgreSQL", "again", began)
	return true
}
