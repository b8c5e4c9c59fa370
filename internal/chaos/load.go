package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

// jobs of the load in the order in which they are launched, again and again.
var jobs = []string{"wide", "chain", "wide", "shaky", "bare"}

// runTag marks the load's runs.
const runTag = "stepfleet/chaos"

const (
	// atOnce is how many runs go on: enough that every worker has some, few enough that a run ends
	// while the faults go on.
	atOnce       = 5
	loadInterval = 500 * time.Millisecond
)

// load launches runs and keeps so many of them going until it is told to stop.
type load struct {
	*stack
	id string

	mu      sync.Mutex
	runs    map[string]*runRecord
	cancels map[string]cancelling
	effects tail[effect]
	opened  tail[opened]
	open    map[string]effect // attempts in user code, by key and process
	ended   map[string]effect // attempts whose user code has ended and whose process lives
	workers map[string]int    // run -> process of its last run worker
}

// runRecord is a run of the load.
type runRecord struct {
	ID        string               `json:"id"`
	Job       string               `json:"job"`
	Status    dagsterapi.RunStatus `json:"status"`
	Cancelled time.Time            `json:"cancelled,omitzero"` // by the nemesis, and Dagster has heard it
	// Failures are what Dagster's log says of why the run did not succeed.
	Failures []string `json:"failures,omitempty"`
}

// effect is a line of the effect log.
type effect struct {
	Event string `json:"event"` // begin, end, error
	stepfleet.Key
	Fence   string  `json:"fence"`
	PID     int     `json:"pid"`
	Worker  string  `json:"worker"`
	At      float64 `json:"at"`
	process proctable.Process
}

func (e effect) time() time.Time { return time.UnixMicro(int64(e.At * 1e6)) }

// opened is a line that an executor writes when it opens its run.
type opened struct {
	Run string `json:"run"`
	PID int    `json:"pid"`
}

// tail reads a log of JSON lines as it grows.
type tail[T any] struct {
	path string
	read int64
}

// more returns the lines that have come since the last time.
func (t *tail[T]) more() ([]T, error) {
	file, err := os.Open(t.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	raw := make([]byte, info.Size()-t.read)
	if _, err := file.ReadAt(raw, t.read); err != nil && len(raw) > 0 {
		return nil, err
	}
	whole := raw[:bytes.LastIndexByte(raw, '\n')+1]
	t.read += int64(len(whole))
	var lines []T
	for line := range bytes.Lines(whole) {
		var l T
		if err := json.Unmarshal(line, &l); err != nil {
			return lines, fmt.Errorf("%s: %w: %s", t.path, err, line)
		}
		lines = append(lines, l)
	}
	return lines, nil
}

func newLoad(s *stack) *load {
	return &load{
		stack: s, id: uuid.NewString(), runs: map[string]*runRecord{}, cancels: map[string]cancelling{},
		effects: tail[effect]{path: s.effectLog()}, opened: tail[opened]{path: s.executors()},
		open: map[string]effect{}, ended: map[string]effect{}, workers: map[string]int{},
	}
}

// run keeps runs going until ctx ends.
func (l *load) run(ctx context.Context) {
	pending := map[string]string{} // key of a launch whose answer is not known -> job
	for next := 0; ctx.Err() == nil; hold(ctx, loadInterval) {
		open, err := l.look(ctx)
		if err != nil {
			continue // the webserver is a victim too
		}
		for key, job := range pending {
			if l.launch(ctx, job, key) == nil {
				delete(pending, key)
			}
		}
		for open += len(pending); open < atOnce && ctx.Err() == nil; open++ {
			job, key := jobs[next%len(jobs)], uuid.NewString()
			next++
			if l.launch(ctx, job, key) != nil {
				pending[key] = job
				break
			}
		}
	}
}

// launch launches a run, unless the key says that it was.
func (l *load) launch(ctx context.Context, job, key string) error {
	known, err := l.dagster.Runs(ctx, dagsterapi.LaunchTag, key)
	if err != nil || len(known) > 0 {
		return err
	}
	_, err = l.dagster.LaunchRun(ctx, dagsterapi.Launch{
		Location: l.location(), Job: job, Key: key, Tags: map[string]string{runTag: l.id},
	})
	return err
}

// look brings the runs up to date and returns how many go on.
func (l *load) look(ctx context.Context) (open int, err error) {
	runs, err := l.dagster.Runs(ctx, runTag, l.id)
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range runs {
		l.runs[r.ID] = &runRecord{ID: r.ID, Job: r.Job, Status: r.Status}
		if !r.Status.Ended() {
			open++
		}
	}
	return open, nil
}

// records returns the runs, by id, with the cancels that have come through.
func (l *load) records(log []audit.DagsterEvent) []runRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	cancelled := l.cancelled(log)
	var all []runRecord
	for _, r := range l.runs {
		one := *r
		one.Cancelled = cancelled[r.ID]
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b runRecord) int { return bytes.Compare([]byte(a.ID), []byte(b.ID)) })
	return all
}

