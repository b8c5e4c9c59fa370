package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/api"
	"github.com/stepfleet/stepfleet/internal/failpoint"
	"github.com/stepfleet/stepfleet/internal/metrics"
	"github.com/stepfleet/stepfleet/internal/outage"
	"github.com/stepfleet/stepfleet/internal/pgrelay"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/pyhost"
	"github.com/stepfleet/stepfleet/internal/sqs"
	"github.com/stepfleet/stepfleet/internal/worker"
)

type workerCmd struct {
	Name        string   `help:"Name people see; the host name if empty." env:"STEPFLEET_WORKER_NAME"`
	Instance    string   `help:"Id of this process for its supervisor; random if empty." env:"STEPFLEET_INSTANCE"`
	Queue       []string `help:"Queue to serve and its slots, as default:4; repeat for more." default:"default:4" env:"STEPFLEET_WORKER_QUEUES"`
	QueuePrefix string   `help:"What SQS queue names begin with." default:"stepfleet-" env:"STEPFLEET_QUEUE_PREFIX"`
	QueueFIFO   bool     `name:"queue-fifo" help:"The SQS queues are FIFO queues: their names end in .fifo." env:"STEPFLEET_QUEUE_FIFO"`
	Prepare     bool     `help:"Keep statements prepared; not behind a pooler that does not track them." env:"STEPFLEET_PREPARE"`
	Listen      string   `help:"Address of the probes /livez and /readyz, and of /metrics." default:"127.0.0.1:0" env:"STEPFLEET_WORKER_LISTEN"`
	Hosts       []string `name:"allow-host" help:"Host header to answer /metrics to besides loopback names." env:"STEPFLEET_ALLOW_HOSTS"`

	Python   string   `help:"Python interpreter of the project, with dagster_stepfleet installed." default:"python3" env:"STEPFLEET_PYTHON"`
	HostMode string   `help:"Where step processes come from: fork, cold, or auto (fork when safe)." enum:"auto,fork,cold" default:"auto" env:"STEPFLEET_HOST_MODE"`
	Module   []string `short:"m" help:"Module of a code location to import ahead of need." env:"STEPFLEET_MODULES"`
	File     []string `short:"f" help:"File of a code location to import ahead of need." env:"STEPFLEET_FILES"`
	Location []string `name:"location-name" help:"Dagster's name of a code location, as NAME=CODE with CODE as given to --module or --file, where it is not the one that Dagster gives by itself. While the code does not load, the worker leaves tasks of that name to others." env:"STEPFLEET_LOCATION_NAMES"`
	Attr     string   `short:"a" name:"attribute" help:"Attribute of the module or file that holds the definitions."`
	WorkDir  string   `short:"d" name:"working-directory" help:"Directory to import from."`
	Spool    string   `help:"Directory of this user alone for notes on logs to finish; the next worker with the same one finishes those of a worker that was killed. Default: stepfleet-UID in the directory for temporary files." env:"STEPFLEET_SPOOL"`
	Relay    bool     `name:"database-relay" help:"Keep PostgreSQL connections of Dagster's storage open from one step to the next: steps then do not connect anew." default:"true" negatable:"" env:"STEPFLEET_DATABASE_RELAY"`

	StatementTimeout *time.Duration `help:"How long a statement of a step in Dagster's PostgreSQL may take, unless its connection string says so; 0 for as long as it takes. Default: what the run lease leaves after the session TTL." env:"STEPFLEET_STATEMENT_TIMEOUT"`
	FencedEvents     bool           `help:"Write an event only while the ledger says that the task is the step's own: the ledger must be in Dagster's database." env:"STEPFLEET_FENCED_EVENTS"`

	DrainTimeout time.Duration `help:"How long what runs may go on after the first SIGTERM. A second one kills it at once." default:"90s" env:"STEPFLEET_DRAIN_TIMEOUT"`
	KillGrace    time.Duration `help:"How long a cancelled step has between SIGTERM and SIGINT. A second later it is killed." default:"2s" env:"STEPFLEET_KILL_GRACE"`
	RunKillGrace time.Duration `help:"The same for a cancelled run worker, which cancels its steps and ends its run." default:"30s" env:"STEPFLEET_RUN_KILL_GRACE"`

	lifetimeFlags `embed:""`
}

