package audit

import (
	"fmt"

	"github.com/stepfleet/stepfleet"
)

// done says each transition in words, as what was done to "it", the task.
var done = map[move]string{
	{stepfleet.VerbSubmit, "", stepfleet.StateQueued}:                              "submitted it: it waits in its queue",
	{stepfleet.VerbClaim, stepfleet.StateQueued, stepfleet.StateLeased}:            "claimed it: it has an owner, and user code has not begun",
	{stepfleet.VerbStart, stepfleet.StateLeased, stepfleet.StateRunning}:           "started it: from here on user code may have begun",
	{stepfleet.VerbRelease, stepfleet.StateLeased, stepfleet.StateQueued}:          "gave it back unstarted: it waits again, at its old place",
	{stepfleet.VerbSettle, stepfleet.StateRunning, stepfleet.StateSucceeded}:       "settled it: it succeeded",
	{stepfleet.VerbSettle, stepfleet.StateRunning, stepfleet.StateFailed}:          "settled it: it failed, or its process died",
	{stepfleet.VerbSettle, stepfleet.StateRunning, stepfleet.StateCancelled}:       "settled it: it was cancelled",
	{stepfleet.VerbSettle, stepfleet.StateRunning, stepfleet.StateLost}:            "settled it: it began, and was stopped before its end",
	{stepfleet.VerbSweep, stepfleet.StateLeased, stepfleet.StateQueued}:            "took it from its owner before it had started: it waits again",
	{stepfleet.VerbSweep, stepfleet.StateRunning, stepfleet.StateLost}:             "took it from its dead owner: it began, and nobody knows how far it came; it is lost",
	{stepfleet.VerbSweep, stepfleet.StateRunning, stepfleet.StateCancelled}:        "took it from its dead owner: its cancel had been asked for, so it is cancelled",
	{stepfleet.VerbRepair, stepfleet.StateRunning, stepfleet.StateSucceeded}:       "found its success in Dagster's log, which its owner could not report any more: it succeeded",
	{stepfleet.VerbRepair, stepfleet.StateRunning, stepfleet.StateFailed}:          "found its failure or retry in Dagster's log, which its owner could not report any more: it failed",
	{stepfleet.VerbRepair, stepfleet.StateRunning, stepfleet.StateCancelled}:       "found its end in Dagster's log after its cancel had been asked for: it is cancelled",
	{stepfleet.VerbPoison, stepfleet.StateQueued, stepfleet.StateDead}:             "refused it for good: attempts of this step have killed their workers too often",
	{stepfleet.VerbPoison, stepfleet.StateLeased, stepfleet.StateDead}:             "took it from its dead owner and refused it for good: too many sessions have died with it",
	{stepfleet.VerbAbandon, stepfleet.StateRunning, stepfleet.StateRunning}:        "gave it up: its process is gone and may have written its end, so the server decides from Dagster's log",
	{stepfleet.VerbRevoke, stepfleet.StateRunning, stepfleet.StateRunning}:         "raised the fence of its own task: the process is refused everything from now on, and is killed",
	{stepfleet.VerbCancel, stepfleet.StateQueued, stepfleet.StateCancelled}:        "cancelled it while it waited",
	{stepfleet.VerbCancel, stepfleet.StateLeased, stepfleet.StateCancelled}:        "cancelled it before it had started: its owner's start is refused",
	{stepfleet.VerbCancel, stepfleet.StateRunning, stepfleet.StateRunning}:         "asked for its cancel: its worker is to kill it and to settle",
	{stepfleet.VerbClose, stepfleet.StateQueued, stepfleet.StateCancelled}:         "closed the run, which cancelled it while it waited",
	{stepfleet.VerbClose, stepfleet.StateLeased, stepfleet.StateCancelled}:         "closed the run, which cancelled it before it had started",
	{stepfleet.VerbClose, stepfleet.StateRunning, stepfleet.StateRunning}:          "closed the run, which asked for its cancel: its worker is to kill it and to settle",
	{stepfleet.VerbAdjudicate, stepfleet.StateSucceeded, stepfleet.StateSucceeded}: "was granted to write its end into Dagster's log, though it had succeeded: the log did not show it",
	{stepfleet.VerbAdjudicate, stepfleet.StateFailed, stepfleet.StateFailed}:       "was granted to write its end into Dagster's log: its process had written none",
	{stepfleet.VerbAdjudicate, stepfleet.StateCancelled, stepfleet.StateCancelled}: "was granted to write the cancelled attempt's end into Dagster's log",
	{stepfleet.VerbAdjudicate, stepfleet.StateLost, stepfleet.StateLost}:           "was granted to write the lost attempt's end into Dagster's log",
	{stepfleet.VerbAdjudicate, stepfleet.StateDead, stepfleet.StateDead}:           "was granted to write the refused attempt's end into Dagster's log",
}

