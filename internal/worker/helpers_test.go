package worker_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/memory"
	"github.com/stepfleet/stepfleet/internal/worker"
)

// bench is a worker on ports in memory, in virtual time.
type bench struct {
	t      *testing.T
	ctx    context.Context
	ledger *memory.Ledger
	faults faults
	bells  *memory.Bells
	host   *scriptedHost
	notes  *noteBook
	cfg    worker.Config

	renewals stepfleet.Claims // the ledger, where a test sets nothing else
}

// inBubble runs f with a bench whose clock is virtual.
func inBubble(t *testing.T, f func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{
			t: t, ctx: t.Context(),
			ledger: memory.NewLedger(),
			bells:  memory.NewBells("default"),
			host:   &scriptedHost{began: make(chan *scriptedProcess, 100)},
			notes:  &noteBook{},
			cfg: worker.Config{
				Spec: stepfleet.SessionSpec{
					Worker: "worker-1", Instance: "i-1", Slots: map[string]int{"default": 2},
				},
				Lifetimes:    stepfleet.DefaultLifetimes(),
				DrainTimeout: 30 * time.Second,
				KillGrace:    2 * time.Second,
				Logger:       slog.New(slog.DiscardHandler),
			},
		}
		b.ledger.Fail, b.ledger.FailAfter = b.faults.before, b.faults.after
		f(b)
	})
}

// faults are the ledger's, as they stand.
type faults struct {
	mu        sync.Mutex
	fail, aft func(op string) error
}

func (f *faults) before(op string) error { return f.ask(&f.fail, op) }
func (f *faults) after(op string) error  { return f.ask(&f.aft, op) }

func (f *faults) ask(which *func(string) error, op string) error {
	f.mu.Lock()
	fault := *which
	f.mu.Unlock()
	if fault == nil {
		return nil
	}
	return fault(op)
}

// fail lets the ledger fail before it does anything, failAfter lose its answer.
func (b *bench) fail(f func(op string) error) {
	b.faults.mu.Lock()
	defer b.faults.mu.Unlock()
	b.faults.fail = f
}

func (b *bench) failAfter(f func(op string) error) {
	b.faults.mu.Lock()
	defer b.faults.mu.Unlock()
	b.faults.aft = f
}

// start runs the worker and returns what stops it and waits for its end.
func (b *bench) start() (stop func()) {
	b.t.Helper()
	w := b.worker()
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("worker: %v", err)
		}
	}
	b.t.Cleanup(stop)
	return stop
}