// abortLimit is how long a worker that is told to stop at once may take. What is not done by then ends
// with the process: its children die with it.
const abortLimit = 2 * time.Second

// Run works until it is told to stop, and drains. Told so a second time, it stops at once.
func (c *workerCmd) Run(g *globals) error {
	abort, release := secondSignal()
	defer release()
	done := make(chan error, 1)
	go func() { done <- c.work(g, abort) }()
	select {
	case err := <-done:
		return err
	case <-abort:
	}
	select {
	case err := <-done:
		return cmp.Or(err, worker.ErrAborted)
	case <-time.After(abortLimit):
		return worker.ErrAborted
	}
}

// secondSignal returns what is closed by the second signal that asks this process to stop; the first
// one ends its context. While nobody has released it such a signal does not end the process.
func secondSignal() (second <-chan struct{}, release func()) {
	signals, came, over := make(chan os.Signal, 2), make(chan struct{}), make(chan struct{})
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for range 2 {
			select {
			case <-signals:
			case <-over:
				return
			}
		}
		close(came)
	}()
	return came, func() {
		signal.Stop(signals)
		close(over)
	}
}

func (c *workerCmd) work(g *globals, abort <-chan struct{}) error {
	lifetimes, err := c.lifetimes()
	if err != nil {
		return err
	}
	if err := lifetimes.ValidateStatements(c.statementTimeout(lifetimes)); err != nil {
		return fmt.Errorf("--statement-timeout: %w", err)
	}
	spec, err := c.spec()
	if err != nil {
		return err
	}
	secret, err := token()
	if err != nil {
		return err
	}
	probes, err := listen(g.ctx, c.Listen, secret)
	if err != nil {
		return err
	}
	defer probes.Close()
	counted := metrics.New(version)
	ports, closeLedger, err := c.ports(g, counted, secret)
	if err != nil {
		return err
	}
	defer closeLedger()
	var w *worker.Worker // which the relay asks once it runs
	relay := c.relay(g, func() bool { return w.HoldsLeases() })
	host := pyhost.New(pyhost.Config{
		Python: c.Python, Mode: pyhost.Mode(c.HostMode), Preload: c.preload(), Idle: idle(spec),
		Spool: c.spool(), DatabaseSocket: relay.Dir(), Env: c.storageEnv(lifetimes, spec.Instance), Logger: g.log,
	})
	ports.Host = counted.Host(failpoint.Host(host))
	counted.Children(host.Children)
	counted.LocationsDown(host.Down)
	w, err = worker.New(worker.Config{
		Spec: spec, Lifetimes: lifetimes, StatementTimeout: c.statementTimeout(lifetimes), DrainTimeout: c.DrainTimeout, KillGrace: c.KillGrace,
		RunKillGrace: c.RunKillGrace, RunEnv: map[string]string{"STEPFLEET_TOKEN": secret},
		Abort: abort, Now: suspendClock(), Logger: g.log,
	}, ports)
	if err != nil {
		return err
	}
	counted.SlotsTaken(w.Taken)
	g.log.Info("worker begins", "worker", spec.Worker, "slots", spec.Slots, "probes", "http://"+probes.Addr().String())
	return runWorker(g.ctx, w, host, relay.Run, func(ctx context.Context) error {
		asked := api.Config{Token: secret, Hosts: c.Hosts, Metrics: counted.Handler(), Logger: g.log}
		return serve(ctx, probes, api.Probes(asked, func(ctx context.Context) []string {
			return append(w.Ready(ctx), host.Ready()...)
		}))
	})
}

