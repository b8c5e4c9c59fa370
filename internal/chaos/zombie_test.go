package chaos

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
	"github.com/stepfleet/stepfleet/internal/memory"
)

// haunted runs a zombie on a ledger with one task, which is swept as a server does, and returns what came
// of it, what the ledger has, and its sessions that are not dead.
func haunted(t *testing.T, kind schedule.Kind, around func(stepfleet.Claims) stepfleet.Claims) (i *Injected, l *memory.Ledger, left []stepfleet.Session, err error) {
	l = memory.NewLedger()
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		submitOne(t, ctx, l)
		go sweeping(ctx, l)
		n := newNemesis(&stack{Config: Config{Lifetimes: Lifetimes}}, nil)
		i = &Injected{Fault: schedule.Fault{Kind: kind}}
		err = n.haunt(ctx, i, around(l))
		left, _ = l.Sessions(ctx, 0)
	})
	return i, l, left, err
}

// submitOne has the one task wait.
func submitOne(t *testing.T, ctx context.Context, l *memory.Ledger) {
	epoch, submitErr := l.TakeEpoch(ctx, "r", stepfleet.Executor{Name: "test"}, "")
	payload, key := []byte("{}"), stepfleet.Key{RunID: "r", StepKey: "a"}
	_, err := l.Submit(ctx, stepfleet.Batch{
		RunID: "r", Epoch: epoch, Identity: "id", Payloads: map[stepfleet.Digest][]byte{stepfleet.DigestOf(payload): payload},
		Tasks: []stepfleet.Task{{
			V: stepfleet.TaskVersion, Kind: stepfleet.KindStep, Key: key, Op: "a", Job: "job",
			IdempotencyKey: key.IdempotencyKey(), Queue: stepfleet.DefaultQueue, Payload: stepfleet.DigestOf(payload),
		}},
	})
	if err := errors.Join(submitErr, err); err != nil {
		t.Error(err)
	}
}

// sweeping is what servers do, once a second.
func sweeping(ctx context.Context, l *memory.Ledger) {
	for ctx.Err() == nil {
		hold(ctx, time.Second)
		_, _ = l.ExpireSessions(ctx, stepfleet.Beats{Last: time.Now(), Unbroken: time.Hour})
		_, _ = l.Sweep(ctx, Lifetimes.StartWithin, 10)
		orphans, _ := l.Orphans(ctx, 0, 10)
		for _, o := range orphans {
			_, _ = l.Decide(ctx, []stepfleet.Decision{o.Decide("", o.Reason)})
		}
	}
}

func TestAZombieLosesItsTaskAndIsRefused(t *testing.T) {
	for kind, want := range map[schedule.Kind]struct {
		state stepfleet.State
		least time.Duration
		late  stepfleet.Verb // the deadline passes, and these are refused
	}{
		schedule.ZombieLease: {stepfleet.StateQueued, Lifetimes.SessionTTL, stepfleet.VerbStart},
		schedule.ZombieRun:   {stepfleet.StateLost, Lifetimes.RunLease, stepfleet.VerbSettle},
	} {
		i, l, left, err := haunted(t, kind, func(l stepfleet.Claims) stepfleet.Claims { return l })
		if err != nil || !i.Ok() || i.Healed.Sub(i.Landed) < want.least || i.Run != "r" {
			t.Errorf("%s: %v, %+v", kind, err, i)
		}
		refused := map[stepfleet.Verb]string{}
		for _, row := range l.WholeAudit() {
			if row.Refused != "" {
				refused[row.Verb] = row.Refused
			}
		}
		if refused[stepfleet.VerbStart] == "" || refused[stepfleet.VerbSettle] != stepfleet.ErrFenced.Code || refused[want.late] == "" {
			t.Errorf("%s: refused %v, want its start and its settlement", kind, refused)
		}
		views, _ := l.RunTasks(t.Context(), "r")
		if len(views) != 1 || views[0].State != want.state {
			t.Errorf("%s: %+v, want %s", kind, views, want.state)
		}
		if len(left) > 0 {
			t.Errorf("%s: its session is left: %+v", kind, left)
		}
	}
}

// The workers are quick: a zombie may wait for longer than its TTL before it has a task.
func TestAZombieLivesUntilItHasATask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		l := memory.NewLedger()
		go sweeping(ctx, l)
		n := newNemesis(&stack{Config: Config{Lifetimes: Lifetimes}}, nil)
		i := &Injected{Fault: schedule.Fault{Kind: schedule.ZombieLease}}
		time.AfterFunc(victimWait-100*time.Millisecond, func() { submitOne(t, ctx, l) })
		if err := n.haunt(ctx, i, l); err != nil || !i.Ok() || i.Healed.Sub(i.Landed) < Lifetimes.SessionTTL-Lifetimes.Renew {
			t.Errorf("%v, %+v", err, i)
		}
	})
}

// gullible is a ledger that takes what an old owner says.
type gullible struct{ stepfleet.Claims }

func (gullible) Settle(_ context.Context, _ stepfleet.SessionID, ends []stepfleet.Settlement) ([]error, error) {
	return make([]error, len(ends)), nil
}

func TestAZombieThatIsBelievedHasNotLanded(t *testing.T) {
	i, _, _, err := haunted(t, schedule.ZombieRun, func(l stepfleet.Claims) stepfleet.Claims { return gullible{l} })
	if !errors.Is(err, errAccepted) || i.Ok() {
		t.Errorf("%v, %+v", err, i)
	}
}

func TestAZombieWithoutATaskIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNemesis(&stack{Config: Config{Lifetimes: Lifetimes}}, nil)
		i := &Injected{Fault: schedule.Fault{Kind: schedule.ZombieLease}}
		if err := n.haunt(t.Context(), i, memory.NewLedger()); !errors.Is(err, errNoVictim) || i.Ok() {
			t.Errorf("%v, %+v", err, i)
		}
	})
}
