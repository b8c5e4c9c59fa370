//go:build mutant

package mutant

import (
	"maps"
	"os"
	"slices"
	"sync"
	"time"
)

const On = true

var (
	chosen = os.Getenv(Variable)
	asked  []string
)

var (
	AbandonedIsFailed     = is("abandoned-is-failed")
	BellBeforeClaim       = is("bell-before-claim")
	ChildReused           = is("child-reused")
	CloseAfterCancel      = is("close-after-cancel")
	DedupByPlace          = is("dedup-by-place")
	GrantWithoutLease     = is("grant-without-lease")
	NoSelfFence           = is("no-self-fence")
	RepairIgnoresLog      = is("repair-ignores-log")
	ServersClock          = is("servers-clock")
	SweepWithoutHeartbeat = is("sweep-without-heartbeat")
	WallClockLease        = is("wall-clock-lease")
)

func is(name string) bool {
	asked = append(asked, name)
	return chosen == name
}

// Names are the mutants of the Go code.
func Names() []string { return append(slices.Collect(maps.Keys(changes)), asked...) }

// awakeStep is the longest time that a process which runs is taken to have done nothing.
const awakeStep = 200 * time.Millisecond

// AwakeClock does not count the time for which the process was stopped. To a process that is what the time of
// a machine's suspend is to it: Go's own clock does not count that one.
func AwakeClock() func() time.Time {
	var mu sync.Mutex
	last := time.Now()
	now := last
	tick := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		at := time.Now()
		now, last = now.Add(min(at.Sub(last), awakeStep)), at
		return now
	}
	go func() {
		for range time.Tick(awakeStep / 4) {
			tick()
		}
	}()
	return tick
}
