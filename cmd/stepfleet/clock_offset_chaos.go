//go:build chaos || failpoint

package main

import (
	"fmt"
	"os"
	"time"
)

// clockOffset is by how much this process's clock is wrong, by STEPFLEET_CLOCK_OFFSET.
func clockOffset() time.Duration {
	text := os.Getenv("STEPFLEET_CLOCK_OFFSET")
	if text == "" {
		return 0
	}
	offset, err := time.ParseDuration(text)
	if err != nil {
		panic(fmt.Sprintf("STEPFLEET_CLOCK_OFFSET: %v", err))
	}
	return offset
}
