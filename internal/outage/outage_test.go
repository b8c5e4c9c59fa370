package outage

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/conformance"
	"github.com/stepfleet/stepfleet/internal/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errOut = fmt.Errorf("dial: %w", stepfleet.ErrUnavailable)

// asked makes one call that ends with err, and says whether it was made.
func asked(b *Breaker, k kind, err error) (made bool) {
	_ = try(context.Background(), b, k, "call", func() error { made = true; return err })
	return made
}

// opened returns a breaker that has just opened.
func opened(t *testing.T) *Breaker {
	t.Helper()
	b := New(Config{Dependency: "ledger"})
	for range opensAfter {
		asked(b, guarded, errOut)
	}
	if b.State() != Open {
		t.Fatalf("%s after %d failures", b.State(), opensAfter)
	}
	return b
}

func TestWhatOpensTheBreaker(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for name, test := range map[string]struct {
		ctx  context.Context
		errs []error
		want State
	}{
		"four in a row":              {errs: []error{errOut, errOut, errOut, errOut}, want: Closed},
		"five in a row":              {errs: []error{errOut, errOut, errOut, errOut, errOut}, want: Open},
		"an answer between":          {errs: []error{errOut, errOut, errOut, errOut, nil, errOut}, want: Closed},
		"a refusal is an answer":     {errs: []error{errOut, errOut, errOut, errOut, stepfleet.ErrFenced, errOut}, want: Closed},
		"a schema is an answer":      {errs: slices.Repeat([]error{stepfleet.ErrSchema}, 9), want: Closed},
		"no answer in time":          {errs: slices.Repeat([]error{context.DeadlineExceeded}, 5), want: Open},
		"the callers were not there": {ctx: gone, errs: slices.Repeat([]error{errOut}, 9), want: Closed},
	} {
		t.Run(name, func(t *testing.T) {
			b := New(Config{Dependency: "ledger"})
			ctx := test.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			for _, err := range test.errs {
				if got := try(ctx, b, guarded, "call", func() error { return err }); !errors.Is(got, err) {
					t.Errorf("got %v of %v", got, err)
				}
			}
			if b.State() != test.want {
				t.Errorf("the breaker is %s, want %s", b.State(), test.want)
			}
		})
	}
}

func TestARefusedCallSaysWhatIsWrong(t *testing.T) {
	b := opened(t)
	err := try(t.Context(), b, guarded, "call", func() error { return nil })
	if !errors.Is(err, stepfleet.ErrUnavailable) || err.Error() != "ledger not reachable, and is not asked until it answers a probe; it last failed with: dial: not reachable" {
		t.Error(err)
	}
}

// What comes back late from before the outage, and what always passes, admits no second probe.
func TestAHalfOpenBreakerAdmitsExactlyOneProbe(t *testing.T) {
	for name, probed := range map[string]error{"the probe fails": errOut, "the probe's caller leaves": context.Canceled} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := New(Config{Dependency: "ledger"})
				late := make(chan error)
				go func() { _ = try(t.Context(), b, guarded, "late", func() error { return <-late }) }()
				synctest.Wait()
				for range opensAfter {
					asked(b, guarded, errOut)
				}
				for round := range 3 {
					time.Sleep(probeEvery)
					var made atomic.Int64
					ctx, leave := context.WithCancel(t.Context())
					answer := make(chan error)
					var calls sync.WaitGroup
					for range 20 {
						calls.Go(func() {
							_ = try(ctx, b, guarded, "call", func() error { made.Add(1); return <-answer })
						})
					}
					synctest.Wait()
					if round == 0 {
						late <- errOut
					}
					for range 3 {
						asked(b, passing, errOut)
					}
					asked(b, guarded, errOut)
					synctest.Wait()
					if n := made.Load(); n != 1 || b.State() != HalfOpen {
						t.Fatalf("round %d: %d probes are under way of a breaker that is %s, want 1 of one half-open", round, n, b.State())
					}
					if errors.Is(probed, context.Canceled) {
						leave()
					}
					answer <- probed
					calls.Wait()
					leave()
					if b.State() != Open {
						t.Fatalf("%s after a probe without an answer", b.State())
					}
				}
				time.Sleep(probeEvery)
				if !asked(b, guarded, nil) || b.State() != Closed {
					t.Errorf("%s after a probe that was answered", b.State())
				}
			})
		})
	}
}

func TestAProbeThatPanicsIsNoProbeAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(t)
		time.Sleep(probeEvery)
		func() {
			defer func() { _ = recover() }()
			_ = try(t.Context(), b, guarded, "call", func() error { panic("x") })
		}()
		if !asked(b, guarded, nil) {
			t.Error("no probe follows one that has panicked")
		}
	})
}

func TestProbesComeWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(t)
		for range 50 {
			began := time.Now()
			for !asked(b, guarded, errOut) {
				time.Sleep(10 * time.Millisecond)
			}
			if pause := time.Since(began); pause < probeEvery/2-10*time.Millisecond || pause > probeEvery {
				t.Fatalf("a probe after %s", pause)
			}
		}
	})
}

// passes are the ledger's methods that an open breaker lets through: what ends or keeps a task or a
// session, the heartbeat and the check.
var passes = []string{"Renew", "Settle", "Release", "Revoke", "Abandon", "SetDraining", "EndSession", "Beat", "Check"}

// Every method of the ledger's ports is either in the list above or refused: a new one that is neither
// would hang in an outage.
func TestWhatPassesAnOpenBreaker(t *testing.T) {
	b := opened(t)
	b.due = time.Now().Add(time.Hour)
	l := reflect.ValueOf(Ledger(memory.NewLedger(), b))
	for i := range l.NumMethod() {
		name, method := l.Type().Method(i).Name, l.Method(i)
		args := []reflect.Value{reflect.ValueOf(t.Context())}
		for p := 1; p < method.Type().NumIn() && !(method.Type().IsVariadic() && p == method.Type().NumIn()-1); p++ {
			args = append(args, reflect.Zero(method.Type().In(p)))
		}
		out := method.Call(args)
		err, _ := out[len(out)-1].Interface().(error)
		refused := errors.Is(err, stepfleet.ErrUnavailable)
		if refused == slices.Contains(passes, name) {
			t.Errorf("%s: refused is %t: guard it in ledger.go or list it here", name, refused)
		}
		if !refused {
			b = opened(t) // it has closed this one
			b.due = time.Now().Add(time.Hour)
			l = reflect.ValueOf(Ledger(memory.NewLedger(), b))
		}
	}
}

func TestWhatPassesClosesTheBreakerAndWakesWhoRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(t)
		settle := try(t.Context(), b, passing, "settle", func() error { return errOut })
		began := time.Now()
		woke := make(chan time.Duration, 1)
		go func() {
			stepfleet.Rest(t.Context(), settle, 40)
			woke <- time.Since(began)
		}()
		synctest.Wait()
		if !asked(b, passing, nil) || b.State() != Closed {
			t.Fatalf("the breaker is %s after a renewal", b.State())
		}
		if took := <-woke; took != 0 {
			t.Errorf("who rested went on %s after the outage was over", took)
		}
	})
}

// Nobody else may be left to find out that the dependency is back.
func TestWhoMayProbeRestsUntilAProbeIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(t)
		refused := try(t.Context(), b, guarded, "register", func() error { return nil })
		began := time.Now()
		stepfleet.Rest(t.Context(), refused, 40)
		if took := time.Since(began); took > probeEvery {
			t.Errorf("rested for %s while a probe was due", took)
		}
		if !asked(b, guarded, nil) {
			t.Error("the call after the rest was refused")
		}
	})
}

// A dependency that answers half of what it is asked gets a tenth more, and one call a second.
func TestTheRetryBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Dependency: "ledger"})
		const calls, over = 6000, 60 * time.Second
		var first, repeats atomic.Int64
		var n atomic.Int64
		ctx, cancel := context.WithTimeout(t.Context(), over)
		defer cancel()
		half := func() error {
			if n.Add(1)%2 == 0 {
				return errOut
			}
			return nil
		}
		var all sync.WaitGroup
		for range calls {
			all.Go(func() {
				first.Add(1)
				err := try(ctx, b, guarded, "call", half)
				for tries := 0; err != nil && stepfleet.Rest(ctx, err, tries); tries++ {
					repeats.Add(1)
					err = try(ctx, b, guarded, "call", half)
				}
			})
			time.Sleep(over / calls)
		}
		all.Wait()
		t.Logf("%d calls, %d repeats", first.Load(), repeats.Load())
		most := (first.Load()+repeats.Load())/callsPerRepeat + repeatsSaved + int64(over/trickle)
		if got := repeats.Load(); got > most || got < most/2 {
			t.Errorf("%d repeats of %d calls, want at most %d and not many fewer", got, first.Load(), most)
		}
	})
}

// A settle that is not recorded keeps a run waiting: the budget is not for what always passes.
// Repeats within a call count as any other, and an open breaker lets none through: a probe is one call.
func TestRepeatsWithinACallAreInTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Dependency: "ledger"})
		repeats := func() (n int) {
			for b.MayRepeat() {
				n++
			}
			return n
		}
		if n := repeats(); n != repeatsSaved+1 { // and one by the trickle
			t.Errorf("%d repeats without a call", n)
		}
		for range 3 * callsPerRepeat {
			asked(b, guarded, nil)
		}
		if n := repeats(); n != 3 {
			t.Errorf("%d repeats of %d calls", n, 3*callsPerRepeat)
		}
	})
	if opened(t).MayRepeat() {
		t.Error("a call that an open breaker let pass may be repeated")
	}
}

func TestTheRetryBudgetHoldsUpNoSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Dependency: "ledger"})
		for b.budget.spend(time.Now()) {
		}
		err := try(t.Context(), b, passing, "settle", func() error { return errOut })
		began := time.Now()
		stepfleet.Rest(t.Context(), err, 0)
		if took := time.Since(began); took >= time.Second {
			t.Errorf("a settle rested for %s without budget", took)
		}
	})
}

// A fleet comes back after an outage of the ledger as fast as it may, and not as a storm: it never
// asks twice as often as in peace.
func TestNoStormAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const processes, loops, every = 40, 5, 250 * time.Millisecond
		var down atomic.Bool
		var mu sync.Mutex
		perSecond := map[int]int{}
		began := time.Now()
		ledger := func() error {
			mu.Lock()
			perSecond[int(time.Since(began)/time.Second)]++
			mu.Unlock()
			if down.Load() {
				return errOut
			}
			return nil
		}
		ctx, stop := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for range processes {
			b := New(Config{Dependency: "ledger"})
			for loop := range loops {
				all.Go(func() {
					for {
						for n := 0; ; n++ {
							err := try(ctx, b, kind(loop == 0), "call", ledger)
							if err == nil || !stepfleet.Rest(ctx, err, n) {
								break
							}
						}
						select {
						case <-ctx.Done():
							return
						case <-time.After(every/2 + stepfleet.Backoff(0)*time.Duration(every)/time.Second):
						}
					}
				})
			}
		}
		const peace, outage = 20, 60
		time.Sleep(peace * time.Second)
		down.Store(true)
		time.Sleep(outage * time.Second)
		down.Store(false)
		time.Sleep(peace * time.Second)
		stop()
		all.Wait()
		most := func(from, to int) (n int) {
			for s := from; s < to; s++ {
				n = max(n, perSecond[s])
			}
			return n
		}
		steady, during, after := most(5, peace), most(peace+3, peace+outage), most(peace+outage, peace+outage+peace-1)
		t.Logf("calls a second: %d in peace, %d in the outage, %d after it", steady, during, after)
		if after > 2*steady {
			t.Errorf("%d calls a second after the outage, in peace there were %d", after, steady)
		}
		if during > steady/2 {
			t.Errorf("%d calls a second in the outage, in peace there were %d", during, steady)
		}
		if back := perSecond[peace+outage+2]; back < steady/2 {
			t.Errorf("%d calls in the third second after the outage, in peace there were %d: recovery is slow", back, steady)
		}
	})
}

func TestEachServerHasItsOwnBreaker(t *testing.T) {
	var told []string
	n := NewNotifier(func(_ context.Context, url string, _ []stepfleet.Lease) error {
		told = append(told, url)
		if url == "gone" {
			return errors.New("connection refused")
		}
		return nil
	}, func() *Breaker { return New(Config{Dependency: "server"}) })
	for range opensAfter + 1 {
		if err := n.Notify(t.Context(), "gone", nil); !errors.Is(err, stepfleet.ErrUnavailable) {
			t.Error(err)
		}
		if err := n.Notify(t.Context(), "here", nil); err != nil {
			t.Error(err)
		}
	}
	if len(told) != 2*opensAfter+1 {
		t.Errorf("told %v, want the one that is gone %d times and the other each time", told, opensAfter)
	}
	for i := range 3 * maxServers {
		_ = n.Notify(t.Context(), fmt.Sprint(i), nil)
	}
	if len(n.servers) > maxServers {
		t.Errorf("%d breakers are kept", len(n.servers))
	}
}

func TestConformance(t *testing.T) {
	conformance.RunLedger(t, func(*testing.T) conformance.LedgerEnv {
		l := memory.NewLedger()
		return conformance.LedgerEnv{Ledger: Ledger(l, New(Config{Dependency: "ledger"})), AgeSession: l.AgeSession, AgeLease: l.AgeLease}
	})
	conformance.RunBells(t, func(*testing.T) conformance.BellEnv {
		bells, b := memory.NewBells("one", "two"), New(Config{Dependency: "sqs"})
		return conformance.BellEnv{
			Ringer: Ringer(bells, b), Listener: Listener(bells, b), Queue: "one", Other: "two", Missing: "three",
			Break: func(broken bool) {
				bells.Fail(nil)
				if broken {
					bells.Fail(func(op, queue string) error { return conformance.ErrBroken })
				}
			},
		}
	})
}

func BenchmarkACallInPeace(b *testing.B) {
	l := Ledger(nothing{}, New(Config{Dependency: "ledger"}))
	b.ReportAllocs()
	for b.Loop() {
		_, _ = l.Claim(b.Context(), stepfleet.ClaimRequest{})
	}
}

type nothing struct{ stepfleet.Ledger }

func (nothing) Claim(context.Context, stepfleet.ClaimRequest) (stepfleet.Claimed, error) {
	return stepfleet.Claimed{}, nil
}
