package audit_test

import (
	"context"
	"fmt"
	"iter"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
)

// What the verifier may take for a million audit rows. The time asserted is three times as long: the
// machine may be busy with other things.
const (
	scaleRows    = 1_000_000
	scaleSeconds = 30
	scaleBytes   = 500 << 20
)

// million is a history of that size that nobody has to keep: 200,000 tasks in 2,000 runs, twenty of
// them at work at a time.
type million struct{ tasks, runs int }

const (
	rowsPerTask = 5
	atWork      = 20
)

func (m million) task(i int) audit.Task {
	at := m.at(i, 0)
	return audit.Task{
		ID: stepfleet.TaskID(i + 1), Key: m.key(i), Kind: stepfleet.KindStep, State: stepfleet.StateSucceeded, Fence: 1,
		Event: "STEP_SUCCESS", SubmittedAt: at, StartedAt: m.at(i, 2), EndedAt: m.at(i, rowsPerTask-1),
	}
}

func (m million) key(i int) stepfleet.Key {
	// Built anew each time, as a reader's are.
	return stepfleet.Key{RunID: m.runID(i), StepKey: "load_the_users_table_" + strconv.Itoa(i/m.runs)}
}

func (m million) runID(i int) string { return fmt.Sprintf("0c5a7c1e-7d0b-4d0e-9f6b-%012d", i%m.runs) }

var scaleBegin = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func (m million) at(task, row int) time.Time {
	return scaleBegin.Add(time.Duration(task/atWork*rowsPerTask+row) * time.Millisecond)
}

func (m million) rows(context.Context) iter.Seq2[stepfleet.AuditRow, error] {
	return func(yield func(stepfleet.AuditRow, error) bool) {
		id := int64(0)
		for first := 0; first < m.tasks; first += atWork {
			for step := range rowsPerTask {
				for i := first; i < first+atWork; i++ {
					id++
					if !yield(m.row(id, i, step), nil) {
						return
					}
				}
			}
		}
	}
}

func (m million) row(id int64, i, step int) stepfleet.AuditRow {
	row := stepfleet.AuditRow{
		ID: id, At: m.at(i, step), TaskID: stepfleet.TaskID(i + 1), RunID: m.runID(i), Actor: strings.Clone("session 1"), Fence: 1,
	}
	switch step {
	case 0:
		row.Verb, row.To, row.Fence, row.Actor = stepfleet.VerbSubmit, stepfleet.StateQueued, 0, "executor 1"
	case 1:
		row.Verb, row.From, row.To = stepfleet.VerbClaim, stepfleet.StateQueued, stepfleet.StateLeased
	case 2:
		row.Verb, row.From, row.To = stepfleet.VerbStart, stepfleet.StateLeased, stepfleet.StateRunning
	case 3:
		row.Verb, row.From, row.To, row.Actor = stepfleet.VerbCancel, stepfleet.StateRunning, stepfleet.StateRunning, "executor 1"
	default:
		row.Verb, row.From, row.To = stepfleet.VerbSettle, stepfleet.StateRunning, stepfleet.StateSucceeded
	}
	return row
}

func (m million) all(context.Context) iter.Seq2[audit.Task, error] {
	return func(yield func(audit.Task, error) bool) {
		for i := range m.tasks {
			if !yield(m.task(i), nil) {
				return
			}
		}
	}
}

func (m million) events(context.Context) iter.Seq2[audit.DagsterEvent, error] {
	return func(yield func(audit.DagsterEvent, error) bool) {
		for i := range m.runs {
			if !yield(audit.DagsterEvent{ID: int64(i + 1), RunID: m.runID(i), Type: "PIPELINE_START", At: m.at(i, 0)}, nil) {
				return
			}
		}
		for i := range m.tasks {
			key := m.key(i)
			for n, kind := range []string{"STEP_START", "STEP_SUCCESS"} {
				e := audit.DagsterEvent{ID: int64(m.runs + 2*i + n + 1), RunID: key.RunID, StepKey: key.StepKey, Type: kind, At: m.at(i, 2+n)}
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

func TestAMillionRowsTakeLittle(t *testing.T) {
	m := million{tasks: scaleRows / rowsPerTask, runs: 2000}
	debug.FreeOSMemory()
	before := resident(t)
	peak := make(chan int64)
	stop := make(chan struct{})
	go func() { peak <- watch(t, stop) }()
	began := time.Now()
	report, err := audit.Check(t.Context(), audit.Witnesses{Audit: m.rows, Tasks: m.all, Dagster: m.events})
	took := time.Since(began)
	close(stop)
	used := <-peak - before
	if err != nil {
		t.Fatal(err)
	}
	if report.Verdict != audit.Pass || report.Counts.AuditRows != scaleRows || report.Counts.UnloggedRuns > 0 {
		t.Fatalf("%s: %d rows, %d runs not compared, %v", report.Verdict, report.Counts.AuditRows, report.Counts.UnloggedRuns, report.Violations)
	}
	t.Logf("%d rows, %d tasks and %d events of Dagster in %s with %d MB", scaleRows, m.tasks, report.Counts.DagsterEvents, took.Round(time.Millisecond), used>>20)
	if took > 3*scaleSeconds*time.Second {
		t.Errorf("it took %s, want under %d s even on a busy machine", took, 3*scaleSeconds)
	}
	if used > scaleBytes {
		t.Errorf("it took %d MB, want under %d", used>>20, scaleBytes>>20)
	}
}

// watch returns the largest resident memory of this process until stop.
func watch(t *testing.T, stop chan struct{}) int64 {
	var peak int64
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		peak = max(peak, resident(t))
		select {
		case <-tick.C:
		case <-stop:
			tick.Stop()
			return peak
		}
	}
}

// resident returns this process's memory as the kernel counts it, elsewhere as Go does.
func resident(t *testing.T) int64 {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.Sys)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(raw))[1], 10, 64)
	if err != nil {
		t.Error(err)
	}
	return pages * int64(os.Getpagesize())
}
