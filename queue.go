package stepfleet

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// BellVersion is the version of the bell's JSON.
const BellVersion = 1

// Bell is the whole content of an SQS message: there is work in this queue. It carries no task,
// no code and no owner, so a lost, doubled, late or forged one costs an empty claim at most.
type Bell struct {
	V     int    `json:"v"`
	Queue string `json:"queue"`
}

// RungBell is a bell as a worker received it, with the handle to answer it by.
type RungBell struct {
	Bell
	Handle string
}

// MaxBellsPerRing bounds one call of Ring; a queue never needs more bells than it has slots.
const MaxBellsPerRing = 1000

// Ringer is the bell as the server uses it.
type Ringer interface {
	// Ring sends n bells to the queue. It returns ErrUnknownQueue when the queue has no bell, and
	// ErrUnavailable (wrapped) when the bell could not be reached; some may have been rung.
	Ring(ctx context.Context, queue string, n int) error
}

// Listener is the bell as a worker uses it. A bell that is neither answered nor returned
// comes back by itself after BellVisibility.
type Listener interface {
	// Receive waits up to wait for bells of the queue and returns at most max (1 to 10), or none.
	// It returns ErrUnknownQueue and ErrUnavailable as Ring does, and ctx's error when it ends.
	Receive(ctx context.Context, queue string, max int, wait time.Duration) ([]RungBell, error)
	// Answer deletes bells that led to a claim or to an empty ledger.
	Answer(ctx context.Context, queue string, bells []RungBell) error
	// Return makes bells ring again at once, for another worker.
	Return(ctx context.Context, queue string, bells []RungBell) error
}

// BellVisibility is how long a received bell stays hidden from other workers.
const BellVisibility = 5 * time.Second

// DefaultQueue is the queue of a step that names none.
const DefaultQueue = "default"

// RunsQueue is the queue of run workers that name none.
const RunsQueue = "runs"

// CarriesRuns reports whether the queue is one for run workers: runs, or a name that begins with
// runs-. No other queue takes one, and these take nothing else. A run worker waits for its steps,
// so in one queue with them it would hold a slot that they wait for.
func CarriesRuns(queue string) bool {
	return queue == RunsQueue || strings.HasPrefix(queue, RunsQueue+"-")
}

var queueName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,59}$`)

// ValidateQueue checks a queue's name: it becomes part of an SQS queue name.
func ValidateQueue(name string) error {
	if !queueName.MatchString(name) {
		return fmt.Errorf("%w: queue name %q: use 1 to 60 of a-z, 0-9, - and _, starting with a letter or digit", ErrUnknownQueue, name)
	}
	return nil
}
