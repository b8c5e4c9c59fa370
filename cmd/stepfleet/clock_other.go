//go:build !linux

package main

import "time"

// suspendClock is the wall clock where there is no monotonic one that counts suspend.
func suspendClock() func() time.Time {
	return func() time.Time { return time.Now().Round(0) }
}
