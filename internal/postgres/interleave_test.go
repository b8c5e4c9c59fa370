package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// interleaved is a ledger, and a way to hold its calls up in the middle.
type interleaved struct {
	*testing.T
	*postgres.Ledger
	raw *pgxpool.Pool
}

func interleave(t *testing.T) *interleaved {
	dsn := testenv.Migrated(t)
	return &interleaved{t, open(t, dsn, postgres.Options{}), rawPool(t, dsn)}
}

// hold runs a statement in a transaction that stays open until the returned function commits it.
func (i *interleaved) hold(sql string, args ...any) (commit func()) {
	i.Helper()
	tx, err := i.raw.Begin(i.T.Context())
	if err != nil {
		i.Fatal(err)
	}
	i.Cleanup(func() { _ = tx.Rollback(context.Background()) }) // it is committed, or the test has failed
	if _, err := tx.Exec(i.T.Context(), sql, args...); err != nil {
		i.Fatal(err)
	}
	return func() {
		if err := tx.Commit(i.T.Context()); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
			i.Fatal(err)
		}
	}
}

// waiting returns when so many calls wait for a lock.
func (i *interleaved) waiting(calls int) {
	i.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var n int
		err := i.raw.QueryRow(i.T.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n)
		if err != nil {
			i.Fatal(err)
		}
		if n >= calls {
			return
		}
	}
	i.Fatalf("no %d calls wait for a lock", calls)
}

func (i *interleaved) queued(run string) stepfleet.TaskID {
	i.Helper()
	receipts, err := i.Submit(i.T.Context(), one(run, "a"))
	if err != nil {
		i.Fatal(err)
	}
	return receipts[0].TaskID
}

func (i *interleaved) session() stepfleet.SessionID {
	i.Helper()
	s, err := i.Register(i.T.Context(), stepfleet.SessionSpec{Worker: "w"})
	if err != nil {
		i.Fatal(err)
	}
	return s.ID
}

func (i *interleaved) claim(s stepfleet.SessionID) error {
	_, err := i.Claim(i.T.Context(), stepfleet.ClaimRequest{Session: s, ID: "c", Queue: stepfleet.DefaultQueue, Max: 5})
	return err
}

func (i *interleaved) expect(run string, state stepfleet.State, fence stepfleet.Fence) {
	i.Helper()
	views, err := i.RunTasks(i.T.Context(), run)
	if err != nil || len(views) != 1 {
		i.Fatal(views, err)
	}
	if v := views[0]; v.State != state || v.Fence != fence {
		i.Errorf("the task is %s with fence %d, want %s with %d", v.State, v.Fence, state, fence)
	}
}

// A start that is not committed when the sweep reads is committed when the sweep acts.
func TestASweepTakesNoTaskWhoseStartIsUnderWay(t *testing.T) {
	i := interleave(t)
	id, s := i.queued("r"), i.session()
	if err := i.claim(s); err != nil {
		t.Fatal(err)
	}
	if _, err := i.raw.Exec(t.Context(), "UPDATE stepfleet.session SET state = 'suspect'"); err != nil {
		t.Fatal(err)
	}
	commit := i.hold("UPDATE stepfleet.task SET state = 'running', started_at = clock_timestamp() WHERE id = $1", id)
	swept := make(chan error, 1)
	go func() {
		_, err := i.Sweep(t.Context(), time.Hour, 10)
		swept <- err
	}()
	select { // it has passed the task over, or waits for it
	case err := <-swept:
		swept <- err
	case <-time.After(200 * time.Millisecond):
	}
	commit()
	if err := <-swept; err != nil {
		t.Error(err)
	}
	i.expect("r", stepfleet.StateRunning, 1)
}

// A claim that was under way when its session expired has committed before the session is marked, and
// what it got is swept.
func TestWhatAClaimGetsWhileItsSessionExpiresIsSwept(t *testing.T) {
	i := interleave(t)
	id, s := i.queued("r"), i.session()
	if _, err := i.raw.Exec(t.Context(), "UPDATE stepfleet.session SET renewed_at = renewed_at - interval '1 day'"); err != nil {
		t.Fatal(err)
	}
	commit := i.hold("SELECT FROM stepfleet.task WHERE id = $1 FOR NO KEY UPDATE", id)
	claimed, expired := make(chan error, 1), make(chan error, 1)
	go func() { claimed <- i.claim(s) }()
	i.waiting(1)
	go func() {
		_, err := i.ExpireSessions(t.Context(), stepfleet.Beats{Last: time.Now(), Unbroken: time.Hour})
		expired <- err
	}()
	i.waiting(2)
	commit()
	if err := errors.Join(<-claimed, <-expired); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Sweep(t.Context(), time.Hour, 10); err != nil {
		t.Fatal(err)
	}
	i.expect("r", stepfleet.StateQueued, 2)
}

