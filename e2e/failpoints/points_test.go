//go:build linux && failpoint

package failpoints

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/dagsterlog"
	"github.com/stepfleet/stepfleet/internal/failpoint"
	"github.com/stepfleet/stepfleet/internal/failpoint/edges"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/proctable"
	"github.com/stepfleet/stepfleet/localaws"
)

var only = flag.String("actions", strings.Join(failpoint.Actions, ","), "the actions to take, by comma")

// endsWithin is how long after the last fault every task has to have ended.
const endsWithin = 20 * time.Second

// oneCase is one point with one action.
type oneCase struct {
	edge     edges.Edge
	point    string
	action   string
	scenario scenario
}

func cases(t *testing.T) (all []oneCase) {
	actions := strings.Split(*only, ",")
	seen := map[string]bool{}
	for _, s := range scenarios {
		for _, e := range edges.All {
			if !slices.Contains(s.edges, e.Name) {
				continue
			}
			seen[e.Name] = true
			for _, point := range e.Points() {
				for _, action := range actions {
					_, side, _ := strings.Cut(point, ".")
					if action == failpoint.Error && e.NoError[side] != "" {
						continue
					}
					all = append(all, oneCase{e, point, action, s})
				}
			}
		}
	}
	for _, e := range edges.All {
		if !seen[e.Name] {
			t.Errorf("no scenario leads over the edge %s", e.Name)
		}
	}
	return all
}

// line is a line of the table at the end.
type line struct {
	point, action, outcome string
	seconds                float64
}

func TestEveryPoint(t *testing.T) {
	began := time.Now()
	var mu sync.Mutex
	var table []line
	failed := 0
	t.Run("of", func(t *testing.T) {
		for _, c := range cases(t) {
			t.Run(c.point+"="+c.action, func(t *testing.T) {
				t.Parallel()
				began, outcome := time.Now(), "FAIL"
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					if t.Failed() {
						outcome = "FAIL"
						failed++
					}
					table = append(table, line{c.point, c.action, outcome, time.Since(began).Seconds()})
				}()
				outcome = c.run(t)
			})
		}
	})
	slices.SortFunc(table, func(a, b line) int { return strings.Compare(a.point+a.action, b.point+b.action) })
	fmt.Printf("%-20s %-6s %8s  %s\n", "point", "action", "seconds", "tasks")
	for _, l := range table {
		fmt.Printf("%-20s %-6s %8.1f  %s\n", l.point, l.action, l.seconds, l.outcome)
	}
	fmt.Printf("failpoints: %d cases, %d failed, %.0f s\n", len(table), failed, time.Since(began).Seconds())
}

// run plays the case to its end, judges it, and returns how its tasks ended.
func (c oneCase) run(t *testing.T) string {
	s := newStack(t, c.edge.Process, c.point, c.action)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.logs())
		}
	})
	e := s.executor()
	c.scenario.play(e)
	e.finish(c.point)
	counts := e.judge()
	survives := c.scenario.survives && !(c.edge.Process == "worker" && c.action != failpoint.Error) &&
		!strings.HasPrefix(c.edge.Name, "gate_") // a process that is refused has failed
	if succeeded := counts.ByState[stepfleet.StateSucceeded]; survives && succeeded != counts.Tasks {
		t.Errorf("%d of %d steps succeeded: nothing has happened to their worker", succeeded, counts.Tasks)
	}
	return summary(counts)
}

func summary(counts audit.Counts) string {
	var parts []string
	for _, state := range stepfleet.States {
		if n := counts.ByState[state]; n > 0 {
			parts = append(parts, strconv.Itoa(n)+" "+string(state))
		}
	}
	return strings.Join(parts, ", ")
}

// finish waits until everything has healed, and ends the processes.
func (e *executor) finish(point string) {
	if e.comesTo(point) {
		e.until("the process has healed", func() bool { return isClosed(e.healed) })
	}
	e.until("no task is open or held", func() bool {
		return e.count(`SELECT (SELECT count(*) FROM stepfleet.task WHERE ended_at IS NULL) + (SELECT count(*) FROM stepfleet.held)`) == 0
	})
	e.until("no bell is left", func() bool { return e.bells() == 0 })
	e.worker.stop()
	e.spare.stop()
	e.until("no session is left", func() bool { return e.count(`SELECT count(*) FROM stepfleet.session WHERE state <> 'dead'`) == 0 })
	e.server.stop()
}

// comesTo waits until the process has come to the point. Where something is wrong already, that may be why it
// does not.
func (e *executor) comesTo(point string) bool {
	wait := 15 * time.Second
	if e.Failed() {
		wait = 0
	}
	select {
	case <-e.hit:
		return true
	case <-time.After(wait):
		e.Errorf("the failpoint %s was never come to: the case proves nothing", point)
		return false
	}
}

