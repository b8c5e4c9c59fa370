package main

import (
	"slices"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
)

// Steps are told to wait as long as a longer run lease lets them, and no shorter than by default.
func TestProcessesArePatientAsLongAsTheRunLeaseLetsThem(t *testing.T) {
	for lease, want := range map[time.Duration]string{
		12 * time.Second:                      "STEPFLEET_OUTAGE_SECONDS=150",
		stepfleet.DefaultLifetimes().RunLease: "STEPFLEET_OUTAGE_SECONDS=150",
		15 * time.Minute:                      "STEPFLEET_OUTAGE_SECONDS=750",
	} {
		l := stepfleet.DefaultLifetimes()
		l.RunLease = lease
		if env := (&workerCmd{}).storageEnv(l, "i"); !slices.Contains(env, want) {
			t.Errorf("run lease %s: %v, want %s", lease, env, want)
		}
	}
}

// The promise is that an outage of two minutes kills nobody (docs/guarantees.md). Whatever may end a step
// for it comes later, in this order: PostgreSQL ends its statement, it gives up itself, its worker kills it.
func TestTheDefaultsOutlastTheOutageThatIsPromised(t *testing.T) {
	const promised, back = 2 * time.Minute, 15 * time.Second // and until all who waited are answered
	l := stepfleet.DefaultLifetimes()
	c := &workerCmd{}
	if err := l.ValidateStatements(c.statementTimeout(l)); err != nil {
		t.Error(err)
	}
	for what, after := range map[string]time.Duration{
		"the statement timeout": c.statementTimeout(l),
		"the patience":          patience(l),
		"the worker's kill":     l.RunLease - l.Margin - l.Renew,
	} {
		if after < promised+back {
			t.Errorf("%s comes after %s: too soon for an outage of %s", what, after, promised)
		}
	}
	if kill := l.RunLease - l.Margin; patience(l) >= kill {
		t.Errorf("a step waits for %s, and is killed after %s: it never gives up by itself, with an event that says why", patience(l), kill)
	}
}
