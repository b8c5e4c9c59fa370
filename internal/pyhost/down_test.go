package pyhost_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/internal/pyhost"
)

// A location that does not load is told by Dagster's name for it, costs the others nothing, and is
// tried again until it loads.
func TestALocationThatDoesNotLoadIsTriedAgain(t *testing.T) {
	dir, runID, payload := dagsterRun(t, `    time.sleep(float(os.environ.get("NAP", "0")))`)
	shop, mended := filepath.Join(dir, "shop.py"), filepath.Join(dir, "mended")
	code := `import os
from dagster import Definitions
if not os.path.exists(os.path.join(os.path.dirname(__file__), "mended")):
    raise RuntimeError("the shop is closed")
defs = Definitions()
`
	if err := os.WriteFile(shop, []byte(code), 0o600); err != nil {
		t.Fatal(err)
	}
	h := startHost(t, pyhost.ModeFork, dir, pyhost.Preload{File: shop}, pyhost.Preload{File: shop, Location: "named"},
		pyhost.Preload{File: shop, Attribute: "defs"})
	receiveWithin(t, h.Available(), "no template")
	if down := h.Down(); !slices.Equal(down, []string{"shop.py", "named", "shop.py:defs"}) {
		t.Fatalf("down: %q", down)
	}
	runs := func() {
		t.Helper()
		if exit := exitOf(t, launch(t, h, runID, payload, newGate())); exit.Result == nil || !exit.Result.Success {
			t.Errorf("a step of a location that loads: %+v", exit)
		}
	}
	runs()
	if err := os.WriteFile(mended, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(wait); len(h.Down()) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is not tried again")
		}
	}
	runs() // from the template that took over
}
