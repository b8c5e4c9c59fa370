//go:build linux

package e2e

import (
	"testing"

	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// Each step is a process of its own; some fifty of them wait ready, each with a connection.
func TestStepsHandConnectionsOn(t *testing.T) {
	s := shared(t)
	run := s.dagster.launch(t, "connections", config{
		ops: map[string]any{"split": map[string]any{"count": 200}},
	})
	s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
}
