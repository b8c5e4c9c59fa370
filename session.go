package stepfleet

import (
	"errors"
	"fmt"
	"time"
)

// SessionID names one life of a worker process in the ledger.
type SessionID int64

// SessionState is where a session stands.
type SessionState string

// The states of a session. A suspect session has not renewed for a TTL: its leased tasks are
// taken and its claims and starts refused, but what it runs goes on, and a renewal makes it alive
// again. Dead is for ever; a worker whose session is dead registers a new one.
const (
	SessionAlive   SessionState = "alive"
	SessionSuspect SessionState = "suspect"
	SessionDead    SessionState = "dead"
)

// Lifetimes are the deadlines of sessions and leases. A session expires by those of the worker that
// registered it, whatever the server's are.
type Lifetimes struct {
	// Renew is how often a worker renews its session.
	Renew time.Duration
	// SessionTTL is how long after its last renewal a session becomes suspect.
	SessionTTL time.Duration
	// RunLease is how long after its last renewal a session becomes dead and what it ran is
	// lost. The worker has killed its step processes by then.
	RunLease time.Duration
	// Margin is how long before a deadline a worker acts on it: before TTL-Margin without a
	// renewal it closes its gates, before RunLease-Margin it kills its steps. It looks every second, or
	// twice in a renewal if that is sooner. What a look leaves of the margin makes up for a clock that runs
	// too slow by (Margin - min(1 s, Renew/2)) / RunLease: 2.2 % at the defaults. A longer run lease needs a
	// longer margin for the same.
	Margin time.Duration
	// StartWithin is how long a leased task may wait for its start before the sweep takes it.
	StartWithin time.Duration
}

// MaxLifetime bounds every deadline: sums of them then stay what they are.
const MaxLifetime = 365 * 24 * time.Hour

// DefaultLifetimes returns the deadlines a deployment uses when it says nothing. They let a
// database failover of two minutes pass without killing a running step.
func DefaultLifetimes() Lifetimes {
	return Lifetimes{
		Renew:       5 * time.Second,
		SessionTTL:  30 * time.Second,
		RunLease:    180 * time.Second,
		Margin:      5 * time.Second,
		StartWithin: 60 * time.Second,
	}
}

// Validate checks the relations that the protocol rests on.
func (l Lifetimes) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(l.Renew > 0 && l.Margin > 0 && l.StartWithin > 0, "renew, margin and start-within must be positive")
	check(max(l.Renew, l.SessionTTL, l.RunLease, l.Margin, l.StartWithin) <= MaxLifetime, "no deadline may be over %s", MaxLifetime)
	check(l.SessionTTL >= 3*l.Renew, "session TTL %s is under three renewals of %s", l.SessionTTL, l.Renew)
	check(l.SessionTTL > l.Margin+l.Renew, "session TTL %s leaves no time before its margin %s and one renewal", l.SessionTTL, l.Margin)
	check(l.RunLease >= l.SessionTTL+2*l.Margin, "run lease %s must exceed session TTL %s by two margins", l.RunLease, l.SessionTTL)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lifetimes: %w", err)
	}
	return nil
}

// ValidateStatements checks that a step's statement in Dagster's storage that was granted while the
// gates were open is over before its worker must have killed the step: it may take this long at most.
// 0 means that nothing bounds it, which is the user's own choice.
func (l Lifetimes) ValidateStatements(timeout time.Duration) error {
	if most := l.RunLease - l.SessionTTL; timeout < 0 || timeout > most {
		return fmt.Errorf("lifetimes: a statement timeout of %s is not between 0 and the %s that run lease %s leaves after session TTL %s",
			timeout, most, l.RunLease, l.SessionTTL)
	}
	return nil
}

// SessionSpec is what a worker says of itself when it registers.
type SessionSpec struct {
	// Worker is the name people see; Instance names the process for its supervisor (the ECS
	// task, or the id `stepfleet dev` gave it) and is what a proof of death names.
	Worker   string `json:"worker"`
	Instance string `json:"instance"`
	Host     string `json:"host"`
	PID      int    `json:"pid"`
	Version  string `json:"version"`
	// Slots is how many tasks of each queue the worker runs at once.
	Slots map[string]int `json:"slots"`
	// SessionTTL and RunLease are the worker's own, and the session expires by them; those of
	// DefaultLifetimes when zero.
	SessionTTL time.Duration `json:"-"`
	RunLease   time.Duration `json:"-"`
}

// WithLifetimes returns the spec with its deadlines filled in.
func (s SessionSpec) WithLifetimes() SessionSpec {
	if s.SessionTTL == 0 && s.RunLease == 0 {
		l := DefaultLifetimes()
		s.SessionTTL, s.RunLease = l.SessionTTL, l.RunLease
	}
	return s
}

// Session is a session as the ledger shows it.
type Session struct {
	ID SessionID `json:"session_id"`
	SessionSpec
	State     SessionState `json:"state"`
	Draining  bool         `json:"draining"`
	StartedAt time.Time    `json:"started_at"`
	RenewedAt time.Time    `json:"renewed_at"`
	// EndReason says why a dead session died.
	EndReason string `json:"end_reason,omitempty"`
}

// Held is a task that the ledger says a session owns.
type Held struct {
	TaskID          TaskID
	Fence           Fence
	State           State // leased or running
	CancelRequested bool
}

// Hold is a task that a session holds, or has held until it abandoned the task.
type Hold struct {
	ID TaskID
	Key
	State     State
	Session   SessionID
	Abandoned bool
	// Silent is since when nobody can end the task but the server: since it was abandoned, or since the
	// session died, or was last renewed.
	Silent   time.Duration
	RunLease time.Duration // of the session
}
