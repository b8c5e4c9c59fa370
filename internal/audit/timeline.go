package audit

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet"
)

// maxMoments bounds the evidence of one violation.
const maxMoments = 400

// addEvidence reads the witnesses a second time, for what they say of the tasks and runs that
// violations name.
func addEvidence(ctx context.Context, w Witnesses, r *Report) error {
	if len(r.Violations) == 0 {
		return nil
	}
	e := newEvidence(r.Violations)
	for _, read := range []func() error{
		func() error { return each(ctx, w.Tasks, e.task) },
		func() error { return each(ctx, w.Audit, e.row) },
		func() error { return each(ctx, w.Effects, e.effect) },
		func() error { return each(ctx, w.Dagster, e.event) },
		func() error { return each(ctx, w.Client, e.client) },
	} {
		if err := read(); err != nil {
			return err
		}
	}
	for i := range r.Violations {
		v := &r.Violations[i]
		e.complete(v)
		addFaults(v, w.Faults)
		slices.SortStableFunc(v.Evidence, func(a, b Moment) int { return a.At.Compare(b.At) })
	}
	return nil
}

// evidence collects moments by task and by run. A violation that names a task wants only its own and
// what concerns its run as a whole.
type evidence struct {
	tasks  map[stepfleet.TaskID]bool
	keys   map[stepfleet.Key]bool
	runs   map[string]bool
	keyOf  map[stepfleet.TaskID]stepfleet.Key
	byTask map[stepfleet.TaskID][]Moment
	byKey  map[stepfleet.Key][]Moment
	byRun  map[string][]Moment
}

func newEvidence(violations []Violation) *evidence {
	e := &evidence{
		tasks: map[stepfleet.TaskID]bool{}, keys: map[stepfleet.Key]bool{}, runs: map[string]bool{},
		keyOf: map[stepfleet.TaskID]stepfleet.Key{}, byTask: map[stepfleet.TaskID][]Moment{},
		byKey: map[stepfleet.Key][]Moment{}, byRun: map[string][]Moment{},
	}
	for _, v := range violations {
		if v.TaskID != 0 {
			e.tasks[v.TaskID] = true
		}
		if v.StepKey != "" {
			e.keys[v.Key] = true
		}
		if v.RunID != "" {
			e.runs[v.RunID] = true
		}
	}
	return e
}

func add[K comparable](to map[K][]Moment, key K, m Moment) {
	if len(to[key]) < maxMoments {
		to[key] = append(to[key], m)
	}
}

func (e *evidence) task(t Task) {
	if e.tasks[t.ID] || e.keys[t.Key] {
		e.keyOf[t.ID] = t.Key
		e.tasks[t.ID], e.keys[t.Key], e.runs[t.RunID] = true, true, true
	}
}

func (e *evidence) row(row stepfleet.AuditRow) {
	m := Moment{At: row.At, Witness: "ledger", Actor: row.Actor, What: string(row.Verb) + ": " + Words(row), Fence: number(row.Fence), Refused: row.Refused != ""}
	switch {
	case row.TaskID != 0 && e.tasks[row.TaskID]:
		add(e.byTask, row.TaskID, m)
	case row.TaskID == 0 && e.runs[row.RunID]:
		m.Fence = ""
		add(e.byRun, row.RunID, m)
	}
}

func (e *evidence) effect(line Effect) {
	if e.keys[line.Key] {
		add(e.byKey, line.Key, Moment{
			At: line.Time(), Witness: "effect", Actor: fmt.Sprintf("process %d on %s", line.PID, line.Worker),
			What: "user code: " + line.Event, Fence: string(line.Fence),
		})
	}
}

// event takes the events of a step for each of its attempts: Dagster does not number them.
func (e *evidence) event(event DagsterEvent) {
	m := Moment{At: event.At, Witness: "dagster", Actor: "event " + fmt.Sprint(event.ID), What: cmp.Or(event.Type, "message")}
	for key := range e.keys {
		if key.RunID == event.RunID && key.StepKey == event.StepKey {
			add(e.byKey, key, m)
		}
	}
}

func (e *evidence) client(event ClientEvent) {
	text := fmt.Sprintf("%s %s", event.F, event.Type)
	if event.TaskID != 0 {
		text += fmt.Sprintf(": task %d, known %t", event.TaskID, event.Known)
	}
	if event.State != "" {
		text += ": " + string(event.State)
	}
	if event.Error != "" {
		text += ": " + event.Error
	}
	m := Moment{At: event.At, Witness: "client", Actor: event.Process, What: text, Refused: event.Type == Failed}
	switch {
	case event.StepKey != "" && e.keys[event.Key]:
		add(e.byKey, event.Key, m)
	case event.StepKey == "" && e.runs[event.RunID]:
		add(e.byRun, event.RunID, m)
	}
}

