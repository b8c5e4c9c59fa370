package stepfleet_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
)

func TestTerminalStatesNeverChange(t *testing.T) {
	for _, tr := range stepfleet.Transitions {
		if tr.From.Terminal() && tr.To != tr.From {
			t.Errorf("%s leaves the terminal state %s", tr.Verb, tr.From)
		}
	}
}

func TestEveryStateIsReachedAndEveryOpenOneLeft(t *testing.T) {
	reached, left := map[stepfleet.State]bool{}, map[stepfleet.State]bool{}
	for _, tr := range stepfleet.Transitions {
		reached[tr.To] = true
		if tr.From != tr.To {
			left[tr.From] = true
		}
	}
	for _, s := range stepfleet.States {
		if !reached[s] {
			t.Errorf("no transition reaches %s", s)
		}
		if !s.Terminal() && !left[s] {
			t.Errorf("no transition leaves %s", s)
		}
	}
}

// A change of owner without a higher fence would let the old owner's writes through.
func TestEveryChangeOfOwnerRaisesTheFence(t *testing.T) {
	owned := func(s stepfleet.State) bool { return s == stepfleet.StateLeased || s == stepfleet.StateRunning }
	for _, tr := range stepfleet.Transitions {
		byOwner := tr.Verb == stepfleet.VerbStart || tr.Verb == stepfleet.VerbSettle
		changes := owned(tr.From) != owned(tr.To)
		if changes && !byOwner && tr.Verb != stepfleet.VerbSubmit && tr.Fence != stepfleet.FenceRaise {
			t.Errorf("%s from %s to %s changes the owner and keeps the fence", tr.Verb, tr.From, tr.To)
		}
	}
}

// Started at most once: nothing leads from running back to a state that a worker can start.
func TestARunningTaskIsNeverQueuedAgain(t *testing.T) {
	for _, tr := range stepfleet.Transitions {
		if tr.From == stepfleet.StateRunning && (tr.To == stepfleet.StateQueued || tr.To == stepfleet.StateLeased) {
			t.Errorf("%s takes a running task to %s", tr.Verb, tr.To)
		}
		if tr.To == stepfleet.StateRunning && tr.From != stepfleet.StateRunning && tr.Verb != stepfleet.VerbStart {
			t.Errorf("%s makes a task running", tr.Verb)
		}
	}
}

func TestLifetimes(t *testing.T) {
	if err := stepfleet.DefaultLifetimes().Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	spoil := map[string]func(*stepfleet.Lifetimes){
		"renewals too rare":    func(l *stepfleet.Lifetimes) { l.Renew = l.SessionTTL / 2 },
		"margin over TTL":      func(l *stepfleet.Lifetimes) { l.Margin = l.SessionTTL },
		"run lease within TTL": func(l *stepfleet.Lifetimes) { l.RunLease = l.SessionTTL },
		"no start deadline":    func(l *stepfleet.Lifetimes) { l.StartWithin = 0 },
		"negative renewal":     func(l *stepfleet.Lifetimes) { l.Renew = -time.Second },
	}
	for name, f := range spoil {
		l := stepfleet.DefaultLifetimes()
		f(&l)
		if l.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRefusalsKeepTheirCodeWhenWrapped(t *testing.T) {
	codes := map[string]bool{}
	for _, r := range stepfleet.Refusals {
		if codes[r.Code] {
			t.Errorf("code %s is used twice", r.Code)
		}
		codes[r.Code] = true
		if r.HTTPStatus < 400 || r.HTTPStatus > 599 {
			t.Errorf("%s: status %d", r.Code, r.HTTPStatus)
		}
		wrapped := fmt.Errorf("claim queue default: %w", fmt.Errorf("%w: because", r))
		if stepfleet.RefusalOf(wrapped) != r || !errors.Is(wrapped, r) {
			t.Errorf("%s is lost in wrapping", r.Code)
		}
	}
	if stepfleet.RefusalOf(errors.New("other")) != nil {
		t.Error("a foreign error has a refusal")
	}
}
