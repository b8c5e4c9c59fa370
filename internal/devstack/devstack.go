// Package devstack is `stepfleet dev`: the whole deployment on one machine, in one process tree.
//
// It starts, in the order of their dependencies, PostgreSQL, the local AWS, the stepfleet server, the
// workers, and Dagster's code servers, webserver and daemon; it restarts what dies, reports the death
// of a worker to the server as proof (so that what it ran is known as lost within a second), and it
// leaves nothing behind: no process, no port, no lock.
//
// Everything it keeps is in one directory (layout.go). Two stacks never share one; any number run
// beside each other on ports of their own.
package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/supervise"
)

// Config says what to start. Zero ports mean "any free one".
type Config struct {
	Modules []string // the user's definitions, by Python module
	Files   []string // and by file
	Dir     string   // where everything is kept
	Fresh   bool     // forget what Dir holds
	Project string   // working directory of the user's code; empty means the present one
	Python  string   // the user's interpreter
	Workers int
	Servers int // 0 means one
	Queues  []Queue
	MaxRuns int // runs that Dagster lets run at once
	// RunLauncher is LauncherStepfleet or LauncherDefault; empty means the first.
	RunLauncher string
	// DagsterYAML is a file whose top-level keys replace those of the stack's own dagster.yaml; empty
	// means none.
	DagsterYAML string
	Ports       Ports
	// HostMode is the workers' --host-mode.
	HostMode string
	// AWSEndpoint is an SQS that exists already; empty starts the local AWS.
	AWSEndpoint string
	// Executable is the stepfleet binary that server, workers and local AWS run.
	Executable string
	// RestartAfter is how long after its death a process is started again, always the same; 0 means
	// a back-off that grows.
	RestartAfter time.Duration
	// Environment returns variables for a process, over those that the stack gives it; nil returns
	// none. The name is that of dev.json. It is asked before every life, once everything that the
	// process depends on is up.
	Environment func(process string, at Endpoints) []string
	// ProofOfDeath says of a worker, by name, whether its deaths are reported to the server; nil
	// reports all. Without a report the server waits for the run lease, as it must where nobody can
	// prove a death.
	ProofOfDeath func(worker string) bool
	// LeaveOrphans says that nobody ends what a dead worker has left behind, as where a supervisor
	// looks at one process only.
	LeaveOrphans bool

	// StartPostgres starts or continues the databases in dir; Migrate brings the ledger's schema up.
	StartPostgres func(ctx context.Context, dir string, port int, python string) (*Database, error)
	Migrate       func(ctx context.Context, ownerURL string) error

	Out io.Writer // progress, for people
	Log *slog.Logger
}

// Endpoints are where things of a stack are.
type Endpoints struct {
	Servers  []string // host:port of each
	Workers  []string // host:port of each one's probes
	AWS      string   // URL
	Dagster  string   // URL of its webserver
	Database Database // zero before PostgreSQL is up
}

// The run launchers that Dagster can be given: ours, whose run workers are tasks of the workers, or
// Dagster's own, which starts them below the code servers.
const (
	LauncherStepfleet = "stepfleet"
	LauncherDefault   = "default"
)

// Database is a running PostgreSQL with the two databases. Each part has a user of its own in it.
type Database struct {
	OwnerURL   string // of the ledger's schema, for migrations and for people
	ServerURL  string // the ledger for the server
	WorkerURL  string // and for workers
	DagsterURL string
	Address    string
	Version    string
	PID        int
	// Done is closed when the server has ended, asked or not.
	Done <-chan struct{}
	Stop func(ctx context.Context) error
}

// Limits of a development stack: it is one machine.
const (
	maxWorkers  = 32
	maxServers  = 8
	maxCodeDirs = 32
)

// Stack is a running development stack.
type Stack struct {
	config  Config
	layout  Layout
	id      string
	token   string
	targets []Target
	ports   assigned
	out     *progress
	log     *slog.Logger

	lock       *os.File
	warden     *supervise.Warden
	supervisor *supervise.Supervisor
	prepared   chan struct{} // closed when Dagster's tables are there
	stopping   chan struct{}
	stages     stages
	deaths     *deaths
	watchers   sync.WaitGroup

	writing sync.Mutex // of dev.json; taken before mu

	mu        sync.Mutex
	instances map[string]string // worker name -> instance id of its present life
	running   *Database         // nil until PostgreSQL is up
	ready     bool
	began     time.Time
}

// stages are the children by the order in which they are stopped.
type stages struct {
	mu      sync.Mutex
	first   []*supervise.Process // whatever starts steps: Dagster and the workers
	servers []*supervise.Process
	aws     *supervise.Process
}

// Run starts the stack, stays up until ctx ends, and stops it.
func Run(ctx context.Context, config Config) error {
	for _, name := range dropped { // some of the children do not get an environment of their own
		if err := os.Unsetenv(name); err != nil {
			return err
		}
	}
	stack, err := Start(ctx, config)
	if err != nil {
		return err
	}
	stack.announce()
	<-ctx.Done()
	return stack.Stop()
}

// Start brings the stack up. When it fails, everything it had started is stopped again.
func Start(ctx context.Context, config Config) (*Stack, error) {
	stack, err := prepare(ctx, config)
	if err != nil {
		return nil, err
	}
	if err := stack.up(ctx); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("stopped while starting: %w", ctx.Err())
		}
		return nil, errors.Join(err, stack.Stop())
	}
	stack.mu.Lock()
	stack.ready = true
	stack.mu.Unlock()
	stack.writeState()
	return stack, nil
}

