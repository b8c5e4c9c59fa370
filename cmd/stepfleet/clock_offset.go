//go:build !chaos && !failpoint

package main

import "time"

// clockOffset is by how much this process's clock is wrong. Only binaries that are built to be
// tested under faults have one.
func clockOffset() time.Duration { return 0 }
