package dispatch

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet"
)

func TestDepthOfPayloads(t *testing.T) {
	for text, want := range map[string]int{
		``: 0, `1`: 0, `{}`: 1, `[[],{"a":[1]},[]]`: 3, `"[[[["`: 0, `["\"[[[\\"]`: 1, `{"a\\":[{}]}`: 3,
		`]]]]{{`: -2, strings.Repeat("[", 65): 65,
	} {
		if got := depth([]byte(text)); got != max(want, 0) {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

// FuzzDepth compares with the standard decoder. What the decoder takes must come out exactly; of what
// it does not, it must not have come deeper.
func FuzzDepth(f *testing.F) {
	for _, text := range []string{`{"a":[1,{"b":"]"}]}`, `"\\"`, `[[[`, `]]]`, `{"\"[":["\\\\"]}`, "[\"\xff\"]", `"\u005b["`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		seen, whole := decoded(text)
		if got := depth(text); got < seen || whole && got != seen {
			t.Errorf("%q is nested %d deep, and not %d", text, seen, got)
		}
	})
}

// decoded is how deep the decoder came, and whether it came to the end.
func decoded(text []byte) (deepest int, whole bool) {
	d := json.NewDecoder(bytes.NewReader(text))
	open := 0
	for {
		token, err := d.Token()
		if err != nil {
			return deepest, err == io.EOF && open == 0 && json.Valid(text)
		}
		switch token {
		case json.Delim('['), json.Delim('{'):
			open++
			deepest = max(deepest, open)
		case json.Delim(']'), json.Delim('}'):
			open--
		}
	}
}

func BenchmarkDepth(b *testing.B) {
	text := []byte(strings.Repeat(`{"name":"result","value":[1,2,3]},`, stepfleet.MaxPayloadBytes/34))
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		depth(text)
	}
}
