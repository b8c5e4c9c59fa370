package audit_test

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
)

// twiceLost is a step whose first two attempts were lost, and what its log says of the second one's start
// meanwhile, and after it was given up.
func twiceLost(t *testing.T, timely, late, startThird bool) *story {
	t.Helper()
	s := &story{}
	synctest.Test(t, func(t *testing.T) {
		tl := newTeller(t, s)
		tl.epoch("r")
		tl.event("r", "", "PIPELINE_START")
		for attempt := range 2 {
			name := fmt.Sprint(attempt)
			session := tl.register(name)
			tl.submit("r", "s", attempt)
			tl.must(tl.ledger.Start(tl.ctx, session, []stepfleet.Ref{tl.claim(session, 1)[0].Ref}))
			if attempt == 0 {
				tl.event("r", "s", "STEP_START")
			} else if timely {
				tl.event("r", "s", "STEP_RESTARTED")
			}
			tl.must(tl.ledger.DeclareDead(tl.ctx, name, "killed"))
			tl.lose()
			tl.event("r", "s", "STEP_UP_FOR_RETRY")
			tl.adjudicate("r", "s", attempt)
		}
		tl.submit("r", "s", 2)
		if late {
			tl.event("r", "s", "STEP_RESTARTED")
		}
		if startThird {
			session := tl.register("third")
			tl.run(session, tl.claim(session, 1)[0], stepfleet.StateSucceeded, "STEP_SUCCESS")
		}
		tl.collect("r")
	})
	return s
}

// An attempt that was given up may write its start when the next one is under way: it is neither that one's
// second start, nor one without the ledger's leave.
func TestALateStartOfALaterAttemptIsItsOwn(t *testing.T) {
	for name, c := range map[string]struct {
		timely, late, startThird bool
		want                     audit.Verdict
	}{
		"in time":                    {true, false, true, audit.Pass},
		"never":                      {false, false, true, audit.Pass},
		"late":                       {false, true, true, audit.Pass},
		"while the next one waits":   {false, true, false, audit.Pass},
		"in time, and a third start": {true, true, true, audit.Fail},
		"in time, and one too early": {true, true, false, audit.Fail},
	} {
		if report := check(t, twiceLost(t, c.timely, c.late, c.startThird).ledgerAlone()); report.Verdict != c.want {
			t.Errorf("%s: %s, want %s: %+v", name, report.Verdict, c.want, report.Violations)
		}
	}
}