// complete gives a violation its evidence, and the names that one witness knew and another did not.
func (e *evidence) complete(v *Violation) {
	if key, ok := e.keyOf[v.TaskID]; ok && v.StepKey == "" {
		v.Key = key
	}
	v.Evidence = append(v.Evidence, e.byTask[v.TaskID]...)
	for id, key := range e.keyOf {
		if v.StepKey != "" && key == v.Key && id != v.TaskID {
			v.Evidence = append(v.Evidence, e.byTask[id]...)
		}
	}
	v.Evidence = append(v.Evidence, e.byKey[v.Key]...)
	v.Evidence = append(v.Evidence, e.byRun[v.RunID]...)
}

// addFaults adds what was done to the system while the task lived.
func addFaults(v *Violation, faults []Fault) {
	if len(v.Evidence) == 0 {
		return
	}
	first := slices.MinFunc(v.Evidence, func(a, b Moment) int { return a.At.Compare(b.At) }).At
	last := slices.MaxFunc(v.Evidence, func(a, b Moment) int { return a.At.Compare(b.At) }).At
	for _, f := range faults {
		until := f.Until
		if until.IsZero() {
			until = f.At
		}
		if until.Before(first) || f.At.After(last) {
			continue
		}
		text := f.Kind
		if d := until.Sub(f.At); d > 0 {
			text += fmt.Sprintf(" for %s", d.Round(time.Millisecond))
		}
		if f.Detail != "" {
			text += " (" + f.Detail + ")"
		}
		v.Evidence = append(v.Evidence, Moment{At: f.At, Witness: "fault", Actor: f.Target, What: text, Refused: !f.Landed})
	}
}

//go:embed timeline.html
var timelineText string

var timeline = template.Must(template.New("timeline").Funcs(template.FuncMap{
	"since": func(from, at time.Time) string { return fmt.Sprintf("%+.3f", at.Sub(from).Seconds()) },
	"clock": func(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05.000") },
}).Parse(timelineText))

// lane is one witness's row of a timeline's picture.
type lane struct {
	Witness string
	Marks   []mark
}

type mark struct {
	Percent float64
	Moment
}

// HTML returns the violation's timeline: one page without anything from outside.
func (v Violation) HTML() ([]byte, error) {
	var out bytes.Buffer
	var first time.Time
	if len(v.Evidence) > 0 {
		first = v.Evidence[0].At
	}
	err := timeline.Execute(&out, struct {
		Violation
		First time.Time
		Lanes []lane
	}{v, first, lanes(v.Evidence)})
	if err != nil {
		return nil, fmt.Errorf("draw the timeline of %s: %w", v.Invariant, err)
	}
	return out.Bytes(), nil
}

// lanes places the moments, which are in the order of their times.
func lanes(moments []Moment) []lane {
	var out []lane
	if len(moments) == 0 {
		return out
	}
	first := moments[0].At
	span := max(moments[len(moments)-1].At.Sub(first), time.Nanosecond)
	for _, m := range moments {
		i := slices.IndexFunc(out, func(l lane) bool { return l.Witness == m.Witness })
		if i < 0 {
			i = len(out)
			out = append(out, lane{Witness: m.Witness})
		}
		out[i].Marks = append(out[i].Marks, mark{100 * float64(m.At.Sub(first)) / float64(span), m})
	}
	return out
}

// WriteTimelines writes a page for each listed violation into the directory, which it makes, and
// notes the files' names in the report. Pages of an earlier report are removed: they have the same names.
func (r *Report) WriteTimelines(dir string) error {
	if err := removeTimelines(dir); err != nil {
		return err
	}
	if len(r.Violations) == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write timelines: %w", err)
	}
	count := map[string]int{}
	for i := range r.Violations {
		v := &r.Violations[i]
		count[v.Invariant]++
		name := fmt.Sprintf("%s-%03d.html", pageOf(v.Invariant), count[v.Invariant])
		page, err := v.HTML()
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), page, 0o644); err != nil {
			return fmt.Errorf("write timelines: %w", err)
		}
		v.Timeline = name
	}
	return nil
}

// pageOf is what the names of an invariant's pages begin with.
func pageOf(invariant string) string { return strings.ToLower(invariant) }

func removeTimelines(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write timelines: %w", err)
	}
	for _, entry := range entries {
		invariant, _, _ := strings.Cut(entry.Name(), "-")
		known := slices.ContainsFunc(Invariants, func(i Invariant) bool { return pageOf(i.ID) == invariant })
		if page, _ := path.Match("*-[0-9][0-9][0-9].html", entry.Name()); !page || !known {
			continue
		}
		if err := os.Remove(filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("write timelines: %w", err)
		}
	}
	return nil
}
