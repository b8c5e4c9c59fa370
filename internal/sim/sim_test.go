package sim

import (
	"bufio"
	"flag"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

var (
	seed  = flag.Uint64("seed", 1, "the first seed")
	seeds = flag.Uint64("seeds", 200, "how many seeds")
	most  = flag.Int("failures", 3, "how many seeds that break a promise are enough")
)

// sweep runs histories side by side, each in one thread, until there are no more seeds or stop says so.
func sweep(t *testing.T, first, n uint64, mutant Mutant, each func(Verdict) (more bool)) {
	t.Helper()
	var next atomic.Uint64
	next.Store(first)
	var mu sync.Mutex
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for {
				one := next.Add(1) - 1
				if one >= first+n {
					return
				}
				v, err := Run(Config{Seed: one, Mutant: mutant})
				mu.Lock()
				if err != nil {
					t.Errorf("seed %d: %v", one, err)
				}
				if !each(v) {
					next.Store(first + n)
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
}

// failed prints a history that broke a promise.
func failed(t *testing.T, v Verdict) {
	t.Helper()
	history, _, err := History(Config{Seed: v.Seed})
	t.Errorf("%s\nseed %d broke a promise (again: go test ./internal/sim -run EverySeed -seed %d -seeds 1):\n%s\n%v",
		history, v.Seed, v.Seed, strings.Join(v.Problems, "\n"), err)
}

func TestEverySeedKeepsThePromises(t *testing.T) {
	var sum Totals
	bad := 0
	sweep(t, *seed, *seeds, "", func(v Verdict) bool {
		sum.Add(v)
		if v.Failed() {
			failed(t, v)
			bad++
		}
		return bad < *most
	})
	t.Log(sum)
	if *seeds < 200 || t.Failed() {
		return
	}
	for _, what := range sum.Vacuous() {
		t.Errorf("%d seeds show too little: %s", *seeds, what)
	}
}

// TestFoundSeeds plays again what once broke a promise, as things are, and with the mistake that it was.
func TestFoundSeeds(t *testing.T) {
	file, err := os.Open("testdata/seeds.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for in := bufio.NewScanner(file); in.Scan(); {
		words := strings.Fields(in.Text())
		if words[0] == "#" {
			continue
		}
		n, err := strconv.ParseUint(words[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		v, err := Run(Config{Seed: n})
		if err != nil {
			t.Fatal(err)
		}
		if v.Failed() {
			failed(t, v)
		}
		mutant := Mutant(words[1])
		if mutant == "none" {
			continue
		}
		if v, _ := Run(Config{Seed: n, Mutant: mutant}); !v.Failed() {
			t.Errorf("seed %d does not find %s any more: take another one", n, mutant)
		}
	}
}

func TestASeedGivesTheSameHistory(t *testing.T) {
	seen := map[string]bool{}
	for n := uint64(1); n <= 10; n++ {
		first, _, err := History(Config{Seed: n})
		if err != nil {
			t.Fatal(err)
		}
		again, _, _ := History(Config{Seed: n})
		if first != again {
			t.Fatalf("seed %d gives two histories", n)
		}
		seen[first] = true
	}
	if len(seen) != 10 {
		t.Errorf("10 seeds give %d histories", len(seen))
	}
}

func TestEveryMutantIsCaught(t *testing.T) {
	if raceDetector {
		t.Skip("histories are of one thread each, and thousands of them take long under the race detector: see make sim")
	}
	const within = 1000
	for _, mutant := range Mutants {
		t.Run(string(mutant), func(t *testing.T) {
			var tried uint64
			var caught *Verdict
			sweep(t, 1, within, mutant, func(v Verdict) bool {
				tried++
				if v.Failed() && caught == nil {
					caught = &v
				}
				return caught == nil
			})
			if caught == nil {
				t.Fatalf("not caught within %d seeds", within)
			}
			t.Logf("caught by seed %d, the %d-th: %s", caught.Seed, tried, caught.Problems[0])
		})
	}
}
