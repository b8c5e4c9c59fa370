// Package memory holds the ports in memory, for tests of roles in virtual time. The ledger here
// keeps the same contract as the one on PostgreSQL: both pass internal/conformance, which also
// runs random operations on the two and compares their answers.
package memory

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/stepfleet/stepfleet"
)

// Ledger is the ledger in memory: a mutex and maps. Without a clock of its own it keeps time.Now's,
// so inside a testing/synctest bubble it is the bubble's.
type Ledger struct {
	// Fail is called before each method with its name; an error is returned instead of doing
	// anything, wrapped in ErrUnavailable. FailAfter is called after the method has done its
	// work: an error loses the answer. Set them before use.
	Fail, FailAfter func(op string) error
	// Now is the ledger's clock; nil means time.Now. Set it before use.
	Now func() time.Time

	mu       sync.Mutex
	runs     map[string]*run
	tasks    []*task // by id: task n is tasks[n-1]
	byKey    map[stepfleet.Key]*task
	payloads map[stepfleet.Digest][]byte
	sessions []*session // by id
	turns    map[lane]int64
	beats    map[string]time.Time
	granted  map[stepfleet.Key]grant
	duties   map[string]duty
	audit    []stepfleet.AuditRow
}

var _ stepfleet.Ledger = (*Ledger)(nil)

type run struct {
	known    bool // a submit has fixed the identity
	identity string
	closed   bool
	closedBy stepfleet.Epoch
	epoch    stepfleet.Epoch
	executor string
	resume   int // which the executor is of
	notify   string
	lastTurn int64
}

// unknown reports that nothing of the run has been taken yet.
func (r *run) unknown() bool { return !r.known && !r.closed && r.epoch == stepfleet.NoExecutor }

// over reports that the run is closed for tasks of this kind.
func (r *run) over(kind stepfleet.Kind) bool {
	return r.closed && (r.closedBy == stepfleet.NoExecutor || kind == stepfleet.KindStep)
}

type lane struct {
	queue    string
	priority int
}

type task struct {
	stepfleet.View
	turn          int64
	releasedFence stepfleet.Fence
	deaths        int
	// abandonedBy is the session that has abandoned the task, since when, and process what had run it.
	abandonedBy stepfleet.SessionID
	abandonedAt time.Time
	process     int
}

type session struct {
	stepfleet.Session
	endedAt time.Time
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{
		runs:     map[string]*run{},
		byKey:    map[stepfleet.Key]*task{},
		payloads: map[stepfleet.Digest][]byte{},
		turns:    map[lane]int64{},
		beats:    map[string]time.Time{},
		granted:  map[stepfleet.Key]grant{},
		duties:   map[string]duty{},
	}
}

// enter takes the lock for a method and returns what ends it. The caller returns ended(&err).
func (l *Ledger) enter(ctx context.Context, op string) (leave func(*error), err error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: ledger %w: %w", op, stepfleet.ErrUnavailable, err)
	}
	if l.Fail != nil {
		if err := l.Fail(op); err != nil {
			return nil, lost(op, err)
		}
	}
	l.mu.Lock()
	return func(err *error) {
		l.mu.Unlock()
		if l.FailAfter == nil {
			return
		}
		if fault := l.FailAfter(op); fault != nil {
			*err = lost(op, fault)
		}
	}, nil
}

func (l *Ledger) now() time.Time {
	if l.Now != nil {
		return l.Now()
	}
	return time.Now()
}

func (l *Ledger) since(t time.Time) time.Duration { return l.now().Sub(t) }

func lost(op string, err error) error {
	if errors.Is(err, stepfleet.ErrUnavailable) {
		return fmt.Errorf("%s: %w", op, err)
	}
	return fmt.Errorf("%s: ledger %w: %w", op, stepfleet.ErrUnavailable, err)
}

func (l *Ledger) task(id stepfleet.TaskID) *task {
	if id < 1 || int(id) > len(l.tasks) {
		return nil
	}
	return l.tasks[id-1]
}

func (l *Ledger) session(id stepfleet.SessionID) *session {
	if id < 1 || int(id) > len(l.sessions) {
		return nil
	}
	return l.sessions[id-1]
}

// run returns the run, made known if it was not.
func (l *Ledger) run(id string) *run {
	r := l.runs[id]
	if r == nil {
		r = &run{}
		l.runs[id] = r
	}
	return r
}