// wanted says what a refused write was for.
var wanted = map[stepfleet.Verb]string{
	stepfleet.VerbSubmit:     "wanted to submit",
	stepfleet.VerbClaim:      "wanted to claim",
	stepfleet.VerbStart:      "wanted to start it",
	stepfleet.VerbRelease:    "wanted to give it back",
	stepfleet.VerbSettle:     "wanted to settle it",
	stepfleet.VerbSweep:      "wanted to take it from its owner",
	stepfleet.VerbRevoke:     "wanted to raise its fence",
	stepfleet.VerbAbandon:    "wanted to give it up",
	stepfleet.VerbRepair:     "wanted to end it as Dagster's log says",
	stepfleet.VerbPoison:     "wanted to refuse it for good",
	stepfleet.VerbCancel:     "wanted to cancel",
	stepfleet.VerbClose:      "wanted to close the run",
	stepfleet.VerbTakeover:   "wanted to take over the run",
	stepfleet.VerbRejoin:     "wanted to rejoin the run",
	stepfleet.VerbAdjudicate: "wanted to write its end into Dagster's log",
}

// because says each refusal in words.
var because = map[string]string{
	stepfleet.ErrFenced.Code:         "was refused: the fence it named is not the owner's any more",
	stepfleet.ErrSessionDead.Code:    "was refused: its session is dead",
	stepfleet.ErrSessionSuspect.Code: "was refused: its session has missed its renewals",
	stepfleet.ErrRunClosed.Code:      "was refused: the run is closed",
	stepfleet.ErrSuperseded.Code:     "was refused: another executor has taken over the run",
	stepfleet.ErrConflict.Code:       "was refused: what is known under that name is another",
	stepfleet.ErrCancelled.Code:      "was refused: the task is cancelled",
	stepfleet.ErrUnknownQueue.Code:   "was refused: there is no such queue",
	stepfleet.ErrPayloadTooBig.Code:  "was refused: the payload is over the limit",
	stepfleet.ErrTaskInvalid.Code:    "was refused: it does not fit the task",
	stepfleet.ErrNotFound.Code:       "was refused: the ledger does not know what it named",
	stepfleet.ErrUnauthorized.Code:   "was refused: without a valid token",
	stepfleet.ErrBusy.Code:           "was refused for the moment: too much was under way",
	stepfleet.ErrUnavailable.Code:    "was refused: the ledger could not be reached",
	stepfleet.ErrSchema.Code:         "was refused: the database does not fit the binary",
}

// of says what a run's own rows do.
var ofRun = map[stepfleet.Verb]string{
	stepfleet.VerbTakeover:   "took over the run: it speaks for it from now on",
	stepfleet.VerbClose:      "closed the run: it accepts nothing any more",
	stepfleet.VerbAdjudicate: "was granted to write the end of an attempt that the ledger does not have",
}

// Words tells an audit row in words, without who did it: "claimed it: ...".
func Words(row stepfleet.AuditRow) string {
	text := words(row)
	if row.Detail != "" {
		text += " (" + row.Detail + ")"
	}
	return text
}

func words(row stepfleet.AuditRow) string {
	if row.Refused != "" {
		verb, known := wanted[row.Verb]
		why, listed := because[row.Refused]
		if known && listed {
			return verb + ", and " + why
		}
		return fmt.Sprintf("%s was refused: %s", row.Verb, row.Refused)
	}
	if text, ok := done[move{row.Verb, row.From, row.To}]; ok {
		return text
	}
	if text, ok := ofRun[row.Verb]; ok && row.TaskID == 0 {
		return text
	}
	return fmt.Sprintf("%s: %q to %q", row.Verb, row.From, row.To)
}