// prepare does all checks that need nothing started, takes the lock, and clears away what an earlier
// stack that was killed has left in this directory.
func prepare(ctx context.Context, config Config) (_ *Stack, err error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	facts, err := inspect(ctx, config)
	if err != nil {
		return nil, err
	}
	targets, err := config.targets(facts)
	if err != nil {
		return nil, err
	}
	s := &Stack{
		config: config, layout: Layout{config.Dir}, id: uuid.NewString(), targets: targets,
		out: newProgress(config.Out), log: config.Log, began: time.Now(),
		supervisor: supervise.New(config.Log), instances: map[string]string{},
		prepared: make(chan struct{}), stopping: make(chan struct{}),
	}
	if s.lock, err = s.layout.Lock(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.lock.Close()
		}
	}()
	before := s.layout.leftover()
	if n := supervise.Sweep(before.ID); n > 0 {
		s.out.line("killed %d processes that an earlier stepfleet dev had left", n)
	}
	if s.ports, err = assign(s.config, len(targets)); err != nil {
		return nil, err
	}
	if s.token, err = s.layout.Create(config.Fresh); err != nil {
		return nil, err
	}
	s.deaths = newDeaths(s.serverURLs(), s.token, s.log)
	if !config.Fresh {
		for _, instance := range before.Instances {
			s.deaths.report(instance, "its stepfleet dev was killed")
		}
	}
	s.out.line("Dagster %s, Python %s at %s", facts.Versions["dagster"], facts.Python, config.Python)
	home, err := s.dagsterHome()
	if err != nil {
		return nil, err
	}
	return s, s.layout.WriteDagsterHome(home)
}

// complete checks the configuration and fills in what follows from it.
func (c *Config) complete() error {
	if c.Workers < 1 || c.Workers > maxWorkers {
		return fmt.Errorf("--workers %d: use 1 to %d", c.Workers, maxWorkers)
	}
	if c.Servers == 0 {
		c.Servers = 1
	}
	if c.Servers < 0 || c.Servers > maxServers {
		return fmt.Errorf("%d servers: use 1 to %d", c.Servers, maxServers)
	}
	if len(c.Modules)+len(c.Files) > maxCodeDirs {
		return fmt.Errorf("%d code locations: the limit is %d", len(c.Modules)+len(c.Files), maxCodeDirs)
	}
	if len(c.Queues) == 0 {
		c.Queues = []Queue{{Name: "default", Slots: 4}}
	}
	if c.MaxRuns == 0 {
		c.MaxRuns = 10
	}
	if c.RunLauncher == "" {
		c.RunLauncher = LauncherStepfleet
	}
	c.addRunQueue()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Out == nil {
		c.Out = io.Discard
	}
	var err error
	if c.Project, err = filepath.Abs(c.Project); err != nil {
		return fmt.Errorf("project directory: %w", err)
	}
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	if filepath.Base(c.Python) != c.Python { // a name alone is found in PATH
		if c.Python, err = filepath.Abs(c.Python); err != nil {
			return fmt.Errorf("--python: %w", err)
		}
	}
	if c.DagsterYAML != "" {
		if c.DagsterYAML, err = filepath.Abs(c.DagsterYAML); err != nil {
			return fmt.Errorf("--dagster-yaml: %w", err)
		}
	}
	if c.Executable == "" {
		if c.Executable, err = os.Executable(); err != nil {
			return fmt.Errorf("find the stepfleet binary: %w", err)
		}
	}
	return nil
}

// addRunQueue gives every worker slots for run workers, where the user has given none: as many as
// there can be runs, so that any one worker can carry them all.
func (c *Config) addRunQueue() {
	carries := slices.ContainsFunc(c.Queues, func(q Queue) bool { return stepfleet.CarriesRuns(q.Name) })
	if c.RunLauncher == LauncherStepfleet && !carries {
		c.Queues = append(slices.Clone(c.Queues), Queue{Name: stepfleet.RunsQueue, Slots: min(c.MaxRuns, maxSlots)})
	}
}

// serverURL is the first server's, for whoever uses one.
func (s *Stack) serverURL() string { return s.serverURLs()[0] }

func (s *Stack) serverURLs() []string {
	urls := make([]string, len(s.ports.servers))
	for i, port := range s.ports.servers {
		urls[i] = "http://" + loopback(port)
	}
	return urls
}

// endpoints says where things are now.
func (s *Stack) endpoints() Endpoints {
	at := Endpoints{AWS: s.awsURL(), Dagster: s.dagsterURL()}
	for _, port := range s.ports.servers {
		at.Servers = append(at.Servers, loopback(port))
	}
	for _, port := range s.ports.workers {
		at.Workers = append(at.Workers, loopback(port))
	}
	if database := s.database(); database != nil {
		at.Database = *database
	}
	return at
}

func (s *Stack) dagsterURL() string { return "http://" + loopback(s.ports.dagster) }

func (s *Stack) awsURL() string {
	if s.config.AWSEndpoint != "" {
		return s.config.AWSEndpoint
	}
	return "http://" + loopback(s.ports.aws)
}

// announce says what is where, once everything is up.
func (s *Stack) announce() {
	s.out.line("")
	s.out.line("Everything is up after %.1f s.", time.Since(s.began).Seconds())
	s.out.line("")
	s.out.line("  Dagster UI        %s", s.dagsterURL())
	s.out.line("  stepfleet server  %s", s.serverURL())
	s.out.line("  AWS endpoint      %s", s.awsURL())
	s.out.line("  logs              %s", s.layout.Logs())
	s.out.line("  for tools         %s", s.layout.State())
	s.out.line("")
	s.out.line("Ctrl-C stops it. The next `stepfleet dev` goes on with its data; --fresh forgets it.")
}