// move makes a transition and audits it.
func (l *Ledger) move(t *task, verb stepfleet.Verb, to stepfleet.State, actor, detail string) stepfleet.Change {
	from := t.State
	if !stepfleet.Allowed(verb, from, to) {
		panic(fmt.Sprintf("memory: %s of task %d from %q to %q is no transition", verb, t.ID, from, to))
	}
	for _, rule := range stepfleet.Transitions {
		if rule.Verb == verb && rule.From == from && rule.To == to && rule.Fence == stepfleet.FenceRaise {
			t.Fence++
		}
	}
	t.State = to
	if to.Terminal() {
		t.EndedAt = l.now()
	}
	if to == stepfleet.StateQueued {
		t.Session, t.Worker, t.ClaimedAt = 0, "", time.Time{}
	}
	l.note(stepfleet.AuditRow{
		TaskID: t.ID, RunID: t.RunID, Verb: verb, Actor: actor, From: from, To: to, Fence: t.Fence, Detail: detail,
	})
	return stepfleet.Change{TaskID: t.ID, Key: t.Key, Queue: t.Queue, From: from, To: to}
}

func (l *Ledger) note(row stepfleet.AuditRow) {
	row.ID, row.At = int64(len(l.audit)+1), l.now()
	l.audit = append(l.audit, row)
}

// refuse audits a refused write and returns the refusal.
func (l *Ledger) refuse(verb stepfleet.Verb, actor string, ref stepfleet.Ref, r *stepfleet.Refusal, detail string) error {
	row := stepfleet.AuditRow{TaskID: ref.TaskID, Verb: verb, Actor: actor, Fence: ref.Fence, Refused: r.Code, Detail: detail}
	if t := l.task(ref.TaskID); t != nil {
		row.RunID = t.RunID
	}
	l.note(row)
	return fmt.Errorf("%s task %d with fence %d: %w", verb, ref.TaskID, ref.Fence, r)
}

func actor(id stepfleet.SessionID) string { return fmt.Sprintf("session %d", id) }

// Submit implements stepfleet.Intake.
func (l *Ledger) Submit(ctx context.Context, b stepfleet.Batch) (out []stepfleet.Receipt, err error) {
	if err := validateBatch(b); err != nil {
		return nil, fmt.Errorf("submit to run %s: %w", b.RunID, err)
	}
	if len(b.Tasks) == 0 {
		return nil, nil
	}
	leave, err := l.enter(ctx, "submit")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	r := l.run(b.RunID)
	distinct := firstOfEach(b.Tasks)
	refused := l.judge(r, b, distinct)
	if refused != nil && r.unknown() {
		delete(l.runs, b.RunID)
	} else {
		l.store(b.Payloads)
	}
	if refused != nil {
		l.note(stepfleet.AuditRow{RunID: b.RunID, Verb: stepfleet.VerbSubmit, Actor: speaker(b.Epoch), Refused: refused.Code})
		return nil, fmt.Errorf("submit to run %s: %w", b.RunID, refused)
	}
	if !r.known {
		r.known, r.identity = true, b.Identity
	}
	if r.notify == "" {
		r.notify = b.NotifyURL
	}
	fresh := map[stepfleet.Key]bool{}
	for _, t := range distinct {
		receipt := l.insert(r, t, speaker(b.Epoch))
		fresh[t.Key] = !receipt.Known
		l.poison(l.byKey[t.Key])
	}
	for _, t := range b.Tasks {
		known := l.byKey[t.Key]
		out = append(out, stepfleet.Receipt{TaskID: known.ID, Key: known.Key, State: known.State, Known: !fresh[t.Key]})
		fresh[t.Key] = false
	}
	return out, nil
}

func (l *Ledger) store(payloads map[stepfleet.Digest][]byte) {
	for d, data := range payloads {
		if _, ok := l.payloads[d]; !ok {
			l.payloads[d] = slices.Clone(data)
		}
	}
}

// firstOfEach drops tasks whose key the batch has named before: a key counts as it comes first.
func firstOfEach(tasks []stepfleet.Task) []stepfleet.Task {
	seen := map[stepfleet.Key]bool{}
	var out []stepfleet.Task
	for _, t := range tasks {
		if !seen[t.Key] {
			seen[t.Key] = true
			out = append(out, t)
		}
	}
	return out
}

