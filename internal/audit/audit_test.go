package audit_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
)

func TestACleanHistoryPasses(t *testing.T) {
	s := tell(t)
	report := s.check(t)
	for _, v := range report.Violations {
		t.Errorf("%s: %s %s", v.Invariant, v.Key, v.What)
	}
	for _, h := range report.Invariants {
		if h.Unchecked != "" || h.Cases == 0 {
			t.Errorf("%s was not checked: %d cases, %s", h.ID, h.Cases, h.Unchecked)
		}
	}
	if report.Verdict != audit.Pass {
		t.Errorf("verdict %s: %+v", report.Verdict, report.Counts)
	}
}

func TestVacuousHistoriesFail(t *testing.T) {
	for says, want := range map[string]audit.Want{
		"9 tasks ended, want at least 10":                       {Tasks: 10},
		"3 runs ended in Dagster, want at least 4":              {Runs: 4},
		"0 faults of kind pause worker landed, want at least 1": {Kinds: []string{"kill worker", "pause worker"}, FaultsPerKind: 1},
		"1 faults of kind kill worker landed, want at least 2":  {Kinds: []string{"kill worker"}, FaultsPerKind: 2},
		"1.0 faults a minute landed, want at least 60.0":        {FaultsPerMinute: 60},
		"operations were answered, want at least 101 %":         {AnsweredShare: 1.01},
		"56 % of the tasks succeeded, want at least 80 %":       {SucceededShare: 0.8},
		"1 writes of old owners were refused, want at least 2":  {Refusals: 2},
		"1 tasks were taken from owners that were gone, want":   {Recoveries: 2},
		"I9 had no case: Each refused write has a winner":       {Cases: []string{"I1", "I9"}},
	} {
		s := tell(t)
		s.want = want
		if len(want.Cases) > 0 {
			s.rows = slices.DeleteFunc(s.rows, func(r stepfleet.AuditRow) bool { return r.Refused != "" })
		}
		report := s.check(t)
		if report.Verdict != audit.Fail || len(report.Vacuous) != 1 || !strings.Contains(report.Vacuous[0], says) {
			t.Errorf("%+v: %s %q, want %q", want, report.Verdict, report.Vacuous, says)
		}
	}
	s := tell(t)
	s.want = audit.Want{
		Tasks: 8, Runs: 3, Kinds: []string{"kill worker"}, FaultsPerKind: 1, FaultsPerMinute: 1, AnsweredShare: 1,
		SucceededShare: 0.5, Refusals: 1, Recoveries: 1,
	}
	for _, inv := range audit.Invariants {
		s.want.Cases = append(s.want.Cases, inv.ID)
	}
	if report := s.check(t); report.Verdict != audit.Pass {
		t.Errorf("%s: %q", report.Verdict, report.Vacuous)
	}
}

// A fault that did not hit anything is none.
func TestFaultsThatDidNotLandDoNotCount(t *testing.T) {
	s := tell(t)
	s.faults[0].Landed = false
	s.want = audit.Want{Kinds: []string{"kill worker"}, FaultsPerKind: 1}
	if report := s.check(t); report.Verdict != audit.Fail || report.Counts.FaultKinds[0] != (audit.FaultCount{Kind: "kill worker", Tried: 1}) {
		t.Errorf("%s: %+v", report.Verdict, report.Counts.FaultKinds)
	}
}

func TestWithoutAWitnessTheReportSaysWhatWasNotChecked(t *testing.T) {
	s := tell(t)
	report, err := audit.Check(t.Context(), audit.Witnesses{Audit: audit.Slice(s.rows...), Tasks: audit.Slice(s.tasks...)})
	if err != nil {
		t.Fatal(err)
	}
	var unchecked []string
	for _, h := range report.Invariants {
		if h.Unchecked != "" {
			unchecked = append(unchecked, h.ID)
		}
	}
	if want := []string{"I1", "I5", "I6", "I7", "I12", "I13", "I14", "R1", "R2", "R3", "P1", "P2"}; !slices.Equal(unchecked, want) {
		t.Errorf("not checked %v, want %v", unchecked, want)
	}
	if _, err := audit.Check(t.Context(), audit.Witnesses{Audit: audit.Slice(s.rows...)}); err == nil {
		t.Error("a ledger without tasks was judged")
	}
}

