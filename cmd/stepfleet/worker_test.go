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
		12 * time.Second:                      "STEPFLEET_OUTAGE_SECONDS=120",
		stepfleet.DefaultLifetimes().RunLease: "STEPFLEET_OUTAGE_SECONDS=120",
		15 * time.Minute:                      "STEPFLEET_OUTAGE_SECONDS=600",
	} {
		l := stepfleet.DefaultLifetimes()
		l.RunLease = lease
		if env := (&workerCmd{}).storageEnv(l, "i"); !slices.Contains(env, want) {
			t.Errorf("run lease %s: %v, want %s", lease, env, want)
		}
	}
}
