//go:build mutant

// Command mutants seeds one bug after another into the product and has the proofs find it: properties of the
// ledger, the simulator, failpoints and chaos. A mutant's likely one runs first, then the others, until one
// fails. It prints which layer caught which mutant, how, and how fast. Exit status 5 when one survives.
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/internal/mutant"
)

// exitFail is the exit status of a verdict that is not good.
const exitFail = 5

func main() {
	dir := flag.String("dir", ".cache/mutants", "where scripts/mutants has put the test binaries")
	python := flag.String("python", ".venv/bin/python", "an interpreter with Dagster and the plugin")
	limit := flag.Duration("limit", 20*time.Minute, "after which a mutant that is not caught counts as survived")
	flag.Parse()
	chosen, err := pick(flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(2)
	}
	r, err := newRunner(*dir, *python, *limit)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
	if err := r.table(chosen); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
	if r.survived > 0 {
		os.Exit(exitFail)
	}
}

// table hunts each mutant, and prints what caught it.
func (r *runner) table(chosen []seeded) error {
	began := time.Now()
	fmt.Printf("  %-27s %-11s %8s  %s\n", "mutant", "caught by", "seconds", "how")
	for _, m := range chosen {
		began := time.Now()
		layer, verdict, err := r.hunt(m)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if layer == "" {
			layer, verdict = "SURVIVED", "nobody misses that "+m.lacks
			r.survived++
		}
		mark := " "
		if m.row8 {
			mark = "*"
		}
		fmt.Printf("%s %-27s %-11s %8.1f  %.140s\n", mark, m.name, layer, time.Since(began).Seconds(), verdict)
	}
	fmt.Printf("\n* one of the bugs that the proofs were built to find. In all %.0f s, controls included.\n", time.Since(began).Seconds())
	fmt.Printf("mutants: %d caught, %d survived\n", len(chosen)-r.survived, r.survived)
	return nil
}

// pick returns the named mutants, or all of them, once it has seen that the list is complete.
func pick(names []string) ([]seeded, error) {
	var listed, picked []seeded
	var inGo []string
	for _, m := range mutants {
		listed = append(listed, m)
		if !m.python {
			inGo = append(inGo, m.name)
		}
		if len(names) == 0 || slices.Contains(names, m.name) {
			picked = append(picked, m)
		}
	}
	known := mutant.Names()
	slices.Sort(known)
	slices.Sort(inGo)
	if !slices.Equal(known, inGo) {
		return nil, fmt.Errorf("internal/mutant has the mutants %s; this list has %s", strings.Join(known, ", "), strings.Join(inGo, ", "))
	}
	if len(names) > 0 && len(picked) != len(names) {
		return nil, fmt.Errorf("some of %s are no mutants", strings.Join(names, ", "))
	}
	if len(names) == 0 {
		return listed, nil
	}
	return picked, nil
}
