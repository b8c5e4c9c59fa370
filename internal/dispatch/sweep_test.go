package dispatch_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dispatch"
	"github.com/stepfleet/stepfleet/internal/memory"
)

// skewed is a ledger whose clock can jump, as that of the database after a failover.
type skewed struct {
	*memory.Ledger
	ahead atomic.Int64
}

func (l *skewed) Beat(ctx context.Context, server string) (time.Time, error) {
	at, err := l.Ledger.Beat(ctx, server)
	return at.Add(time.Duration(l.ahead.Load())), err
}

// ExpireSessions undoes the jump, since the times of the renewals have not jumped.
func (l *skewed) ExpireSessions(ctx context.Context, beats stepfleet.Beats) ([]stepfleet.Session, error) {
	beats.Last = beats.Last.Add(-time.Duration(l.ahead.Load()))
	return l.Ledger.ExpireSessions(ctx, beats)
}

// The sweeper's heartbeats count by the clock that expires the sessions: of time that it has only
// jumped over, nothing is known.
func TestAJumpOfTheLedgersClockBeginsTheWaitAnew(t *testing.T) {
	for name, jump := range map[string]time.Duration{"forward": time.Hour, "back": -time.Hour} {
		t.Run(name, func(t *testing.T) { testJump(t, jump) })
	}
}

func testJump(t *testing.T, jump time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		ledger := &skewed{Ledger: memory.NewLedger()}
		server, err := dispatch.New(dispatch.Config{
			Name: "s", Queues: []string{"default"}, Lifetimes: stepfleet.DefaultLifetimes(), Logger: slog.New(slog.DiscardHandler),
		}, ledger, memory.NewBells("default"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- server.Run(ctx) }()
		if _, err := ledger.Register(t.Context(), stepfleet.SessionSpec{Worker: "w"}); err != nil {
			t.Fatal(err)
		}
		state := func() stepfleet.SessionState {
			sessions, err := ledger.Sessions(t.Context(), 0)
			if err != nil || len(sessions) != 1 {
				t.Fatal(sessions, err)
			}
			return sessions[0].State
		}
		time.Sleep(20 * time.Second)
		ledger.ahead.Store(int64(jump))
		time.Sleep(25 * time.Second)
		if got := state(); got != stepfleet.SessionAlive {
			t.Errorf("the session is %s within a TTL of the jump", got)
		}
		time.Sleep(10 * time.Second)
		if got := state(); got != stepfleet.SessionSuspect {
			t.Errorf("the session is %s a TTL after the jump", got)
		}
		cancel()
		<-done
	})
}
