package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/devstack"
)

// demoTag marks the runs of one demo.
const demoTag = "stepfleet/demo"

// launch launches one run and remembers how it must end.
func (d *demo) launch(ctx context.Context, job string, want dagsterapi.RunStatus) (string, error) {
	run, err := d.dagster.LaunchRun(ctx, dagsterapi.Launch{
		Location: d.location, Job: job, Key: uuid.NewString(), Tags: map[string]string{demoTag: d.id},
	})
	if err != nil {
		return "", err
	}
	d.runs = append(d.runs, RunRecord{ID: run.ID, Job: job, Want: want})
	return run.ID, nil
}

// runJobs launches every job but recover at once and waits for all.
func (d *demo) runJobs(ctx context.Context) error {
	for _, job := range jobs {
		if _, err := d.launch(ctx, job.name, job.want); err != nil {
			return err
		}
	}
	d.say("  launched %d runs", len(d.runs))
	return d.waitRuns(ctx)
}

// waitRuns waits until every run has ended, and says what changes.
func (d *demo) waitRuns(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, runsTimeout)
	defer cancel()
	tick := time.NewTicker(runsInterval)
	defer tick.Stop()
	said := map[string]dagsterapi.RunStatus{}
	for {
		open, err := d.lookAtRuns(ctx, said)
		if err == nil && open == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d runs have not ended: %w", open, errors.Join(err, ctx.Err()))
		case <-d.dev.Gone():
			return errors.New("stepfleet dev has ended, see dev.log")
		case <-tick.C:
		}
	}
}

// lookAtRuns brings the runs' records up to date and returns how many go on.
func (d *demo) lookAtRuns(ctx context.Context, said map[string]dagsterapi.RunStatus) (open int, err error) {
	runs, err := d.dagster.Runs(ctx, demoTag, d.id)
	if err != nil {
		return len(d.runs), err
	}
	for _, run := range runs {
		i := slices.IndexFunc(d.runs, func(r RunRecord) bool { return r.ID == run.ID })
		if i < 0 {
			continue
		}
		record := &d.runs[i]
		fresh := record.Status != run.Status
		record.Status = run.Status
		if run.Status.Ended() {
			record.Seconds = run.EndTime - run.StartTime
		}
		if fresh && said[run.ID] != run.Status && run.Status.Ended() {
			said[run.ID] = run.Status
			d.say("  %-8s run %.8s %s after %.1f s", record.Job, run.ID, run.Status, record.Seconds)
		}
	}
	for _, record := range d.runs {
		if !record.Status.Ended() {
			open++
		}
	}
	return open, nil
}

// killAndRecover runs the job recover and kills a worker that runs steps of it. A kill that came
// between two steps hits nothing; then it is done again with another run.
func (d *demo) killAndRecover(ctx context.Context) error {
	for range recoverTries {
		runID, err := d.launch(ctx, recoverJob, dagsterapi.RunSuccess)
		if err != nil {
			return err
		}
		if err := d.killOne(ctx, runID); err != nil {
			return err
		}
		if err := d.waitRuns(ctx); err != nil {
			return err
		}
		tasks, err := d.fleet.tasks(ctx, runID)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(tasks, func(t stepfleet.View) bool { return t.State == stepfleet.StateLost }) {
			return nil
		}
		d.say("  the kill hit no running step, once more")
	}
	return nil // the verdict says that nothing was lost
}

// killOne waits until the ledger shows a worker in the middle of the run's steps, and kills it.
func (d *demo) killOne(ctx context.Context, runID string) error {
	ctx, cancel := context.WithTimeout(ctx, runsTimeout)
	defer cancel()
	tick := time.NewTicker(ledgerInterval)
	defer tick.Stop()
	var last error
	wanted := 2 // steps at once, which shows more
	for {
		tasks, err := d.fleet.tasks(ctx, runID)
		if err != nil {
			last = err
		} else if worker, victims := pick(tasks); len(victims) >= wanted {
			return d.kill(ctx, worker, victims)
		} else if worker != "" {
			wanted = 1 // steps are short: the next look takes what there is
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the run %s started no step: %w", runID, errors.Join(last, ctx.Err()))
		case <-d.dev.Gone():
			return errors.New("stepfleet dev has ended, see dev.log")
		case <-tick.C:
		}
	}
}

// pick returns the worker that runs most of the tasks, and those; of equal ones the one whose last
// step began last, so that it is still in it when the kill comes.
func pick(tasks []stepfleet.View) (string, []stepfleet.View) {
	running := map[string][]stepfleet.View{}
	for _, t := range tasks {
		if t.State == stepfleet.StateRunning {
			running[t.Worker] = append(running[t.Worker], t)
		}
	}
	latest := func(worker string) time.Time {
		return slices.MaxFunc(running[worker], func(a, b stepfleet.View) int { return a.StartedAt.Compare(b.StartedAt) }).StartedAt
	}
	best := ""
	for worker, list := range running {
		if best == "" || cmp.Or(cmp.Compare(len(list), len(running[best])), latest(worker).Compare(latest(best))) > 0 {
			best = worker
		}
	}
	return best, running[best]
}

// kill kills the worker's process. Its id comes from the stack and must be the one that the ledger
// has for the session: the demo never signals a process that it has not been told of twice.
func (d *demo) kill(ctx context.Context, worker string, victims []stepfleet.View) error {
	sessions, err := d.fleet.sessions(ctx)
	if err != nil {
		return err
	}
	state, err := devstack.ReadState(d.Dir)
	if err != nil {
		return err
	}
	pid := state.PIDs[worker]
	if session := sessions[victims[0].Session]; pid <= 0 || session.PID != pid {
		return fmt.Errorf("%s is process %d for stepfleet dev and %d for the ledger", worker, pid, session.PID)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill %s: %w", worker, err)
	}
	k := Kill{Worker: worker, PID: pid}
	for _, t := range victims {
		k.Steps = append(k.Steps, t.StepKey)
	}
	d.killed = append(d.killed, k)
	d.say("  killed %s, process %d, in the middle of %s", worker, pid, strings.Join(k.Steps, ", "))
	return nil
}

// collect reads every task of every run; it waits a little for the last ones to settle.
func (d *demo) collect(ctx context.Context) ([]stepfleet.View, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for {
		var all []stepfleet.View
		open := 0
		for _, run := range d.runs {
			tasks, err := d.fleet.tasks(ctx, run.ID)
			if err != nil {
				return nil, err
			}
			for _, t := range tasks {
				if !t.State.Terminal() {
					open++
				}
			}
			all = append(all, tasks...)
		}
		if open == 0 {
			return all, nil
		}
		select {
		case <-ctx.Done():
			return all, nil // the verdict names the open ones
		case <-time.After(runsInterval):
		}
	}
}
