package sim

import (
	"flag"
	"testing"
)

var (
	seed  = flag.Uint64("seed", 1, "the first seed")
	seeds = flag.Int("seeds", 200, "how many seeds")
)

func TestEverySeedKeepsThePromises(t *testing.T) {
	bad := 0
	for n := *seed; n < *seed+uint64(*seeds); n++ {
		v, err := Run(Config{Seed: n})
		if err != nil {
			t.Fatal(err)
		}
		if v.Failed() {
			history, _, _ := History(Config{Seed: n})
			t.Errorf("seed %d: %q", n, v.Problems)
			if bad++; *seeds == 1 {
				t.Log("\n" + history)
			}
			if bad > 10 {
				t.FailNow()
			}
		}
	}
}
