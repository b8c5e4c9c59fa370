package sim

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stepfleet/stepfleet"
)

// Totals is what many histories have seen together.
type Totals struct {
	Seeds   int
	Failed  int
	Tasks   int
	Rows    int
	Sweeps  int
	ByState map[stepfleet.State]int
	Refused map[string]int
}

// Add takes a verdict.
func (t *Totals) Add(v Verdict) {
	if t.Seeds++; t.Seeds == 1 {
		t.ByState, t.Refused = map[stepfleet.State]int{}, map[string]int{}
	}
	if v.Failed() {
		t.Failed++
	}
	t.Tasks += v.Counts.Tasks
	t.Rows += v.Counts.AuditRows
	t.Sweeps += v.Counts.Sweeps
	for state, n := range v.Counts.ByState {
		t.ByState[state] += n
	}
	for code, n := range v.Counts.Refused {
		t.Refused[code] += n
	}
}

// Vacuous says what the histories have not seen.
func (t Totals) Vacuous() (missing []string) {
	for _, state := range []stepfleet.State{stepfleet.StateSucceeded, stepfleet.StateFailed, stepfleet.StateCancelled, stepfleet.StateLost} {
		if t.ByState[state] == 0 {
			missing = append(missing, "no task ended as "+string(state))
		}
	}
	for _, r := range []*stepfleet.Refusal{stepfleet.ErrFenced, stepfleet.ErrSessionDead, stepfleet.ErrSuperseded, stepfleet.ErrRunClosed} {
		if t.Refused[r.Code] == 0 {
			missing = append(missing, "nobody was refused as "+r.Code)
		}
	}
	if 20*t.Sweeps < t.Tasks {
		missing = append(missing, fmt.Sprintf("the server took %d of %d tasks from their owners", t.Sweeps, t.Tasks))
	}
	return missing
}

func (t Totals) String() string {
	return fmt.Sprintf("seeds=%d failed=%d tasks=%d (%s) refusals (%s) swept=%d audit_rows=%d",
		t.Seeds, t.Failed, t.Tasks, counts(t.ByState), counts(t.Refused), t.Sweeps, t.Rows)
}

func counts[K ~string](of map[K]int) string {
	var words []string
	for _, key := range slices.Sorted(maps.Keys(of)) {
		words = append(words, fmt.Sprintf("%s=%d", key, of[key]))
	}
	return strings.Join(words, " ")
}
