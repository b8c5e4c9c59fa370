package main

import (
	"errors"
	"fmt"
)

// Words of a verdict.
const (
	pass        = "PASS"
	fail        = "FAIL"
	notMeasured = "not measured"
)

// verdict is a bar and what was measured.
type verdict struct {
	word     string
	quantity string
	value    float64
	must     string
	detail   string // where the value comes from, or why there is none
}

// bar is what a measured value must be, at least or at most.
type bar struct {
	quantity string
	atLeast  bool
	limit    float64
	measure  func(*result) (value float64, detail string, err error)
}

// bars are the promises of the local SQS. Servers are compared by their CPU for a message: the client
// shares the CPUs, and what it takes for a message is in every rate. The rates and the client's CPU
// are told beside it.
func bars(p plan) []bar {
	size := func(a, b int) string { return thousands(a) + " to " + thousands(b) }
	return []bar{
		{"server CPU of a single send, goaws / ours", true, 1, cpuRatio(standard, opSend, "goaws")},
		{"server CPU of a batch send, goaws / ours", true, 1, cpuRatio(standard, opBatch, "goaws")},
		{"server CPU of receive and delete, elasticmq / ours", true, 5, cpuRatio(standard, opTake, "elasticmq")},
		{"server CPU of receive and delete, us a message", false, 20, cpuOf(standard, opTake)},
		{"single sends, FIFO / standard", true, 0.8, fifoShare(opSend)},
		{"batch sends, FIFO / standard", true, 0.8, fifoShare(opBatch)},
		{"receives and deletes, FIFO / standard", true, 0.8, fifoShare(opTake)},
		{"p99 of a cycle, from " + size(p.Backlogs[0], p.Backlogs[1]) + " messages", false, 1.5, growth(cycleBacklog)},
		{"p99 of a cycle, from " + size(p.CycleGroup[0], p.CycleGroup[1]) + " groups", false, 1.5, growth(cycleGroups)},
		{"long poll, send to receipt, p50, ms", false, 1, own(pollLatency)},
		{fmt.Sprintf("CPU of %s idle polls, %%", thousands(p.IdlePolls)), false, 1, own(idleCPU)},
		{"lateness of visibility expiry, p99, ms", false, 20, own(lateVisibility)},
		{"memory a message, without its body, bytes", false, 1000, own(memoryPerMessage)},
	}
}

// judge compares the result with every bar. A bar is not measured when its peer is missing, or when
// the sizes it names were not reached; one that our own server could not be measured for is missed.
func judge(r *result) []verdict {
	var all []verdict
	for _, b := range bars(r.Plan) {
		all = append(all, b.judge(r))
	}
	return all
}

// errOurs marks that the reason is our own server.
var errOurs = errors.New("our server")

func (b bar) judge(r *result) verdict {
	v := verdict{quantity: b.quantity, must: fmt.Sprintf("<= %g", b.limit), word: fail}
	if b.atLeast {
		v.must = fmt.Sprintf(">= %g", b.limit)
	}
	value, detail, err := b.measure(r)
	if err != nil {
		v.detail = err.Error()
		if !errors.Is(err, errOurs) {
			v.word = notMeasured
		}
		return v
	}
	v.value, v.detail = value, detail
	if b.atLeast && value >= b.limit || !b.atLeast && value <= b.limit {
		v.word = pass
	}
	return v
}

func (r *result) cellOf(server, kind, op string) (cell, error) {
	c := r.cell(server, kind, op)
	switch {
	case c.reason == "":
		return c, nil
	case server == ours:
		return c, fmt.Errorf("%w: %s", errOurs, c.reason)
	}
	return c, fmt.Errorf("%s: %s", server, c.reason)
}

// cpuRatio is how often the peer's CPU for a message is ours.
func cpuRatio(kind, op, peer string) func(*result) (float64, string, error) {
	return func(r *result) (float64, string, error) {
		mine, err := r.cellOf(ours, kind, op)
		if err != nil {
			return 0, "", err
		}
		theirs, err := r.cellOf(peer, kind, op)
		if err != nil {
			return 0, "", err
		}
		detail := fmt.Sprintf("%.1f and %.1f us; by rate %.2f: %s/s and %s/s, of which the client takes %.1f and %.1f us a message",
			theirs.CPUMicros, mine.CPUMicros, mine.Rate/theirs.Rate, thousands(theirs.Rate), thousands(mine.Rate), theirs.ClientMicros, mine.ClientMicros)
		return theirs.CPUMicros / mine.CPUMicros, detail, nil
	}
}

func fifoShare(op string) func(*result) (float64, string, error) {
	return func(r *result) (float64, string, error) {
		strict, err := r.cellOf(ours, fifo, op)
		if err != nil {
			return 0, "", err
		}
		loose, err := r.cellOf(ours, standard, op)
		if err != nil {
			return 0, "", err
		}
		detail := fmt.Sprintf("%s/s and %s/s; server CPU %.1f and %.1f us", thousands(strict.Rate), thousands(loose.Rate), strict.CPUMicros, loose.CPUMicros)
		return strict.Rate / loose.Rate, detail, nil
	}
}

func cpuOf(kind, op string) func(*result) (float64, string, error) {
	return func(r *result) (float64, string, error) {
		c, err := r.cellOf(ours, kind, op)
		return c.CPUMicros, "", err
	}
}

func (r *result) ourFigure(name string) (figure, error) {
	f := r.figure(ours, name)
	if f.Error != "" {
		return f, fmt.Errorf("%w: %s", errOurs, f.Error)
	}
	return f, nil
}

func own(name string) func(*result) (float64, string, error) {
	return func(r *result) (float64, string, error) {
		f, err := r.ourFigure(name)
		return f.Value, f.Note, err
	}
}

// growth is the second figure as a multiple of the first.
func growth(names [2]string) func(*result) (float64, string, error) {
	return func(r *result) (float64, string, error) {
		small, err := r.ourFigure(names[0])
		if err != nil {
			return 0, "", err
		}
		large, err := r.ourFigure(names[1])
		if err != nil {
			return 0, "", err
		}
		if small.Short || large.Short {
			return 0, "", errors.New(small.Note + "; " + large.Note)
		}
		return large.Value / small.Value, fmt.Sprintf("%.2f ms and %.2f ms; %s", small.Value, large.Value, large.Note), nil
	}
}