// judge refuses a batch as a whole.
func (l *Ledger) judge(r *run, b stepfleet.Batch, tasks []stepfleet.Task) *stepfleet.Refusal {
	if refused := r.speaks(b.Epoch); refused != nil {
		return refused
	}
	if r.known && r.identity != b.Identity {
		return stepfleet.ErrConflict
	}
	ended := !slices.ContainsFunc(tasks, func(t stepfleet.Task) bool {
		known := l.byKey[t.Key]
		return known == nil || !known.State.Terminal()
	})
	switch {
	case ended:
		return nil
	case r.over(tasks[0].Kind): // a batch's tasks are of one kind
		return stepfleet.ErrRunClosed
	}
	for _, t := range tasks {
		_, stored := l.payloads[t.Payload]
		if _, given := b.Payloads[t.Payload]; !stored && !given {
			return stepfleet.ErrTaskInvalid
		}
	}
	return nil
}

func (l *Ledger) insert(r *run, in stepfleet.Task, actor string) stepfleet.Receipt {
	if t := l.byKey[in.Key]; t != nil {
		if t.Payload != in.Payload {
			l.note(stepfleet.AuditRow{
				TaskID: t.ID, RunID: t.RunID, Verb: stepfleet.VerbSubmit, Actor: actor, Fence: t.Fence,
				Refused: stepfleet.ErrConflict.Code, Detail: "another payload; the stored one stays",
			})
		}
		return stepfleet.Receipt{TaskID: t.ID, Key: t.Key, State: t.State, Known: true}
	}
	in.IdempotencyKey = in.Key.IdempotencyKey()
	t := &task{View: stepfleet.View{ID: stepfleet.TaskID(len(l.tasks) + 1), Task: in, SubmittedAt: l.now()}, releasedFence: -1}
	t.turn = 1 + max(l.turns[lane{in.Queue, in.Priority}], r.lastTurn)
	r.lastTurn = t.turn
	l.tasks = append(l.tasks, t)
	l.byKey[in.Key] = t
	l.move(t, stepfleet.VerbSubmit, stepfleet.StateQueued, actor, "")
	return stepfleet.Receipt{TaskID: t.ID, Key: t.Key, State: t.State}
}

// poison makes a task dead at its submit when earlier attempts of its step were lost too often.
func (l *Ledger) poison(t *task) {
	if t.Attempt < stepfleet.PoisonLost || t.State != stepfleet.StateQueued || t.Fence != 0 {
		return
	}
	var lost []*task
	for _, p := range l.tasks {
		if p.RunID == t.RunID && p.StepKey == t.StepKey && p.Attempt < t.Attempt && p.State == stepfleet.StateLost && l.countsAsLost(p) {
			lost = append(lost, p)
		}
	}
	if len(lost) < stepfleet.PoisonLost {
		return
	}
	slices.SortFunc(lost, func(a, b *task) int { return cmp.Compare(a.Attempt, b.Attempt) })
	var evidence []string
	for _, p := range lost {
		evidence = append(evidence, fmt.Sprintf("attempt %d on worker %s, %s", p.Attempt, p.Worker, p.Reason))
	}
	t.Reason = fmt.Sprintf("%d attempts of this step were lost, so this one is not run: %s", len(lost), strings.Join(evidence, "; "))
	l.move(t, stepfleet.VerbPoison, stepfleet.StateDead, "server", t.Reason)
}

// countsAsLost says that a lost attempt may have killed its worker, or the template that had forked it.
func (l *Ledger) countsAsLost(p *task) bool {
	if p.Result != nil {
		return p.Reason != ""
	}
	return !l.session(p.Session).Draining
}

// Cancel implements stepfleet.Intake.
func (l *Ledger) Cancel(
	ctx context.Context, runID string, epoch stepfleet.Epoch, keys []stepfleet.Key, reason string,
) (out []stepfleet.Change, err error) {
	if keys != nil && !slices.ContainsFunc(keys, func(k stepfleet.Key) bool { return k.RunID == runID }) {
		return nil, nil
	}
	leave, err := l.enter(ctx, "cancel")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	if err := l.mustSpeak(stepfleet.VerbCancel, runID, epoch, reason); err != nil {
		return nil, err
	}
	return l.cancel(stepfleet.VerbCancel, runID, epoch, keys, reason), nil
}

