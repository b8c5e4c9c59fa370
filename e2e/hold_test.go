//go:build linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// writeLock is the advisory lock that held writers wait for.
const writeLock = 734_002

// heldWrites stops who writes certain events into Dagster's log, before the write: a trigger on
// Dagster's table has them wait for a lock that the test's session has.
type heldWrites struct {
	conn     *pgx.Conn
	count    int
	backends []int32 // PostgreSQL's processes that wait for the writers
}

// dagsterDatabase connects to where Dagster's log is. The caller closes the connection.
func (s *stack) dagsterDatabase(t *testing.T) *pgx.Conn {
	t.Helper()
	dsn, err := os.ReadFile(s.state().DagsterURL)
	if err != nil {
		t.Fatal(err)
	}
	// SQLAlchemy's URL names the driver as well.
	conn, err := pgx.Connect(t.Context(), strings.Replace(strings.TrimSpace(string(dsn)), "postgresql+psycopg2:", "postgresql:", 1))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func (s *stack) holdWrites(t *testing.T) *heldWrites {
	t.Helper()
	conn := s.dagsterDatabase(t)
	h := &heldWrites{conn: conn}
	t.Cleanup(func() {
		// The session's end gives the lock back, whatever became of the rest.
		defer conn.Close(context.Background())
		if _, err := conn.Exec(context.Background(), `DROP TRIGGER IF EXISTS e2e_hold ON event_logs;
DROP FUNCTION IF EXISTS e2e_hold; DROP TABLE IF EXISTS e2e_held`); err != nil {
			t.Errorf("let Dagster's log be as it was: %v", err)
		}
	})
	h.exec(t, `CREATE TABLE e2e_held (run_id text, kind text, words text)`)
	h.exec(t, `CREATE FUNCTION e2e_hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF EXISTS (SELECT FROM e2e_held h WHERE h.run_id = NEW.run_id AND h.kind = NEW.dagster_event_type
             AND position(h.words IN NEW.event) > 0) THEN
    PERFORM pg_advisory_xact_lock_shared(`+fmt.Sprint(writeLock)+`);
  END IF;
  RETURN NEW; END $$`)
	h.exec(t, `CREATE TRIGGER e2e_hold BEFORE INSERT ON event_logs FOR EACH ROW EXECUTE FUNCTION e2e_hold()`)
	h.exec(t, `SELECT pg_advisory_lock($1)`, writeLock)
	return h
}

func (h *heldWrites) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := h.conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%.60s: %v", sql, err)
	}
}

// add holds the run's events of a kind, as Dagster's table calls it, that have the words in them.
func (h *heldWrites) add(t *testing.T, run, kind, words string) {
	t.Helper()
	h.count++
	h.exec(t, `INSERT INTO e2e_held VALUES ($1, $2, $3)`, run, kind, words)
}

// await waits until there is a writer for everything that is held.
func (h *heldWrites) await(t *testing.T) {
	t.Helper()
	await(t, runTimeout, fmt.Sprintf("%d writers to be held", h.count), func() (bool, string) {
		err := h.conn.QueryRow(t.Context(), `SELECT coalesce(array_agg(pid), '{}') FROM pg_locks
WHERE locktype = 'advisory' AND objid = $1 AND NOT granted`, writeLock).Scan(&h.backends)
		return err == nil && len(h.backends) == h.count, fmt.Sprint(h.backends, err)
	})
}

// release lets the writers go on.
func (h *heldWrites) release(t *testing.T) {
	t.Helper()
	h.exec(t, `DELETE FROM e2e_held`)
	h.exec(t, `SELECT pg_advisory_unlock($1)`, writeLock)
}

// drop ends what the writers, which are dead, have left in the database: it would write for them.
func (h *heldWrites) drop(t *testing.T) {
	t.Helper()
	h.exec(t, `SELECT pg_terminate_backend(pid) FROM unnest($1::integer[]) pid`, h.backends)
	await(t, runTimeout, "the held writes to be gone", func() (bool, string) {
		var left int
		err := h.conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1::integer[])`, h.backends).Scan(&left)
		return err == nil && left == 0, fmt.Sprint(left, err)
	})
	h.release(t)
}
