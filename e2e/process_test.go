//go:build linux

package e2e

import (
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/internal/proctable"
)

func living(all []proctable.Process) []proctable.Process {
	var alive []proctable.Process
	for _, p := range all {
		if p.Alive() {
			alive = append(alive, p)
		}
	}
	return alive
}

// awaitGone waits for the processes to be gone and returns how long after since the last one was.
func awaitGone(t *testing.T, timeout time.Duration, since time.Time, all []proctable.Process) time.Duration {
	t.Helper()
	for {
		alive := living(all)
		took := time.Since(since)
		if len(alive) == 0 {
			return took
		}
		if took > timeout {
			t.Errorf("%d of %d processes still live after %s: %+v", len(alive), len(all), timeout, alive)
			return took
		}
		time.Sleep(pollInterval / 4)
	}
}
