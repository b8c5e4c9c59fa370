package audit

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet"
)

// The events of an effect log.
const (
	EffectBegin = "begin"
	EffectEnd   = "end"
	EffectError = "error"
)

// Effect is a line of the effect log: user code's own word on what it did
// (examples/stepfleet_examples/effects.py).
type Effect struct {
	Event string `json:"event"`
	stepfleet.Key
	Fence  Fence   `json:"fence"`
	PID    int     `json:"pid"`
	Born   int64   `json:"born,omitempty"` // when the process began, in ticks since its host did; 0 is not known
	Worker string  `json:"worker"`
	At     float64 `json:"at"` // Unix seconds
	Op     string  `json:"op"`
}

// Time is when the line was written.
func (e Effect) Time() time.Time { return time.UnixMicro(int64(e.At * 1e6)) }

// Fence is a fence as user code has it: text from its environment, maybe empty.
type Fence string

// UnmarshalJSON takes a number as well.
func (f *Fence) UnmarshalJSON(raw []byte) error {
	text := strings.Trim(string(raw), `"`)
	if text == "null" {
		text = ""
	}
	if _, err := strconv.ParseInt(text, 10, 64); err != nil && text != "" {
		return fmt.Errorf("fence %s is no number", raw)
	}
	*f = Fence(text)
	return nil
}

// MarshalJSON writes what user code writes.
func (f Fence) MarshalJSON() ([]byte, error) { return json.Marshal(string(f)) }

// Number returns the fence, and whether there is one.
func (f Fence) Number() (stepfleet.Fence, bool) {
	n, err := strconv.ParseInt(string(f), 10, 64)
	return stepfleet.Fence(n), err == nil
}

// ReadEffects is an effect log in a file that open opens.
func ReadEffects(open func() (io.ReadCloser, error)) Source[Effect] {
	return lines("effect log", open, func(e *Effect) error {
		if !slices.Contains([]string{EffectBegin, EffectEnd, EffectError}, e.Event) || e.RunID == "" || e.StepKey == "" {
			return fmt.Errorf("event %q of step %q of run %q", e.Event, e.StepKey, e.RunID)
		}
		return nil
	})
}
