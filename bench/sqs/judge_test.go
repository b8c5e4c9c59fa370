package main

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// measured is a result in which every bar is met.
func measured() *result {
	r := &result{Plan: fullPlan()}
	for _, name := range allServers {
		r.Servers = append(r.Servers, contenderResult{Name: name})
		for _, kind := range []string{standard, fifo} {
			for _, op := range ops {
				for repetition := range 4 {
					r.Stages = append(r.Stages, stage{
						Server: name, Kind: kind, Op: op, Repetition: repetition,
						load: load{Messages: 1000, Seconds: 1, CPUSeconds: 0.01},
					})
				}
			}
		}
	}
	r.eachStage("elasticmq", standard, opTake, func(s *stage) { s.CPUSeconds = 0.05 })
	for _, name := range figureNames() {
		r.Figures = append(r.Figures, figure{Server: ours, Name: name, Value: 1})
	}
	return r
}

func (r *result) eachStage(server, kind, op string, f func(*stage)) {
	for i := range r.Stages {
		if s := &r.Stages[i]; s.Server == server && s.Kind == kind && s.Op == op {
			f(s)
		}
	}
}

func (r *result) setFigure(name string, f func(*figure)) {
	for i := range r.Figures {
		if r.Figures[i].Name == name {
			f(&r.Figures[i])
		}
	}
}

// words returns the verdicts that are not PASS, by quantity.
func words(r *result) map[string]string {
	found := map[string]string{}
	for _, v := range judge(r) {
		if v.word != pass {
			found[v.quantity] = v.word
		}
	}
	return found
}

func TestEveryBarIsMetAtItsLimit(t *testing.T) {
	if got := words(measured()); len(got) > 0 {
		t.Errorf("not passed: %v", got)
	}
	if n := len(judge(measured())); n != 13 {
		t.Errorf("%d bars are judged, want 13", n)
	}
}

func TestEachBarIsMissedJustBeyondItsLimit(t *testing.T) {
	slower := func(kind, op string) func(*result) {
		return func(r *result) { r.eachStage(ours, kind, op, func(s *stage) { s.Messages = 799 }) }
	}
	dearer := func(op string) func(*result) {
		return func(r *result) { r.eachStage(ours, standard, op, func(s *stage) { s.CPUSeconds = 0.0101 }) }
	}
	set := func(name string, value float64) func(*result) {
		return func(r *result) { r.setFigure(name, func(f *figure) { f.Value = value }) }
	}
	for quantity, spoil := range map[string]func(*result){
		"server CPU of a single send, goaws / ours":          dearer(opSend),
		"server CPU of a batch send, goaws / ours":           dearer(opBatch),
		"server CPU of receive and delete, elasticmq / ours": dearer(opTake),
		"server CPU of receive and delete, us a message": func(r *result) {
			for _, name := range []string{ours, "elasticmq"} { // five times as much, both
				r.eachStage(name, standard, opTake, func(s *stage) { s.CPUSeconds *= 2.1 })
			}
		},
		"single sends, FIFO / standard":                    slower(fifo, opSend),
		"batch sends, FIFO / standard":                     slower(fifo, opBatch),
		"receives and deletes, FIFO / standard":            slower(fifo, opTake),
		"p99 of a cycle, from 1,000 to 1,000,000 messages": set(cycleBacklog[1], 1.51),
		"p99 of a cycle, from 1 to 100,000 groups":         set(cycleGroups[1], 1.51),
		"long poll, send to receipt, p50, ms":              set(pollLatency, 1.01),
		"CPU of 1,000 idle polls, %":                       set(idleCPU, 1.01),
		"lateness of visibility expiry, p99, ms":           set(lateVisibility, 20.1),
		"memory a message, without its body, bytes":        set(memoryPerMessage, 1001),
	} {
		r := measured()
		spoil(r)
		if diff := cmp.Diff(map[string]string{quantity: fail}, words(r)); diff != "" {
			t.Errorf("%s: verdicts other than PASS differ (-want +got):\n%s", quantity, diff)
		}
	}
}