// runWorker runs the role until ctx ends and it has drained. The host and the others outlive it:
// a draining worker still needs its template, and its supervisor the probes' answers.
func runWorker(ctx context.Context, w *worker.Worker, host *pyhost.Host, others ...func(context.Context) error) error {
	outlive, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	around, aroundCtx := errgroup.WithContext(outlive)
	around.Go(func() error { return host.Run(aroundCtx) })
	for _, run := range others {
		around.Go(func() error { return run(aroundCtx) })
	}
	work, cancel := context.WithCancel(ctx)
	context.AfterFunc(aroundCtx, cancel) // without one of them a worker drains
	select {
	case <-host.Available(): // a worker that can run nothing offers no slots
	case <-work.Done():
	}
	err := w.Run(work)
	cancel()
	stop()
	if errors.Is(err, worker.ErrAborted) {
		return err // the others end with the process
	}
	if aroundErr := around.Wait(); err == nil {
		err = aroundErr
	}
	return err
}

func (c *workerCmd) ports(g *globals, m *metrics.Metrics, secret string) (worker.Ports, func(), error) {
	dsn, err := databaseURL()
	if err != nil {
		return worker.Ports{}, nil, err
	}
	// A renewal that comes back closes the breaker for claims too: it is one database.
	database := outage.New(m.Breaker("postgres", g.log))
	options := postgres.Options{MayRepeat: database.MayRepeat, Logger: g.log, AppName: "stepfleet worker", MaxConns: 4, Prepare: c.Prepare}
	claims, err := postgres.Open(g.ctx, dsn, options)
	if err != nil {
		return worker.Ports{}, nil, fmt.Errorf("STEPFLEET_DATABASE_URL: %w", err)
	}
	options.AppName, options.MaxConns = "stepfleet worker renewals", 1
	renewals, err := postgres.Open(g.ctx, dsn, options)
	if err != nil {
		claims.Close()
		return worker.Ports{}, nil, err
	}
	closeBoth := func() { claims.Close(); renewals.Close() }
	bells, err := sqs.Open(g.ctx, sqs.Options{Prefix: c.QueuePrefix, FIFO: c.QueueFIFO, OnRequest: m.Requests(), Logger: g.log})
	if err != nil {
		closeBoth()
		return worker.Ports{}, nil, err
	}
	m.Pool("claims", func() metrics.Pool { return metrics.Pool(claims.PoolStats()) })
	m.Pool("renewals", func() metrics.Pool { return metrics.Pool(renewals.PoolStats()) })
	notifier := &api.Notifier{Token: secret, Client: http.DefaultClient}
	return worker.Ports{
		Claims: outage.Ledger(m.Worker(failpoint.Ledger(claims)), database), Renewals: outage.Ledger(m.Worker(failpoint.Ledger(renewals)), database),
		Bells:    outage.Listener(m.Listener(failpoint.Listener(bells)), outage.New(m.Breaker("sqs", g.log))),
		Notifier: outage.NewNotifier(failpoint.Notify(notifier.Notify), func() *outage.Breaker { return outage.New(m.Breaker("server", g.log)) }),
	}, closeBoth, nil
}

func (c *workerCmd) spec() (stepfleet.SessionSpec, error) {
	host, _ := os.Hostname() // a name for people; empty is fine
	spec := stepfleet.SessionSpec{
		Worker: c.Name, Instance: c.Instance, Host: host, PID: os.Getpid(), Version: version,
		Slots: map[string]int{},
	}
	if spec.Worker == "" {
		spec.Worker = host
	}
	if spec.Instance == "" {
		spec.Instance = uuid.NewString()
	}
	for _, q := range c.Queue {
		name, count, _ := strings.Cut(q, ":")
		n, err := strconv.Atoi(count)
		if err != nil || n < 1 {
			return spec, fmt.Errorf("--queue %q: use name:slots, as default:4", q)
		}
		if err := stepfleet.ValidateQueue(name); err != nil {
			return spec, fmt.Errorf("--queue %q: %w", q, err)
		}
		spec.Slots[name] = n
	}
	return spec, nil
}

