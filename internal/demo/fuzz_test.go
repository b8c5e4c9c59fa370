package demo

import (
	"strings"
	"testing"
)

// FuzzParseEffects reads logs that are damaged: all of it is read, or it is an error that names a line.
func FuzzParseEffects(f *testing.F) {
	whole := `{"event":"begin","run_id":"r","step_key":"a","attempt":0,"fence":"1","pid":7,"worker":"w","at":1.5,"op":"a"}`
	for _, log := range []string{
		"", "\n \n", whole, whole + "\n" + whole + "\n", whole[:20], whole + whole, `{"event":"begin"}`, `{"event":"x","run_id":"r"}`,
		strings.Replace(whole, "begin", "end", 1), "null", "[]", whole + "\r\n\t\n" + whole, "\xff", `{"event":"error","run_id":"r","attempt":1e3}`,
	} {
		f.Add(log)
	}
	f.Fuzz(func(t *testing.T, log string) {
		effects, err := ParseEffects(strings.NewReader(log))
		if err != nil {
			if !strings.Contains(err.Error(), "effect log line ") {
				t.Errorf("%q: %v", log, err)
			}
			return
		}
		lines := 0
		for line := range strings.Lines(log) {
			if strings.TrimSpace(line) != "" {
				lines++
			}
		}
		if len(effects) != lines {
			t.Errorf("%q: %d effects in %d lines", log, len(effects), lines)
		}
		Judge(effects, nil, nil, 0)
	})
}