// bells counts the messages in the queue, also those in flight.
func (e *executor) bells() (n int) {
	client := sqs.New(sqs.Options{
		Region: localaws.DefaultRegion, BaseEndpoint: aws.String("http://127.0.0.1"), HTTPClient: &http.Client{Transport: e.aws.Transport()},
		Credentials: aws.AnonymousCredentials{},
	})
	listed, err := client.ListQueues(e.ctx, &sqs.ListQueuesInput{})
	e.must(err)
	for _, url := range listed.QueueUrls {
		got, err := client.GetQueueAttributes(e.ctx, &sqs.GetQueueAttributesInput{
			QueueUrl: aws.String(url), AttributeNames: []types.QueueAttributeName{
				types.QueueAttributeNameApproximateNumberOfMessages, types.QueueAttributeNameApproximateNumberOfMessagesNotVisible,
			},
		})
		e.must(err)
		for _, text := range got.Attributes {
			held, err := strconv.Atoi(text)
			e.must(err)
			n += held
		}
	}
	return n
}

// judge holds the witnesses against each other and against what is promised.
func (e *executor) judge() audit.Counts {
	ctx := context.WithoutCancel(e.ctx)
	e.must(e.history.Err())
	ledger, err := postgres.Open(ctx, e.dsn, postgres.Options{})
	e.must(err)
	defer ledger.Close()
	history, err := ledger.History(ctx)
	e.must(err)
	defer history.Close()
	rows := func(ctx context.Context) iter.Seq2[stepfleet.AuditRow, error] {
		return history.Window(ctx, time.Time{}, history.At.Add(time.Hour))
	}
	views, err := ledger.RunTasks(ctx, runID)
	e.must(err)
	sessions, err := ledger.Sessions(ctx, time.Hour)
	e.must(err)
	var tasks []audit.Task
	for _, v := range views {
		tasks = append(tasks, audit.TaskOf(v))
	}
	var left []string
	for _, s := range sessions {
		if s.State != stepfleet.SessionDead {
			left = append(left, fmt.Sprintf("session %d", s.ID))
		}
	}
	report, err := audit.Check(ctx, audit.Witnesses{
		Client:  audit.ReadClient(func() (io.ReadCloser, error) { return os.Open(e.file("client.jsonl")) }),
		Effects: readEffects(e.file("effects.jsonl")), Audit: rows, Tasks: audit.Slice(tasks...),
		Sessions: audit.Slice(sessions...), Dagster: audit.Slice(e.events(ctx)...), Until: time.Now(), Snapshot: true,
		Healed: e.whole, Within: endsWithin, Lifetimes: lifetimes,
		Rest: &audit.Rest{Bells: e.bells(), Children: e.children(), Sessions: left, Held: e.held()},
	})
	e.must(err)
	for _, v := range report.Violations {
		e.Errorf("%s %s: %s (%s)", v.Invariant, v.Key, v.What, v.Sentence)
	}
	for _, held := range report.Invariants {
		// Dagster's runs are not there, and where nothing began there is nothing to check.
		if held.Unchecked != "" && !strings.HasPrefix(held.ID, "R") && report.Counts.Effects > 0 {
			e.Errorf("%s was not checked: %s", held.ID, held.Unchecked)
		}
	}
	if len(tasks) != len(e.tasks) {
		e.Errorf("%d tasks were submitted, and the ledger has %d", len(e.tasks), len(tasks))
	}
	return report.Counts
}

// events is Dagster's event log.
func (e *executor) events(ctx context.Context) (all []audit.DagsterEvent) {
	log, err := dagsterlog.Open(ctx, e.dsn)
	e.must(err)
	defer log.Close()
	for event, err := range log.Events(ctx, []string{runID}, slices.Concat(audit.RunEvents, audit.StepEvents)) {
		e.must(err)
		all = append(all, audit.DagsterEvent(event))
	}
	return all
}

func (e *executor) held() []string {
	rows, err := e.db.Query(context.WithoutCancel(e.ctx), `SELECT format('task %s', task_id) FROM stepfleet.held`)
	e.must(err)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	e.must(err)
	return all
}

// children are the processes of this case's steps that are left.
func (e *executor) children() (left []string) {
	mark := effectsVariable + "=" + e.file("effects.jsonl")
	for pid, p := range proctable.Table() {
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && slices.Contains(strings.Split(string(environ), "\x00"), mark) && p.Alive() {
			left = append(left, p.Command)
		}
	}
	return left
}

// logs is what the processes said, of which the end says most.
func (s *stack) logs() string {
	var text strings.Builder
	for _, name := range []string{"server.log", "worker.log", "spare.log"} {
		raw, err := os.ReadFile(s.file(name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err.Error()
		}
		const most = 12 << 10
		fmt.Fprintf(&text, "\n== %s\n%s", name, raw[max(0, len(raw)-most):])
	}
	return text.String()
}
