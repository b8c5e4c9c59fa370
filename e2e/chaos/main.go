// Command chaos runs stepfleet under faults and judges what four witnesses say of it. It is started by
// `make chaos`; see internal/chaos.
//
// The last line is the verdict. The exit status is 0 for PASS, 5 for FAIL, 1 when the chaos could
// not be carried out.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/chaos"
)

const exitFail = 5

func main() { os.Exit(run()) }

func run() int {
	c := chaos.Config{Lifetimes: chaos.Lifetimes, Drain: 8 * time.Second, Out: os.Stdout}
	flag.StringVar(&c.Executable, "stepfleet", "", "the binary of stepfleet, built with the tag chaos")
	flag.StringVar(&c.Python, "python", ".venv/bin/python", "the interpreter with Dagster and stepfleet_examples")
	flag.StringVar(&c.Code, "code", "e2e/chaos/code/chaos_defs.py", "the load's jobs")
	flag.StringVar(&c.Dir, "dir", ".stepfleet/chaos", "directory for everything that is kept")
	flag.DurationVar(&c.Duration, "duration", 5*time.Minute, "how long faults come")
	flag.Uint64Var(&c.Seed, "seed", 1, "seed of the schedule")
	flag.BoolVar(&c.FIFO, "fifo", false, "use FIFO queues")
	flag.DurationVar(&c.Partition, "partition", 0, "instead of a schedule, cut one worker from PostgreSQL for so long at default deadlines")
	flag.StringVar(&c.Act, "act", "", "instead of a schedule, play one scene: "+strings.Join(chaos.Acts(), ", "))
	flag.IntVar(&c.PerMinute, "per-minute", 60, "faults that must land in a minute")
	flag.IntVar(&c.Least, "least", -1, "faults of each kind that must land; 3 in 5 minutes and more, 1 in less")
	flag.IntVar(&c.LeastTasks, "least-tasks", -1, "tasks that must have been run; 500 in 5 minutes and more, in less accordingly")
	flag.IntVar(&c.LeastRuns, "least-runs", -1, "runs that must have been run; 20 in 5 minutes and more")
	flag.IntVar(&c.LeastRefusals, "least-refusals", -1, "writes of old owners that must have been refused; 1 a minute, and twice the least of each kind")
	flag.IntVar(&c.LeastRecoveries, "least-recoveries", -1, "tasks that must have been taken from owners that were gone; 2 a minute, and twice the least of each kind")
	flag.Parse()
	if c.Act != "" && !slices.Contains(chaos.Acts(), c.Act) {
		fmt.Fprintf(os.Stderr, "chaos: there is no act %q: choose one of %s\n", c.Act, strings.Join(chaos.Acts(), ", "))
		return 2
	}
	least(&c)
	if err := absolute(&c.Executable, &c.Python, &c.Code, &c.Dir); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := os.MkdirAll(c.Dir, 0o711); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	log, err := os.Create(filepath.Join(c.Dir, "chaos.log"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	defer log.Close()
	c.Log = slog.New(slog.NewTextHandler(log, nil))
	report, err := chaos.Run(ctx, c)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	if err := report.Check.WriteTimelines(filepath.Join(c.Dir, "timelines")); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	path := filepath.Join(c.Dir, "report.json")
	if err := report.Write(path); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	fmt.Printf("%s  report: %s\n\n%s\n", report.Summary(), path, report)
	if !report.Pass() {
		return exitFail
	}
	return 0
}

const (
	// actLasts is what an act is taken to last where that decides how much it must show.
	actLasts = 15 * time.Second
	// actTasks are fewer than any act has.
	actTasks = 9
)

// least fills in what has to be seen in the time there is.
func least(c *chaos.Config) {
	if c.Partition > 0 {
		c.Duration, c.Lifetimes, c.PerMinute, c.Least = c.Partition, stepfleet.DefaultLifetimes(), 0, 0
		c.LeastRefusals, c.LeastRecoveries = 0, 0
	}
	if c.Act != "" {
		c.Duration, c.PerMinute, c.Least = actLasts, 0, 0
		if c.LeastTasks < 0 {
			c.LeastTasks = actTasks
		}
	}
	share := min(1, c.Duration.Seconds()/chaos.Whole.Seconds())
	set := func(figure *int, least float64) {
		if *figure < 0 {
			*figure = int(least * share)
		}
	}
	set(&c.LeastTasks, 500)
	set(&c.LeastRuns, 20)
	if c.Least < 0 {
		c.Least = max(1, int(3*share))
	}
	// Each zombie that lands is refused at least once and is a recovery. The schedule has more of them than
	// the least, and other faults that recover tasks.
	const zombies = 2
	if c.LeastRefusals < 0 {
		c.LeastRefusals = max(zombies*c.Least, int(c.Duration.Minutes()))
	}
	if c.LeastRecoveries < 0 {
		c.LeastRecoveries = max(zombies*c.Least, int(2*c.Duration.Minutes()))
	}
}

func absolute(paths ...*string) error {
	for _, path := range paths {
		if *path == "" {
			return fmt.Errorf("-stepfleet names no binary: run scripts/chaos")
		}
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	return nil
}
