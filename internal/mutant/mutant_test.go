//go:build !mutant

package mutant_test

import (
	"testing"

	"github.com/stepfleet/stepfleet/internal/mutant"
)

// These are constants, or this does not compile: what stands behind one is not in the product.
const (
	_ = mutant.On || mutant.AbandonedIsFailed || mutant.BellBeforeClaim || mutant.ChildReused || mutant.CloseAfterCancel || mutant.DedupByPlace
	_ = mutant.GrantWithoutLease || mutant.NoSelfFence || mutant.RepairIgnoresLog || mutant.ServersClock
	_ = mutant.SweepWithoutHeartbeat || mutant.WallClockLease
)

// The environment makes no mutant of the product.
func TestTheProductHasNoMutant(t *testing.T) {
	t.Setenv(mutant.Variable, "settle-by-id")
	if got := mutant.Rewrite("SELECT 1"); mutant.On || got != "SELECT 1" {
		t.Error(got)
	}
}
