package postgres_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// many is a batch of n tasks of one run.
func many(runID string, n int) stepfleet.Batch {
	b := one(runID, "0")
	for i := 1; i < n; i++ {
		t := b.Tasks[0]
		t.Key = stepfleet.Key{RunID: runID, StepKey: fmt.Sprint(i)}
		b.Tasks = append(b.Tasks, t)
	}
	return b
}

// runAll submits n tasks and takes them all through claim, start and settle, twenty at a time.
func runAll(t testing.TB, l *postgres.Ledger, runID string, n int) {
	t.Helper()
	ctx := t.Context()
	if _, err := l.Submit(ctx, many(runID, n)); err != nil {
		t.Fatal(err)
	}
	s, err := l.Register(ctx, stepfleet.SessionSpec{Worker: "w"})
	if err != nil {
		t.Fatal(err)
	}
	for {
		got, err := l.Claim(ctx, stepfleet.ClaimRequest{Session: s.ID, Instance: s.Instance, ID: runID, Queue: "default", Max: 20})
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Leases) == 0 {
			return
		}
		var refs []stepfleet.Ref
		var ends []stepfleet.Settlement
		for _, lease := range got.Leases {
			refs = append(refs, lease.Ref)
			ends = append(ends, stepfleet.Settlement{Ref: lease.Ref, Result: stepfleet.Result{V: 1, Outcome: stepfleet.StateFailed}})
		}
		if _, err := l.Start(ctx, s.ID, refs); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Settle(ctx, s.ID, ends); err != nil {
			t.Fatal(err)
		}
	}
}

// A fan-out is taken in whole or not at all.
func TestABatchIsOneCommit(t *testing.T) {
	dsn := testenv.Migrated(t)
	l, pool := open(t, dsn, postgres.Options{}), rawPool(t, dsn)
	receipts, err := l.Submit(t.Context(), many("run-1", 1000))
	if err != nil || len(receipts) != 1000 {
		t.Fatalf("%d receipts, %v", len(receipts), err)
	}
	var rows, commits int
	if err := pool.QueryRow(t.Context(),
		"SELECT count(*), count(DISTINCT xmin::text) FROM stepfleet.task").Scan(&rows, &commits); err != nil {
		t.Fatal(err)
	}
	if rows != 1000 || commits != 1 {
		t.Errorf("%d rows in %d commits, want 1000 in 1", rows, commits)
	}
}

// Every update of a task must be HOT: an index entry per update is what makes queues in
// PostgreSQL slow down as they grow.
func TestTaskUpdatesAreHOT(t *testing.T) {
	dsn := testenv.Migrated(t)
	l := open(t, dsn, postgres.Options{MaxConns: 2})
	for i := range 10 {
		runAll(t, l, fmt.Sprint("run", i), 200)
	}
	l.Close() // its backends hand over their statistics when they end
	pool := rawPool(t, dsn)
	var updates, hot int
	for deadline := time.Now().Add(10 * time.Second); updates < 6000 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		err := pool.QueryRow(t.Context(), `SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_all_tables
			WHERE schemaname = 'stepfleet' AND relname = 'task'`).Scan(&updates, &hot)
		if err != nil {
			t.Fatal(err)
		}
	}
	// A claim, a start and a settle each. A full page now and then sends a row elsewhere, more often while
	// a neighbour on this server keeps old versions alive.
	if updates != 6000 || hot < updates*95/100 {
		t.Errorf("%d of %d updates are HOT", hot, updates)
	}
}

// No index on the task table may cover a column that an update changes.
func TestNoIndexOnAColumnThatChanges(t *testing.T) {
	pool := rawPool(t, testenv.Migrated(t))
	rows, err := pool.Query(t.Context(), `SELECT a.attname FROM pg_index i
		JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
		WHERE i.indrelid = 'stepfleet.task'::regclass`)
	if err != nil {
		t.Fatal(err)
	}
	columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(columns) == 0 {
		t.Fatal(columns, err)
	}
	fixed := "id run_id step_hash attempt"
	for _, c := range columns {
		if !strings.Contains(fixed, c) {
			t.Errorf("an index of task covers %s, which is not one of: %s", c, fixed)
		}
	}
}

// Every transition writes an audit row, and pays for each index of it.
func TestTheAuditHasOneIndex(t *testing.T) {
	pool := rawPool(t, testenv.Migrated(t))
	rows, err := pool.Query(t.Context(), "SELECT indexname FROM pg_indexes WHERE schemaname = 'stepfleet' AND tablename = 'audit'")
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || !slices.Equal(names, []string{"audit_run"}) {
		t.Errorf("indexes of the audit: %v %v", names, err)
	}
}

