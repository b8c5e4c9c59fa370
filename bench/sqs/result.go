package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The operations of a load.
const (
	opSend  = "send"
	opBatch = "batch send"
	opTake  = "receive+delete"
)

// ops are the loads in the order in which they are done.
var ops = []string{opSend, opBatch, opTake}

// The quantities that are measured once.
const (
	pollLatency      = "long poll, send to receipt, p50"
	idleCPU          = "CPU of idle long polls"
	lateVisibility   = "lateness of visibility expiry, p99"
	memoryPerMessage = "memory a message, without its body"
)

// The cycles' p99, with the smaller and the larger size.
var (
	cycleBacklog = [2]string{"cycle p99, small backlog", "cycle p99, large backlog"}
	cycleGroups  = [2]string{"cycle p99, few groups", "cycle p99, many groups"}
)

// result is what a run measured; page, picture and verdicts are made of it alone.
type result struct {
	Meta    meta
	Plan    plan
	Servers []contenderResult
	Stages  []stage
	Figures []figure
}

// contenderResult is a server of the run.
type contenderResult struct {
	Name, Version string
	Missing       string `json:",omitempty"` // why it was not measured
	SilentBatches bool   `json:",omitempty"`
}

// meta is when, of what and on what.
type meta struct {
	BegunAt    time.Time
	Seconds    float64
	Commit     string
	Dirty      bool
	Go         string
	Kernel     string
	CPUs       int
	CPUModel   string
	LoadBefore float64
	LoadAfter  float64
}

// load is what a closed loop did, and the server's and the client's CPU for it.
type load struct {
	Messages         int
	Seconds          float64
	CPUSeconds       float64
	ClientCPUSeconds float64
}

func (l load) rate() float64 { return float64(l.Messages) / l.Seconds }

func (l load) cpuMicros() float64 { return micros(l.CPUSeconds, l.Messages) }

func (l load) clientMicros() float64 { return micros(l.ClientCPUSeconds, l.Messages) }

// stage is one load of one server. Repetition 0 warms up and is in no median.
type stage struct {
	Server, Kind, Op string
	Repetition       int
	load
	LoadBefore float64
	Broken     int64  `json:",omitempty"` // calls that were lost with their connection
	Error      string `json:",omitempty"` // why the stage does not count
}

func (s stage) failed(op string, err error) stage {
	s.Op, s.Error = op, err.Error()
	return s
}

// figure is a quantity of one server.
type figure struct {
	Server, Name string
	Value        float64
	Unit         string
	CPUMicros    float64 `json:",omitempty"` // of the server, for a message
	Note         string  `json:",omitempty"`
	Short        bool    `json:",omitempty"` // the backlog was not the planned one
	Error        string  `json:",omitempty"` // why there is no value
	Samples      []int   `json:",omitempty"` // microseconds
}

func (f figure) failed(err error) figure {
	f.Error = err.Error()
	return f
}

func (f figure) orFailed(err error) figure {
	if err != nil {
		return f.failed(err)
	}
	return f
}

// cell is the median of the repetitions of one load, or why there is none.
type cell struct {
	Rate, CPUMicros, ClientMicros float64
	broken                        int64
	reason                        string
}

func (r *result) cell(server, kind, op string) cell {
	if reason := r.missing(server); reason != "" {
		return cell{reason: reason}
	}
	var rates, cpu, client []float64
	var broken int64
	for _, s := range r.Stages {
		if s.Server != server || s.Kind != kind || s.Repetition == 0 {
			continue
		}
		if s.Error != "" && s.Op == op {
			return cell{reason: fmt.Sprintf("repetition %d: %s", s.Repetition, s.Error)}
		}
		if s.Op == op && s.Messages > 0 {
			broken += s.Broken
			rates, cpu, client = append(rates, s.rate()), append(cpu, s.cpuMicros()), append(client, s.clientMicros())
		}
	}
	if len(rates) == 0 {
		return cell{reason: "not one message in any repetition"}
	}
	return cell{Rate: quantile(rates, 0.5), CPUMicros: quantile(cpu, 0.5), ClientMicros: quantile(client, 0.5), broken: broken}
}

// missing returns why the server was not measured, or nothing.
func (r *result) missing(server string) string {
	for _, s := range r.Servers {
		if s.Name == server {
			return s.Missing
		}
	}
	return "not asked for"
}

// errNotMeasured is of a figure that the server's contender does not ask for.
const errNotMeasured = "not measured"

// figure returns a quantity, or one whose Error says why there is none.
func (r *result) figure(server, name string) figure {
	for _, f := range r.Figures {
		if f.Server == server && f.Name == name {
			return f
		}
	}
	return figure{Server: server, Name: name, Error: cmp.Or(r.missing(server), errNotMeasured)}
}

// encode writes the result with a line for every stage and figure.
func (r *result) encode() ([]byte, error) {
	var out bytes.Buffer
	var err error
	write := func(v any) {
		raw, e := json.Marshal(v)
		err = cmp.Or(err, e)
		out.Write(raw)
	}
	lines := func(name string, n int, at func(int) any) {
		out.WriteString(",\n\"" + name + "\": [")
		for i := range n {
			out.WriteString(strings.Repeat(",", min(i, 1)) + "\n ")
			write(at(i))
		}
		out.WriteString("\n]")
	}
	out.WriteString("{\n\"Meta\": ")
	write(r.Meta)
	out.WriteString(",\n\"Plan\": ")
	write(r.Plan)
	lines("Servers", len(r.Servers), func(i int) any { return r.Servers[i] })
	lines("Stages", len(r.Stages), func(i int) any { return r.Stages[i] })
	lines("Figures", len(r.Figures), func(i int) any { return r.Figures[i] })
	out.WriteString("\n}\n")
	return out.Bytes(), err
}

func readResult(path string) (*result, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &result{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}

func newMeta(ctx context.Context, began time.Time) meta {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return meta{
		BegunAt: began.UTC().Truncate(time.Second), Commit: cmp.Or(git(ctx, "rev-parse", "--short=10", "HEAD"), "unknown"),
		Dirty: isDirty(ctx), Go: runtime.Version(),
		Kernel: strings.TrimSpace(string(kernel)), CPUs: runtime.NumCPU(), CPUModel: cpuModel(), LoadBefore: loadAverage(),
	}
}

// git returns what it prints, or nothing where it fails.
func git(ctx context.Context, args ...string) string {
	out, err := exec.CommandContext(ctx, "git", args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// isDirty reports whether the working tree has changes.
func isDirty(ctx context.Context) bool {
	return git(ctx, "status", "--porcelain", "--untracked-files=no") != ""
}

func cpuModel() string {
	raw, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// loadAverage is the machine's of the last minute, or 0 where the kernel does not tell.
func loadAverage() float64 {
	raw, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(raw), " ")
	load, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return load
}

// quantile returns the value at q, 0 to 1, of values in any order; between two values it is the
// higher one, and of none it is not a number.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func milliseconds(micros []int) []float64 {
	ms := make([]float64, len(micros))
	for i, us := range micros {
		ms[i] = float64(us) / 1000
	}
	return ms
}

// micros is the microseconds of CPU for each of n.
func micros(seconds float64, n int) float64 { return seconds * 1e6 / float64(max(n, 1)) }

// thousands writes a number with commas.
func thousands[N int | float64](n N) string {
	text := strconv.FormatInt(int64(n), 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
