package main

import (
	"time"

	"golang.org/x/sys/unix"
)

// suspendClock counts the time a suspended machine sleeps, which Go's monotonic clock does not: a
// laptop that wakes up must know that its leases have run out.
func suspendClock() func() time.Time {
	base := time.Now().Round(0)
	origin := boottime()
	return func() time.Time { return base.Add(drifted(boottime() - origin)) }
}

func boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every Linux that Go supports has it
	}
	return time.Duration(ts.Nano())
}