// drain waits until every run has ended.
func (l *load) drain(ctx context.Context) error {
	for {
		open, err := l.look(ctx)
		if err == nil && open == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d runs have not ended: %w", open, errors.Join(err, ctx.Err()))
		case <-time.After(loadInterval):
		}
	}
}

// busy returns the attempts whose process is in user code now.
func (l *load) busy() []effect {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.follow()
	return living(l.open)
}

// ending returns the attempts whose user code has ended since, and whose process lives.
func (l *load) ending(since time.Time) []effect {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.follow()
	return slices.DeleteFunc(living(l.ended), func(e effect) bool { return e.time().Before(since) })
}

// follow reads what the effect log has more.
func (l *load) follow() {
	lines, err := l.effects.more()
	if err != nil {
		l.Log.Warn("effect log", "error", err)
	}
	for _, e := range lines {
		key := fmt.Sprintf("%s %d", e.Key, e.PID)
		if begun, ok := l.open[key]; e.Event != "begin" {
			e.process = begun.process
			delete(l.open, key)
			if ok {
				l.ended[key] = e
			}
		} else if p, ok := proctable.Read(e.PID); ok {
			e.process = p
			l.open[key] = e
		}
	}
}

// living forgets the attempts whose process is gone, and returns the others.
func living(attempts map[string]effect) []effect {
	var all []effect
	for key, e := range attempts {
		if !e.process.Alive() {
			delete(attempts, key)
			continue
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b effect) int { return a.PID - b.PID })
	return all
}

// works reports whether a step runs on the worker now.
func (l *load) works(worker string) bool { return l.running(worker) > 0 }

// running returns how many steps run on the worker now.
func (l *load) running(worker string) int {
	return len(slices.DeleteFunc(l.busy(), func(e effect) bool { return e.Worker != worker }))
}

// runWorker returns the run worker of the run that hits says was hit least.
func (l *load) runWorker(hits func(run string) int) (run string, found proctable.Process, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines, err := l.opened.more()
	if err != nil {
		l.Log.Warn("executors", "error", err)
	}
	for _, line := range lines {
		l.workers[line.Run] = line.PID
	}
	least := 0
	for id, pid := range l.workers {
		record := l.runs[id]
		p, lives := proctable.Read(pid)
		if record == nil || record.Status.Ended() || !lives || !p.Alive() {
			continue
		}
		if n := hits(id); !ok || n < least || n == least && id < run {
			run, found, least, ok = id, p, n, true
		}
	}
	return run, found, ok
}

// settle waits until every run has ended and the ledger has no task left to end.
func (l *load) settle(ctx context.Context) error {
	if err := l.drain(ctx); err != nil {
		return err
	}
	for {
		open, err := l.openTasks(ctx)
		if err == nil && open == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d tasks have not ended: %w", open, errors.Join(err, ctx.Err()))
		case <-time.After(loadInterval):
		}
	}
}
