package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/devstack"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/proctable"
	"github.com/stepfleet/stepfleet/internal/stackdb"
)

// What a stack of a chaos run is made of.
const (
	servers      = 2
	workers      = 4
	slots        = 3 // of steps, in each worker
	runSlots     = 3 // of run workers, in each worker
	maxRuns      = workers * runSlots
	restartAfter = 200 * time.Millisecond
)

// dagsterYAML lets a run outlive more lost run workers than Dagster does by itself: how often one is
// hit is the schedule's doing.
const dagsterYAML = `run_monitoring:
  enabled: true
  poll_interval_seconds: 2
  start_timeout_seconds: 180
  cancel_timeout_seconds: 60
  max_resume_run_attempts: 20
`

// stack is the deployment under test, in the harness's own process tree.
type stack struct {
	Config
	dev     *devstack.Stack
	net     *network
	dagster *dagsterapi.Client
	queues  *sqs.Client
	http    *http.Client
	clocks  *clocks
	state   devstack.State // as it was when the stack was ready: addresses, not process ids
}

func (c *Config) effectLog() string { return filepath.Join(c.Dir, "effects.jsonl") }
func (c *Config) history() string   { return filepath.Join(c.Dir, "history.jsonl") }
func (c *Config) executors() string { return filepath.Join(c.Dir, "executors.jsonl") }
func (c *Config) devDir() string    { return filepath.Join(c.Dir, "stack") }

// startStack starts everything, on fresh state and free ports.
func startStack(ctx context.Context, c Config) (*stack, error) {
	s := &stack{Config: c, http: &http.Client{Timeout: callTimeout}}
	for _, path := range []string{c.effectLog(), c.history(), c.executors()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	yaml := filepath.Join(c.Dir, "dagster.yaml")
	if err := os.WriteFile(yaml, []byte(dagsterYAML), 0o600); err != nil {
		return nil, err
	}
	var err error
	if s.clocks, err = newClocks(c); err != nil {
		return nil, err
	}
	if s.net, err = newNetwork(servers, workers); err != nil {
		return nil, err
	}
	s.dev, err = devstack.Start(ctx, devstack.Config{
		Files: []string{c.Code}, Dir: c.devDir(), Fresh: true, Project: filepath.Dir(c.Code), Python: c.Python,
		Servers: servers, Workers: workers, MaxRuns: maxRuns, DagsterYAML: yaml, Executable: c.Executable,
		Queues:       []devstack.Queue{{Name: "default", Slots: slots}, {Name: "runs", Slots: runSlots}},
		RestartAfter: restartAfter, Environment: s.environment,
		ProofOfDeath:  proven,
		LeaveOrphans:  c.Act == theDeaths,
		StartPostgres: stackdb.Starter(s.Log),
		Migrate: func(ctx context.Context, url string) error {
			_, err := postgres.Migrate(ctx, url, postgres.Options{Logger: c.Log, AppName: "stepfleet chaos"})
			return err
		},
		Out: c.Out, Log: c.Log,
	})
	if err != nil {
		return nil, errors.Join(err, s.net.Close())
	}
	if s.state, err = devstack.ReadState(c.devDir()); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	s.dagster = dagsterapi.New(s.state.URLs["dagster"])
	s.queues = sqs.New(sqs.Options{
		BaseEndpoint: aws.String(s.state.URLs["aws"]), Region: "us-east-1",
		Credentials: credentials.NewStaticCredentialsProvider("local", "local", ""),
	})
	return s, nil
}

// proven says of every other worker that its deaths are reported; those of the others the run lease ends.
func proven(worker string) bool { return worker == workerName(0) || worker == workerName(2) }

func (s *stack) stop() error { return errors.Join(s.dev.Stop(), s.net.Close()) }

// environment is what a process gets beside what `stepfleet dev` gives it.
func (s *stack) environment(process string, at devstack.Endpoints) []string {
	s.net.moved(at)
	l := s.Lifetimes
	environ := append(
		s.net.environment(process, at),
		"STEPFLEET_EFFECT_LOG="+s.effectLog(), "STEPFLEET_EFFECT_FSYNC=1", "STEPFLEET_CHAOS_HISTORY="+s.history(),
		"STEPFLEET_CHAOS_WORKERS="+s.executors(),
		"STEPFLEET_RENEW="+l.Renew.String(), "STEPFLEET_SESSION_TTL="+l.SessionTTL.String(),
		"STEPFLEET_RUN_LEASE="+l.RunLease.String(), "STEPFLEET_MARGIN="+l.Margin.String(),
		"STEPFLEET_START_WITHIN="+l.StartWithin.String(), "STEPFLEET_DRAIN_TIMEOUT="+s.Drain.String(),
		"STEPFLEET_LOG_LEVEL=info",
		"STEPFLEET_AWS_DIR="+filepath.Join(s.devDir(), "aws"), fmt.Sprintf("STEPFLEET_AWS_SEED=%d", s.Seed),
	)
	if s.FIFO {
		environ = append(environ, "STEPFLEET_QUEUE_FIFO=true")
	}
	if s.Act == theLateWorker {
		environ = append(environ, "STEPFLEET_DATABASE_RELAY=false")
	}
	if through := s.net.dagster[process]; isServer(process) {
		environ = append(environ, "STEPFLEET_DAGSTER_DSN_FILE="+s.dsnFile(process, via(at.Database.DagsterURL, through)))
	}
	return append(environ, s.clocks.environment(process)...)
}

// dsnFile writes a process's way to a database into a file of its own.
func (s *stack) dsnFile(process, dsn string) string {
	path := filepath.Join(s.Dir, process+".dsn")
	if err := os.WriteFile(path, []byte(dsn+"\n"), 0o600); err != nil {
		s.Log.Error("write a database's address", "process", process, "error", err) // it will not start
	}
	return path
}

// pid returns the present process of a name, 0 when there is none.
func (s *stack) pid(name string) int {
	state, err := devstack.ReadState(s.devDir())
	if err != nil || state.PIDs[name] == 0 {
		return 0
	}
	if p, ok := proctable.Read(state.PIDs[name]); !ok || !p.Alive() {
		return 0
	}
	return state.PIDs[name]
}

// instance returns the instance id of a worker's present life.
func (s *stack) instance(worker string) string {
	state, err := devstack.ReadState(s.devDir())
	if err != nil {
		return ""
	}
	return state.Instances[worker]
}

// instances are the worker lives that go on.
func (s *stack) instances() map[string]bool {
	lives := map[string]bool{}
	for w := range workers {
		lives[s.instance(workerName(w))] = true
	}
	return lives
}

// location is the name of the load's code location.
func (s *stack) location() string { return filepath.Base(s.Code) }
