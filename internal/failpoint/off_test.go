//go:build !failpoint

package failpoint_test

import (
	"testing"

	"github.com/stepfleet/stepfleet/internal/failpoint"
	"github.com/stepfleet/stepfleet/internal/memory"
)

// The environment makes nothing of the product fail.
func TestTheProductHasNoFailpoint(t *testing.T) {
	t.Setenv(failpoint.Variable, "submit.before=kill@1")
	if err := failpoint.Hit("submit.before"); err != nil || failpoint.On {
		t.Error(err)
	}
	ledger := memory.NewLedger()
	if failpoint.Ledger(ledger) != ledger {
		t.Error("something stands around the ledger")
	}
}
