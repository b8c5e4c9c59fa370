package audit_test

import (
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
)

// A row that nobody thought of would be told in the words of the code.
func TestEveryTransitionAndEveryRefusalHasASentence(t *testing.T) {
	verbs := map[stepfleet.Verb]bool{stepfleet.VerbTakeover: true, stepfleet.VerbRejoin: true}
	said := map[string]stepfleet.Transition{}
	for _, tr := range stepfleet.Transitions {
		verbs[tr.Verb] = true
		words := audit.Words(stepfleet.AuditRow{TaskID: 1, Verb: tr.Verb, From: tr.From, To: tr.To})
		if strings.Contains(words, `"`) {
			t.Errorf("%s from %q to %q has no sentence: %s", tr.Verb, tr.From, tr.To, words)
		}
		if twin, ok := said[words]; ok {
			t.Errorf("%+v and %+v have the same sentence", tr, twin)
		}
		said[words] = tr
	}
	for verb := range verbs {
		for _, refusal := range stepfleet.Refusals {
			words := audit.Words(stepfleet.AuditRow{Verb: verb, Refused: refusal.Code})
			if !strings.HasPrefix(words, "wanted to ") {
				t.Errorf("%s refused as %s has no sentence: %s", verb, refusal.Code, words)
			}
		}
	}
	for _, verb := range []stepfleet.Verb{stepfleet.VerbTakeover, stepfleet.VerbClose, stepfleet.VerbAdjudicate} {
		if words := audit.Words(stepfleet.AuditRow{Verb: verb, RunID: "r"}); strings.Contains(words, `"`) {
			t.Errorf("%s of a run has no sentence: %s", verb, words)
		}
	}
}
