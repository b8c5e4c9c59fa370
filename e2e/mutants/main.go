//go:build mutant

// Command mutants seeds one bug after another into the product and has the tests find it: the layers
// run from the cheapest on, a mutant's likely one first, until one fails. It prints which layer and
// which test caught which mutant, and how fast. Exit status 5 when one survives.
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
	survived := 0
	fmt.Printf("%-26s %-12s %8s  %s\n", "mutant", "caught by", "seconds", "test")
	for _, m := range chosen {
		began := time.Now()
		layer, test := r.hunt(m)
		if layer == "" {
			layer, test = "SURVIVED", m.lacks
			survived++
		}
		fmt.Printf("%-26s %-12s %8.1f  %s\n", m.name, layer, time.Since(began).Seconds(), test)
	}
	fmt.Printf("\nmutants: %d caught, %d survived\n", len(chosen)-survived, survived)
	if survived > 0 {
		os.Exit(exitFail)
	}
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
