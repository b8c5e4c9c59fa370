package policy

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
)

// Pages whose every promise names what proves it.
const (
	guaranteesPage = "docs/guarantees.md"
	failuresPage   = "docs/failures.md"
)

// withoutProof is what a row without a proof must say.
var withoutProof = []string{"not built", "not tested"}

var (
	codeSpan   = regexp.MustCompile("`([^`]+)`")
	testName   = regexp.MustCompile(`^(Test|Fuzz|test_)`)
	goTest     = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	goSubtest  = regexp.MustCompile(`(?:t\.Run\(|^\t)"([^"]+)"(?:,|:)`)
	pythonTest = regexp.MustCompile(`(?m)^\s*(?:async )?def (test_\w+)\(`)
)

// proofs are what a page may name: tests, kinds of chaos, and searches of the models.
func proofs(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{}
	for _, kind := range schedule.Kinds {
		known[string(kind)] = true
	}
	for _, line := range strings.Split(read(t, "model/runs"), "\n") {
		if fields := strings.Split(line, "|"); len(fields) > 2 && !strings.HasPrefix(line, "#") {
			known[strings.TrimSpace(fields[2])] = true
		}
	}
	walk(t, func(path string) {
		pattern := testsIn(filepath.Base(path))
		if pattern == nil {
			return
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range pattern.FindAllStringSubmatch(read(t, rel), -1) {
			known[found[1]] = true
		}
	})
	return known
}

// testsIn finds the tests of a file by its name; nil where there are none.
func testsIn(file string) *regexp.Regexp {
	switch {
	case strings.HasSuffix(file, "_test.go"):
		return goTest
	case strings.HasPrefix(file, "test_") && strings.HasSuffix(file, ".py"):
		return pythonTest
	}
	return nil
}

// subtests are the names of examples and of subtests, anywhere.
func subtests(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{}
	walk(t, func(path string) {
		if !strings.HasSuffix(path, "_test.go") && !strings.Contains(path, "/internal/conformance/") {
			return
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(read(t, rel), "\n") {
			for _, found := range goSubtest.FindAllStringSubmatch(line, -1) {
				known[found[1]] = true
			}
		}
	})
	return known
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// spans are the code spans of a text.
func spans(text string) (out []string) {
	for _, found := range codeSpan.FindAllStringSubmatch(text, -1) {
		out = append(out, found[1])
	}
	return out
}

// unproven are the names among the spans that nothing has; strict, all of them must be names.
func unproven(names []string, known, parts map[string]bool, strict bool) (out []string) {
	for _, name := range names {
		if !strict && !testName.MatchString(name) {
			continue
		}
		whole, part, isPart := strings.Cut(name, "/")
		if !known[whole] || isPart && !parts[part] {
			out = append(out, name)
		}
	}
	return out
}

// cells are those of a row of a table; nil for its head and for what is no row.
func cells(lines []string, i int) []string {
	isRow := func(i int) bool { return i < len(lines) && strings.HasPrefix(lines[i], "|") }
	isRule := func(i int) bool { return isRow(i) && strings.HasPrefix(lines[i], "|--") }
	if !isRow(i) || isRule(i) || isRule(i+1) {
		return nil
	}
	return strings.Split(strings.Trim(lines[i], "|"), "|")
}

func TestEveryFaultHasAProofThatExists(t *testing.T) {
	known, parts := proofs(t), subtests(t)
	lines := strings.Split(read(t, failuresPage), "\n")
	rows := 0
	for i := range lines {
		row := cells(lines, i)
		if row == nil {
			continue
		}
		rows++
		fault, proof := strings.TrimSpace(row[0]), row[len(row)-1]
		if len(row) != 5 {
			t.Errorf("%s: the row %q has %d cells, not 5", failuresPage, fault, len(row))
		}
		names := spans(proof)
		admits := slices.ContainsFunc(withoutProof, func(s string) bool { return strings.Contains(proof, s) })
		if len(names) == 0 && !admits {
			t.Errorf("%s: the row %q names no test: add one, or say %q", failuresPage, fault, withoutProof)
		}
		for _, name := range unproven(names, known, parts, true) {
			t.Errorf("%s: the row %q rests on %s, which is no test, kind of chaos or search of a model", failuresPage, fault, name)
		}
	}
	if rows < 40 {
		t.Errorf("%s has %d rows: has the form of its tables changed?", failuresPage, rows)
	}
}

func TestEveryGuaranteeHasAProofThatExists(t *testing.T) {
	known, parts := proofs(t), subtests(t)
	page := read(t, guaranteesPage)
	for _, name := range unproven(spans(page), known, parts, false) {
		t.Errorf("%s rests on %s, which is no test", guaranteesPage, name)
	}
	sections := 0
	for _, section := range strings.Split(page, "\n## ")[1:] {
		title, text, _ := strings.Cut(section, "\n")
		promises := strings.Contains(text, "**You get.**")
		_, proof, has := strings.Cut(text, "**Proof.**")
		if promises != has {
			t.Errorf("%s: %q promises something and names no proof, or the other way round", guaranteesPage, title)
		}
		if !has {
			continue
		}
		sections++
		proof, _, _ = strings.Cut(proof, "\n\n")
		names := spans(proof)
		if len(names) == 0 {
			t.Errorf("%s: %q names no test", guaranteesPage, title)
		}
		for _, name := range unproven(names, known, parts, true) {
			t.Errorf("%s: %q rests on %s, which is no test, kind of chaos or search of a model", guaranteesPage, title, name)
		}
	}
	if sections < 6 {
		t.Errorf("%s has %d guarantees: has its form changed?", guaranteesPage, sections)
	}
}
