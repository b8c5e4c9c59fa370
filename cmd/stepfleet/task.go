package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/postgres"
)

type taskCmd struct {
	Explain explainCmd `cmd:"" help:"Tell a task's life in words: every transition, fence, owner and refusal."`
}

type explainCmd struct {
	Key string `arg:"" help:"RUN/STEP/ATTEMPT (the first attempt is 0), or the task's number in the ledger."`
}

// Run prints the task and what happened to it, oldest first.
func (c *explainCmd) Run(g *globals) error {
	dsn, err := databaseURL()
	if err != nil {
		return err
	}
	ledger, err := postgres.Open(g.ctx, dsn, postgres.Options{MaxConns: 1, AppName: "stepfleet task explain", Logger: g.log})
	if err != nil {
		return err
	}
	defer ledger.Close()
	history, err := ledger.History(g.ctx)
	if err != nil {
		return err
	}
	defer history.Close()
	task, err := c.find(g.ctx, history)
	if err != nil {
		return err
	}
	return explain(g.ctx, g.stdout, history, task)
}

// find returns the task that the key names.
func (c *explainCmd) find(ctx context.Context, h *postgres.History) (stepfleet.View, error) {
	if id, err := strconv.ParseInt(c.Key, 10, 64); err == nil {
		for v, err := range h.Tasks(ctx, math.MaxInt64, time.Time{}, []stepfleet.TaskID{stepfleet.TaskID(id)}) {
			return v, err
		}
		return stepfleet.View{}, fmt.Errorf("task %d: %w: name it as RUN/STEP/ATTEMPT, or look its number up in the audit", id, stepfleet.ErrNotFound)
	}
	key, err := parseKey(c.Key)
	if err != nil {
		return stepfleet.View{}, err
	}
	task, err := h.Task(ctx, key)
	if errors.Is(err, stepfleet.ErrNotFound) {
		return task, fmt.Errorf("%w: is it the ledger of this deployment, the run's whole id, and the step's whole key?", err)
	}
	return task, err
}

// parseKey reads RUN/STEP/ATTEMPT. A step key may have slashes, the others have none.
func parseKey(text string) (stepfleet.Key, error) {
	run, rest, found := strings.Cut(text, "/")
	last := strings.LastIndex(rest, "/")
	if !found || last <= 0 || run == "" {
		return stepfleet.Key{}, fmt.Errorf("%q is no key of a task: give RUN/STEP/ATTEMPT, with the whole id of the run, as in 0218744f-61a2-4a98-8df7-380207d23b42/load_users/0", text)
	}
	attempt, err := strconv.Atoi(rest[last+1:])
	if err != nil || attempt < 0 || attempt > stepfleet.MaxAttempt {
		return stepfleet.Key{}, fmt.Errorf("%q does not end in the number of an attempt: the first is 0, and none is above %d", text, stepfleet.MaxAttempt)
	}
	return stepfleet.Key{RunID: run, StepKey: rest[:last], Attempt: attempt}, nil
}

func explain(ctx context.Context, out io.Writer, h *postgres.History, task stepfleet.View) error {
	workers := map[stepfleet.SessionID]string{}
	for s, err := range h.Sessions(ctx, task.SubmittedAt) {
		if err != nil {
			return err
		}
		workers[s.ID] = s.Worker
	}
	introduce(out, task)
	told := 0
	var begin time.Time
	for row, err := range h.Runs(ctx, []string{task.RunID}) {
		if err != nil {
			return err
		}
		if row.TaskID != 0 && row.TaskID != task.ID {
			continue
		}
		if told == 0 {
			begin = row.At
		}
		told++
		fmt.Fprintln(out, tell(row, begin, workers))
	}
	if told == 0 {
		fmt.Fprintln(out, "  the audit has no row of it any more")
	}
	return nil
}

// introduce says what the task is and where it stands.
func introduce(out io.Writer, v stepfleet.View) {
	fmt.Fprintf(out, "task %d: %s\n", v.ID, v.Key)
	fmt.Fprintf(out, "  op %s of job %s, queue %s, priority %d\n", v.Op, v.Job, v.Queue, v.Priority)
	fmt.Fprintf(out, "  %s with fence %d", v.State, v.Fence)
	if v.Worker != "" {
		fmt.Fprintf(out, ", last owner session %d of worker %s", v.Session, v.Worker)
	}
	if v.CancelRequested {
		fmt.Fprint(out, ", its cancel was asked for")
	}
	fmt.Fprintln(out)
	if v.Reason != "" {
		fmt.Fprintf(out, "  %s\n", v.Reason)
	}
	if r := v.Result; r != nil && r.Event != "" {
		fmt.Fprintf(out, "  its worker told of %s in Dagster's log\n", r.Event)
	}
	if r := v.Result; r != nil && r.Error != nil {
		message, _, _ := strings.Cut(r.Error.Message, "\n")
		fmt.Fprintf(out, "  %s: %s\n", r.Error.Code, message)
	}
	fmt.Fprintln(out)
}

// tell tells one row: when, under which fence, who, what.
func tell(row stepfleet.AuditRow, begin time.Time, workers map[stepfleet.SessionID]string) string {
	fence := "run    "
	switch {
	case row.TaskID == 0:
	case row.Refused != "":
		fence = fmt.Sprintf("named %d", row.Fence)
	default:
		fence = fmt.Sprintf("fence %d", row.Fence)
	}
	return fmt.Sprintf("  %s  %+9.3f s  %-8s  %s %s", row.At.UTC().Format("2006-01-02 15:04:05"), row.At.Sub(begin).Seconds(),
		fence, who(row.Actor, workers), audit.Words(row))
}

// who names the actor, a session with its worker.
func who(actor string, workers map[stepfleet.SessionID]string) string {
	var id stepfleet.SessionID
	if _, err := fmt.Sscanf(actor, "session %d", &id); err == nil && workers[id] != "" {
		return fmt.Sprintf("%s (worker %s)", actor, workers[id])
	}
	return actor
}
