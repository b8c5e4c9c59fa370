package main

import (
	"fmt"
	"html"
	"strings"
)

// Colours and measures of the picture, as in the other benchmarks'.
const (
	colorOurs   = "#2f7f79"
	colorOthers = "#e0a458"
	rowHeight   = 20
	topMargin   = 66
	labelWidth  = 110
	barWidth    = 200
	panelWidth  = 275
)

// picture draws a bar for each server: the server's CPU for a message, for each kind of load.
func picture(r *result) string {
	rows := len(r.Servers)
	height := topMargin + 30 + 2*(36+rowHeight*rows)
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 %d" width="960" height="%d" font-family="sans-serif" font-size="12">`+"\n", height, height)
	fmt.Fprintf(&out, `<rect width="960" height="%d" fill="#ffffff"/>`+"\n", height)
	out.WriteString(`<text x="20" y="24" font-size="16" font-weight="bold">SQS on one machine: server CPU for a message, us (messages a second)</text>` + "\n")
	subtitle := fmt.Sprintf("medians of %d; %d connections, %d-byte bodies, batches of ten; %d CPUs; commit %s",
		r.Plan.Repetitions, r.Plan.Connections, r.Plan.BodyBytes, r.Meta.CPUs, r.Meta.Commit)
	fmt.Fprintf(&out, `<text x="20" y="42" fill="#555555">%s</text>`+"\n", html.EscapeString(subtitle))
	for i, op := range ops {
		fmt.Fprintf(&out, `<text x="%d" y="%d" font-weight="bold">%s</text>`+"\n", labelWidth+i*panelWidth, topMargin+4, op)
	}
	y := topMargin
	for _, kind := range []string{standard, fifo} {
		y += 36
		fmt.Fprintf(&out, `<text x="20" y="%d" font-weight="bold">%s</text>`+"\n", y-8, kind)
		for i, s := range r.Servers {
			fmt.Fprintf(&out, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labelWidth-8, y+i*rowHeight+14, s.Name)
		}
		for i, op := range ops {
			drawBars(&out, r, kind, op, labelWidth+i*panelWidth, y)
		}
		y += rowHeight * rows
	}
	out.WriteString("</svg>\n")
	return out.String()
}

// drawBars draws one load's, below each other; the longest has the full width.
func drawBars(out *strings.Builder, r *result, kind, op string, left, top int) {
	longest := 0.0
	for _, s := range r.Servers {
		longest = max(longest, r.cell(s.Name, kind, op).CPUMicros)
	}
	for i, s := range r.Servers {
		c := r.cell(s.Name, kind, op)
		y := top + i*rowHeight
		length, text, color := 0.0, "-", colorOthers
		if c.reason == "" && longest > 0 {
			length, text = barWidth*c.CPUMicros/longest, fmt.Sprintf("%s (%s)", thousands(c.CPUMicros+0.5), thousands(c.Rate))
		}
		if s.Name == ours {
			color = colorOurs
		}
		fmt.Fprintf(out, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", left, y+3, length, rowHeight-6, color)
		// A long bar carries its figures, so that they do not run into the next panel.
		x, anchor := float64(left)+length+5, "start"
		if length > barWidth/2 {
			x, anchor = float64(left)+length-5, "end"
		}
		fmt.Fprintf(out, `<text x="%.1f" y="%d" text-anchor="%s">%s</text>`+"\n", x, y+14, anchor, text)
	}
}