func (c *workerCmd) spool() string {
	if c.Spool != "" {
		return c.Spool
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("stepfleet-%d", os.Getuid()))
}

// relay returns the relay of database connections, nil where there is none to be had: the steps then
// connect by themselves.
func (c *workerCmd) relay(g *globals, mayWrite func() bool) *pgrelay.Relay {
	if !c.Relay {
		return nil
	}
	relay, err := pgrelay.Listen(pgrelay.Config{Parent: c.spool(), MayWrite: mayWrite, Logger: g.log})
	if err != nil {
		g.log.Warn("no relay: every step connects to Dagster's database anew", "err", err)
		return nil
	}
	return relay
}

// statementTimeout is how long a step's statement may take, 0 for as long as it takes. By default a
// write that was granted within the session TTL is over with the run lease, also where nobody is left to
// stop it.
func (c *workerCmd) statementTimeout(l stepfleet.Lifetimes) time.Duration {
	if c.StatementTimeout != nil {
		return *c.StatementTimeout
	}
	return l.RunLease - l.SessionTTL
}

// leastPatience is how long processes wait for Dagster's storage, and what the plugin takes when nobody
// tells it (patience.py): the two minutes of an outage that is promised to kill nobody, and what a database
// needs besides until it answers everybody again. By default that is less than the run lease, when the
// worker kills what still waits.
const leastPatience = 150 * time.Second

// patience is how long they wait under these deadlines: a run lease that is to outlast longer failovers
// is of no use to a step that gives up sooner. Under a short one the worker kills what it runs, if it is
// cut off itself; where Dagster's storage alone is away, nothing is gained by failing its runs sooner.
func patience(l stepfleet.Lifetimes) time.Duration {
	return max(leastPatience, l.RunLease/6*5)
}

// storageEnv tells the steps' processes how to write events.
func (c *workerCmd) storageEnv(l stepfleet.Lifetimes, instance string) []string {
	return []string{
		fmt.Sprintf("STEPFLEET_OUTAGE_SECONDS=%d", int(patience(l).Seconds())),
		fmt.Sprintf("STEPFLEET_STATEMENT_TIMEOUT=%dms", c.statementTimeout(l).Milliseconds()),
		fmt.Sprintf("STEPFLEET_FENCED_EVENTS=%t", c.FencedEvents),
		"STEPFLEET_CONNECTION_NAME=" + stepfleet.ConnectionName(instance),
	}
}

func (c *workerCmd) preload() []pyhost.Preload {
	list := []pyhost.Preload{}
	for _, m := range c.Module {
		list = append(list, pyhost.Preload{Location: c.locationName(m), Module: m, Attribute: c.Attr, WorkingDirectory: c.WorkDir})
	}
	for _, f := range c.File {
		list = append(list, pyhost.Preload{Location: c.locationName(f), File: f, Attribute: c.Attr, WorkingDirectory: c.WorkDir})
	}
	return list
}

// locationName is the name that was given for the code; empty: none.
func (c *workerCmd) locationName(code string) string {
	for _, given := range c.Location {
		if name, ok := strings.CutSuffix(given, "="+code); ok {
			return name
		}
	}
	return ""
}

// idleRuns is how many of the processes that wait ready are for run workers: runs begin one after
// another, not all at once as a fan-out does.
const idleRuns = 2

// idle is how many processes wait ready.
func idle(spec stepfleet.SessionSpec) int {
	sum := 0
	for queue, n := range spec.Slots {
		if stepfleet.CarriesRuns(queue) {
			n = min(n, idleRuns)
		}
		sum += n
	}
	return sum
}
