package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/metrics"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// A worker whose claims hold all of its connections, and get nowhere, keeps its session: renewals are
// made on a connection of their own, and the breaker that the others have opened does not hold them up.
func TestRenewalsGoThroughWhileThePoolIsBusy(t *testing.T) {
	dsn := testenv.Migrated(t)
	t.Setenv("STEPFLEET_DATABASE_URL", dsn)
	t.Setenv("AWS_REGION", "us-east-1")
	g := &globals{ctx: t.Context(), log: slog.New(slog.DiscardHandler)}
	ports, closePorts, err := (&workerCmd{}).ports(g, metrics.New("test"), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closePorts)
	const ttl = 2 * time.Second
	session, err := ports.Claims.Register(t.Context(), stepfleet.SessionSpec{Worker: "w", SessionTTL: ttl, RunLease: 3 * ttl})
	if err != nil {
		t.Fatal(err)
	}

	holder, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Close(context.Background()) })
	tx, err := holder.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE stepfleet.ready IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	slow, stop := context.WithCancel(t.Context())
	const claims = 8 // twice what the pool has
	done := make(chan error, claims)
	for range claims {
		go func() {
			_, err := ports.Claims.Claim(slow, stepfleet.ClaimRequest{Session: session.ID, Instance: session.Instance, ID: "slow", Queue: "default", Max: 1})
			done <- err
		}()
	}
	for failed := 0; failed < 6; { // enough to open the breaker
		call, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := ports.Claims.Held(call, session.ID)
		cancel()
		if errors.Is(err, stepfleet.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			failed++
		} else if failed > 0 {
			t.Fatalf("the pool has a free connection: %v", err)
		}
	}

	sweeper, err := postgres.Open(t.Context(), dsn, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sweeper.Close)
	for end := time.Now().Add(2 * ttl); time.Now().Before(end); time.Sleep(ttl / 5) {
		call, cancel := context.WithTimeout(t.Context(), ttl/5)
		_, err := ports.Renewals.Renew(call, session.ID, session.Instance)
		cancel()
		if err != nil {
			t.Fatalf("renew: %v", err)
		}
		at, err := sweeper.Beat(t.Context(), "sweeper")
		if err != nil {
			t.Fatal(err)
		}
		// The marking itself would wait for the claims that are under way. This is what it goes by.
		if silent := at.Sub(renewedAt(t, sweeper)); silent >= ttl {
			t.Fatalf("the ledger has heard nothing of the session for %s", silent)
		}
	}
	stop()
	for range claims {
		<-done
	}
}

// renewedAt is when the one session was renewed.
func renewedAt(t *testing.T, l *postgres.Ledger) time.Time {
	t.Helper()
	sessions, err := l.Sessions(t.Context(), 0)
	if err != nil || len(sessions) != 1 {
		t.Fatal(sessions, err)
	}
	return sessions[0].RenewedAt
}