// The hot statements must reach their rows by index, whatever the tables' sizes.
func TestPlansOfHotStatements(t *testing.T) {
	dsn := testenv.Migrated(t)
	l := open(t, dsn, postgres.Options{})
	for i := range 3 {
		runAll(t, l, fmt.Sprint("run", i), 1000)
	}
	if _, err := l.Submit(t.Context(), many("backlog", 2000)); err != nil {
		t.Fatal(err)
	}
	pool := rawPool(t, dsn)
	if _, err := pool.Exec(t.Context(), "ANALYZE stepfleet.task, stepfleet.ready, stepfleet.held, stepfleet.outcome"); err != nil {
		t.Fatal(err)
	}
	ids, fences := []int64{5, 6, 7}, []int64{1, 1, 1}
	plans := map[string]string{
		"claim":     explain(t, pool, postgres.SQL.Claim, 1, "default", 10, "c", []string{}, ""),
		"claimMore": explain(t, pool, postgres.SQL.ClaimMore, "default", 10, []string{}),
		"lock":      explain(t, pool, postgres.SQL.LockTasks, ids),
		"start":     explain(t, pool, postgres.SQL.Start, 1, ids, fences),
		"settle": explain(t, pool, postgres.SQL.Settle, 1, ids, fences, []string{"", "", ""},
			[]string{"failed", "failed", "failed"}, []string{"{}", "{}", "{}"}, []string{"", "", ""}),
		"release": explain(t, pool, postgres.SQL.Release, 1, ids, fences, "x"),
		"held":    explain(t, pool, postgres.SQL.Held, 1),
		"runs":    explain(t, pool, postgres.SQL.RunTasks, "run1", []string{"run"}),
		"orphans": explain(t, pool, postgres.SQL.Orphans, 0, 500),
		"decide": explain(t, pool, postgres.SQL.Decide, ids, fences, []bool{false, false, false}, []string{"sweep", "sweep", "sweep"},
			[]string{"lost", "lost", "lost"}, []string{"", "", ""}, []*string{nil, nil, nil}),
		"poison": explain(t, pool, postgres.SQL.Poison, "backlog", [][]byte{make([]byte, 16)}, []int32{3}, 3),
	}
	for name, plan := range plans {
		for _, table := range []string{"task", "ready"} {
			if strings.Contains(plan, fmt.Sprintf(`"Node Type":"Seq Scan","Relation Name":%q`, table)) {
				t.Errorf("%s reads all of %s:\n%s", name, table, plan)
			}
		}
	}
	if !strings.Contains(plans["claim"], "ready_order") {
		t.Errorf("claim does not use ready_order:\n%s", plans["claim"])
	}
	if strings.Contains(plans["claimMore"], `"Sort"`) {
		t.Errorf("claimMore sorts the lane:\n%s", plans["claimMore"])
	}
	for _, name := range []string{"start", "settle", "lock"} {
		if !strings.Contains(plans[name], "task_pkey") {
			t.Errorf("%s does not use the primary key:\n%s", name, plans[name])
		}
	}
}

// explain runs the statement, rolls it back, and returns its plan: node types, relations and
// indexes, in order.
func explain(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) string {
	t.Helper()
	ctx := context.Background()
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	var raw []byte
	if err := tx.QueryRow(ctx, "EXPLAIN (ANALYZE, FORMAT JSON) "+sql, args...).Scan(&raw); err != nil {
		t.Fatalf("%v in %s", err, sql)
	}
	var tree any
	if err := json.Unmarshal(raw, &tree); err != nil {
		t.Fatal(err)
	}
	var out []string
	flatten(tree, &out)
	return strings.Join(out, "\n")
}

func flatten(node any, out *[]string) {
	switch n := node.(type) {
	case []any:
		for _, child := range n {
			flatten(child, out)
		}
	case map[string]any:
		line := ""
		for _, key := range []string{"Node Type", "Relation Name", "Index Name", "Actual Rows"} {
			if v, ok := n[key]; ok {
				line += fmt.Sprintf("%q:%q,", key, fmt.Sprint(v))
			}
		}
		if line != "" {
			*out = append(*out, line)
		}
		for _, key := range []string{"Plan", "Plans"} {
			if child, ok := n[key]; ok {
				flatten(child, out)
			}
		}
	}
}
