// Package demo is `stepfleet demo`: it starts a stack of its own with `stepfleet dev`, runs every job
// of the example project through Dagster, kills a worker in the middle of its steps, and holds three
// witnesses against each other: Dagster, the ledger, and an effect log that user code writes. A fourth,
// the workers' logs, says that SQS took part.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/devstack"
	"github.com/stepfleet/stepfleet/internal/supervise"
)

// The example project, and how each of its jobs must end.
const (
	module     = "stepfleet_examples.definitions"
	recoverJob = "recover"
)

var jobs = []struct {
	name string
	want dagsterapi.RunStatus
}{
	// The longest first, so that the others run beside them.
	{"slow", dagsterapi.RunSuccess},
	{"mixed", dagsterapi.RunSuccess},
	{"chain", dagsterapi.RunSuccess},
	{"fan_out", dagsterapi.RunSuccess},
	{"fast", dagsterapi.RunSuccess},
	{"diamond", dagsterapi.RunSuccess},
	{"dynamic", dagsterapi.RunSuccess},
	{"retry", dagsterapi.RunSuccess},
	{"failing", dagsterapi.RunFailure},
	{"assets", dagsterapi.RunSuccess},
}

// Bounds on the parts. The demo takes under 90 s on a quiet machine with two cores; these are for a
// noisy one.
const (
	startTimeout   = 4 * time.Minute
	runsTimeout    = 4 * time.Minute
	settleTimeout  = 15 * time.Second
	devStopWait    = 15 * time.Second
	recoverTries   = 3
	recoverSteps   = 12 // fills the slots of both workers, with some to spare
	runsInterval   = 300 * time.Millisecond
	ledgerInterval = 25 * time.Millisecond
)

// Config says how to run the demo.
type Config struct {
	Executable string
	Python     string
	Dir        string
	TimeScale  float64
	Out        io.Writer
	Log        *slog.Logger
}

// demo is one run of the demo.
type demo struct {
	Config
	id       string
	dev      *supervise.Process
	state    devstack.State
	dagster  *dagsterapi.Client
	fleet    *fleet
	location string
	runs     []RunRecord
	phases   []Phase
	killed   []Kill
	shown    int // bytes of dev's log that have been shown
}

// Run runs the demo. An error means that it could not be carried out; a demo that was carried out ends
// with a verdict, which may be FAIL.
func Run(ctx context.Context, config Config) (Verdict, error) {
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return Verdict{}, fmt.Errorf("--dir: %w", err)
	}
	config.Dir = dir
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Verdict{}, fmt.Errorf("create %s: %w", dir, err)
	}
	d := &demo{Config: config, id: uuid.NewString()}
	stack := supervise.New(config.Log)
	defer stack.Stop()
	if err := d.phase("start the stack", func() error { return d.start(ctx, stack) }); err != nil {
		return Verdict{}, err
	}
	if err := d.phase("run the example jobs", func() error { return d.runJobs(ctx) }); err != nil {
		return Verdict{}, err
	}
	if err := d.phase("kill a worker and recover", func() error { return d.killAndRecover(ctx) }); err != nil {
		return Verdict{}, err
	}
	var tasks []stepfleet.View
	if err := d.phase("collect the records", func() error { tasks, err = d.collect(ctx); return err }); err != nil {
		return Verdict{}, err
	}
	_ = d.phase("stop the stack", func() error { stack.Stop(); return nil })
	return d.conclude(tasks)
}

// conclude judges, reports, and prints the verdict's line.
func (d *demo) conclude(tasks []stepfleet.View) (Verdict, error) {
	file, err := os.Open(d.effectLog())
	if err != nil {
		return Verdict{}, fmt.Errorf("read the effect log: %w", err)
	}
	defer file.Close()
	effects, err := ParseEffects(file)
	if err != nil {
		return Verdict{}, err
	}
	bells, err := claimsByBell(d.state.Logs)
	if err != nil {
		return Verdict{}, err
	}
	verdict := Judge(effects, tasks, d.runs, bells)
	report := Report{
		Word: verdict.Word(), Verdict: verdict, Killed: d.killed, Phases: d.phases,
		Jobs: d.runs, Records: records(tasks),
	}
	path := filepath.Join(d.Dir, "report.json")
	if err := report.write(path); err != nil {
		return Verdict{}, err
	}
	report.print(d.Out, tasks)
	fmt.Fprintf(d.Out, "  report: %s\n\n%s\n", path, verdict)
	return verdict, nil
}

