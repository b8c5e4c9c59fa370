package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/dagsterlog"
	"github.com/stepfleet/stepfleet/internal/postgres"
)

type verifyCmd struct {
	Runs           []string      `name:"run" sep:"none" help:"Verify this run, whole, instead of a window of time. May be given more than once."`
	Since          time.Duration `help:"Length of the window, up to now." default:"1h"`
	From           time.Time     `help:"Begin of the window, as 2006-01-02T15:04:05Z, instead of --since." format:"2006-01-02T15:04:05Z07:00"`
	Until          time.Time     `help:"End of the window. Default: now." format:"2006-01-02T15:04:05Z07:00"`
	DagsterDSNFile string        `name:"dagster-dsn-file" help:"File with the address of Dagster's database, a fourth witness." type:"existingfile" env:"STEPFLEET_DAGSTER_DSN_FILE"`
	DagsterURL     string        `name:"dagster-url" help:"Dagster's webserver, where its database cannot be reached. It is asked run by run, which takes longer." env:"STEPFLEET_DAGSTER_URL"`
	Effects        string        `help:"Effect log that user code has written." type:"existingfile"`
	Client         string        `help:"Client history." type:"existingfile"`
	KnownRuns      bool          `name:"known-runs" help:"Leave out what the other witnesses have of runs that the ledger's window does not name: another ledger has run them."`
	Timelines      string        `help:"Directory for a page about each violation."`
	JSON           bool          `name:"json" help:"Print the report as JSON."`
}

// defaultSince is the default of --since.
const defaultSince = time.Hour

// verifyConns is one for the snapshot and one for a second look.
const verifyConns = 2

// Run verifies and prints the report; the last line of the one for people is the verdict.
func (c *verifyCmd) Run(g *globals) error {
	dsn, err := databaseURL()
	if err != nil {
		return err
	}
	ledger, err := postgres.Open(g.ctx, dsn, postgres.Options{MaxConns: verifyConns, AppName: "stepfleet verify", Logger: g.log})
	if err != nil {
		return err
	}
	defer ledger.Close()
	if err := ledger.Check(g.ctx); err != nil && errors.Is(err, stepfleet.ErrSchema) {
		return err
	}
	history, err := ledger.History(g.ctx)
	if err != nil {
		return err
	}
	defer history.Close()
	v := &verification{verifyCmd: c, ledger: ledger, history: history, progress: newProgress(g.stderr), named: map[string]bool{}}
	if err := v.window(); err != nil {
		return err
	}
	witnesses, closeAll, err := v.witnesses(g.ctx)
	if err != nil {
		return err
	}
	defer closeAll()
	report, err := audit.Check(g.ctx, witnesses)
	if err != nil {
		return err
	}
	if err := v.unknown(report); err != nil {
		if report.Total() == 0 {
			return err
		}
		fmt.Fprintf(g.stderr, "verify: %v\n", err) // another witness has seen what the ledger does not have
	}
	return c.conclude(g, v, report)
}

func (c *verifyCmd) conclude(g *globals, v *verification, report audit.Report) error {
	if c.Timelines != "" {
		if err := report.WriteTimelines(c.Timelines); err != nil {
			return err
		}
	}
	if c.JSON {
		out := json.NewEncoder(g.stdout)
		out.SetIndent("", "  ")
		if err := out.Encode(report); err != nil {
			return fmt.Errorf("print the report: %w", err)
		}
	} else {
		printReport(g.stdout, report, v.where(), c.Timelines)
	}
	if report.Verdict != audit.Pass {
		return &exitCode{exitFail, errors.New("the history breaks what stepfleet promises: docs/verify.md says how to read the findings")}
	}
	return nil
}

// verification is one run of verify.
type verification struct {
	*verifyCmd
	ledger   *postgres.Ledger
	history  *postgres.History
	progress *progress

	from, until time.Time
	// Of what the audit has shown: the first task that was submitted in the window, the older ones,
	// and all runs.
	first stepfleet.TaskID
	older map[stepfleet.TaskID]bool
	named map[string]bool
	// oldest is the time of the first row that the audit has shown.
	oldest time.Time
	// logged are those that Dagster's log has.
	logged map[string]bool
}

