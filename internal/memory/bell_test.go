package memory_test

import (
	"testing"

	"github.com/stepfleet/stepfleet/internal/conformance"
	"github.com/stepfleet/stepfleet/internal/memory"
)

func TestBells(t *testing.T) {
	conformance.RunBells(t, func(*testing.T) conformance.BellEnv {
		bells := memory.NewBells("one", "two")
		return conformance.BellEnv{
			Ringer: bells, Listener: bells, Queue: "one", Other: "two", Missing: "three",
			Break: func(broken bool) {
				bells.Fail(nil)
				if broken {
					bells.Fail(func(op, queue string) error { return conformance.ErrBroken })
				}
			},
		}
	})
}
