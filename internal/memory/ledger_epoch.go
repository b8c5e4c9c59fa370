package memory

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/stepfleet/stepfleet"
)

// grant is the last executor that was granted to say how an attempt ended, and the one before it.
type grant struct{ epoch, earlier stepfleet.Epoch }

// speaks refuses an executor that is not the run's.
func (r *run) speaks(epoch stepfleet.Epoch) *stepfleet.Refusal {
	switch {
	case epoch > r.epoch:
		return stepfleet.ErrNotFound
	case epoch != stepfleet.NoExecutor && epoch != r.epoch:
		return stepfleet.ErrSuperseded
	}
	return nil
}

// speaker is how the audit calls who asked.
func speaker(epoch stepfleet.Epoch) string {
	if epoch == stepfleet.NoExecutor {
		return "server"
	}
	return fmt.Sprintf("executor %d", epoch)
}

// mustSpeak audits and returns the refusal of an executor that is not the run's.
func (l *Ledger) mustSpeak(verb stepfleet.Verb, runID string, epoch stepfleet.Epoch, detail string) error {
	r := l.runs[runID]
	if r == nil {
		r = &run{}
	}
	refused := r.speaks(epoch)
	if refused == nil {
		return nil
	}
	l.note(stepfleet.AuditRow{RunID: runID, Verb: verb, Actor: speaker(epoch), Refused: refused.Code, Detail: detail})
	return fmt.Errorf("%s of run %s by executor %d: %w", verb, runID, epoch, refused)
}

// TakeEpoch implements stepfleet.Intake.
func (l *Ledger) TakeEpoch(
	ctx context.Context, runID string, executor stepfleet.Executor, notifyURL string,
) (epoch stepfleet.Epoch, err error) {
	if err := validRunID(runID); err != nil {
		return 0, fmt.Errorf("take the epoch of a run: %w", err)
	}
	if err := executor.Validate(); err != nil {
		return 0, fmt.Errorf("take the epoch of run %s: %w", runID, err)
	}
	leave, err := l.enter(ctx, "take epoch")
	if err != nil {
		return 0, err
	}
	defer leave(&err)
	r := l.run(runID)
	row := stepfleet.AuditRow{RunID: runID, Verb: stepfleet.VerbTakeover, Actor: speaker(r.epoch + 1), Detail: executor.String()}
	if refused := r.takeover(executor); refused != nil {
		if row.Refused = refused.Code; refused == stepfleet.ErrSuperseded {
			row.Actor = "executor 0" // it never had an epoch, or lost it
		}
		l.note(row)
		return 0, fmt.Errorf("take the epoch of run %s: %w", runID, refused)
	}
	if r.executor != executor.Name {
		r.epoch, r.executor = r.epoch+1, executor.Name
		l.note(row)
	}
	r.resume, r.notify = executor.Resume, notifyURL
	return r.epoch, nil
}

// takeover refuses an executor that must not take the run.
func (r *run) takeover(executor stepfleet.Executor) *stepfleet.Refusal {
	switch {
	case executor.Resume < r.resume:
		return stepfleet.ErrSuperseded
	case r.closed:
		return stepfleet.ErrRunClosed
	}
	return nil
}

// Rejoin implements stepfleet.Intake.
func (l *Ledger) Rejoin(ctx context.Context, runID string, epoch stepfleet.Epoch, notifyURL string) (err error) {
	if err := validRunID(runID); err != nil {
		return fmt.Errorf("rejoin run: %w", err)
	}
	if epoch == stepfleet.NoExecutor {
		return fmt.Errorf("rejoin run %s: %w: only an executor rejoins", runID, stepfleet.ErrTaskInvalid)
	}
	leave, err := l.enter(ctx, "rejoin")
	if err != nil {
		return err
	}
	defer leave(&err)
	if err := l.mustSpeak(stepfleet.VerbRejoin, runID, epoch, ""); err != nil {
		return err
	}
	l.run(runID).notify = notifyURL
	return nil
}

// Adjudicate implements stepfleet.Intake.
func (l *Ledger) Adjudicate(
	ctx context.Context, runID string, epoch stepfleet.Epoch, keys []stepfleet.Key,
) (out []stepfleet.Ruling, err error) {
	if err := validKeys(runID, epoch, keys); err != nil {
		return nil, fmt.Errorf("adjudicate tasks of run %s: %w", runID, err)
	}
	leave, err := l.enter(ctx, "adjudicate")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	if err := l.mustSpeak(stepfleet.VerbAdjudicate, runID, epoch, ""); err != nil {
		return nil, err
	}
	seen := map[stepfleet.Key]stepfleet.Ruling{}
	for _, key := range keys {
		ruling, ok := seen[key]
		if !ok {
			ruling = l.adjudicate(epoch, key)
			seen[key] = ruling
		}
		out = append(out, ruling)
	}
	return out, nil
}

func (l *Ledger) adjudicate(epoch stepfleet.Epoch, key stepfleet.Key) stepfleet.Ruling {
	was, t := l.granted[key], l.byKey[key]
	ruling := stepfleet.Ruling{Key: key, Granted: true, Earlier: was.epoch}
	if was.epoch == epoch {
		ruling.Earlier = was.earlier
	}
	row := stepfleet.AuditRow{RunID: key.RunID, Verb: stepfleet.VerbAdjudicate, Actor: speaker(epoch)}
	if t != nil {
		ruling.State, ruling.Granted = t.State, t.State.Terminal()
		row.TaskID, row.Fence = t.ID, t.Fence
	}
	if !ruling.Granted {
		row.Refused, row.Detail = stepfleet.ErrTaskInvalid.Code, "the task has not ended"
		l.note(row)
		return ruling
	}
	if was.epoch != epoch {
		l.granted[key] = grant{epoch, was.epoch}
		row.From, row.To = ruling.State, ruling.State
		row.Detail = fmt.Sprintf("%s attempt %d", key.StepKey, key.Attempt)
		l.note(row)
	}
	return ruling
}

func validKeys(runID string, epoch stepfleet.Epoch, keys []stepfleet.Key) error {
	if epoch == stepfleet.NoExecutor || len(keys) == 0 || len(keys) > stepfleet.MaxBatchTasks {
		return fmt.Errorf("%w: %d keys by executor %d", stepfleet.ErrTaskInvalid, len(keys), epoch)
	}
	for _, k := range keys {
		if k.RunID != runID || k.StepKey == "" || !utf8.ValidString(k.StepKey) || strings.ContainsRune(k.StepKey, 0) || k.Attempt != int(int32(k.Attempt)) {
			return fmt.Errorf("%w: task %s", stepfleet.ErrTaskInvalid, k)
		}
	}
	return validRunID(runID)
}

// Epochs implements stepfleet.Records.
func (l *Ledger) Epochs(ctx context.Context, runIDs []string) (out map[string]stepfleet.Epoch, err error) {
	leave, err := l.enter(ctx, "epochs")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	out = map[string]stepfleet.Epoch{}
	for _, id := range runIDs {
		if r := l.runs[id]; r != nil {
			out[id] = r.epoch
		}
	}
	return out, nil
}
