//go:build linux

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

// slotsOfSmall is what the two workers of the shared stack have for the queue small.
const slotsOfSmall = 4

// backfill launches a run of 1,000 steps in the queue small. Its first steps hold every slot until
// give is called; the rest wait.
func backfill(t *testing.T, s *stack) (run string, give func()) {
	t.Helper()
	file, give := release(t)
	run = s.dagster.launch(t, "dynamic", config{
		executor: map[string]any{"queue": "small"},
		ops:      map[string]any{"split": map[string]any{"count": 1000}, "step": behaviour{"release": file}},
	})
	s.awaitBegins(t, runTimeout, 1+slotsOfSmall, run) // split too
	return run, give
}

// threeSmall has the steps of the job three go to the queue small.
var threeSmall = config{
	executor: map[string]any{"queue": "small"},
	ops:      numbered("work", 3, behaviour{}, nil),
}

// waiting launches a run of three steps in the queue small and waits until they wait in the ledger
// with that priority.
func waiting(t *testing.T, s *stack, job string, c config, priority int) (run string, since time.Time) {
	t.Helper()
	run = s.dagster.launch(t, job, c)
	var tasks views
	await(t, runTimeout, "three waiting tasks", func() (bool, string) {
		tasks = s.server.tasks(t, run).in(stepfleet.StateQueued)
		return len(tasks) == 3, tasks.String()
	})
	for _, task := range tasks {
		if task.Queue != "small" || task.Priority != priority {
			t.Errorf("%s waits in queue %s with priority %d, want small and %d", task.StepKey, task.Queue, task.Priority, priority)
		}
	}
	return run, tasks[0].SubmittedAt
}

// end cancels what is left of a backfill.
func end(t *testing.T, s *stack, run string) {
	t.Helper()
	s.dagster.terminate(t, run)
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunCanceled)
	awaitAllEnded(t, s, run)
}

func TestARunOfThreeDoesNotWaitForABackfillOfAThousand(t *testing.T) {
	s := shared(t)
	big, give := backfill(t, s)
	small, since := waiting(t, s, "three", threeSmall, 0)
	give()
	s.dagster.awaitEnd(t, runTimeout, small, dagsterapi.RunSuccess)
	end(t, s, big)
	first := slices.MinFunc(s.server.tasks(t, small), func(a, b stepfleet.View) int { return a.StartedAt.Compare(b.StartedAt) })
	before, waited := 0, 0
	for _, step := range s.server.tasks(t, big) {
		switch {
		case step.StartedAt.IsZero():
			waited++
		case step.StartedAt.After(since) && step.StartedAt.Before(first.StartedAt):
			before++
		}
	}
	t.Logf("%d steps of the backfill started between the submission of the small run and its first step", before)
	if before >= 2*slotsOfSmall {
		t.Errorf("%d steps of the backfill started before the first of the small run, want under %d", before, 2*slotsOfSmall)
	}
	if waited == 0 {
		t.Error("the whole backfill had started when the small run ended: the test shows nothing")
	}
	s.server.checkAudit(t, small)
	s.server.checkAudit(t, big)
}

// atOnce is how far apart the records of two claims may be that were made at once: each skips the
// rows that the other is about to take, whatever their priority.
const atOnce = 100 * time.Millisecond

// The urgent steps say by tags of their ops, ours and those of other executors, where they belong.
// Claims are compared, not starts: two steps of one claim may start in any order.
func TestAHighPriorityGoesBeforeAllThatWaits(t *testing.T) {
	s := shared(t)
	big, give := backfill(t, s)
	normal, _ := waiting(t, s, "three", threeSmall, 0)
	urgent, since := waiting(t, s, "three_urgent", config{ops: numbered("urgent", 3, behaviour{}, nil)}, 5)
	give()
	s.dagster.awaitEnd(t, runTimeout, urgent, dagsterapi.RunSuccess)
	s.dagster.awaitEnd(t, runTimeout, normal, dagsterapi.RunSuccess)
	end(t, s, big)
	lower := append(s.claims(t, big), s.claims(t, normal)...)
	for _, high := range s.claims(t, urgent) {
		for _, low := range lower {
			if low.At.After(since) && high.At.Sub(low.At) > atOnce && low.Detail != high.Detail {
				t.Errorf("a step of priority 0 was claimed at %s, while one of priority 5 waited until %s", low.At, high.At)
			}
		}
	}
	if after := slices.IndexFunc(lower, func(row stepfleet.AuditRow) bool { return row.At.After(since) }); after < 0 {
		t.Error("nothing of priority 0 was claimed after the urgent run was submitted: the test shows nothing")
	}
}

// claims returns the claims of the run's tasks; Detail is the claim's id.
func (s *stack) claims(t *testing.T, run string) []stepfleet.AuditRow {
	t.Helper()
	rows := s.server.checkAudit(t, run)
	return slices.DeleteFunc(rows, func(row stepfleet.AuditRow) bool {
		return row.Verb != stepfleet.VerbClaim || row.Refused != ""
	})
}

