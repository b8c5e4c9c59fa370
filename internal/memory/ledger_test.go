package memory_test

import (
	"errors"
	"testing"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/conformance"
	"github.com/stepfleet/stepfleet/internal/memory"
)

func TestLedgerConformance(t *testing.T) {
	conformance.RunLedger(t, func(*testing.T) conformance.LedgerEnv {
		l := memory.NewLedger()
		return conformance.LedgerEnv{Ledger: l, AgeSession: l.AgeSession, AgeLease: l.AgeLease}
	})
}

func TestLedgerFaults(t *testing.T) {
	l := memory.NewLedger()
	l.Fail = func(op string) error {
		if op == "beat" {
			return errors.New("cut off")
		}
		return nil
	}
	if _, err := l.Beat(t.Context(), "s"); !errors.Is(err, stepfleet.ErrUnavailable) {
		t.Errorf("fail before: %v", err)
	}
	l.FailAfter = func(string) error { return errors.New("answer lost") }
	if _, err := l.Register(t.Context(), stepfleet.SessionSpec{}); !errors.Is(err, stepfleet.ErrUnavailable) {
		t.Errorf("fail after: %v", err)
	}
	l.FailAfter = nil
	if all, err := l.Sessions(t.Context(), 0); err != nil || len(all) != 1 {
		t.Errorf("what failed after the commit has happened: %v %v", all, err)
	}
}

// TestLedgerSameAsItself tests the comparison: a ledger has the same answers as itself.
func TestLedgerSameAsItself(t *testing.T) {
	conformance.CompareLedgers(t, func(*testing.T) conformance.LedgerEnv {
		l := memory.NewLedger()
		return conformance.LedgerEnv{Ledger: l, AgeSession: l.AgeSession, AgeLease: l.AgeLease}
	})
}