// A list of what was left that is nil is no answer: nobody looked.
func TestTheReportSaysWhatNobodyLookedAt(t *testing.T) {
	s := tell(t)
	s.rest = &audit.Rest{Children: []string{}, Sessions: []string{}, Held: []string{}, Slots: []string{}, Lanes: 8}
	report := s.check(t)
	for _, h := range report.Invariants {
		switch h.ID {
		case "I13":
			if h.Cases != 1 || len(h.Unseen) > 0 {
				t.Errorf("%+v, want all of it seen", h)
			}
		case "I14":
			if h.Cases != 9 || !slices.Equal(h.Unseen, []string{"protected worker"}) {
				t.Errorf("%+v, want the slots of 8 lanes seen, and no protection", h)
			}
		}
	}
}

// A submit without an answer may have happened: it is no loss when it has not, and counted when it
// has.
func TestASubmitWithoutAnAnswerIsNoLoss(t *testing.T) {
	s := tell(t)
	for i := range s.client {
		if e := &s.client[i]; e.F == audit.OpSubmit && e.Type == audit.OK && (e.StepKey == "a" || e.StepKey == "y") {
			e.Type, e.TaskID = audit.Info, 0
		}
	}
	s.forget("r3", "y")
	report := s.check(t)
	if report.Verdict != audit.Pass || report.Counts.Acknowledged != 7 || report.Counts.Recovered != 1 {
		t.Errorf("%s: %+v %v", report.Verdict, report.Counts, report.Violations)
	}
}

// A window that begins in the middle of lives takes the tasks as it finds them, and one that ends
// there does not miss what came later.
func TestAWindowMayCutLives(t *testing.T) {
	s := tell(t)
	first, last := s.rows[0].At, s.rows[len(s.rows)-1].At
	for cut := first; cut.Before(last); cut = cut.Add(50 * time.Millisecond) {
		w := s.witnesses()
		w.Client, w.Effects, w.Runs, w.Rest, w.Healed = nil, nil, nil, nil, time.Time{}
		for _, side := range []string{"from", "until"} {
			rows := slices.DeleteFunc(slices.Clone(s.rows), func(r stepfleet.AuditRow) bool {
				return r.At.Before(cut) == (side == "from")
			})
			named := map[stepfleet.TaskID]bool{}
			for _, r := range rows {
				named[r.TaskID] = true
			}
			tasks := slices.DeleteFunc(slices.Clone(s.tasks), func(t audit.Task) bool { return !named[t.ID] })
			w.Audit, w.Tasks, w.From, w.Until = audit.Slice(rows...), audit.Slice(tasks...), cut, time.Time{}
			if side == "until" {
				w.From, w.Until = time.Time{}, cut
			}
			report, err := audit.Check(t.Context(), w)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range report.Violations {
				t.Errorf("%s %s after the begin: %s: %s", side, cut.Sub(first), v.Invariant, v.What)
			}
		}
	}
}

func TestAViolationHasItsEvidenceAndATimeline(t *testing.T) {
	s := tell(t)
	s.effects = append(s.effects, s.effect("r1", "b", audit.EffectBegin))
	report := s.check(t)
	i := slices.IndexFunc(report.Violations, func(v audit.Violation) bool { return v.Invariant == "I2" })
	if i < 0 {
		t.Fatal(report.Violations)
	}
	v := report.Violations[i]
	witnesses := map[string]int{}
	for _, m := range v.Evidence {
		witnesses[m.Witness]++
	}
	for _, name := range []string{"client", "effect", "ledger", "dagster", "fault"} {
		if witnesses[name] == 0 {
			t.Errorf("no evidence of %s: %v", name, witnesses)
		}
	}
	if !slices.IsSortedFunc(v.Evidence, func(a, b audit.Moment) int { return a.At.Compare(b.At) }) {
		t.Error("the evidence is not in the order of time")
	}
	report.Violations[i].What = "<script>alert(1)</script>"
	dir, stale, notes := t.TempDir(), "i2-099.html", "i2-notes.html"
	for _, name := range []string{stale, notes} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := report.WriteTimelines(dir); err != nil {
		t.Fatal(err)
	}
	if names := namesIn(t, dir); slices.Contains(names, stale) || !slices.Contains(names, notes) {
		t.Errorf("%s of an earlier report must be gone, and %s stay: %v", stale, notes, names)
	}
	page, err := os.ReadFile(filepath.Join(dir, report.Violations[i].Timeline))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"I2 is violated", "kill worker", "claimed it", "user code: begin", "STEP_UP_FOR_RETRY", "&lt;script&gt;"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	for _, outside := range []string{"<script", "http://", "https://", "src=", "@import", "url("} {
		if strings.Contains(string(page), outside) {
			t.Errorf("the page is not self-contained: %q", outside)
		}
	}
}