func TestAStepOverItsTimeoutFailsWithThatReason(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		t.Run(fmt.Sprintf("ignores SIGTERM %t", deaf), func(t *testing.T) {
			s := shared(t)
			file, _ := release(t)
			run := s.dagster.launch(t, "one_timed", config{
				executor: map[string]any{"step_timeout_seconds": 600}, // the op's tag goes before it
				ops:      map[string]any{"timed_0": behaviour{"release": file, "ignore_sigterm": deaf}},
			})
			s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunFailure)
			task := s.server.tasks(t, run).of(t, "timed_0", 0)
			if task.State != stepfleet.StateFailed || task.Result == nil || task.Result.Error == nil || task.Result.Error.Code != "timeout" {
				t.Errorf("the task is %s with %+v, want failed with code timeout", task.State, task.Result)
			}
			if ran := task.EndedAt.Sub(task.StartedAt); ran < time.Second {
				t.Errorf("ended %s after its start, before its timeout", ran)
			}
			s.wantOneEnding(t, run, "STEP_FAILURE", "ran over its timeout of 1s")
			for key, begin := range s.begins(t, run) {
				if _, there := proctable.Read(begin.PID); there {
					t.Errorf("process %d of %s is still there", begin.PID, key)
				}
			}
			s.server.checkAudit(t, run)
		})
	}
}

// The step's success is in Dagster's log before its thread is ended, and stays.
func TestAThreadThatOutlivesItsStepIsEnded(t *testing.T) {
	forever := behaviour{"thread_seconds": 600}
	for how, c := range map[string]struct {
		job, step string
		cancel    bool
		ends      dagsterapi.RunStatus
	}{
		"by the step's timeout": {"one_timed", "timed_0", false, dagsterapi.RunSuccess},
		"by a cancel":           {"one", "work_0", true, dagsterapi.RunCanceled},
	} {
		t.Run(how, func(t *testing.T) {
			s := shared(t)
			run := s.dagster.launch(t, c.job, config{ops: map[string]any{c.step: forever}})
			await(t, runTimeout, "the step's success", func() (bool, string) {
				return slices.ContainsFunc(s.dagster.events(t, run), func(e event) bool { return e.Type == "STEP_SUCCESS" }), ""
			})
			if c.cancel {
				s.dagster.terminate(t, run)
			}
			s.dagster.awaitEnd(t, runTimeout, run, c.ends)
			awaitAllEnded(t, s, run)
			if task := s.server.tasks(t, run).of(t, c.step, 0); task.State != stepfleet.StateSucceeded {
				t.Errorf("the task is %s with %+v, want succeeded", task.State, task.Result)
			}
			for key, begin := range s.begins(t, run) {
				if _, there := proctable.Read(begin.PID); there {
					t.Errorf("process %d of %s is still there", begin.PID, key)
				}
			}
			s.server.checkAudit(t, run)
		})
	}
}

func TestATimeoutIsRetriedByTheOpsPolicy(t *testing.T) {
	s := shared(t)
	file, give := release(t)
	run := s.dagster.launch(t, "one_retried", config{
		executor: map[string]any{"step_timeout_seconds": 5},
		ops:      map[string]any{"retried_0": behaviour{"release": file}},
	})
	s.awaitBegins(t, runTimeout, 2, run)
	give()
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	s.wantOneEnding(t, run, "STEP_UP_FOR_RETRY", "ran over its timeout of 5s")
	s.wantOneEnding(t, run, "STEP_SUCCESS", "")
	if first := s.server.tasks(t, run).of(t, "retried_0", 0); first.Result == nil || first.Result.Error.Code != "timeout" {
		t.Errorf("attempt 0: %+v, want code timeout", first.Result)
	}
}

// wantOneEnding wants one event of the kind in Dagster's log, which says why.
func (s *stack) wantOneEnding(t *testing.T, run, kind, says string) {
	t.Helper()
	found := 0
	for _, e := range s.dagster.events(t, run) {
		if e.Type != kind {
			continue
		}
		if found++; !strings.Contains(e.Message+e.reason(), says) {
			t.Errorf("%s says %q %q, want %q in it", kind, e.Message, e.reason(), says)
		}
	}
	if found != 1 {
		t.Errorf("Dagster's log has %d events %s, want one", found, kind)
	}
}

// A worker far away serves the queue small too: it has a session, as its registration makes one.
func TestValuesOnOneHostsDiskAreRefusedWithWorkersOnAnother(t *testing.T) {
	s := shared(t)
	s.registerElsewhere(t, "far-away", "small")
	small := map[string]any{"queue": "small"}

	refused := s.dagster.launch(t, "chain", config{executor: small})
	s.dagster.awaitEnd(t, runTimeout, refused, dagsterapi.RunFailure)
	wantEvent(t, s.dagster.events(t, refused), "RUN_FAILURE", "", "IO manager 'io_manager'", "on far-away", "S3PickleIOManager", "shared_filesystem: true")
	if tasks := s.server.tasks(t, refused); len(tasks) != 0 {
		t.Errorf("a step was submitted: %s", tasks)
	}

	shared := s.dagster.launch(t, "chain", config{executor: map[string]any{"queue": "small", "shared_filesystem": true}})
	elsewhere := s.dagster.launch(t, "chain", config{})                                                               // a queue that only this host serves
	loadsNothing := s.dagster.launch(t, "three", config{executor: small, ops: numbered("work", 3, behaviour{}, nil)}) // hands no value on
	for _, run := range []string{shared, elsewhere, loadsNothing} {
		s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
	}
}

// registerElsewhere registers a session of a worker on another host, which ends with the test.
func (s *stack) registerElsewhere(t *testing.T, host, queue string) {
	t.Helper()
	ledger, err := postgres.Open(t.Context(), readLine(t, s.state().LedgerURL), postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ledger.Close)
	session, err := ledger.Register(t.Context(), stepfleet.SessionSpec{
		Worker: "worker-3", Instance: "far-" + host, Host: host, Slots: map[string]int{queue: 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ledger.EndSession(context.Background(), session.ID, session.Instance, "the test is over"); err != nil {
			t.Error(err)
		}
	})
}
