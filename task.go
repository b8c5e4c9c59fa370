package stepfleet

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"time"
)

// TaskVersion is the version of the Task and Result JSON that this code writes. It reads this
// version only; the field is there so that a later one can be told apart.
const TaskVersion = 1

// Limits on what a submission may carry. A task beyond one of them is refused on its own; the
// rest of its batch is accepted.
const (
	// MaxPayloadBytes bounds one payload. Dagster's known_state grows with the run: about 200
	// bytes an output, so this is room for some 40,000 of them.
	MaxPayloadBytes = 8 << 20
	// MaxPayloadDepth bounds how deep a payload's JSON is nested. Dagster's arguments take about five
	// levels, and one more for each re-execution of a re-execution.
	MaxPayloadDepth = 64
	// MaxBatchTasks bounds one submission; the plugin splits a larger fan-out.
	MaxBatchTasks = 2000
	// MaxStepKeyBytes bounds a step key: mapping keys are the user's and may be long.
	MaxStepKeyBytes = 2048
	// MaxTimeoutSeconds bounds a task's timeout, MaxAttempt its number, MaxRetries each number of its retry
	// budget and MaxPriority its priority either way: the ledger keeps them in 32 bits.
	MaxTimeoutSeconds = math.MaxInt32
	MaxAttempt        = math.MaxInt32
	MaxRetries        = math.MaxInt32
	MaxPriority       = math.MaxInt32
	// MaxErrorBytes bounds the error message kept with a result; the rest is in the step's logs.
	MaxErrorBytes = 16 << 10
)

// TaskID names a task in the ledger. It grows with time of submission.
type TaskID int64

// Fence counts the owners a task has had: +1 at every change of owner. Every write of an owner
// names the fence it was given, and a write with an old one is refused and audited.
type Fence int64

// Kind says what a task runs.
type Kind string

// The kinds of task. They have queues and slots apart: run workers wait for steps, so sharing
// slots would deadlock the fleet.
const (
	KindStep Kind = "step" // one attempt of one step of a run
	KindRun  Kind = "run"  // one run worker
)

// RunStepKey is the step key of every run worker's task, and of nothing else: Dagster allows no @
// in the name of an op. Its attempt is 0 for the launch of the run and n for its n-th resume.
const RunStepKey = "@run"

// Key is what makes a task unique: one attempt of one step of one run. Attempt is Dagster's own
// retry count for the step, 0 for the first.
type Key struct {
	RunID   string `json:"run_id"`
	StepKey string `json:"step_key"`
	Attempt int    `json:"attempt"`
}

func (k Key) String() string { return fmt.Sprintf("%s/%s/%d", k.RunID, k.StepKey, k.Attempt) }

// Validate returns an error with code task_invalid for a key that no task can have.
func (k Key) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: task %s: %s", ErrTaskInvalid, k, fmt.Sprintf(format, args...))
	}
	switch {
	case k.RunID == "":
		return bad("run_id is empty")
	case k.StepKey == "" || len(k.StepKey) > MaxStepKeyBytes:
		return bad("step_key has %d bytes, allowed are 1 to %d", len(k.StepKey), MaxStepKeyBytes)
	case strings.ContainsRune(k.StepKey+k.RunID, 0):
		return bad("run_id and step_key must not contain a zero byte")
	case k.Attempt < 0 || k.Attempt > MaxAttempt:
		return bad("attempt %d is not between 0 and %d", k.Attempt, MaxAttempt)
	}
	return nil
}

// IdempotencyKey is the key a step may hand to the outside world to make an effect happen once
// over all its attempts.
func (k Key) IdempotencyKey() string { return k.RunID + "/" + k.StepKey }

