package postgres_test

import (
	"errors"
	"iter"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

func drain[T any](t *testing.T, in iter.Seq2[T, error]) []T {
	t.Helper()
	var all []T
	for v, err := range in {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

// What happens after the snapshot is not in it, whatever is read first.
func TestHistoryIsOfOneMoment(t *testing.T) {
	l := open(t, testenv.Migrated(t), postgres.Options{})
	ctx := t.Context()
	for _, run := range []string{"r", "s"} {
		if _, err := l.Submit(ctx, one(run, "a")); err != nil {
			t.Fatal(err)
		}
	}
	h, err := l.History(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := l.Submit(ctx, one("r", "b")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Cancel(ctx, "s", stepfleet.NoExecutor, nil, "late"); err != nil {
		t.Fatal(err)
	}
	later := h.At.Add(time.Hour)
	if rows := drain(t, h.Window(ctx, h.At.Add(-time.Hour), later)); len(rows) != 2 || rows[0].ID >= rows[1].ID {
		t.Errorf("window: %+v", rows)
	}
	if rows := drain(t, h.Runs(ctx, []string{"s"})); len(rows) != 1 || rows[0].RunID != "s" {
		t.Errorf("runs: %+v", rows)
	}
	tasks := drain(t, h.Tasks(ctx, 0, later, nil))
	if len(tasks) != 2 || tasks[1].State != stepfleet.StateQueued {
		t.Fatalf("tasks: %+v", tasks)
	}
	if got := drain(t, h.Tasks(ctx, tasks[1].ID, later, []stepfleet.TaskID{tasks[0].ID})); len(got) != 2 {
		t.Errorf("tasks from one on and one by name: %+v", got)
	}
	if got := drain(t, h.Tasks(ctx, tasks[1].ID, later, nil)); len(got) != 1 {
		t.Errorf("tasks from one on: %+v", got)
	}
	if got := drain(t, h.TasksOf(ctx, []string{"r"})); len(got) != 1 || got[0].StepKey != "a" {
		t.Errorf("tasks of a run: %+v", got)
	}
	if v, err := h.Task(ctx, stepfleet.Key{RunID: "r", StepKey: "a"}); err != nil || v.ID != tasks[0].ID {
		t.Errorf("task: %+v %v", v, err)
	}
	if _, err := h.Task(ctx, stepfleet.Key{RunID: "r", StepKey: "b"}); !errors.Is(err, stepfleet.ErrNotFound) {
		t.Errorf("a task after the snapshot: %v", err)
	}
}

// Reading can be broken off, and the next reading begins anew.
func TestHistoryReadingBrokenOff(t *testing.T) {
	l := open(t, testenv.Migrated(t), postgres.Options{MaxConns: 1})
	ctx := t.Context()
	for _, step := range []string{"a", "b", "c"} {
		if _, err := l.Submit(ctx, one("r-"+step, step)); err != nil {
			t.Fatal(err)
		}
	}
	h, err := l.History(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range h.Window(ctx, h.At.Add(-time.Hour), h.At) {
		break
	}
	if rows := drain(t, h.Window(ctx, h.At.Add(-time.Hour), h.At)); len(rows) != 3 {
		t.Errorf("%d rows", len(rows))
	}
	h.Close()
	if err := l.Check(ctx); err != nil {
		t.Errorf("the connection is not given back: %v", err)
	}
}