func (d *demo) effectLog() string { return filepath.Join(d.Dir, "effects.jsonl") }

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.Out, format+"\n", args...) }

// phase does one part, says so, and keeps how long it took.
func (d *demo) phase(name string, do func() error) error {
	d.say("== %s", name)
	began := time.Now()
	err := do()
	d.phases = append(d.phases, Phase{name, time.Since(began).Seconds()})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// start starts `stepfleet dev` on fresh state and free ports, beside whatever else runs.
func (d *demo) start(ctx context.Context, stack *supervise.Supervisor) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	log := filepath.Join(d.Dir, "dev.log")
	if err := os.Remove(log); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var err error
	d.dev, err = stack.Start(supervise.Spec{
		Name: "stepfleet dev", LogPath: log, StopWait: devStopWait, Ready: d.devReady,
		Command: func(int) supervise.Command {
			return supervise.Command{Args: d.devArgs(), Env: d.devEnviron(), Dir: d.Dir}
		},
	})
	if err != nil {
		return err
	}
	err = d.dev.WaitReady(ctx)
	d.show()
	if err != nil {
		return err
	}
	// Only now is it certain that no other demo works in this directory.
	if err := os.Remove(d.effectLog()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	d.dagster = dagsterapi.New(d.state.URLs["dagster"])
	if d.fleet, err = newFleet(d.state); err != nil {
		return err
	}
	return d.checkJobs(ctx)
}

func (d *demo) devArgs() []string {
	return []string{
		d.Executable, "--log-level", "warn", "dev", "--dir", d.Dir, "--fresh", "--python", d.Python, "-m", module,
		"--workers", "2", "--queue", "default:4", "--max-runs", "8",
		"--port-dagster", "0", "--port-server", "0", "--port-sqs", "0", "--port-postgres", "0",
	}
}

func (d *demo) devEnviron() []string {
	return append(supervise.Unmarked(os.Environ()),
		fmt.Sprintf("STEPFLEET_TIME_SCALE=%g", d.TimeScale),
		fmt.Sprintf("STEPFLEET_EXAMPLE_RECOVER_STEPS=%d", recoverSteps),
		"STEPFLEET_EXAMPLE_SCHEDULES=off",
		"STEPFLEET_LOG_LEVEL=info", // of the workers, for claimsByBell
		"STEPFLEET_EFFECT_LOG="+d.effectLog())
}

// devReady shows dev's progress and looks for its word that everything is up.
func (d *demo) devReady(context.Context) error {
	d.show()
	state, err := devstack.ReadState(d.Dir)
	if err != nil {
		return err
	}
	if !state.Ready || state.PIDs["dev"] != d.dev.PID() {
		return errors.New("it has not said that it is ready")
	}
	d.state = state
	return nil
}

// show prints what dev has said since the last time.
func (d *demo) show() {
	text, err := os.ReadFile(d.dev.LogPath())
	if err != nil || len(text) <= d.shown {
		return
	}
	_, _ = d.Out.Write(text[d.shown:]) // nobody to tell
	d.shown = len(text)
}

// checkJobs makes sure that Dagster has the jobs before any is launched.
func (d *demo) checkJobs(ctx context.Context) error {
	locations, err := d.dagster.Locations(ctx)
	if err != nil {
		return err
	}
	if len(locations) != 1 || locations[0].Error != "" {
		return fmt.Errorf("the example project did not load: %+v", locations)
	}
	d.location = locations[0].Name
	have := map[string]bool{}
	for _, job := range locations[0].Jobs {
		have[job] = true
	}
	for _, job := range jobs {
		if !have[job.name] {
			return fmt.Errorf("the example project has no job %q, only %v", job.name, locations[0].Jobs)
		}
	}
	return nil
}