// Task is one attempt of one step as it is submitted. Its JSON Schema is
// docs/schema/task.schema.json.
type Task struct {
	V    int  `json:"v"`
	Kind Kind `json:"kind"`
	Key
	// Op is the name of the op or asset definition; Job the job's. For people and histories.
	Op  string `json:"op"`
	Job string `json:"job"`
	// IdempotencyKey is Key.IdempotencyKey(); user code sees it as STEPFLEET_IDEMPOTENCY_KEY.
	IdempotencyKey string `json:"idempotency_key"`
	// Queue is the lane the task waits in. Higher Priority is claimed first.
	Queue    string `json:"queue"`
	Priority int    `json:"priority"`
	// TimeoutSeconds is how long the attempt may run from its start on before its worker ends it
	// as failed; 0 means as long as it takes.
	TimeoutSeconds int `json:"timeout_seconds"`
	// CodeLocation names the code the task needs, for people and for claims by location.
	CodeLocation string `json:"code_location"`
	// Payload is the digest of the arguments: Dagster's serdes JSON, shared by every task of a
	// batch that has the same.
	Payload Digest `json:"payload"`
	// RetryBudget is what may follow this attempt, for people: Dagster decides retries.
	RetryBudget RetryBudget `json:"retry_budget"`
}

// RetryBudget says how many attempts may follow: PolicyRetries by the op's RetryPolicy in
// total, LostStepRetries for attempts that began and were lost. A run worker's LostStepRetries are
// the resumes that Dagster's run monitoring still grants its run: a worker that drains hands such
// a run over, and lets any other come to its end.
type RetryBudget struct {
	PolicyRetries   int `json:"policy_retries"`
	LostStepRetries int `json:"lost_step_retries"`
}

// Validate checks the task's own fields. It returns an error with code task_invalid that names
// the field.
func (t Task) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: task %s: %s", ErrTaskInvalid, t.Key, fmt.Sprintf(format, args...))
	}
	switch {
	case t.V != TaskVersion:
		return bad("version %d is not %d: install the plugin and the server of one release", t.V, TaskVersion)
	case t.Kind != KindStep && t.Kind != KindRun:
		return bad("kind %q is neither step nor run", t.Kind)
	case t.Queue == "":
		return bad("queue is empty")
	case t.Priority < -MaxPriority || t.Priority > MaxPriority:
		return bad("priority %d is not between -%d and %d", t.Priority, MaxPriority, MaxPriority)
	case t.TimeoutSeconds < 0 || t.TimeoutSeconds > MaxTimeoutSeconds:
		return bad("timeout_seconds %d is not between 0 and %d", t.TimeoutSeconds, MaxTimeoutSeconds)
	case t.RetryBudget.PolicyRetries < 0 || t.RetryBudget.PolicyRetries > MaxRetries:
		return bad("policy_retries %d is not between 0 and %d", t.RetryBudget.PolicyRetries, MaxRetries)
	case t.RetryBudget.LostStepRetries < 0 || t.RetryBudget.LostStepRetries > MaxRetries:
		return bad("lost_step_retries %d is not between 0 and %d", t.RetryBudget.LostStepRetries, MaxRetries)
	case !t.Payload.Valid():
		return bad("payload %q is not a SHA-256 in hex", t.Payload)
	}
	return t.Key.Validate()
}

// Digest is the SHA-256 of a payload in lower-case hex.
type Digest string

// DigestOf returns the digest of a payload.
func DigestOf(payload []byte) Digest {
	sum := sha256.Sum256(payload)
	return Digest(hex.EncodeToString(sum[:]))
}

// Valid reports whether d has the form of a digest.
func (d Digest) Valid() bool {
	raw, err := hex.DecodeString(string(d))
	return err == nil && len(raw) == sha256.Size && strings.ToLower(string(d)) == string(d)
}