// window settles what is verified. Runs are verified from their beginning.
func (v *verification) window() error {
	v.until = v.history.At
	if slices.Contains(v.Runs, "") {
		return errors.New("--run is empty: give the id of a run, or leave it out to verify a window of time")
	}
	if len(v.Runs) > 0 {
		if !v.From.IsZero() || !v.Until.IsZero() || v.Since != defaultSince {
			return errors.New("--run names whole runs: leave out --from, --until and --since")
		}
		if v.KnownRuns {
			return errors.New("--run names the runs, --known-runs takes those of the window: leave one out")
		}
		return nil
	}
	if !v.Until.IsZero() && v.Until.Before(v.until) {
		v.until = v.Until
	}
	if !v.From.IsZero() && v.Since != defaultSince {
		return errors.New("--from and --since both say where the window begins: leave one out")
	}
	if v.from = v.From; v.from.IsZero() {
		v.from = v.until.Add(-v.Since)
	}
	if !v.from.Before(v.until) {
		return fmt.Errorf("the window from %s until %s is empty", v.from.Format(time.RFC3339), v.until.Format(time.RFC3339))
	}
	return nil
}

// unknown is an error where the ledger has nothing of what was asked for.
func (v *verification) unknown(report audit.Report) error {
	var missing []string
	for _, run := range v.Runs {
		if !v.named[run] {
			missing = append(missing, run)
		}
	}
	switch {
	case len(missing) > 0:
		return fmt.Errorf("nothing was verified of run %s: the ledger's audit has no row of it: is it the ledger of this deployment, "+
			"the whole id, and a run of stepfleet's executor or launcher?", strings.Join(missing, ", "))
	case report.Counts.AuditRows == 0 && report.Total() == 0:
		return fmt.Errorf("nothing was verified: the ledger's audit has no row %s", v.where())
	}
	return nil
}

func (v *verification) where() string {
	if len(v.Runs) > 0 {
		return "of run " + strings.Join(v.Runs, ", ")
	}
	return fmt.Sprintf("from %s until %s", v.from.UTC().Format(time.RFC3339), v.until.UTC().Format(time.RFC3339))
}

func (v *verification) witnesses(ctx context.Context) (w audit.Witnesses, closeAll func(), err error) {
	w = audit.Witnesses{
		Audit: v.audit, Tasks: v.tasks, Sessions: v.sessions, Holds: v.holds, Later: v.later, From: v.from, Until: v.until,
		Snapshot: v.until.Equal(v.history.At),
	}
	if v.Effects != "" {
		w.Effects = onlyOf(audit.ReadEffects(opener(v.Effects)), func(e audit.Effect) bool {
			return v.asked(e.RunID) && !e.Time().Before(v.from) && (len(v.Runs) > 0 || e.Time().Before(v.until))
		})
	}
	if v.Client != "" {
		w.Client = onlyOf(audit.ReadClient(opener(v.Client)), func(e audit.ClientEvent) bool { return v.asked(e.RunID) })
	}
	closeAll = func() {}
	switch {
	case v.DagsterDSNFile != "":
		log, err := v.openLog(ctx)
		if err != nil {
			return w, nil, err
		}
		closeAll = log.Close
		w.Dagster = v.logByDSN(log)
	case v.DagsterURL != "":
		w.Dagster = v.logByURL(dagsterapi.New(v.DagsterURL))
	}
	return w, closeAll, nil
}

func opener(path string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return os.Open(path) }
}

// asked reports whether the run is one of those that were asked for. A window takes all, also what the ledger
// has lost. The audit has been read by then.
func (v *verification) asked(run string) bool {
	if len(v.Runs) > 0 {
		return slices.Contains(v.Runs, run)
	}
	return !v.KnownRuns || v.named[run]
}

// onlyOf leaves out what is not verified.
func onlyOf[T any](all audit.Source[T], verified func(T) bool) audit.Source[T] {
	return func(ctx context.Context) iter.Seq2[T, error] {
		return func(yield func(T, error) bool) {
			for one, err := range all(ctx) {
				if err == nil && !verified(one) {
					continue
				}
				if !yield(one, err) {
					return
				}
			}
		}
	}
}

// audit is the audit trail, and notes which tasks and runs it names.
func (v *verification) audit(ctx context.Context) iter.Seq2[stepfleet.AuditRow, error] {
	rows := v.history.Window(ctx, v.from, v.until)
	if len(v.Runs) > 0 {
		rows = v.history.Runs(ctx, v.Runs)
	}
	v.first, v.older = math.MaxInt64, map[stepfleet.TaskID]bool{}
	return counted(v.progress, "audit rows", rows, func(row stepfleet.AuditRow) {
		if v.oldest.IsZero() || row.At.Before(v.oldest) {
			v.oldest = row.At
		}
		if row.RunID != "" {
			v.named[row.RunID] = true
		}
		switch {
		case row.TaskID == 0:
		case row.Verb == stepfleet.VerbSubmit && row.Refused == "":
			v.first = min(v.first, row.TaskID)
		case row.TaskID < v.first:
			v.older[row.TaskID] = true
		}
	})
}

