//go:build mutant

package mutant

import "os"

const On = true

var chosen = os.Getenv(Variable)

var (
	AbandonedIsFailed     = chosen == "abandoned-is-failed"
	BellBeforeClaim       = chosen == "bell-before-claim"
	CloseAfterCancel      = chosen == "close-after-cancel"
	DedupByPlace          = chosen == "dedup-by-place"
	GrantWithoutLease     = chosen == "grant-without-lease"
	NoSelfFence           = chosen == "no-self-fence"
	RepairIgnoresLog      = chosen == "repair-ignores-log"
	ServersClock          = chosen == "servers-clock"
	SweepWithoutHeartbeat = chosen == "sweep-without-heartbeat"
	WallClockLease        = chosen == "wall-clock-lease"
)