func TestARecordedHistoryReadsBack(t *testing.T) {
	var file bytes.Buffer
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	r := audit.NewRecorder(&file, func() time.Time { now = now.Add(time.Second); return now })
	e := r.Invoke("p", audit.OpSubmit, stepfleet.Key{RunID: "r", StepKey: "s"})
	e.TaskID = 7
	r.Done(e, audit.OK)
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	text := file.String()
	var got []audit.ClientEvent
	for e, err := range audit.ReadClient(reader(text))(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	if len(got) != 2 || got[0].Op != got[1].Op || got[1].TaskID != 7 || got[1].Type != audit.OK || !got[0].At.Before(got[1].At) {
		t.Errorf("%+v", got)
	}
}

func reader(text string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }
}

// The form is the one that examples/stepfleet_examples/effects.py writes.
func TestEffectsAreRead(t *testing.T) {
	line := `{"event":"begin","run_id":"r","step_key":"s","attempt":2,"fence":"3","pid":5,"worker":"w","at":1700000000.25,"op":"o"}`
	for e, err := range audit.ReadEffects(reader(line + "\n\n"))(t.Context()) {
		fence, given := e.Fence.Number()
		if err != nil || e.Key != (stepfleet.Key{RunID: "r", StepKey: "s", Attempt: 2}) || fence != 3 || !given || e.PID != 5 ||
			!e.Time().Equal(time.Unix(1700000000, 250_000_000)) {
			t.Errorf("%+v, %v", e, err)
		}
	}
}

// A verdict must not rest on a damaged witness.
func TestDamagedWitnessesAreErrors(t *testing.T) {
	s := tell(t)
	for text, says := range map[string]string{
		"{}\n": "effect log line 1",
		`{"event":"begin","run_id":"r","step_key":"s"}` + "\n" + `{"event":"be`: "effect log line 2",
		`{"event":"begin","run_id":"r","step_key":"s","fence":"x"}`:             "is no number",
	} {
		w := s.witnesses()
		w.Effects = audit.ReadEffects(reader(text))
		if _, err := audit.Check(t.Context(), w); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
	for _, text := range []string{`{"type":"what"}`, `{"type":"ok","f":"dance"}`, `{"type":"ok","f":"submit","op":1,"run_id":""}`} {
		w := s.witnesses()
		w.Client = audit.ReadClient(reader(text))
		if _, err := audit.Check(t.Context(), w); err == nil || !strings.Contains(err.Error(), "client history line 1") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestReportsOfNothingAreStillLists(t *testing.T) {
	report, err := json.Marshal(tell(t).check(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"vacuous":[]`, `"violations":[]`} {
		if !bytes.Contains(report, []byte(want)) {
			t.Errorf("no %s in the report", want)
		}
	}
}

func TestThePageHasEverySentence(t *testing.T) {
	page, err := os.ReadFile("../../docs/verify.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, inv := range audit.Invariants {
		if line := "| " + inv.ID + " | " + inv.Sentence + " |"; !strings.Contains(string(page), line) {
			t.Errorf("docs/verify.md has no line that begins %q", line)
		}
	}
}

// Whoever stands still can neither be killed nor be at work: the time of a zombie counts from its wake-up.
func TestAProcessOfAHostThatStoodStillHasUntilItsWorkerIsAwake(t *testing.T) {
	for name, c := range map[string]struct {
		worker string
		after  time.Duration // of the host's wake-up
		want   audit.Verdict
	}{
		"at once":           {"one", time.Millisecond, audit.Pass},
		"long after":        {"one", 40 * time.Second, audit.Fail},
		"on another worker": {"two", time.Millisecond, audit.Fail},
	} {
		s := tell(t)
		e := s.effect("r1", "b", audit.EffectBegin)
		slept, woke := e.Time(), e.Time().Add(60*time.Second)
		e.Event, e.At = audit.EffectEnd, float64(woke.Add(c.after).UnixMicro())/1e6
		s.effects = append(s.effects, e)
		s.faults = append(s.faults, audit.Fault{Kind: "freeze-host", Target: c.worker, At: slept, Until: woke, Landed: true, Host: true})
		if report := s.check(t); report.Verdict != c.want {
			t.Errorf("%s: %s %+v", name, report.Verdict, report.Violations)
		}
	}
}

func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// A history without violations leaves no page of an earlier one, and makes no directory.
func TestACleanReportLeavesNoPages(t *testing.T) {
	s := tell(t)
	report := s.check(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "i7-001.html"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	none := filepath.Join(dir, "none")
	for _, to := range []string{dir, none} {
		if err := report.WriteTimelines(to); err != nil {
			t.Fatal(err)
		}
	}
	if names := namesIn(t, dir); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
}
