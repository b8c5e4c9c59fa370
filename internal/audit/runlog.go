package audit

import (
	"strings"

	"github.com/stepfleet/stepfleet"
)

// The events of Dagster that begin a run, ask for its end, and end it.
const (
	runStart     = "PIPELINE_START"
	runCanceling = "PIPELINE_CANCELING"
	runCanceled  = "PIPELINE_CANCELED"
	runSuccess   = "PIPELINE_SUCCESS"
	runFailure   = "PIPELINE_FAILURE"
)

// RunEvents are the types of a run's own events that a check needs of Dagster's log.
var RunEvents = []string{runStart, runCanceling, runCanceled, runSuccess, runFailure}

// runLog is what Dagster's log, and the ledger, say of how a run began and ended.
type runLog struct {
	ends      []string // all events that end it
	begun     bool
	steps     bool // it has events of steps
	unbegun   bool // an end came before its run worker had begun it
	cancelled bool // somebody has asked for its end
	carried   bool // its run worker is a task
	bereft    bool // its end was left to the server: all its run workers were gone
}

// take takes an event of the run that is about none of its steps.
func (r *runLog) take(kind string) {
	switch kind {
	case runStart:
		r.begun = true
	case runCanceling:
		r.cancelled = true
	case runCanceled, runSuccess, runFailure:
		r.cancelled = r.cancelled || kind == runCanceled
		r.unbegun = r.unbegun || !r.begun
		r.ends = append(r.ends, kind)
	}
}

// beheaded reports whether the log has steps of the run and not its begin: it was deleted while they went on.
func (r *runLog) beheaded() bool { return r.steps && !r.begun }

// allowed is how many ends the log may have. Dagster itself ends a run without asking its run worker when
// somebody forces the end or the run has taken too long, when it could not launch the run, and where
// another launcher's run worker does not answer; the run worker may be about to write its own. Where
// the server has seen all run workers end before it has the run marked, nobody is left who may.
func (r *runLog) allowed() int {
	if !r.bereft && (r.cancelled || r.unbegun || !r.carried) {
		return 2
	}
	return 1
}

// endsOnce counts all ends in the log: a resumed run is the same run, and a run that is executed again is
// another. What the ledger has to say of them is of the window; where that shows neither the run worker nor the
// run's closing, two ends are allowed.
func endsOnce(f *facts, v *finding) {
	if f.Dagster == nil {
		v.unchecked("there is no event log of Dagster")
		return
	}
	if why := f.nothingLogged(); why != "" {
		v.unchecked(why)
	}
	for id, r := range f.runs {
		if r.tasks == 0 || len(r.log.ends) == 0 {
			continue
		}
		v.cases(1)
		if len(r.log.ends) > r.log.allowed() {
			v.bad(0, stepfleet.Key{RunID: id}, "Dagster's log has %d ends of the run: %s", len(r.log.ends), strings.Join(r.log.ends, ", "))
		}
	}
}