func (v *verification) tasks(ctx context.Context) iter.Seq2[audit.Task, error] {
	views := v.history.TasksOf(ctx, v.Runs)
	if len(v.Runs) == 0 {
		named := make([]stepfleet.TaskID, 0, len(v.older))
		for id := range v.older {
			named = append(named, id)
		}
		views = v.history.Tasks(ctx, v.first, v.until, named)
	}
	return audit.Map(counted(v.progress, "tasks", views, func(stepfleet.View) {}), audit.TaskOf)
}

func (v *verification) sessions(ctx context.Context) iter.Seq2[stepfleet.Session, error] {
	return v.history.Sessions(ctx, v.from)
}

func (v *verification) holds(ctx context.Context) iter.Seq2[stepfleet.Hold, error] {
	return v.history.Holds(ctx, v.Runs)
}

// later is a second look at these runs, of a moment of its own.
func (v *verification) later(ctx context.Context, runs []string) iter.Seq2[audit.Task, error] {
	return func(yield func(audit.Task, error) bool) {
		now, err := v.ledger.History(ctx)
		if err != nil {
			yield(audit.Task{}, err)
			return
		}
		defer now.Close()
		for t, err := range audit.Map(now.TasksOf(ctx, runs), audit.TaskOf) {
			if !yield(t, err) {
				return
			}
		}
	}
}

func (v *verification) openLog(ctx context.Context) (*dagsterlog.Log, error) {
	dsn, err := secretFile(v.DagsterDSNFile)
	if err != nil {
		return nil, fmt.Errorf("--dagster-dsn-file: %w", err)
	}
	log, err := dagsterlog.Open(ctx, dsn)
	if err != nil {
		return nil, fmt.Errorf("--dagster-dsn-file %s: %w", v.DagsterDSNFile, err)
	}
	return log, nil
}

func (v *verification) logByDSN(log *dagsterlog.Log) audit.Source[audit.DagsterEvent] {
	return func(ctx context.Context) iter.Seq2[audit.DagsterEvent, error] {
		return func(yield func(audit.DagsterEvent, error) bool) {
			if err := v.findLogged(ctx, log); err != nil {
				yield(audit.DagsterEvent{}, err)
				return
			}
			events := counted(v.progress, "Dagster's events", log.Events(ctx, v.runIDs(), dagsterTypes), func(dagsterlog.Event) {})
			audit.Map(events, func(e dagsterlog.Event) audit.DagsterEvent { return audit.DagsterEvent(e) })(yield)
		}
	}
}

// findLogged finds the runs of the window of which Dagster's log has what stepfleet's processes wrote,
// whether the ledger knows them or not. What is older than the ledger's first row was another ledger's, or
// has been deleted from this one.
func (v *verification) findLogged(ctx context.Context, log *dagsterlog.Log) error {
	if len(v.Runs) > 0 || v.KnownRuns || v.logged != nil {
		return nil
	}
	from := v.from
	begins, err := v.history.Begins(ctx, from)
	if err != nil {
		return err
	}
	if begins {
		from = v.oldest
	}
	if from.IsZero() {
		return nil // the ledger is empty
	}
	v.logged, err = log.RunsOf(ctx, from, v.until)
	return err
}

// dagsterTypes are the events that a check needs.
var dagsterTypes = slices.Concat(audit.RunEvents, audit.StepEvents)

func (v *verification) logByURL(client *dagsterapi.Client) audit.Source[audit.DagsterEvent] {
	return func(ctx context.Context) iter.Seq2[audit.DagsterEvent, error] {
		return counted(v.progress, "Dagster's events", func(yield func(audit.DagsterEvent, error) bool) {
			for _, run := range v.runIDs() {
				events, err := client.Events(ctx, run)
				if err != nil {
					yield(audit.DagsterEvent{}, fmt.Errorf("--dagster-url %s: %w", v.DagsterURL, err))
					return
				}
				for i, e := range events {
					if !yield(audit.DagsterEvent{ID: int64(i + 1), RunID: run, StepKey: e.StepKey, Type: loggedAs(e.Type), At: e.At}, nil) {
						return
					}
				}
			}
		}, func(audit.DagsterEvent) {})
	}
}

// loggedAs is the type that Dagster's log has of what its webserver calls RUN_START, RUN_SUCCESS and so on.
func loggedAs(kind string) string {
	if rest, ok := strings.CutPrefix(kind, "RUN_"); ok {
		return "PIPELINE_" + rest
	}
	return kind
}

