package postgres_test

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// A backup that is restored, or a failover to a replica that lags, takes back what was acknowledged since.
// Whoever knows of that is told, and nothing of theirs is written while nobody has been given the same
// numbers: executors by the epoch of their run, workers by their session.
func TestARestoredBackupRefusesWhoKnowsMore(t *testing.T) {
	dsn := testenv.Migrated(t)
	before, err := postgres.Open(t.Context(), dsn, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	takeEpoch(t, before, "taken over since", "first", 1)
	before.Close() // a copy is made without users
	backup := copyOf(t, dsn)

	l := open(t, dsn, postgres.Options{})
	takeEpoch(t, l, "taken over since", "second", 2)
	takeEpoch(t, l, "begun since", "first", 1)
	session, ref := running(t, l, "submitted since", "old")

	restored := open(t, backup, postgres.Options{})
	for run, epoch := range map[string]stepfleet.Epoch{"taken over since": 2, "begun since": 1} {
		batch := one(run, "a")
		batch.Epoch, batch.Tasks[0].Kind = epoch, stepfleet.KindStep
		if _, err := restored.Submit(t.Context(), batch); !errors.Is(err, stepfleet.ErrNotFound) {
			t.Errorf("submit of the run that was %s: %v", run, err)
		}
		if _, err := restored.Adjudicate(t.Context(), run, epoch, []stepfleet.Key{batch.Tasks[0].Key}); !errors.Is(err, stepfleet.ErrNotFound) {
			t.Errorf("adjudicate in the run that was %s: %v", run, err)
		}
	}
	if _, err := restored.Renew(t.Context(), session.ID, session.Instance); !errors.Is(err, stepfleet.ErrSessionDead) {
		t.Errorf("renew: %v", err)
	}
	end := stepfleet.Settlement{Ref: ref, Result: stepfleet.Result{V: 1, Success: true, Outcome: stepfleet.StateSucceeded}}
	if errs, err := restored.Settle(t.Context(), session.ID, []stepfleet.Settlement{end}); err != nil || stepfleet.RefusalOf(errs[0]) == nil {
		t.Errorf("settle: %v %v", errs, err)
	}
	if views, err := restored.RunTasks(t.Context(), "submitted since"); err != nil || len(views) != 0 {
		t.Errorf("the run that was submitted since has %+v, %v", views, err)
	}
}

// Such a ledger gives out the numbers of what it has lost again. A worker that knows them from before is
// told, in its next claim or renewal, that the session is not its own, and does nothing in its name.
func TestARestoredBackupTellsOldWorkersFromNew(t *testing.T) {
	dsn := testenv.Migrated(t)
	backup := copyOf(t, dsn)
	before, after := open(t, dsn, postgres.Options{}), open(t, backup, postgres.Options{})
	was, ref := running(t, before, "lost", "old")
	is, same := running(t, after, "begun since", "new")
	if was.ID != is.ID || ref != same {
		t.Fatalf("session %d has %+v, and session %d %+v: this shows nothing", was.ID, ref, is.ID, same)
	}
	if r, err := after.Renew(t.Context(), was.ID, was.Instance); !errors.Is(err, stepfleet.ErrSessionDead) {
		t.Errorf("the old worker renewed the new one's session: %+v %v", r, err)
	}
	if _, err := after.Submit(t.Context(), one("waiting", "a")); err != nil {
		t.Fatal(err)
	}
	if got, err := claimFor(t, after, was); !errors.Is(err, stepfleet.ErrSessionDead) || len(got.Leases) != 0 {
		t.Errorf("the old worker claimed for the new one's session: %+v %v", got, err)
	}
	if err := after.SetDraining(t.Context(), was.ID, was.Instance); !errors.Is(err, stepfleet.ErrSessionDead) {
		t.Errorf("the old worker drained the new one's session: %v", err)
	}
	if err := after.EndSession(t.Context(), was.ID, was.Instance, "drained"); err != nil {
		t.Errorf("the old worker's end: %v", err)
	}
	if r, err := after.Renew(t.Context(), is.ID, is.Instance); err != nil || len(r.Held) != 1 {
		t.Errorf("the new worker's renewal: %+v %v", r, err)
	}
	if got, err := claimFor(t, after, is); err != nil || len(got.Leases) != 1 {
		t.Errorf("the new worker's claim: %+v %v", got, err)
	}
}

func claimFor(t *testing.T, l *postgres.Ledger, s stepfleet.Session) (stepfleet.Claimed, error) {
	t.Helper()
	return l.Claim(t.Context(), stepfleet.ClaimRequest{Session: s.ID, Instance: s.Instance, ID: "of " + s.Instance, Queue: "default", Max: 1})
}

// running is a worker of that instance that runs the only step of a run.
func running(t *testing.T, l *postgres.Ledger, run, instance string) (stepfleet.Session, stepfleet.Ref) {
	t.Helper()
	if _, err := l.Submit(t.Context(), one(run, "a")); err != nil {
		t.Fatal(err)
	}
	session, err := l.Register(t.Context(), stepfleet.SessionSpec{Worker: "w", Instance: instance, Slots: map[string]int{"default": 1}})
	if err != nil {
		t.Fatal(err)
	}
	claimed, err := claimFor(t, l, session)
	if err != nil || len(claimed.Leases) != 1 {
		t.Fatal(claimed, err)
	}
	ref := claimed.Leases[0].Ref
	if errs, err := l.Start(t.Context(), session.ID, []stepfleet.Ref{ref}); err != nil || errs[0] != nil {
		t.Fatal(errs, err)
	}
	return session, ref
}

func takeEpoch(t *testing.T, l *postgres.Ledger, run, executor string, want stepfleet.Epoch) {
	t.Helper()
	if epoch, err := l.TakeEpoch(t.Context(), run, stepfleet.Executor{Name: executor}, ""); err != nil || epoch != want {
		t.Fatalf("epoch %d of run %s, %v, want %d", epoch, run, err, want)
	}
}

// copyOf copies a database that nobody uses, and returns the copy's DSN.
func copyOf(t *testing.T, dsn string) string {
	t.Helper()
	address, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(address.Path, "/")
	exec := func(sql string) error {
		maintenance := *address
		maintenance.Path = "/postgres"
		conn, err := pgx.Connect(context.Background(), maintenance.String())
		if err != nil {
			return err
		}
		defer conn.Close(context.Background())
		_, err = conn.Exec(context.Background(), sql)
		return err
	}
	backup := name + "_backup"
	if err := exec("CREATE DATABASE " + backup + " TEMPLATE " + name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := exec("DROP DATABASE IF EXISTS " + backup + " WITH (FORCE)"); err != nil {
			t.Logf("drop %s: %v", backup, err)
		}
	})
	address.Path = "/" + backup
	return address.String()
}
