package stepfleet_test

import (
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
)

func TestLifetimesThatOverflowAreRefused(t *testing.T) {
	const most = time.Duration(1<<63 - 1)
	for _, l := range []stepfleet.Lifetimes{
		{Renew: most/3 + 2, SessionTTL: most, RunLease: most, Margin: time.Second, StartWithin: 1},
		{Renew: time.Second, SessionTTL: 10 * time.Second, RunLease: time.Minute, Margin: most/2 + 1, StartWithin: 1},
		{Renew: time.Second, SessionTTL: 10 * time.Second, RunLease: time.Minute, Margin: time.Second, StartWithin: most},
	} {
		if err := l.Validate(); err == nil {
			t.Errorf("%+v passes", l)
		}
	}
	l := stepfleet.DefaultLifetimes()
	if err := l.Validate(); err != nil {
		t.Error(err)
	}
	l.RunLease = stepfleet.MaxLifetime
	if err := l.Validate(); err != nil {
		t.Error(err)
	}
}
