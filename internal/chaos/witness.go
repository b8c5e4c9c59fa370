package chaos

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// taskRow is a task as the ledger has it at the end.
type taskRow struct {
	ID int64
	stepfleet.Key
	Kind   stepfleet.Kind
	State  stepfleet.State
	Fence  int64
	Reason string
	// Code is the error's, ExitCode how the process ended: a negative one is a signal.
	Code     string
	ExitCode int
}

// auditRow is a row of the ledger's audit trail.
type auditRow struct {
	ID      int64
	At      time.Time
	TaskID  int64
	Fence   int64
	RunID   string
	Verb    string
	Actor   string
	From    string
	To      string
	Refused string
	Detail  string
}

// logRow is an event of Dagster's log.
type logRow struct {
	ID    int64
	RunID string
	Type  string
	Step  string
	At    time.Time
}

// sessionRow is a worker's life as the ledger has it at the end.
type sessionRow struct {
	ID       int64
	Worker   string
	Instance string
	State    string
	Renewed  time.Time
	Reason   string // of its end
}

// clientLine is a line of the client history.
type clientLine struct {
	Type string `json:"type"`
	F    string `json:"f"`
	stepfleet.Key
}

// witnesses are what four independent observers say of a run of chaos.
type witnesses struct {
	History []clientLine
	Effects []effect
	Tasks   []taskRow
	Audit   []auditRow
	Log     []logRow

	Sessions []sessionRow
}

// collect reads all of them.
func (s *stack) collect(ctx context.Context) (w witnesses, err error) {
	history, effects := tail[clientLine]{path: s.history()}, tail[effect]{path: s.effectLog()}
	if w.History, err = history.more(); err != nil {
		return w, err
	}
	if w.Effects, err = effects.more(); err != nil {
		return w, err
	}
	if err := s.collectLedger(ctx, &w); err != nil {
		return w, fmt.Errorf("read the ledger: %w", err)
	}
	if err := s.collectLog(ctx, &w); err != nil {
		return w, fmt.Errorf("read Dagster's log: %w", err)
	}
	return w, nil
}

func (s *stack) collectLedger(ctx context.Context, w *witnesses) error {
	conn, err := pgx.Connect(ctx, s.net.endpoints().Database.LedgerURL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `SELECT id, run_id, step_key, attempt, kind, state, fence,
			coalesce(reason, ''), coalesce(result->'error'->>'code', ''), coalesce((result->>'exit_code')::int, 0)
		FROM stepfleet.task LEFT JOIN stepfleet.outcome ON task_id = id ORDER BY id`)
	if err != nil {
		return err
	}
	w.Tasks, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (t taskRow, err error) {
		err = row.Scan(&t.ID, &t.RunID, &t.StepKey, &t.Attempt, &t.Kind, &t.State, &t.Fence, &t.Reason, &t.Code, &t.ExitCode)
		return t, err
	})
	if err != nil {
		return err
	}
	rows, err = conn.Query(ctx, `SELECT id, at, task_id, fence, run_id, verb, actor, from_state, to_state, refused, detail FROM stepfleet.audit ORDER BY id`)
	if err != nil {
		return err
	}
	w.Audit, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (a auditRow, err error) {
		err = row.Scan(&a.ID, &a.At, &a.TaskID, &a.Fence, &a.RunID, &a.Verb, &a.Actor, &a.From, &a.To, &a.Refused, &a.Detail)
		return a, err
	})
	if err != nil {
		return err
	}
	rows, err = conn.Query(ctx, `SELECT id, worker, instance, state, renewed_at, end_reason FROM stepfleet.session ORDER BY id`)
	if err != nil {
		return err
	}
	w.Sessions, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r sessionRow, err error) {
		err = row.Scan(&r.ID, &r.Worker, &r.Instance, &r.State, &r.Renewed, &r.Reason)
		return r, err
	})
	return err
}

func (s *stack) collectLog(ctx context.Context, w *witnesses) error {
	conn, err := pgx.Connect(ctx, plainURL(s.net.endpoints().Database.DagsterURL))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `SELECT id, run_id, dagster_event_type, coalesce(step_key, ''), timestamp FROM event_logs
		WHERE dagster_event_type IS NOT NULL ORDER BY id`)
	if err != nil {
		return err
	}
	w.Log, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (l logRow, err error) {
		err = row.Scan(&l.ID, &l.RunID, &l.Type, &l.Step, &l.At)
		return l, err
	})
	return err
}

// openTasks counts the tasks that have not ended.
func (s *stack) openTasks(ctx context.Context) (n int, err error) {
	conn, err := pgx.Connect(ctx, s.net.endpoints().Database.LedgerURL)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, `SELECT count(*) FROM stepfleet.task WHERE ended_at IS NULL`).Scan(&n)
	return n, err
}

// plainURL is a database's address without the name of a Python driver.
func plainURL(dsn string) string {
	_, rest, _ := strings.Cut(dsn, "://")
	return "postgres://" + rest
}
