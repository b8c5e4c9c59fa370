package chaos

import (
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/internal/proctable"
)

// templateOf returns the process that forks a worker's children.
func templateOf(worker int) (proctable.Process, bool) {
	for _, p := range proctable.Descendants(worker) {
		if p.Parent == worker && strings.Contains(p.Command, "dagster_stepfleet.host template") {
			return p, true
		}
	}
	return proctable.Process{}, false
}

// look is how often the state of a process is looked at: a signal says nothing of its effect.
const look = 5 * time.Millisecond

// within waits until the condition holds, at most so long.
func within(wait time.Duration, condition func() bool) bool {
	for deadline := time.Now().Add(wait); ; time.Sleep(look) {
		if condition() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}