// runIDs are the runs to ask Dagster for.
func (v *verification) runIDs() []string {
	if len(v.Runs) > 0 {
		return slices.Compact(slices.Sorted(slices.Values(v.Runs)))
	}
	all := maps.Clone(v.named)
	maps.Copy(all, v.logged)
	return slices.Sorted(maps.Keys(all))
}

// counted looks at each and shows how many there have been.
func counted[T any](p *progress, what string, in iter.Seq2[T, error], look func(T)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		n := 0
		defer func() { p.done(what, n) }()
		for one, err := range in {
			if err == nil {
				n++
				look(one)
				p.show(what, n)
			}
			if !yield(one, err) {
				return
			}
		}
	}
}

// progress says on stderr how far long work is.
type progress struct {
	out   io.Writer
	began time.Time
	next  time.Time
	said  bool
}

// Progress is shown this often; what is done sooner says nothing.
const progressInterval = 2 * time.Second

// progressStep is after how many items the clock is asked.
const progressStep = 4096

func newProgress(out io.Writer) *progress {
	now := time.Now()
	return &progress{out: out, began: now, next: now.Add(progressInterval)}
}

func (p *progress) show(what string, n int) {
	if n%progressStep != 0 {
		return
	}
	if now := time.Now(); now.After(p.next) {
		p.next, p.said = now.Add(progressInterval), true
		fmt.Fprintf(p.out, "verify: %d %s, %.0f s\n", n, what, now.Sub(p.began).Seconds())
	}
}

// done says the total of what has taken long.
func (p *progress) done(what string, n int) {
	if p.said {
		p.said = false
		fmt.Fprintf(p.out, "verify: %d %s, all of them, %.0f s\n", n, what, time.Since(p.began).Seconds())
	}
}

// maxPrinted is how many findings are printed; --json has more.
const maxPrinted = 20

func printReport(out io.Writer, r audit.Report, where, timelines string) {
	c := r.Counts
	fmt.Fprintf(out, "verified %d audit rows of %d tasks, runs: %d, %s\n", c.AuditRows, c.Tasks, c.Runs, where)
	if c.DagsterEvents > 0 {
		fmt.Fprintf(out, "with %d events of Dagster\n", c.DagsterEvents)
	}
	if c.Effects > 0 {
		fmt.Fprintf(out, "with %d lines of the effect log\n", c.Effects)
	}
	if c.UnloggedRuns > 0 {
		fmt.Fprintf(out, "Dagster's log has nothing, or not the begin, of %d of these runs: were they deleted, and is it this deployment's?\n", c.UnloggedRuns)
	}
	if c.ForeignEffects > 0 {
		fmt.Fprintf(out, "without %d lines of the effect log that no step of stepfleet's has written\n", c.ForeignEffects)
	}
	fmt.Fprintln(out)
	for _, h := range r.Invariants {
		state := "ok  "
		switch {
		case h.Violations > 0:
			state = "FAIL"
		case h.Unchecked != "":
			state = "-   "
		}
		fmt.Fprintf(out, "  %s %-4s %s", state, h.ID, h.Sentence)
		switch {
		case h.Violations > 0:
			fmt.Fprintf(out, " (%d violations)", h.Violations)
		case h.Unchecked != "":
			fmt.Fprintf(out, " (not checked: %s)", h.Unchecked)
		}
		fmt.Fprintln(out)
	}
	if len(r.Violations) > 0 {
		fmt.Fprintln(out)
	}
	for i, v := range r.Violations {
		if i == maxPrinted {
			fmt.Fprintf(out, "  and %d more: use --json\n", len(r.Violations)-i)
			break
		}
		fmt.Fprintf(out, "  %s %s: %s\n", v.Invariant, subject(v), v.What)
		if v.Timeline != "" {
			fmt.Fprintf(out, "     %s/%s\n", strings.TrimSuffix(timelines, "/"), v.Timeline)
		}
	}
	fmt.Fprintf(out, "\nverify: %s rows=%d tasks=%d runs=%d violations=%d double_starts=%d double_outcomes=%d dagster_disagreements=%d\n",
		r.Verdict, c.AuditRows, c.Tasks, c.Runs, r.Total(), c.DoubleStarts, c.DoubleOutcomes, c.DagsterDisagreements)
}

// subject names what a violation is about.
func subject(v audit.Violation) string {
	switch {
	case v.StepKey != "" && v.TaskID != 0:
		return fmt.Sprintf("%s (task %d)", v.Key, v.TaskID)
	case v.StepKey != "":
		return v.Key.String()
	case v.TaskID != 0:
		return fmt.Sprintf("task %d", v.TaskID)
	case v.RunID != "":
		return "run " + v.RunID
	}
	return "the system"
}