// Result is how one attempt ended, as its worker reports it. Its JSON Schema is
// docs/schema/result.schema.json.
type Result struct {
	V       int  `json:"v"`
	Success bool `json:"success"`
	// Outcome is the state the task ends in: succeeded, failed, cancelled or lost.
	Outcome State `json:"outcome"`
	// Event is Dagster's ending event of the attempt (STEP_SUCCESS, STEP_FAILURE,
	// STEP_UP_FOR_RETRY, RESOURCE_INIT_FAILURE), empty when the process wrote none.
	Event string `json:"event"`
	// Outputs names the outputs the step yielded; their values lie with the IO manager.
	Outputs []string `json:"outputs"`
	Error   *Failure `json:"error,omitempty"`
	// ExecutionSeconds is the time from start to end of user code, 0 if it never began.
	ExecutionSeconds float64 `json:"execution_seconds"`
	Worker           string  `json:"worker"`
	// ExitCode is the step process's exit status, or minus the signal that ended it.
	ExitCode int `json:"exit_code"`
	// Phases says when the attempt came to each of its phases, in Unix seconds of its worker's
	// clock. View's times, the database's, stand at both ends: SubmittedAt is when it was queued,
	// EndedAt when it was settled.
	Phases map[Phase]float64 `json:"phases,omitempty"`
}

// HostDied is the failure code of an attempt that was lost with the template that had forked its
// process. It counts as one that was lost with its worker: a step can kill either.
const HostDied = "host_died"

// LostWith is why the attempt counts as one that may have killed what ran it; empty: it does not. It is
// the reason that the ledger keeps beside the result.
func (r Result) LostWith() string {
	if r.Outcome != StateLost || r.Error == nil || r.Error.Code != HostDied {
		return ""
	}
	return HostDied + ": " + r.Error.Message
}

// Phase is a point in an attempt's life on its worker.
type Phase string

// The phases, in their order. Those that an attempt did not come to are absent.
const (
	PhaseBell     Phase = "bell"      // its worker, having heard of work, asked to claim it
	PhaseClaimed  Phase = "claimed"   // the claim's answer came
	PhaseProcess  Phase = "process"   // an idle process has the task
	PhasePrepared Phase = "prepared"  // the process has all it needs
	PhaseStarted  Phase = "started"   // and its start is recorded
	PhasePlan     Phase = "plan"      // Dagster's plan of the step is made
	PhaseUserCode Phase = "user_code" // STEP_START is written
	PhaseOutputs  Phase = "outputs"   // the first output is there
	PhaseEnded    Phase = "ended"     // the process has told its result
)

// Failure says why an attempt did not succeed. Code is stable and has a page in docs; Message is
// for people.
type Failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Validate checks that the result can settle a task.
func (r Result) Validate() error {
	switch {
	case r.V != TaskVersion:
		return fmt.Errorf("%w: result version %d is not %d", ErrTaskInvalid, r.V, TaskVersion)
	case !r.Outcome.SettlesRunning():
		return fmt.Errorf("%w: result outcome %q cannot end a running task", ErrTaskInvalid, r.Outcome)
	case r.Success != (r.Outcome == StateSucceeded):
		return fmt.Errorf("%w: result success=%t with outcome %q", ErrTaskInvalid, r.Success, r.Outcome)
	}
	return nil
}

// View is a task as the ledger shows it: the submission, where it stands, and when it got there.
// A zero time means "not yet" or "never". All times are the database's.
type View struct {
	ID TaskID `json:"task_id"`
	Task
	State           State     `json:"state"`
	Fence           Fence     `json:"fence"`
	CancelRequested bool      `json:"cancel_requested"`
	Session         SessionID `json:"session_id,omitempty"`
	Worker          string    `json:"worker,omitempty"`
	SubmittedAt     time.Time `json:"submitted_at,omitzero"`
	ClaimedAt       time.Time `json:"claimed_at,omitzero"`
	StartedAt       time.Time `json:"started_at,omitzero"`
	EndedAt         time.Time `json:"ended_at,omitzero"`
	// Reason says why the task ended as it did when no worker reported it (lost, cancelled).
	Reason string  `json:"reason,omitempty"`
	Result *Result `json:"result,omitempty"`
}
