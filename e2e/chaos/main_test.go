package main

import (
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/internal/chaos"
)

// What must be seen grows with the time there is for it; docs/chaos.md has the same table.
func TestLeastGrowsWithTheDuration(t *testing.T) {
	type floors struct{ kinds, tasks, runs, refusals, recoveries int }
	for name, c := range map[string]struct {
		config chaos.Config
		want   floors
	}{
		"a minute":    {chaos.Config{Duration: time.Minute}, floors{1, 100, 4, 2, 2}},
		"5 minutes":   {chaos.Config{Duration: 5 * time.Minute}, floors{3, 500, 20, 6, 10}},
		"30 minutes":  {chaos.Config{Duration: 30 * time.Minute}, floors{3, 500, 20, 30, 60}},
		"a partition": {chaos.Config{Partition: 5 * time.Minute}, floors{0, 500, 20, 0, 0}},
	} {
		got := c.config
		got.Least, got.LeastTasks, got.LeastRuns, got.LeastRefusals, got.LeastRecoveries = -1, -1, -1, -1, -1
		least(&got)
		if f := (floors{got.Least, got.LeastTasks, got.LeastRuns, got.LeastRefusals, got.LeastRecoveries}); f != c.want {
			t.Errorf("%s: %+v, want %+v", name, f, c.want)
		}
	}
	asked := chaos.Config{Duration: time.Minute, Least: -1, LeastRefusals: 7, LeastRecoveries: 9}
	if least(&asked); asked.LeastRefusals != 7 || asked.LeastRecoveries != 9 {
		t.Errorf("%+v, want what was asked for", asked)
	}
}
