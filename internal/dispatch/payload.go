package dispatch

import (
	"fmt"

	"github.com/stepfleet/stepfleet"
)

// flaws says what is wrong with the payloads of a batch, by digest; those that are right are absent.
// Tasks share payloads, so each is looked at once.
func (s *Server) flaws(b stepfleet.Batch) map[stepfleet.Digest]error {
	found := map[stepfleet.Digest]error{}
	for digest, payload := range b.Payloads {
		if err := s.flaw(digest, payload); err != nil {
			found[digest] = err
		}
	}
	return found
}

func (s *Server) flaw(digest stepfleet.Digest, payload []byte) error {
	if len(payload) > s.cfg.MaxPayloadBytes {
		return fmt.Errorf("%w: its arguments take %d bytes, allowed are %d: pass large values through an IO manager, not through run config or tags",
			stepfleet.ErrPayloadTooBig, len(payload), s.cfg.MaxPayloadBytes)
	}
	if got := stepfleet.DigestOf(payload); got != digest {
		return fmt.Errorf("%w: its payload has digest %s, not %s", stepfleet.ErrTaskInvalid, got, digest)
	}
	if nested := depth(payload); nested > stepfleet.MaxPayloadDepth {
		return fmt.Errorf("%w: its arguments are nested %d deep, allowed are %d: a run that was re-executed from a re-execution time and again carries them all; launch it anew",
			stepfleet.ErrTaskInvalid, nested, stepfleet.MaxPayloadDepth)
	}
	return nil
}

// depth is how deep arrays and objects of a JSON text are nested. Of what is no JSON it is at least
// as deep as any parser comes before it stops.
func depth(text []byte) int {
	open, deepest := 0, 0
	quoted, escaped := false, false
	for _, c := range text {
		switch {
		case escaped:
			escaped = false
		case quoted:
			escaped, quoted = c == '\\', c != '"'
		case c == '"':
			quoted = true
		case c == '[' || c == '{':
			open++
			deepest = max(deepest, open)
		case c == ']' || c == '}':
			open--
		}
	}
	return deepest
}
