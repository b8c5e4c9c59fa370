package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/dagsterlog"
	"github.com/stepfleet/stepfleet/internal/postgres"
)

// witnesses are what four independent observers say of a run of chaos, in memory.
type witnesses struct {
	client   []audit.ClientEvent
	tasks    []audit.Task
	audit    []stepfleet.AuditRow
	sessions []stepfleet.Session
	dagster  []audit.DagsterEvent
	// hurt are the runs of which a step's process was killed: the ledger has it failed, not lost.
	hurt map[string]bool
	// failures are what Dagster's log says of failed steps and runs, by run.
	failures map[string][]string
	// seen is how the sessions stood all the time.
	seen []sighting
	rest audit.Rest
}

// collect reads all of them but the effect log, which the verifier reads itself.
func (s *stack) collect(ctx context.Context, l *load, sessions *watch) (w *witnesses, err error) {
	w = &witnesses{hurt: map[string]bool{}, failures: map[string][]string{}, seen: sessions.end()}
	if w.client, err = readHistory(s.history()); err != nil {
		return nil, err
	}
	if err := errors.Join(w.readLedger(ctx, s.net.endpoints().Database.OwnerURL), s.collectHeld(ctx, w)); err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	if err := s.collectLog(ctx, w); err != nil {
		return nil, fmt.Errorf("read Dagster's log: %w", err)
	}
	w.rest.Sessions, w.rest.Children = openSessions(w.sessions, s.instances()), children(l.busy())
	w.rest.Slots, w.rest.Lanes = s.takenSlots(ctx)
	if w.rest.Bells, err = s.bells(ctx); err != nil {
		return nil, err
	}
	return w, w.save(s.Dir)
}

// readHistory puts the lines that many processes have written in the order of their times.
func readHistory(path string) ([]audit.ClientEvent, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var events []audit.ClientEvent
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }
	for e, err := range audit.ReadClient(opener)(context.Background()) {
		if err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	slices.SortStableFunc(events, func(a, b audit.ClientEvent) int { return a.At.Compare(b.At) })
	for i := range events {
		events[i].I = int64(i + 1)
	}
	return events, nil
}

// save writes what was collected beside the logs, so that it can be judged again.
func (w *witnesses) save(dir string) error {
	return errors.Join(
		writeLines(filepath.Join(dir, "audit.jsonl"), w.audit), writeLines(filepath.Join(dir, "tasks.jsonl"), w.tasks),
		writeLines(filepath.Join(dir, "sessions.jsonl"), w.sessions), writeLines(filepath.Join(dir, "dagster.jsonl"), w.dagster),
		writeLines(filepath.Join(dir, "sightings.jsonl"), w.seen),
	)
}

func writeLines[T any](path string, all []T) error {
	var text bytes.Buffer
	lines := json.NewEncoder(&text)
	for _, one := range all {
		if err := lines.Encode(one); err != nil {
			return err
		}
	}
	return os.WriteFile(path, text.Bytes(), 0o644)
}

// effects is the effect log.
func (c *Config) effects() audit.Source[audit.Effect] {
	return audit.ReadEffects(func() (io.ReadCloser, error) { return os.Open(c.effectLog()) })
}

const (
	selectFailures = `SELECT run_id, left(concat_ws(': ', step_key, dagster_event_type,
		event::json #>> '{dagster_event,event_specific_data,error,message}',
		event::json #>> '{dagster_event,event_specific_data,error,cause,message}',
		event::json #>> '{dagster_event,event_specific_data,first_step_failure_event,message}',
		event::json #>> '{dagster_event,message}'), 1500) FROM event_logs
		WHERE dagster_event_type IN ('STEP_FAILURE', 'PIPELINE_FAILURE') ORDER BY id`
	selectHeld = `SELECT format('task %s by session %s', task_id, session_id) FROM stepfleet.held`
)

var selectLog = `SELECT id, run_id, dagster_event_type, coalesce(step_key, ''), timestamp AT TIME ZONE 'UTC', ` + dagsterlog.Ours + `
	FROM event_logs WHERE dagster_event_type IS NOT NULL ORDER BY id`

// readLedger reads the ledger at one moment.
func (w *witnesses) readLedger(ctx context.Context, dsn string) error {
	ledger, err := postgres.Open(ctx, dsn, postgres.Options{MaxConns: 1, AppName: "stepfleet chaos"})
	if err != nil {
		return err
	}
	defer ledger.Close()
	h, err := ledger.History(ctx)
	if err != nil {
		return err
	}
	defer h.Close()
	until := h.At.Add(time.Hour)
	var views []stepfleet.View
	w.audit, err = all(h.Window(ctx, time.Time{}, until))
	if err == nil {
		views, err = all(h.Tasks(ctx, 0, until, nil))
	}
	if err == nil {
		w.sessions, err = all(h.Sessions(ctx, time.Time{}))
	}
	for _, v := range views {
		w.tasks = append(w.tasks, audit.TaskOf(v))
		if isKilled(v) {
			w.hurt[v.RunID] = true
		}
	}
	return err
}

// isKilled says that the process of an attempt was killed, and not its worker.
func isKilled(v stepfleet.View) bool {
	r := v.Result
	return r != nil && r.Error != nil && r.Error.Code == "process_died" && r.ExitCode == -int(syscall.SIGKILL)
}

// all collects what is read one by one.
func all[T any](seq iter.Seq2[T, error]) ([]T, error) {
	var list []T
	for one, err := range seq {
		if err != nil {
			return nil, err
		}
		list = append(list, one)
	}
	return list, nil
}

// collectHeld reads what sessions still hold.
func (s *stack) collectHeld(ctx context.Context, w *witnesses) error {
	return s.inLedger(ctx, func(conn *pgx.Conn) (err error) {
		w.rest.Held, err = read(ctx, conn, selectHeld, pgx.RowTo[string])
		return err
	})
}

// inLedger asks the ledger something on a connection of its own, without a proxy.
func (s *stack) inLedger(ctx context.Context, ask func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, s.net.endpoints().Database.OwnerURL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return ask(conn)
}

func read[T any](ctx context.Context, conn *pgx.Conn, query string, to pgx.RowToFunc[T]) ([]T, error) {
	rows, err := conn.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, to)
}

func (s *stack) collectLog(ctx context.Context, w *witnesses) error {
	conn, err := pgx.Connect(ctx, plainURL(s.net.endpoints().Database.DagsterURL))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	w.dagster, err = read(ctx, conn, selectLog, func(row pgx.CollectableRow) (e audit.DagsterEvent, err error) {
		err = row.Scan(&e.ID, &e.RunID, &e.Type, &e.StepKey, &e.At, &e.Ours)
		return e, err
	})
	if err != nil {
		return err
	}
	_, err = read(ctx, conn, selectFailures, func(row pgx.CollectableRow) (none struct{}, err error) {
		var run, what string
		err = row.Scan(&run, &what)
		w.failures[run] = append(w.failures[run], what)
		return none, err
	})
	return err
}

// openTasks counts the tasks that have not ended.
func (s *stack) openTasks(ctx context.Context) (n int, err error) {
	err = s.inLedger(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT count(*) FROM stepfleet.task WHERE ended_at IS NULL`).Scan(&n)
	})
	return n, err
}

// plainURL is a database's address without the name of a Python driver.
func plainURL(dsn string) string {
	_, rest, _ := strings.Cut(dsn, "://")
	return "postgres://" + rest
}
