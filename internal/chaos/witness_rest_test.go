package chaos

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/devstack"
)

// Every worker is asked at the address of its present life, and one that does not answer has not given
// its slots back.
func TestWorkersAreAskedForTheirSlots(t *testing.T) {
	answers := map[string]string{
		"/1/metrics": "stepfleet_slots_taken{queue=\"default\"} 0\nstepfleet_slots_taken{queue=\"runs\"} 2\n",
		"/2/metrics": "stepfleet_slots_taken{queue=\"default\"} 0\nstepfleet_slots_taken{queue=\"runs\"} 0\n",
		"/3/metrics": "stepfleet_slots{queue=\"default\"} 3\n",
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte(answers[r.URL.Path]))
	}))
	defer server.Close()
	s := &stack{Config: Config{Dir: t.TempDir()}, http: server.Client()}
	s.state.TokenFile = filepath.Join(s.Dir, "token")
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(s.state.TokenFile, "secret\n")
	line := func(path string) string {
		return `time=2026-11-27 level=INFO msg="worker begins" worker=w slots=map[default:3] probes=` + server.URL + path + "\n"
	}
	logs := devstack.Layout{Dir: s.devDir()}
	write(logs.Log("worker-1"), line("/0")+"more\n"+line("/1")+"more\n")
	write(logs.Log("worker-2"), line("/2"))
	write(logs.Log("worker-3"), line("/3"))
	write(logs.Log("worker-4"), "not yet\n")
	taken, lanes := s.takenSlots(t.Context())
	want := []string{"2 of queue runs in worker-1", "worker-3 has no lane", "worker-4 does not say: its log has no address"}
	if !slices.Equal(taken, want) || lanes != 4 {
		t.Errorf("%q of %d lanes, want %q of 4", taken, lanes, want)
	}
}

func TestWhatIsLeftIsAlwaysAList(t *testing.T) {
	alive, gone := session(1, "alive"), session(2, "gone")
	alive.State, gone.State, gone.Worker = stepfleet.SessionAlive, stepfleet.SessionSuspect, "worker-2"
	if left := openSessions([]stepfleet.Session{alive, gone}, map[string]bool{"alive": true}); !slices.Equal(left, []string{"session 2 of worker-2"}) {
		t.Errorf("%q", left)
	}
	if left := openSessions(nil, nil); left == nil {
		t.Error("no list of sessions: the verifier takes that for a question that was not asked")
	}
	if left := children(nil); left == nil {
		t.Error("no list of processes: the verifier takes that for a question that was not asked")
	}
}
