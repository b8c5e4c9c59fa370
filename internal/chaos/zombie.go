package chaos

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
	"github.com/stepfleet/stepfleet/internal/postgres"
)

// A zombie is an owner that stops with a task in its hands, until the task is another's, and then goes on
// as if nothing had happened. A real worker does so in a hundredth of a second that a schedule hardly
// ever hits, and kills what it runs as soon as it wakes. This one is the harness's: it speaks to the
// ledger as a worker does, with a worker's role, and does nothing to prevent its own late writes.

const (
	// catchEvery is how often a zombie claims until it has a task: the workers are quick.
	catchEvery = 20 * time.Millisecond
	// wakeEvery is how often it looks whether the task is still its own, loseWithin how long it waits
	// for that: the ledger may be away for a while.
	wakeEvery  = 200 * time.Millisecond
	loseWithin = 45 * time.Second
)

// errAccepted is what no zombie may meet.
var errAccepted = errors.New("the late write of an owner that had lost its task was accepted")

// zombie has landed when its late settlement was refused.
func (n *nemesis) zombie(ctx context.Context, i *Injected) error {
	ledger, err := postgres.Open(ctx, n.net.endpoints().Database.WorkerURL, postgres.Options{MaxConns: 1, AppName: "stepfleet chaos zombie"})
	if err != nil {
		return fmt.Errorf("%w: %w", errNoVictim, err)
	}
	defer ledger.Close()
	return n.haunt(ctx, i, ledger)
}

func (n *nemesis) haunt(ctx context.Context, i *Injected, ledger stepfleet.Claims) error {
	session, err := ledger.Register(ctx, stepfleet.SessionSpec{
		Worker: "zombie", Instance: uuid.NewString(), SessionTTL: n.Lifetimes.SessionTTL, RunLease: n.Lifetimes.RunLease,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errNoVictim, err)
	}
	defer func() { // else it ends with its run lease
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		_ = insist(ending, func() error { return ledger.EndSession(ending, session.ID, session.Instance, "its zombie is done") })
	}()
	ref, err := n.catch(ctx, i, ledger, session)
	if err != nil {
		return err
	}
	at := time.Now()
	losing, cancel := context.WithTimeout(ctx, loseWithin)
	defer cancel()
	if err := lose(losing, ledger, session.ID, ref); err != nil {
		return fmt.Errorf("task %d is still the zombie's after %s: %w", ref.TaskID, time.Since(at).Round(time.Second), err)
	}
	if err := wake(losing, ledger, session.ID, ref); err != nil {
		return err
	}
	i.Landed, i.Healed = at, time.Now()
	return nil
}

// catch claims a task as soon as one waits, and starts it if the zombie is to stop after that. Until then the
// zombie renews its session.
func (n *nemesis) catch(ctx context.Context, i *Injected, ledger stepfleet.Claims, session stepfleet.Session) (ref stepfleet.Ref, err error) {
	ctx, cancel := context.WithTimeout(ctx, victimWait)
	defer cancel()
	renewed := time.Now()
	for ref.TaskID == 0 {
		if time.Since(renewed) > n.Lifetimes.Renew {
			renewed = time.Now()
			_, _ = ledger.Renew(ctx, session.ID, session.Instance) // the claim says what came of it
		}
		claimed, err := ledger.Claim(ctx, stepfleet.ClaimRequest{
			Session: session.ID, Instance: session.Instance, ID: uuid.NewString(), Queue: stepfleet.DefaultQueue, Max: 1,
		})
		if err = errors.Join(err, ctx.Err()); err != nil {
			return ref, fmt.Errorf("%w: %w", errNoVictim, err)
		}
		if len(claimed.Leases) == 0 {
			hold(ctx, catchEvery)
			continue
		}
		lease := claimed.Leases[0]
		ref, i.Target, i.Run = lease.Ref, "owner of "+lease.Key.String(), lease.RunID
	}
	if i.Kind != schedule.ZombieRun {
		return ref, nil
	}
	errs, err := ledger.Start(ctx, session.ID, []stepfleet.Ref{ref})
	if err = errors.Join(append(errs, err)...); err != nil {
		return ref, fmt.Errorf("%w: %w", errNoVictim, err)
	}
	return ref, nil
}

// lose waits until the session does not own the task any more.
func lose(ctx context.Context, ledger stepfleet.Claims, session stepfleet.SessionID, ref stepfleet.Ref) error {
	for {
		held, err := ledger.Held(ctx, session)
		if err == nil && len(held) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		hold(ctx, wakeEvery)
	}
}

// wake does what the owner was about to do: it starts the task and says that it has succeeded. The
// ledger must refuse both.
func wake(ctx context.Context, ledger stepfleet.Claims, session stepfleet.SessionID, ref stepfleet.Ref) error {
	lie := stepfleet.Settlement{Ref: ref, Result: stepfleet.Result{
		V: stepfleet.TaskVersion, Success: true, Outcome: stepfleet.StateSucceeded, Outputs: []string{}, Event: "STEP_SUCCESS",
	}}
	for _, write := range []func() ([]error, error){
		func() ([]error, error) { return ledger.Start(ctx, session, []stepfleet.Ref{ref}) },
		func() ([]error, error) { return ledger.Settle(ctx, session, []stepfleet.Settlement{lie}) },
	} {
		var answers []error
		if err := insist(ctx, func() (err error) { answers, err = write(); return err }); err != nil {
			return fmt.Errorf("the late write of task %d: %w", ref.TaskID, err)
		}
		if answers[0] == nil {
			return fmt.Errorf("task %d: %w", ref.TaskID, errAccepted)
		}
	}
	return nil
}

// insist calls until the ledger answers.
func insist(ctx context.Context, call func() error) error {
	for {
		err := call()
		if err == nil || ctx.Err() != nil {
			return err
		}
		hold(ctx, wakeEvery)
	}
}
