//go:build !chaos

package main

import "time"

// drifted is what this process's clock shows of the time that has passed. Only binaries that are built
// for chaos have a clock that is too fast or too slow.
func drifted(passed time.Duration) time.Duration { return passed }
