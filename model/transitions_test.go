// Package model holds the protocol's models for the model checker spin; README.md explains them and
// scripts/model runs them.
package model

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepfleet/stepfleet"
)

var tableLine = regexp.MustCompile(`^\s*IS\(v,a,b, (\w+), +(\w+), +(\w+), +(\w+)\) *\\$`)

// The models move a task only by the lines between the two marks, and audit trails of real runs are
// checked against stepfleet.Transitions: it is the same table.
func TestTableIsTheStateMachine(t *testing.T) {
	var want []string
	for _, tr := range stepfleet.Transitions {
		from := string(tr.From)
		if from == "" {
			from = "new"
		}
		fence := map[stepfleet.FenceRule]string{
			stepfleet.FenceZero: "zero", stepfleet.FenceKeep: "keep", stepfleet.FenceRaise: "raise",
		}[tr.Fence]
		want = append(want, strings.Join([]string{string(tr.Verb), from, string(tr.To), fence}, " "))
	}
	got := table(t)
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("model/table.pml is not stepfleet.Transitions (-state.go +table.pml):\n%s", diff)
	}
}

// Each state and verb has a number of its own, or two of them would be one to the models.
func TestNumbersDiffer(t *testing.T) {
	for _, group := range [][]string{states(), verbs()} {
		seen := map[string]string{}
		for _, name := range group {
			number := define(t, name)
			if other, ok := seen[number]; ok {
				t.Errorf("%s and %s are both %s", name, other, number)
			}
			seen[number] = name
		}
	}
}

// The models take a state from succeeded on for a terminal one.
func TestTerminalStatesComeLast(t *testing.T) {
	for _, s := range stepfleet.States {
		last := define(t, strings.ToUpper(string(s))) >= define(t, "SUCCEEDED")
		if last != s.Terminal() {
			t.Errorf("%s: terminal is %t here and %t in the models", s, s.Terminal(), last)
		}
	}
}

func states() []string {
	names := []string{"NEW"}
	for _, s := range stepfleet.States {
		names = append(names, strings.ToUpper(string(s)))
	}
	return names
}

func verbs() []string {
	var names []string
	for _, tr := range stepfleet.Transitions {
		if name := strings.ToUpper(string(tr.Verb)); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func source(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("table.pml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// table returns the lines between the marks, in words.
func table(t *testing.T) []string {
	t.Helper()
	_, rest, found := strings.Cut(source(t), "/* transitions: begin */ \\\n")
	body, _, closed := strings.Cut(rest, "  /* transitions: end */")
	if !found || !closed {
		t.Fatal("table.pml has lost its marks")
	}
	var lines []string
	for line := range strings.Lines(body) {
		m := tableLine.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil {
			t.Fatalf("table.pml: no transition: %q", line)
		}
		lines = append(lines, strings.ToLower(strings.Join(m[1:], " ")))
	}
	return lines
}

// define returns a name's number in the models, padded to two digits.
func define(t *testing.T, name string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^#define ` + name + ` +(\d+)$`).FindStringSubmatch(source(t))
	if m == nil {
		t.Fatalf("table.pml does not define %s as a number", name)
	}
	return strings.Repeat("0", 2-len(m[1])) + m[1]
}
