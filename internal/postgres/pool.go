package postgres

import "time"

// PoolStats is how the ledger's connections stand.
type PoolStats struct {
	Max, Used, Idle int
	// Waits counts the calls that found no free connection, Waited how long all calls waited for one.
	Waits  int64
	Waited time.Duration
}

// PoolStats returns how the ledger's connections stand.
func (l *Ledger) PoolStats() PoolStats {
	s := l.pool.Stat()
	return PoolStats{
		Max: int(s.MaxConns()), Used: int(s.AcquiredConns()), Idle: int(s.IdleConns()),
		Waits: s.EmptyAcquireCount(), Waited: s.EmptyAcquireWaitTime(),
	}
}
