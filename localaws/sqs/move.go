package sqs

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet/localaws/clock"
)

const (
	// maxMoveRate is how many messages a second a move task moves at most, and without a limit.
	maxMoveRate = 500
	// moveEvery is the shortest time between two steps of a task.
	moveEvery = 20 * time.Millisecond
	// movesKept is how many tasks of a source are listed.
	movesKept = 10
)

// The states of a move task.
const (
	moveRunning   = "RUNNING"
	moveCompleted = "COMPLETED"
	moveCancelled = "CANCELLED"
	moveFailed    = "FAILED"
)

// moveTask moves the messages of a dead-letter queue elsewhere, a few at a time.
type moveTask struct {
	id      string
	source  *queue
	to      *queue // nil: each to where it came from
	toARN   string
	rate    *int // as asked for
	started time.Time
	limit   int // messages a second
	every   time.Duration
	timer   clock.Timer

	status string
	moved  int
	toMove int
	reason string
}

// moves are the tasks of every source, newest first.
type moves struct {
	mu    sync.Mutex
	tasks map[*queue][]*moveTask
}

// start begins a task, unless one of the source is under way.
func (ms *moves) start(c clock.Clock, t *moveTask) error {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if slices.ContainsFunc(ms.tasks[t.source], func(t *moveTask) bool { return t.status == moveRunning }) {
		return errInvalidValue.With("There is already a task running. Only one active task is allowed for a source queue arn at a given time.")
	}
	t.limit = maxMoveRate
	if t.rate != nil {
		t.limit = *t.rate
	}
	t.every = max((time.Second+time.Duration(t.limit)-1)/time.Duration(t.limit), moveEvery)
	t.status = moveRunning
	if ms.tasks == nil {
		ms.tasks = map[*queue][]*moveTask{}
	}
	kept := ms.tasks[t.source]
	ms.tasks[t.source] = append([]*moveTask{t}, kept[:min(len(kept), movesKept-1)]...)
	t.timer = c.AfterFunc(t.every, func() { ms.advance(t, c.Now()) })
	return nil
}

// due is how many messages the task may have moved by now. A clock that was moved far ahead lets it
// catch up a second's worth at a time.
func (t *moveTask) due(now time.Time) int {
	return min(int(now.Sub(t.started)*time.Duration(t.limit)/time.Second), t.moved+t.limit)
}

// advance moves the next few messages, and sets the timer for those behind them.
func (ms *moves) advance(t *moveTask, now time.Time) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if t.status != moveRunning {
		return
	}
	n, empty, reason := t.source.redrive(t.due(now)-t.moved, t.to)
	t.moved += n
	switch {
	case reason != "":
		t.status, t.reason = moveFailed, reason
	case empty:
		t.status = moveCompleted
	default:
		t.timer.Reset(t.every)
	}
}

// cancel ends the task and returns how many messages it moved.
func (ms *moves) cancel(source *queue, id string) (int, error) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, t := range ms.tasks[source] {
		if t.id != id {
			continue
		}
		if t.status != moveRunning {
			return 0, errUnsupported.With("Only active tasks can be cancelled.")
		}
		t.status = moveCancelled
		t.timer.Stop()
		return t.moved, nil
	}
	return 0, errNotFound.With("Task does not exist.")
}

// list returns up to n tasks of the source, newest first.
func (ms *moves) list(source *queue, n int) []moveTask {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	tasks := ms.tasks[source]
	var listed []moveTask
	for _, t := range tasks[:min(n, len(tasks))] {
		listed = append(listed, *t)
	}
	return listed
}

// drop ends and forgets the tasks of a queue that is gone; nil is every queue.
func (ms *moves) drop(source *queue) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for q, tasks := range ms.tasks {
		if source != nil && q != source {
			continue
		}
		for _, t := range tasks {
			t.status = moveCancelled
			t.timer.Stop()
		}
		delete(ms.tasks, q)
	}
}

// taskHandle names a task to its caller.
type taskHandle struct {
	TaskID string `json:"taskId"`
	Source string `json:"sourceArn"`
}

func (h taskHandle) String() string {
	text, _ := json.Marshal(h) // two strings always encode
	return base64.StdEncoding.EncodeToString(text)
}

func parseTaskHandle(handle string) (taskHandle, error) {
	var h taskHandle
	text, err := base64.StdEncoding.DecodeString(handle)
	if err != nil || json.Unmarshal(text, &h) != nil || h.TaskID == "" {
		return h, errInvalidValue.With("Value for parameter TaskHandle is invalid.")
	}
	if _, ok := parseARN(h.Source); !ok {
		return h, errInvalidValue.With("Value for parameter TaskHandle is invalid.")
	}
	return h, nil
}
