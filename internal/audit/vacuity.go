package audit

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/stepfleet/stepfleet"
)

// Want is what a history must contain to prove anything. What is zero is not asked for.
type Want struct {
	Tasks           int      // that ended
	Runs            int      // that ended in Dagster
	Kinds           []string // of fault
	FaultsPerKind   int      // that landed
	FaultsPerMinute float64  // that landed
	// AnsweredShare is the least share of the clients' operations that was answered, SucceededShare
	// of the tasks that ended well.
	AnsweredShare, SucceededShare float64
	// Refusals of old owners and Recoveries of tasks by the sweep are what the protocol is for.
	Refusals, Recoveries int
	// Cases are the ids of the invariants that must have had a case to be judged by.
	Cases []string
}

// vacuous says what is missing.
func vacuous(want Want, report Report) []string {
	missing, got := []string{}, report.Counts
	say := func(format string, args ...any) { missing = append(missing, fmt.Sprintf(format, args...)) }
	ended := 0
	for state, n := range got.ByState {
		if state.Terminal() {
			ended += n
		}
	}
	if ended < want.Tasks {
		say("%d tasks ended, want at least %d", ended, want.Tasks)
	}
	if got.RunsEnded < want.Runs {
		say("%d runs ended in Dagster, want at least %d", got.RunsEnded, want.Runs)
	}
	for _, kind := range want.Kinds {
		i := slices.IndexFunc(got.FaultKinds, func(k FaultCount) bool { return k.Kind == kind })
		if landed := landedOf(got.FaultKinds, i); landed < want.FaultsPerKind {
			say("%d faults of kind %s landed, want at least %d", landed, kind, want.FaultsPerKind)
		}
	}
	if want.FaultsPerMinute > 0 {
		if rate := perMinute(got.Faults, got.Seconds); rate < want.FaultsPerMinute {
			say("%.1f faults a minute landed, want at least %.1f", rate, want.FaultsPerMinute)
		}
	}
	if share := share(got.Answered, got.Asked); want.AnsweredShare > 0 && share < want.AnsweredShare {
		say("%.0f %% of the clients' operations were answered, want at least %.0f %%", 100*share, 100*want.AnsweredShare)
	}
	if share := share(got.ByState[stepfleet.StateSucceeded], got.Tasks); want.SucceededShare > 0 && share < want.SucceededShare {
		say("%.0f %% of the tasks succeeded, want at least %.0f %%", 100*share, 100*want.SucceededShare)
	}
	if fenced := got.Refused[stepfleet.ErrFenced.Code]; fenced < want.Refusals {
		say("%d writes of old owners were refused, want at least %d", fenced, want.Refusals)
	}
	if got.Sweeps < want.Recoveries {
		say("%d tasks were taken from owners that were gone, want at least %d", got.Sweeps, want.Recoveries)
	}
	for _, held := range report.Invariants {
		if held.Cases == 0 && slices.Contains(want.Cases, held.ID) {
			say("%s had no case: %s", held.ID, cmp.Or(held.Unchecked, held.Sentence))
		}
	}
	return missing
}

func landedOf(kinds []FaultCount, i int) int {
	if i < 0 {
		return 0
	}
	return kinds[i].Landed
}

func share(part, whole int) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

func perMinute(n int, seconds float64) float64 {
	if seconds <= 0 {
		return 0
	}
	return float64(n) / seconds * float64(time.Minute/time.Second)
}