func (l *Ledger) cancel(verb stepfleet.Verb, runID string, epoch stepfleet.Epoch, keys []stepfleet.Key, reason string) []stepfleet.Change {
	var out []stepfleet.Change
	for _, t := range l.tasks {
		if t.RunID != runID || t.State.Terminal() || keys != nil && !slices.Contains(keys, t.Key) {
			continue
		}
		switch {
		case epoch != stepfleet.NoExecutor && t.Kind != stepfleet.KindStep:
		case t.State == stepfleet.StateRunning && t.CancelRequested:
		case t.State == stepfleet.StateRunning:
			t.CancelRequested = true
			out = append(out, l.move(t, verb, stepfleet.StateRunning, speaker(epoch), reason))
		default:
			t.CancelRequested, t.Reason = true, reason
			out = append(out, l.move(t, verb, stepfleet.StateCancelled, speaker(epoch), reason))
		}
	}
	return out
}

// CloseRun implements stepfleet.Intake.
func (l *Ledger) CloseRun(ctx context.Context, runID string, epoch stepfleet.Epoch, reason string) (out []stepfleet.Change, err error) {
	if err := validRunID(runID); err != nil {
		return nil, fmt.Errorf("close run: %w", err)
	}
	leave, err := l.enter(ctx, "close")
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	if err := l.mustSpeak(stepfleet.VerbClose, runID, epoch, reason); err != nil {
		return nil, err
	}
	if r := l.run(runID); !r.closed || r.closedBy != stepfleet.NoExecutor && epoch == stepfleet.NoExecutor {
		r.closed, r.closedBy = true, epoch
		l.note(stepfleet.AuditRow{RunID: runID, Verb: stepfleet.VerbClose, Actor: speaker(epoch), Detail: reason})
	}
	return l.cancel(stepfleet.VerbClose, runID, epoch, nil, reason), nil
}

func validRunID(id string) error {
	const maxBytes = 512
	if id == "" || len(id) > maxBytes || !utf8.ValidString(id) || slices.Contains([]byte(id), 0) {
		return fmt.Errorf("%w: run_id must be 1 to %d bytes of UTF-8 without a zero byte", stepfleet.ErrTaskInvalid, maxBytes)
	}
	return nil
}

func validateBatch(b stepfleet.Batch) error {
	if err := validRunID(b.RunID); err != nil {
		return err
	}
	if len(b.Tasks) > stepfleet.MaxBatchTasks {
		return fmt.Errorf("%w: %d tasks in one batch", stepfleet.ErrTaskInvalid, len(b.Tasks))
	}
	for _, t := range b.Tasks {
		if err := t.Validate(); err != nil {
			return err
		}
		if (b.Epoch == stepfleet.NoExecutor) != (t.Kind == stepfleet.KindRun) {
			return fmt.Errorf("%w: task %s of kind %s by executor %d", stepfleet.ErrTaskInvalid, t.Key, t.Kind, b.Epoch)
		}
		if t.RunID != b.RunID || !utf8.ValidString(t.StepKey) || stepfleet.ValidateQueue(t.Queue) != nil ||
			t.Attempt != int(int32(t.Attempt)) || t.Priority != int(int32(t.Priority)) {
			return fmt.Errorf("%w: task %s", stepfleet.ErrTaskInvalid, t.Key)
		}
	}
	for d, data := range b.Payloads {
		if len(data) > stepfleet.MaxPayloadBytes {
			return fmt.Errorf("%w: payload %s has %d bytes", stepfleet.ErrPayloadTooBig, d, len(data))
		}
		if stepfleet.DigestOf(data) != d {
			return fmt.Errorf("%w: payload is not of digest %s", stepfleet.ErrTaskInvalid, d)
		}
	}
	return nil
}

// copyResult is what reading a stored result gives: the value as JSON carries it, its message cut
// to the limit.
func copyResult(r stepfleet.Result) (*stepfleet.Result, error) {
	if r.Error != nil && len(r.Error.Message) > stepfleet.MaxErrorBytes {
		short := *r.Error
		short.Message = strings.ToValidUTF8(short.Message[:stepfleet.MaxErrorBytes], "\uFFFD")
		r.Error = &short
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	out := new(stepfleet.Result)
	return out, json.Unmarshal(raw, out)
}

func byID(a, b *task) int { return cmp.Compare(a.ID, b.ID) }
