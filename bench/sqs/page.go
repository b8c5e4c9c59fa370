package main

import (
	"fmt"
	"slices"
	"strings"
)

// quietRate is what a quiet machine should reach with single sends; it is told, not judged.
const quietRate = 10_000

// page is the result as a page: rates, the other quantities, bars, and what it was measured with.
func page(r *result, pictureName string) string {
	parts := []string{
		"# The local SQS beside other servers",
		writtenBy(r),
		"![bars of the first table](" + pictureName + ")",
		"Messages a second, and microseconds of the server's and of the client's CPU for a message. The server's CPU is what tells" +
			" servers apart: a rate says as much about the client, which shares the machine.",
		table(rateRows(r)),
		quietLine(r),
		"## Other quantities",
		"Cycles: a send, a receive and a delete, one after the other on one connection, p99 in ms; " + sizes(r.Plan) +
			" Long polls: ms, p50. Lateness: ms, p99. Memory: bytes of resident memory a message adds, without its body.",
		table(figureRows(r)),
		notes(r),
		"## Bars",
		"```\n" + verdictTable(r) + "```",
		"## Measured with",
		measuredWith(r),
	}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "\n\n") + "\n"
}

func writtenBy(r *result) string {
	changed := ""
	if r.Meta.Dirty {
		changed = " with changes"
	}
	return fmt.Sprintf("Written by `make bench-sqs`; every sample is in the JSON file beside it. Begun %s, commit %s%s, %.0f s. Medians of %d.",
		r.Meta.BegunAt.Format("2006-01-02T15:04:05Z07:00"), r.Meta.Commit, changed, r.Meta.Seconds, r.Plan.Repetitions)
}

func sizes(p plan) string {
	return fmt.Sprintf("backlogs of %s and %s on a standard queue, %s and %s groups with a backlog of %s on a FIFO queue.",
		thousands(p.Backlogs[0]), thousands(p.Backlogs[1]), thousands(p.CycleGroup[0]), thousands(p.CycleGroup[1]), thousands(p.CycleGroup[1]))
}

func quietLine(r *result) string {
	c := r.cell(ours, standard, opSend)
	if c.reason != "" {
		return ""
	}
	reached := "reached"
	if c.Rate < quietRate {
		reached = "not reached"
	}
	return fmt.Sprintf("A quiet machine should reach %s single sends a second: %s in this run, with %s and a load of %.1f to %.1f.",
		thousands(quietRate), reached, thousands(c.Rate), r.Meta.LoadBefore, r.Meta.LoadAfter)
}

func rateRows(r *result) [][]string {
	rows := [][]string{{"server", "queue"}}
	for _, op := range ops {
		rows[0] = append(rows[0], op+" /s", "us CPU", "client's")
	}
	for _, s := range r.Servers {
		for _, kind := range []string{standard, fifo} {
			row := []string{s.Name, kind}
			for _, op := range ops {
				if c := r.cell(s.Name, kind, op); c.reason == "" {
					row = append(row, thousands(c.Rate), fmt.Sprintf("%.1f", c.CPUMicros), fmt.Sprintf("%.1f", c.ClientMicros))
				} else {
					row = append(row, "-", "-", "-")
				}
			}
			rows = append(rows, row)
		}
	}
	return rows
}

func figureNames() []string {
	return slices.Concat(cycleBacklog[:], cycleGroups[:], []string{pollLatency, idleCPU, lateVisibility, memoryPerMessage})
}

func figureRows(r *result) [][]string {
	rows := [][]string{{"quantity"}}
	for _, s := range r.Servers {
		rows[0] = append(rows[0], s.Name)
	}
	for _, name := range figureNames() {
		row := []string{name}
		for _, s := range r.Servers {
			f := r.figure(s.Name, name)
			text := fmt.Sprintf("%.2f", f.Value)
			switch {
			case f.Error != "":
				text = "-"
			case f.Unit == "bytes":
				text = thousands(f.Value)
			case f.CPUMicros > 0:
				text += fmt.Sprintf(" (%.0f us CPU)", f.CPUMicros)
			}
			row = append(row, text)
		}
		rows = append(rows, row)
	}
	return rows
}

// notes says why something was not measured, and what was measured otherwise than asked.
func notes(r *result) string {
	var lines []string
	for _, s := range r.Servers {
		if s.Missing != "" {
			lines = append(lines, fmt.Sprintf("- %s was not measured: %s", s.Name, s.Missing))
			continue
		}
		if s.SilentBatches {
			lines = append(lines, fmt.Sprintf("- %s answers batch sends in a shape that clients do not know: they see neither success"+
				" nor failure, and verify nothing, which takes work off the client", s.Name))
		}
		for _, kind := range []string{standard, fifo} {
			for _, op := range ops {
				c := r.cell(s.Name, kind, op)
				if c.reason != "" {
					lines = append(lines, fmt.Sprintf("- %s, %s, %s: %s", s.Name, kind, op, c.reason))
				}
				if c.broken > 0 {
					lines = append(lines, fmt.Sprintf("- %s, %s, %s: %d calls were lost with their connection, and are not counted", s.Name, kind, op, c.broken))
				}
			}
		}
		for _, name := range figureNames() {
			f := r.figure(s.Name, name)
			if text := f.Error + f.Note; text != "" && text != errNotMeasured {
				lines = append(lines, fmt.Sprintf("- %s, %s: %s", s.Name, name, text))
			}
		}
	}
	for i, line := range lines {
		lines[i] = strings.ReplaceAll(line, "\n", "; ")
	}
	return strings.Join(lines, "\n")
}

// table is a Markdown table; the first row is its head.
func table(rows [][]string) string {
	var out strings.Builder
	for i, row := range rows {
		out.WriteString("| " + strings.Join(row, " | ") + " |\n")
		if i == 0 {
			out.WriteString(strings.Repeat("|---", len(row)) + "|\n")
		}
	}
	return strings.TrimSuffix(out.String(), "\n")
}

func verdictTable(r *result) string {
	var out strings.Builder
	for _, v := range judge(r) {
		value := fmt.Sprintf("%.2f", v.value)
		if v.value == 0 && v.detail != "" && v.word != pass {
			value = "-"
		}
		fmt.Fprintln(&out, strings.TrimRight(fmt.Sprintf("%-12s  %-52s %8s  %-7s  %s", v.word, v.quantity, value, v.must, v.detail), " "))
	}
	return out.String()
}

func measuredWith(r *result) string {
	versions := make([]string, 0, len(r.Servers))
	for _, s := range r.Servers {
		versions = append(versions, s.Name+" "+s.Version)
	}
	p := r.Plan
	return strings.Join([]string{
		"- " + strings.Join(versions, ", ") + "; " + r.Meta.Go + "; Linux " + r.Meta.Kernel,
		fmt.Sprintf("- %d CPUs (%s), client and servers on them; load before %.1f, after %.1f", r.Meta.CPUs, r.Meta.CPUModel, r.Meta.LoadBefore, r.Meta.LoadAfter),
		fmt.Sprintf("- aws-sdk-go-v2 over loopback, %d connections, a closed loop, bodies of %d bytes; %v for each load, on a queue of its own",
			p.Connections, p.BodyBytes, p.Stage),
		fmt.Sprintf("- FIFO: %s message groups in turn, a deduplication id for each message", thousands(p.Groups)),
		"- receive+delete takes ten at a time from the backlog that the two loads before it left, until all is received or the time is over",
		"- each load is done on one server right after the other, in each repetition with another one first; one repetition before them warms up",
		"- CPU and resident memory of the server's process group, from /proc; the client's CPU from getrusage",
	}, "\n")
}
