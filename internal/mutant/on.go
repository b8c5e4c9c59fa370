//go:build mutant

package mutant

import (
	"maps"
	"os"
	"slices"
)

const On = true

var (
	chosen = os.Getenv(Variable)
	asked  []string
)

var (
	AbandonedIsFailed     = is("abandoned-is-failed")
	BellBeforeClaim       = is("bell-before-claim")
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