// A sweeper whose statement hangs, at its arrival or over one session's lock, does not take the time that it
// has hung for the silence of sessions whose renewals hang behind it.
func TestASweepThatHangsMarksNobodyForThat(t *testing.T) {
	const ttl, lease = 500 * time.Millisecond, time.Second
	register := func(t *testing.T, i *interleaved) stepfleet.SessionID {
		t.Helper()
		s, err := i.Register(t.Context(), stepfleet.SessionSpec{Worker: "w", SessionTTL: ttl, RunLease: lease})
		if err != nil {
			t.Fatal(err)
		}
		return s.ID
	}
	cases := map[string]struct {
		silent time.Duration // of the worker that comes back, at the sweeper's last beat
		hold   string
		want   stepfleet.SessionState
	}{
		"at its arrival":          {0, "LOCK TABLE stepfleet.session IN ACCESS EXCLUSIVE MODE", stepfleet.SessionAlive},
		"over another one's lock": {ttl, "SELECT FROM stepfleet.session WHERE id = 2 FOR KEY SHARE", stepfleet.SessionSuspect},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			i := interleave(t)
			id := register(t, i)
			other := register(t, i)
			time.Sleep(c.silent)
			at, err := i.Beat(t.Context(), "sweeper")
			if err != nil {
				t.Fatal(err)
			}
			commit := i.hold(c.hold)
			expired := make(chan []stepfleet.Session, 1)
			go func() {
				changed, err := i.ExpireSessions(t.Context(), stepfleet.Beats{Last: at, Unbroken: time.Hour})
				if err != nil {
					t.Error(err)
				}
				expired <- changed
			}()
			i.waiting(1)
			renewed := make(chan stepfleet.Renewal, 1)
			go func() {
				r, err := i.Renew(t.Context(), id, "")
				if err != nil {
					t.Error(err)
				}
				renewed <- r
			}()
			i.waiting(2)
			time.Sleep(2 * lease)
			commit()
			for _, s := range <-expired {
				if s.State == stepfleet.SessionDead {
					t.Errorf("session %d is dead: %s", s.ID, s.EndReason)
				}
			}
			if r := <-renewed; r.Was != c.want {
				t.Errorf("session %d was %s, want %s; the other one is %d", id, r.Was, c.want, other)
			}
		})
	}
}

// A run is closed before its tasks are cancelled: what is submitted or started meanwhile is refused.
func TestARunThatIsBeingClosedTakesAndStartsNothing(t *testing.T) {
	i := interleave(t)
	waits := i.queued("r")
	if _, err := i.Submit(t.Context(), one("r", "b")); err != nil {
		t.Fatal(err)
	}
	s := i.session()
	got, err := i.Claim(t.Context(), stepfleet.ClaimRequest{Session: s, ID: "c", Queue: stepfleet.DefaultQueue, Max: 5})
	if err != nil || len(got.Leases) != 2 {
		t.Fatal(got, err)
	}
	commit := i.hold("SELECT FROM stepfleet.task WHERE id = $1 FOR NO KEY UPDATE", waits)
	closed := make(chan error, 1)
	go func() {
		_, err := i.CloseRun(t.Context(), "r", stepfleet.NoExecutor, "ended")
		closed <- err
	}()
	i.waiting(1)
	if _, err := i.Submit(t.Context(), one("r", "late")); !errors.Is(err, stepfleet.ErrRunClosed) {
		t.Errorf("a submission while the run's tasks are cancelled: %v", err)
	}
	for _, lease := range got.Leases {
		if lease.TaskID == waits {
			continue
		}
		errs, err := i.Start(t.Context(), s, []stepfleet.Ref{lease.Ref})
		if err != nil || !errors.Is(errs[0], stepfleet.ErrRunClosed) {
			t.Errorf("a start while the run's tasks are cancelled: %v, %v", errs, err)
		}
	}
	commit()
	if err := <-closed; err != nil {
		t.Error(err)
	}
}
