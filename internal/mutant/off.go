//go:build !mutant

package mutant

import "time"

// On says that this binary can have mutants.
const On = false

// The mutants that Go code asks for.
const (
	AbandonedIsFailed     = false
	BellBeforeClaim       = false
	ChildReused           = false
	CloseAfterCancel      = false
	DedupByPlace          = false
	GrantWithoutLease     = false
	NoSelfFence           = false
	RepairIgnoresLog      = false
	ServersClock          = false
	SweepWithoutHeartbeat = false
	WallClockLease        = false
)

// Rewrite returns the statement as the chosen mutant has it.
func Rewrite(sql string) string { return sql }

// AwakeClock is the clock of the mutant that counts no suspend.
func AwakeClock() func() time.Time { return time.Now }
