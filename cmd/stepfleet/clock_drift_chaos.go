//go:build chaos

package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

// clockRate is how fast the clock of leases runs, by STEPFLEET_CHAOS_CLOCK_RATE. The wall clock is
// another matter: see internal/chaos/clock.
var clockRate = rate(os.Getenv("STEPFLEET_CHAOS_CLOCK_RATE"))

func rate(text string) float64 {
	if text == "" {
		return 1
	}
	rate, err := strconv.ParseFloat(text, 64)
	if err != nil {
		panic(fmt.Sprintf("STEPFLEET_CHAOS_CLOCK_RATE: %v", err))
	}
	return rate
}

// drifted is what this process's clock shows of the time that has passed.
func drifted(passed time.Duration) time.Duration { return time.Duration(float64(passed) * clockRate) }
