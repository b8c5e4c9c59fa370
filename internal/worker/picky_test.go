package worker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stepfleet/stepfleet"
)

// A code location that does not load here is left to others, bell or not, and claimed once it loads.
func TestAWorkerLeavesALocationThatDoesNotLoadToOthers(t *testing.T) {
	inBubble(t, func(b *bench) {
		claims := 0
		b.fail(func(op string) error {
			if op == "claim" {
				claims++
			}
			return nil
		})
		b.host.setDown("shop")
		b.start()
		for step, location := range map[string]string{"a": "shop", "b": "bank", "c": ""} {
			b.submitEdited(true, func(t *stepfleet.Task) { t.CodeLocation = location }, step)
		}
		for range 2 {
			b.next().runThrough(b)
		}
		time.Sleep(time.Minute)
		if v := b.view("a"); v.State != stepfleet.StateQueued || v.Fence != 0 {
			t.Errorf("the location that does not load: state %s, fence %d", v.State, v.Fence)
		}
		b.fail(nil)
		if claims > 20 {
			t.Errorf("%d claims within a minute: what it may not take keeps it looking", claims)
		}
		b.host.setDown()
		b.next().runThrough(b)
		b.expect("a", stepfleet.StateSucceeded)
	})
}

// runThrough starts the process and lets it succeed.
func (p *scriptedProcess) runThrough(b *bench) {
	b.t.Helper()
	if err := p.gate.Start(b.ctx); err != nil {
		b.t.Fatal(err)
	}
	p.succeed()
	synctest.Wait()
}