func TestAMissingPeerLeavesItsBarsUnmeasured(t *testing.T) {
	r := measured()
	if err := r.met(); err != nil {
		t.Error(err)
	}
	r.Servers[1].Missing = "it is not built"
	if err := r.met(); !errors.Is(err, errUnmeasured) {
		t.Errorf("a run without a peer that was asked for ends with %v", err)
	}
	want := map[string]string{
		"server CPU of a single send, goaws / ours": notMeasured,
		"server CPU of a batch send, goaws / ours":  notMeasured,
	}
	if diff := cmp.Diff(want, words(r)); diff != "" {
		t.Errorf("verdicts other than PASS differ (-want +got):\n%s", diff)
	}
	if text := page(r, "x.svg"); !strings.Contains(text, "goaws was not measured: it is not built") {
		t.Errorf("the page does not say why goaws was not measured:\n%s", text)
	}
}

func TestAServerThatWasNotAskedForFailsNoRun(t *testing.T) {
	r := measured()
	r.Servers = r.Servers[:1]
	if err := r.met(); err != nil {
		t.Error(err)
	}
}

func TestABacklogThatWasNotReachedIsNotJudged(t *testing.T) {
	r := measured()
	r.setFigure(cycleBacklog[1], func(f *figure) { f.Short = true })
	want := map[string]string{"p99 of a cycle, from 1,000 to 1,000,000 messages": notMeasured}
	if diff := cmp.Diff(want, words(r)); diff != "" {
		t.Errorf("verdicts other than PASS differ (-want +got):\n%s", diff)
	}
}

func TestOnlyAWholeRunIsPublished(t *testing.T) {
	for name, args := range map[string][]string{
		"quick": {"--quick"}, "one server": {"--servers", "ours"}, "once": {"--repetitions", "1"},
	} {
		o, err := parse(args, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.mayPublish(t.Context()); err == nil {
			t.Errorf("%s: is published", name)
		}
		o.prefix = ".cache/sqs"
		if err := o.mayPublish(t.Context()); err != nil {
			t.Errorf("%s, elsewhere: %v", name, err)
		}
	}
}

func TestWhatOursCannotDoMissesItsBars(t *testing.T) {
	r := measured()
	r.eachStage(ours, fifo, opTake, func(s *stage) {
		if s.Repetition == 2 {
			s.Error = "a message came back with another body"
		}
	})
	r.setFigure(pollLatency, func(f *figure) { f.Error = "a receive got nothing" })
	want := map[string]string{
		"receives and deletes, FIFO / standard": fail,
		"long poll, send to receipt, p50, ms":   fail,
	}
	if diff := cmp.Diff(want, words(r)); diff != "" {
		t.Errorf("verdicts other than PASS differ (-want +got):\n%s", diff)
	}
}

func TestTheWarmUpIsInNoMedian(t *testing.T) {
	r := measured()
	r.eachStage(ours, standard, opSend, func(s *stage) { s.Messages = 100 * (s.Repetition + 1) })
	if got := r.cell(ours, standard, opSend); got.Rate != 300 {
		t.Errorf("the median rate is %g/s, want 300", got.Rate)
	}
}

func TestQuantile(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	for q, want := range map[float64]float64{0: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := quantile(values, q); got != want {
			t.Errorf("quantile %g is %g, want %g", q, got, want)
		}
	}
	if !math.IsNaN(quantile(nil, 0.5)) {
		t.Error("a quantile of nothing is a number")
	}
}

func TestParseStat(t *testing.T) {
	line := "77 (a) b (c) S 1 55 55 0 -1 4194560 1 2 3 4 100 20 3 2 20 0 9 0 999 123456 10 18446744073709551615 1"
	group, u, ok := parseStat(line)
	if !ok || group != 55 || u.cpu.Milliseconds() != 1250 || u.rss == 0 {
		t.Errorf("got group %d, usage %+v, ok %v", group, u, ok)
	}
	if _, _, ok := parseStat("77 (a) S 1"); ok {
		t.Error("a short line was read")
	}
}

// A peer may lose a few calls with their connections; other errors, and many of them, are results.
func TestForgiving(t *testing.T) {
	var broken atomic.Int64
	wrong := errors.New("another body")
	next := net.ErrClosed
	do := forgiving(func(context.Context) (int, error) { return 7, next }, &broken)
	for range maxBroken {
		if n, err := do(t.Context()); n != 0 || err != nil {
			t.Errorf("a lost call is %d, %v", n, err)
		}
	}
	if _, err := do(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("one too many is %v", err)
	}
	if next = wrong; broken.Load() != maxBroken+1 {
		t.Errorf("%d are counted", broken.Load())
	}
	if _, err := do(t.Context()); !errors.Is(err, wrong) {
		t.Errorf("another error is %v", err)
	}
}
