package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet"
)

// EventType is Jepsen's word for a line of the client history.
type EventType string

// The types of event. What a client asked is an invoke; its answer has the same Op. Info says that
// no answer came: what was asked may or may not have happened, then or later.
const (
	Invoke EventType = "invoke"
	OK     EventType = "ok"
	Failed EventType = "fail" // refused: it has certainly not happened
	Info   EventType = "info"
)

// Operation is what a client asks for.
type Operation string

// The operations. An answer to cancel and close is stepfleet's own: a cancel that only Dagster has
// acknowledged is none, since stepfleet may not know of it yet.
const (
	OpSubmit Operation = "submit" // one event a task
	OpCancel Operation = "cancel" // of a task, or with an empty step key of all open tasks of a run
	OpClose  Operation = "close"  // of a run
	OpRead   Operation = "read"   // of a task's state
)

// ClientEvent is a line of the client history.
type ClientEvent struct {
	// I numbers the lines as they were written. At is the writer's clock: before the call for an
	// invoke, after the answer for the others.
	I       int64     `json:"i"`
	At      time.Time `json:"at"`
	Process string    `json:"process"`
	Type    EventType `json:"type"`
	F       Operation `json:"f"`
	// Op ties an answer to its invoke; a process gives each number once.
	Op int64 `json:"op"`
	stepfleet.Key
	// Of an ok: the task, whether a submit's key was known before, the state that a read saw.
	TaskID stepfleet.TaskID `json:"task_id,omitempty"`
	Known  bool             `json:"known,omitempty"`
	State  stepfleet.State  `json:"state,omitempty"`
	// Epoch is, of the ok of a close, the executor's that closed; of others it is NoExecutor.
	Epoch stepfleet.Epoch `json:"epoch,omitempty"`
	Error string          `json:"error,omitempty"`
}

// Recorder writes a client history. It is safe for concurrent use.
type Recorder struct {
	mu   sync.Mutex
	out  io.Writer
	now  func() time.Time
	i    int64
	op   int64
	fail error
}

// NewRecorder returns a recorder that writes to out by the clock.
func NewRecorder(out io.Writer, now func() time.Time) *Recorder { return &Recorder{out: out, now: now} }

// Invoke writes that the process asks, and returns the event to complete with Done.
func (r *Recorder) Invoke(process string, f Operation, key stepfleet.Key) ClientEvent {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.op++
	e := ClientEvent{Process: process, Type: Invoke, F: f, Op: r.op, Key: key}
	r.write(e)
	return e
}

// Done writes the answer to what was invoked.
func (r *Recorder) Done(answer ClientEvent, kind EventType) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answer.Type = kind
	r.write(answer)
}

// write is called with the lock held, so that lines are in the order of their times.
func (r *Recorder) write(e ClientEvent) {
	r.i++
	e.I, e.At = r.i, r.now()
	line, err := json.Marshal(e)
	if err == nil {
		_, err = r.out.Write(append(line, '\n'))
	}
	if err != nil && r.fail == nil {
		r.fail = fmt.Errorf("write the client history: %w", err)
	}
}

// Err returns the first error of writing: a history with a hole is no witness.
func (r *Recorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fail
}

// ReadClient is a client history in a file that open opens.
func ReadClient(open func() (io.ReadCloser, error)) Source[ClientEvent] {
	return lines("client history", open, func(e *ClientEvent) error {
		switch {
		case !slices.Contains([]EventType{Invoke, OK, Failed, Info}, e.Type):
			return fmt.Errorf("type %q", e.Type)
		case !slices.Contains([]Operation{OpSubmit, OpCancel, OpClose, OpRead}, e.F):
			return fmt.Errorf("operation %q", e.F)
		case e.RunID == "" || e.Op == 0 || e.At.IsZero():
			return fmt.Errorf("run %q, op %d at %s: all three must be there", e.RunID, e.Op, e.At)
		}
		return nil
	})
}

// maxLineBytes bounds one line of a witness.
const maxLineBytes = 1 << 20

// lines reads JSON lines. A line that is none is an error with its number: a verdict must not rest on
// a damaged witness.
func lines[T any](name string, open func() (io.ReadCloser, error), check func(*T) error) Source[T] {
	return func(ctx context.Context) iter.Seq2[T, error] {
		return func(yield func(T, error) bool) {
			var zero T
			file, err := open()
			if err != nil {
				yield(zero, fmt.Errorf("%s: %w", name, err))
				return
			}
			defer file.Close()
			in := bufio.NewScanner(file)
			in.Buffer(make([]byte, 64<<10), maxLineBytes)
			for number := 1; in.Scan(); number++ {
				if ctx.Err() != nil {
					yield(zero, ctx.Err())
					return
				}
				if len(bytes.TrimSpace(in.Bytes())) == 0 {
					continue
				}
				var v T
				err := json.Unmarshal(in.Bytes(), &v)
				if err == nil {
					err = check(&v)
				}
				if err != nil {
					yield(zero, fmt.Errorf("%s line %d: %w", name, number, err))
					return
				}
				if !yield(v, nil) {
					return
				}
			}
			if err := in.Err(); err != nil {
				yield(zero, fmt.Errorf("%s: %w", name, err))
			}
		}
	}
}
