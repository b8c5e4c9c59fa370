//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
)

// effect is one line of the effect log: what user code says of itself.
type effect struct {
	Event string `json:"event"` // begin, end, error
	stepfleet.Key
	PID    int     `json:"pid"`
	Worker string  `json:"worker"`
	At     float64 `json:"at"` // Unix seconds
}

func (e effect) time() time.Time { return time.UnixMicro(int64(e.At * 1e6)) }

// readEffects returns the effects of the runs, of all without any.
func (s *stack) readEffects(t *testing.T, runs ...string) []effect {
	t.Helper()
	raw, err := os.ReadFile(s.effects)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("read the effect log: %v", err)
	}
	wanted := map[string]bool{}
	for _, run := range runs {
		wanted[run] = true
	}
	var effects []effect
	for line := range bytes.Lines(raw) {
		var e effect
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("effect log: %v: %s", err, line)
		}
		if len(runs) == 0 || wanted[e.RunID] {
			effects = append(effects, e)
		}
	}
	return effects
}

// begins returns the first begin of each attempt of the runs.
func (s *stack) begins(t *testing.T, runs ...string) map[stepfleet.Key]effect {
	t.Helper()
	return firstOf("begin", s.readEffects(t, runs...))
}

func firstOf(event string, effects []effect) map[stepfleet.Key]effect {
	first := map[stepfleet.Key]effect{}
	for _, e := range effects {
		if _, known := first[e.Key]; e.Event == event && !known {
			first[e.Key] = e
		}
	}
	return first
}

// awaitBegins waits until n attempts of the runs have begun.
func (s *stack) awaitBegins(t *testing.T, timeout time.Duration, n int, runs ...string) map[stepfleet.Key]effect {
	t.Helper()
	var begins map[stepfleet.Key]effect
	deadline := time.Now().Add(timeout)
	for {
		if begins = s.begins(t, runs...); len(begins) >= n {
			return begins
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %d begins of %d runs; there are %d. %s", timeout, n, len(runs), len(begins), s.standing(t, runs))
		}
		time.Sleep(pollInterval)
	}
}

// standing says how runs stand in Dagster and in the ledger: where a step that does not begin waits.
func (s *stack) standing(t *testing.T, runs []string) string {
	t.Helper()
	var text strings.Builder
	for _, run := range runs {
		status, err := s.dagster.status(run)
		fmt.Fprintf(&text, "run %s: Dagster %s %v, ledger: %s. ", run, status, err, s.server.tasks(t, run))
	}
	return text.String()
}

// beganTwice returns the attempts, of all runs, whose code was started more than once.
func (s *stack) beganTwice(t *testing.T) []stepfleet.Key {
	t.Helper()
	count := map[stepfleet.Key]int{}
	var twice []stepfleet.Key
	for _, e := range s.readEffects(t) {
		if e.Event != "begin" {
			continue
		}
		if count[e.Key]++; count[e.Key] == 2 {
			twice = append(twice, e.Key)
		}
	}
	return twice
}
