//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

const (
	// childrenGoneWithin bounds the end of a killed worker's processes; it takes milliseconds.
	childrenGoneWithin = 3 * time.Second
	// recoverWithin is far below the run lease (180 s) and the session TTL (30 s): it is dev's
	// proof of death that makes the recovery, not a deadline.
	recoverWithin = 20 * time.Second
)

// One worker holds running steps of two runs, whose next attempts come from lost_step_retries and
// from a RetryPolicy, and leases of a third that have not started. It is killed.
func TestKilledWorkersStepsRunElsewhere(t *testing.T) {
	s := defaultLauncher(t)
	file, give := release(t)
	waiting := behaviour{"release": file}
	const victim, other = "worker-1", "worker-2"
	thaw := s.freeze(t, other)
	granted := s.dagster.launch(t, "six", config{
		executor: map[string]any{"lost_step_retries": 1}, ops: numbered("work", 6, waiting, nil),
	})
	policy := s.dagster.launch(t, "six_retried", config{ops: numbered("retried", 6, waiting, nil)})
	s.awaitBegins(t, runTimeout, 12, granted, policy)
	thaw()
	running := map[string]views{}
	for _, run := range []string{granted, policy} {
		running[run] = s.server.tasks(t, run).in(stepfleet.StateRunning).on(victim)
		if len(running[run]) != 6 {
			t.Fatalf("run %s has %d tasks on %s, want 6", run, len(running[run]), victim)
		}
	}
	leasing := s.dagster.launch(t, "six", config{ops: numbered("work", 6, behaviour{}, nil)})
	leased := s.leaseWithoutStart(t, leasing, victim, other)

	worker := s.pid(t, victim)
	children := proctable.Descendants(worker)
	killed := time.Now()
	if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone := awaitGone(t, childrenGoneWithin, killed, children)
	goneAt := killed.Add(gone)
	t.Logf("killed %s with %d running and %d leased tasks; its %d processes were gone after %s",
		victim, len(running[granted])+len(running[policy]), len(leased), len(children), gone.Round(time.Millisecond))
	for _, run := range []string{granted, policy} {
		s.awaitNextAttempts(t, run, running[run], killed, goneAt)
	}
	s.dagster.awaitEnd(t, recoverWithin, leasing, dagsterapi.RunSuccess)
	for _, task := range leased {
		now := s.server.tasks(t, leasing).of(t, task.StepKey, 0)
		if now.State != stepfleet.StateSucceeded || now.Fence <= task.Fence {
			t.Errorf("leased task %s is %s with fence %d on %s, want succeeded and a fence over %d", task.Key, now.State, now.Fence, now.Worker, task.Fence)
		}
	}
	if tasks := s.server.tasks(t, leasing); len(tasks) != 6 {
		t.Errorf("ledger: %s: a lease that was lost must not cost an attempt", tasks)
	}
	give()
	for _, run := range []string{granted, policy} {
		s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
		s.server.checkAudit(t, run)
	}
	s.server.checkAudit(t, leasing)
}

// awaitNextAttempts waits until every task that ran on the dead worker is lost and its next
// attempt has begun on a living one, which must not be while the dead one's processes still were.
func (s *stack) awaitNextAttempts(t *testing.T, run string, lost views, killed, gone time.Time) {
	t.Helper()
	await(t, recoverWithin, "the next attempts of run "+run, func() (bool, string) {
		begins := s.begins(t, run)
		for _, task := range lost {
			next := task.Key
			next.Attempt++
			if _, ok := begins[next]; !ok {
				return false, fmt.Sprintf("%s has not begun; ledger: %s", next, s.server.tasks(t, run))
			}
		}
		return true, ""
	})
	var lostAfter, begunAfter time.Duration
	begins, tasks := s.begins(t, run), s.server.tasks(t, run)
	for _, task := range lost {
		now := tasks.of(t, task.StepKey, task.Attempt)
		if now.State != stepfleet.StateLost {
			t.Errorf("task %s is %s, want lost", now.Key, now.State)
		}
		next := task.Key
		next.Attempt++
		lostAfter = max(lostAfter, now.EndedAt.Sub(killed))
		begunAfter = max(begunAfter, begins[next].time().Sub(killed))
		if early := gone.Sub(begins[next].time()); early > 0 {
			t.Errorf("%s began %s before the processes of the attempt before were gone", next, early)
		}
	}
	t.Logf("run %s: %d tasks lost %.1f s, all next attempts begun %.1f s after the kill", run[:8], len(lost), lostAfter.Seconds(), begunAfter.Seconds())
}

// leaseWithoutStart makes the victim lease tasks of the run that do not start: its idle step
// processes are stopped, and so is the other worker until the victim has some.
func (s *stack) leaseWithoutStart(t *testing.T, run, victim, other string) views {
	t.Helper()
	busy := map[int]bool{}
	for _, e := range s.begins(t) {
		busy[e.PID] = true
	}
	worker := s.pid(t, victim)
	template := templateOf(t, worker)
	for _, p := range proctable.Descendants(worker) {
		if p.Parent == template && !busy[p.PID] {
			_ = syscall.Kill(p.PID, syscall.SIGSTOP)
		}
	}
	thaw := s.freeze(t, other)
	defer thaw()
	var leased views
	await(t, runTimeout, "leases on "+victim, func() (bool, string) {
		tasks := s.server.tasks(t, run)
		leased = tasks.in(stepfleet.StateLeased).on(victim)
		return len(leased) > 0, tasks.String()
	})
	return leased
}

// templateOf returns the process that forks the worker's step processes.
func templateOf(t *testing.T, worker int) int {
	t.Helper()
	for _, p := range proctable.Descendants(worker) {
		if p.Parent == worker && strings.Contains(p.Command, "dagster_stepfleet.host template") {
			return p.PID
		}
	}
	t.Fatalf("worker process %d has no template", worker)
	return 0
}

func (v views) on(worker string) views {
	return slices.DeleteFunc(slices.Clone(v), func(view stepfleet.View) bool { return view.Worker != worker })
}
