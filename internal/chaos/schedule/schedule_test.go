package schedule

import (
	"math"
	"reflect"
	"slices"
	"testing"
	"time"
)

func plan(seed uint64, duration time.Duration) Plan {
	return Plan{Seed: seed, Duration: duration, TTL: 3 * time.Second, RunLease: 12 * time.Second, PerMinute: 60, Least: 3}
}

func TestAPlanFollowsFromItsSeed(t *testing.T) {
	one, again, other := New(plan(1, time.Minute)), New(plan(1, time.Minute)), New(plan(2, time.Minute))
	if !reflect.DeepEqual(one, again) {
		t.Error("two plans of one seed differ")
	}
	if reflect.DeepEqual(one, other) {
		t.Error("plans of two seeds are the same")
	}
}

func TestEveryPlanHasEnoughOfEachKind(t *testing.T) {
	for seed := range uint64(20) {
		for _, minutes := range []float64{1, 5, 30} {
			p := plan(seed, time.Duration(minutes*float64(time.Minute)))
			faults := New(p)
			if least := int(math.Ceil(60 * minutes)); len(faults) < least {
				t.Errorf("seed %d: %d faults in %g minutes, want at least %d", seed, len(faults), minutes, least)
			}
			count := Count(faults)
			for _, kind := range Kinds {
				if count[kind] < 3 || about[kind].heavy && count[kind] < int(minutes) {
					t.Errorf("seed %d: %d of %s", seed, count[kind], kind)
				}
			}
			if !slices.IsSortedFunc(faults, func(a, b Fault) int { return int(a.At - b.At) }) {
				t.Errorf("seed %d: not in the order of time", seed)
			}
			if last := faults[len(faults)-1]; last.At > p.Duration {
				t.Errorf("seed %d: %s is after the end", seed, last)
			}
		}
	}
}

func TestPausesLastHalfATTLToThreeAndFreezesOverTheRunLease(t *testing.T) {
	for _, f := range New(plan(3, 10*time.Minute)) {
		switch about[f.Kind].hold {
		case holdPause:
			if f.Hold < 1500*time.Millisecond || f.Hold > 9*time.Second {
				t.Errorf("%s", f)
			}
		case holdLease:
			if f.Hold < 13*time.Second || f.Hold > 18*time.Second {
				t.Errorf("%s", f)
			}
		case holdNone:
			if f.Hold != 0 {
				t.Errorf("%s", f)
			}
		}
	}
}

// What ends run workers must be seldom and take turns: a run whose worker is lost three times is
// given up, and that must not be the fate of every run.
func TestVictimsTakeTurnsAndHeavyKindsAreSpread(t *testing.T) {
	faults := New(plan(4, 5*time.Minute))
	var victims []int
	first, last := time.Duration(-1), time.Duration(0)
	for _, f := range faults {
		if about[f.Kind].group == "worker" {
			victims = append(victims, f.Victim)
		}
		if f.Kind == KillWorker || f.Kind == KillRunWorker {
			if first < 0 {
				first = f.At
			}
			last = f.At
		}
	}
	for i := 1; i < len(victims); i++ {
		if victims[i] != victims[i-1]+1 {
			t.Fatalf("victims %v, want each after the other", victims)
		}
	}
	if last-first < time.Minute {
		t.Errorf("all kills between %s and %s of 5 minutes", first, last)
	}
	if n := Count(faults)[KillWorker] + Count(faults)[KillRunWorker]; n > 10 {
		t.Errorf("%d kills of run workers and of what carries them", n)
	}
}

// A step of a clock that is no longer than a deadline is the one that a wrong comparison would obey.
func TestClocksJumpBothWaysAndNearADeadline(t *testing.T) {
	var forwards, backwards, near, far int
	for _, f := range New(plan(6, 10*time.Minute)) {
		if f.Kind != ClockOffset {
			continue
		}
		if f.Offset > 0 {
			forwards++
		} else {
			backwards++
		}
		if f.Offset.Abs() <= 15*time.Second {
			near++
		} else {
			far++
		}
		if f.Offset == 0 || f.Offset%time.Second != 0 || f.Offset.Abs() > time.Hour {
			t.Errorf("%s: a step of %s", f, f.Offset)
		}
	}
	if forwards == 0 || backwards == 0 || near == 0 || far == 0 {
		t.Errorf("%d forwards, %d backwards, %d near a deadline, %d far", forwards, backwards, near, far)
	}
}

func TestEveryKindHasItsTraits(t *testing.T) {
	if len(Kinds) != len(about) {
		t.Errorf("%d kinds, %d with traits", len(Kinds), len(about))
	}
	for _, kind := range Kinds {
		a, ok := about[kind]
		if !ok || a.group == "" || a.heavy == (a.weight > 0) {
			t.Errorf("%s: %+v, want a group, and a weight unless it is heavy", kind, a)
		}
	}
}

func TestAPlanLeavesOutWhatCannotHit(t *testing.T) {
	p := plan(5, time.Minute)
	p.Without = []Kind{SQSDuplicate}
	if n := Count(New(p))[SQSDuplicate]; n > 0 {
		t.Errorf("%d of a kind that the plan is without", n)
	}
	if faults := New(Plan{Duration: time.Minute}); len(faults) > 0 {
		t.Errorf("%d faults, and none were asked for", len(faults))
	}
}
