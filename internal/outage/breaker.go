// Package outage says how stepfleet behaves while something it depends on cannot be asked. It is
// put around the root's ports, so that no role and no adapter knows of it.
//
// Each dependency of a process has one Breaker. It opens after five calls in a row that found
// nobody, and from then on calls are refused at once, so that nothing hangs and nothing piles up,
// except for one probe at a time. Calls that end or keep what somebody owns are never refused: a
// settle, a release, a revoke or a renewal that waited for a probe could come too late. Whoever
// succeeds closes the breaker, and everybody who rests (stepfleet.Rest) goes on at once.
//
// The breaker is our own. That of failsafe-go frees a place for a probe whenever any call comes back,
// one from before the outage or one of those that always pass, so it promises no single probe; that of
// gobreaker cannot be told of a success outside its own calls.
package outage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stepfleet/stepfleet"
)

// State is where a breaker stands.
type State int

// The states. Half-open means that a probe is under way.
const (
	Closed State = iota
	HalfOpen
	Open
)

func (s State) String() string { return [...]string{"closed", "half-open", "open"}[s] }

const (
	// opensAfter is how many calls in a row must have found nobody.
	opensAfter = 5
	// probeEvery is the longest pause before a probe, and half of it the shortest. A process asks less
	// then than it does in peace, so the pauses need not grow, and a healed dependency is found soon.
	probeEvery = time.Second
)

// Config is what a breaker is told.
type Config struct {
	// Dependency is its name, for errors, logs and metrics.
	Dependency string
	// OnState is told of every change, in order; nil is nobody.
	OnState func(State)
	// OnCall is told of every call that was made: what was asked, how long it took, and its error; nil
	// is nobody.
	OnCall func(op string, took time.Duration, err error)
	// OnRefused is told of every call that was not made; nil is nobody.
	OnRefused func()
}

// Breaker watches one dependency of this process. Its methods may be called at any time.
type Breaker struct {
	cfg    Config
	budget budget
	// calm says that the breaker is closed and that the last call was answered: there is nothing to
	// decide and nothing to note.
	calm atomic.Bool

	mu     sync.Mutex
	state  State
	fails  int           // calls in a row that found nobody
	last   error         // what the last of them said
	probe  uint64        // the number of the latest probe
	due    time.Time     // while open: when the next probe may go
	healed chan struct{} // while not closed: closed when the breaker is
}

// New returns a closed breaker.
func New(cfg Config) *Breaker {
	b := &Breaker{cfg: cfg}
	b.budget.fill()
	b.calm.Store(true)
	return b
}

// State returns where the breaker stands.
func (b *Breaker) State() State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

// kind says what an open breaker does with a call.
type kind bool

const (
	guarded kind = false // it is refused, unless it is the probe
	passing kind = true  // it is made
)

// MayRepeat says whether an adapter may repeat a call within itself, before anybody hears that it found
// nobody: while the breaker is closed, and within the retry budget.
func (b *Breaker) MayRepeat() bool { return b.State() == Closed && b.budget.spend(time.Now()) }

// call is one call that is under way.
type call struct {
	kind  kind
	probe uint64 // 0 when it is none
	began time.Time
}

// do makes the call op, unless the breaker refuses it, and notes whether it was answered.
func do[T any](ctx context.Context, b *Breaker, k kind, op string, f func() (T, error)) (answer T, err error) {
	c, err := b.admit(k)
	if err != nil {
		return answer, err
	}
	unfinished := true
	defer func() {
		if unfinished {
			b.abandon(c) // f panics
		}
	}()
	answer, err = f()
	unfinished = false
	return answer, b.note(ctx, c, op, err)
}

// try is do for a call without an answer.
func try(ctx context.Context, b *Breaker, k kind, op string, f func() error) error {
	_, err := do(ctx, b, k, op, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// admit begins a call, or says why it is refused.
func (b *Breaker) admit(k kind) (call, error) {
	b.budget.earn()
	c := call{kind: k}
	if b.cfg.OnCall != nil {
		c.began = time.Now()
	}
	if k == passing || b.calm.Load() {
		return c, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.state == Closed:
	case b.state == Open && !time.Now().Before(b.due):
		b.probe++
		c.probe = b.probe
		b.become(HalfOpen)
	default:
		if b.cfg.OnRefused != nil {
			b.cfg.OnRefused()
		}
		return c, &failure{b: b, kind: k, err: fmt.Errorf("%s %w, and is not asked until it answers a probe; it last failed with: %w",
			b.cfg.Dependency, stepfleet.ErrUnavailable, b.last)}
	}
	return c, nil
}

// note ends a call and returns its error, which knows how to rest where nobody was found.
func (b *Breaker) note(ctx context.Context, c call, op string, err error) error {
	gone := err != nil && errors.Is(ctx.Err(), context.Canceled) // its caller has: that says nothing
	if b.cfg.OnCall != nil {
		told := err
		if gone {
			told = context.Canceled
		}
		b.cfg.OnCall(op, time.Since(c.began), told)
	}
	switch {
	case gone:
		b.abandon(c)
		return err
	case !unanswered(err):
		if !b.calm.Load() {
			b.answered()
		}
		return err
	}
	b.failed(c, err)
	return &failure{b: b, kind: c.kind, err: err}
}

// unanswered says that an error means that nobody was found; a refusal is an answer.
func unanswered(err error) bool {
	return errors.Is(err, stepfleet.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
}

func (b *Breaker) answered() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fails, b.last = 0, nil
	b.become(Closed)
	b.calm.Store(true)
}

func (b *Breaker) failed(c call, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calm.Store(false)
	b.fails++
	b.last = err
	if b.isProbe(c) || b.state == Closed && b.fails >= opensAfter {
		b.due = time.Now().Add(probeEvery/2 + rand.N(probeEvery/2))
		b.become(Open)
	}
}

// abandon ends a call of which nothing was learned. If it was the probe, the next call is.
func (b *Breaker) abandon(c call) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.isProbe(c) {
		b.due = time.Now()
		b.become(Open)
	}
}

// isProbe says whether the breaker waits for this call. It is called with mu held.
func (b *Breaker) isProbe(c call) bool {
	return b.state == HalfOpen && c.probe == b.probe
}

// become is called with mu held.
func (b *Breaker) become(s State) {
	if s == b.state {
		return
	}
	switch {
	case b.state == Closed:
		b.healed = make(chan struct{})
	case s == Closed:
		close(b.healed)
		b.healed = nil
	}
	b.state = s
	if b.cfg.OnState != nil {
		b.cfg.OnState(s)
	}
}

// failure is an error of a call that found nobody, or was refused for that.
type failure struct {
	b    *Breaker
	kind kind
	err  error
}

var _ stepfleet.Outage = (*failure)(nil)

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// Rest implements stepfleet.Outage. A call that may be the probe rests until one is due, so that there
// is a probe whoever is left; those that pass an open breaker keep to the back-off.
func (f *failure) Rest(ctx context.Context, n int) bool {
	for ; ; n++ {
		wait := stepfleet.Backoff(n)
		healed, due := f.b.outage()
		if healed != nil && f.kind == guarded {
			wait = max(time.Until(due), min(wait, probeEvery/2))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-healed:
			timer.Stop()
			return true
		case <-timer.C:
		}
		if f.kind == passing || healed != nil || f.b.budget.spend(time.Now()) {
			return true
		}
	}
}

// outage returns what says that it is over, nil when the breaker is closed, and when the next probe
// may go.
func (b *Breaker) outage() (healed <-chan struct{}, due time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.healed, b.due
}