func (b *bench) worker() *worker.Worker {
	b.t.Helper()
	if b.renewals == nil {
		b.renewals = b.ledger
	}
	w, err := worker.New(b.cfg, worker.Ports{
		Claims: b.ledger, Renewals: b.renewals, Bells: b.bells, Host: b.host, Notifier: b.notes,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return w
}

// submit puts steps of run-1 into the ledger, and rings for each when asked.
func (b *bench) submit(ring bool, steps ...string) {
	b.t.Helper()
	b.submitTimed(ring, 0, steps...)
}

// submitTimed is submit with a timeout, 0 for none.
func (b *bench) submitTimed(ring bool, timeoutSeconds int, steps ...string) {
	b.t.Helper()
	b.submitEdited(ring, func(t *stepfleet.Task) { t.TimeoutSeconds = timeoutSeconds }, steps...)
}

// submitEdited is submit after the edit of each task.
func (b *bench) submitEdited(ring bool, edit func(*stepfleet.Task), steps ...string) {
	b.t.Helper()
	epoch, err := b.ledger.TakeEpoch(b.ctx, "run-1", stepfleet.Executor{Name: "test"}, "http://server")
	if err != nil {
		b.t.Fatal(err)
	}
	payload := []byte(`{"args":1}`)
	batch := stepfleet.Batch{
		RunID: "run-1", Epoch: epoch, Identity: "id", NotifyURL: "http://server",
		Payloads: map[stepfleet.Digest][]byte{stepfleet.DigestOf(payload): payload},
	}
	for _, s := range steps {
		key := stepfleet.Key{RunID: "run-1", StepKey: s}
		task := stepfleet.Task{
			V: stepfleet.TaskVersion, Kind: stepfleet.KindStep, Key: key, Op: s, Job: "job",
			IdempotencyKey: key.IdempotencyKey(), Queue: "default", Payload: stepfleet.DigestOf(payload),
		}
		edit(&task)
		batch.Tasks = append(batch.Tasks, task)
	}
	if _, err := b.ledger.Submit(b.ctx, batch); err != nil {
		b.t.Fatal(err)
	}
	if ring {
		if err := b.bells.Ring(b.ctx, "default", len(steps)); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) view(step string) stepfleet.View {
	b.t.Helper()
	views, err := b.ledger.RunTasks(b.ctx, "run-1")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, v := range views {
		if v.StepKey == step {
			return v
		}
	}
	b.t.Fatalf("no task %s", step)
	return stepfleet.View{}
}

func (b *bench) expect(step string, want stepfleet.State) {
	b.t.Helper()
	synctest.Wait()
	if got := b.view(step).State; got != want {
		b.t.Errorf("%s is %s, want %s", step, got, want)
	}
}

// next waits for the next process that was given a task.
func (b *bench) next() *scriptedProcess {
	b.t.Helper()
	select {
	case p := <-b.host.began:
		return p
	case <-time.After(time.Hour):
		b.t.Fatal("no task was launched within an hour")
		return nil
	}
}

// running submits a step and brings it past its start.
func (b *bench) running(step string) *scriptedProcess {
	b.t.Helper()
	return b.runningTimed(step, 0)
}

func (b *bench) runningTimed(step string, timeoutSeconds int) *scriptedProcess {
	b.t.Helper()
	b.submitTimed(true, timeoutSeconds, step)
	p := b.next()
	if err := p.gate.Start(b.ctx); err != nil {
		b.t.Fatal(err)
	}
	return p
}

// scriptedHost gives each task a process that the test drives.
type scriptedHost struct {
	mu        sync.Mutex
	fail      error
	began     chan *scriptedProcess
	available chan struct{} // nil means closed
	down      []string
}

func (h *scriptedHost) Down() []string { h.mu.Lock(); defer h.mu.Unlock(); return h.down }

func (h *scriptedHost) setDown(locations ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = locations
}

func (h *scriptedHost) Available() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.available == nil {
		h.available = make(chan struct{})
		close(h.available)
	}
	return h.available
}

// setAvailable says whether a template is there.
func (h *scriptedHost) setAvailable(yes bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if yes {
		close(h.available)
	} else {
		h.available = make(chan struct{})
	}
}

func (h *scriptedHost) Launch(_ context.Context, job stepfleet.Job, gate stepfleet.Gate) (stepfleet.Process, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail != nil {
		return nil, h.fail
	}
	p := &scriptedProcess{
		job: job, gate: gate, signals: make(chan string, 10), ended: make(chan struct{}),
		lingers: make(chan struct{}), told: make(chan struct{}), done: make(chan struct{}),
	}
	h.began <- p
	return p, nil
}

func (h *scriptedHost) setFail(err error) { h.mu.Lock(); defer h.mu.Unlock(); h.fail = err }

// scriptedProcess is a step process. Kill ends it; Terminate and Interrupt are only noted.
type scriptedProcess struct {
	job     stepfleet.Job
	gate    stepfleet.Gate
	ended   chan struct{}
	lingers chan struct{}
	told    chan struct{}
	done    chan struct{}
	signals chan string

	mu   sync.Mutex
	over bool
	slow bool // it does not die at once when it is killed
	exit stepfleet.Exit
}

func (p *scriptedProcess) Warm() bool { return true }

func (p *scriptedProcess) Terminate() { p.signals <- "terminate" }

func (p *scriptedProcess) Interrupt() { p.signals <- "interrupt" }

// expectSignal waits for the next signal, which must be this one.
func (p *scriptedProcess) expectSignal(t *testing.T, want string) {
	t.Helper()
	select {
	case sig := <-p.signals:
		if sig != want {
			t.Fatalf("signal %s, want %s", sig, want)
		}
	case <-p.done:
		t.Fatalf("the process is gone, want signal %s", want)
	}
}

func (p *scriptedProcess) Kill() {
	p.mu.Lock()
	slow := p.slow
	p.mu.Unlock()
	if slow {
		p.signals <- "kill"
		return
	}
	p.end(stepfleet.Exit{Status: -9})
}

func (p *scriptedProcess) Ended() <-chan struct{} { return p.ended }

func (p *scriptedProcess) Lingers() <-chan struct{} { return p.lingers }

func (p *scriptedProcess) Reported() <-chan struct{} { return p.told }

func (p *scriptedProcess) Done() <-chan struct{} { return p.done }

func (p *scriptedProcess) Exit() stepfleet.Exit { p.mu.Lock(); defer p.mu.Unlock(); return p.exit }

func (p *scriptedProcess) end(exit stepfleet.Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	if exit.Result == nil {
		exit.Result = p.exit.Result // what it has told before
	}
	p.over, p.exit = true, exit
	close(p.done)
}

var success = stepfleet.Exit{Result: &stepfleet.Result{
	V: stepfleet.TaskVersion, Success: true, Outcome: stepfleet.StateSucceeded, Event: "STEP_SUCCESS",
}}

func (p *scriptedProcess) succeed() { p.end(success) }

// sayEnded tells that Dagster's log has the step's end, while hooks go on.
func (p *scriptedProcess) sayEnded(event string) {
	r := &stepfleet.Result{V: stepfleet.TaskVersion, Outcome: stepfleet.StateFailed, Event: event}
	if event == "STEP_SUCCESS" {
		r = success.Result
	}
	p.mu.Lock()
	p.exit.Result = r
	p.mu.Unlock()
	close(p.ended)
}

// linger tells the success while threads go on.
func (p *scriptedProcess) linger() {
	p.mu.Lock()
	p.exit = success
	p.mu.Unlock()
	close(p.lingers)
}

// report tells the result, and takes its time to end.
func (p *scriptedProcess) report() {
	p.mu.Lock()
	p.slow, p.exit = true, success
	p.mu.Unlock()
	close(p.told)
}

// noteBook keeps what a worker told its servers.
type noteBook struct {
	mu   sync.Mutex
	told []string
}

func (n *noteBook) Notify(_ context.Context, url string, ended []stepfleet.Lease) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range ended {
		n.told = append(n.told, url+" "+l.StepKey)
	}
	return nil
}
