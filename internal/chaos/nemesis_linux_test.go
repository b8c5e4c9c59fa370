package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	stdnet "net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/chaos/proxy"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// newCancelling returns a nemesis whose Dagster cancels every run, and answers while it may.
func newCancelling(t *testing.T, answers func() bool) *nemesis {
	t.Helper()
	webserver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !answers() {
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write([]byte(`{"data":{"terminateRun":{"__typename":"TerminateRunSuccess"}}}`))
	}))
	t.Cleanup(webserver.Close)
	s := &stack{Config: Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}, dagster: dagsterapi.New(webserver.URL)}
	return newNemesis(s, newLoad(s))
}

// A cancel whose call got no answer may have come through or not: Dagster's log says which.
func TestOnlyACancelThatCameThroughExcusesARun(t *testing.T) {
	answers := true
	n := newCancelling(t, func() bool { return answers })
	l := n.load
	for _, run := range []string{"answered", "arrived", "lost", "untouched"} {
		l.runs[run] = &runRecord{ID: run, Status: "STARTED"}
	}
	cancel := func() error { return n.cancel(t.Context(), &Injected{Fault: schedule.Fault{Kind: schedule.Cancel}}) }
	if err := cancel(); err != nil {
		t.Fatal(err)
	}
	answers = false
	for range 2 {
		if err := cancel(); !errors.Is(err, errNoVictim) {
			t.Fatalf("a cancel without an answer: %v", err)
		}
	}
	log := []audit.DagsterEvent{{RunID: "arrived", Type: "PIPELINE_CANCELING"}, {RunID: "untouched", Type: "PIPELINE_CANCELED"}}
	for _, r := range l.records(log) {
		if want := r.ID == "answered" || r.ID == "arrived"; want == r.Cancelled.IsZero() {
			t.Errorf("%s counts as cancelled: %t", r.ID, !want)
		}
	}
}

// Of a kind that the plan has once, the first try finds no victim: it is tried again, and once it has landed,
// no more.
func TestAKindThatIsShortIsTriedAgain(t *testing.T) {
	t.Parallel()
	n := newCancelling(t, func() bool { return true })
	l := n.load
	time.AfterFunc(victimWait+victimWait/2, func() { // in the pause after the first try
		l.mu.Lock()
		defer l.mu.Unlock()
		l.runs["r"] = &runRecord{ID: "r", Status: "STARTED"}
	})
	n.run(t.Context(), []schedule.Fault{{Kind: schedule.Cancel}}, 1)
	if tries := n.results(); len(tries) != 2 || tries[0].Ok() || !tries[1].Ok() || tries[1].At < victimWait {
		t.Errorf("%d tries, want one that missed and one that landed: %+v", len(tries), tries)
	}
}

func TestAnAttemptAtItsEndIsKnownUntilItsProcessIsGone(t *testing.T) {
	s := &stack{Config: Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}}
	l := newLoad(s)
	n := newNemesis(s, l)
	write := func(event string) {
		t.Helper()
		line, err := json.Marshal(map[string]any{
			"event": event, "run_id": "r", "step_key": "a", "attempt": 0, "pid": os.Getpid(), "worker": "worker-1", "at": float64(time.Now().UnixMicro()) / 1e6,
		})
		if err != nil {
			t.Fatal(err)
		}
		file, err := os.OpenFile(s.effectLog(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.Write(append(line, '\n')); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	write("begin")
	if len(l.busy()) != 1 || !l.works("worker-1") || len(l.ending(began)) != 0 {
		t.Errorf("busy %v, ending %v; want it in user code", l.busy(), l.ending(began))
	}
	write("end")
	if len(l.busy()) != 0 || len(l.ending(began)) != 1 || len(l.ending(time.Now())) != 0 {
		t.Errorf("busy %v, ending %v; want it at its end", l.busy(), l.ending(began))
	}
	e := l.ending(began)[0]
	e.process.Start = "another's"
	l.ended["r"] = e
	if got := living(l.ended); len(got) != 1 {
		t.Errorf("%v; want one that lives", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := n.nextEnding(ctx); !errors.Is(err, errNoVictim) {
		t.Errorf("an end from before the fault was taken: %v", err)
	}
}

func TestClocksDisagreeAndAreStepped(t *testing.T) {
	c := Config{Dir: t.TempDir(), Seed: 7}
	k, err := newClocks(c)
	if err != nil {
		t.Fatal(err)
	}
	again, err := newClocks(c)
	if err != nil {
		t.Fatal(err)
	}
	offsets, environs := map[time.Duration]bool{}, map[string]bool{}
	for _, name := range clocked() {
		if k.offset(name) != again.offset(name) {
			t.Errorf("%s: %s and %s of one seed", name, k.offset(name), again.offset(name))
		}
		offsets[k.offset(name)] = true
		environs[strings.Join(k.environment(name), " ")] = true
	}
	if len(offsets) < 4 || len(environs) != servers+workers {
		t.Errorf("offsets %v, environments %v; want most of them to differ", offsets, environs)
	}
	if environ := k.environment("daemon"); environ != nil {
		t.Errorf("Dagster's daemon gets %v", environ)
	}
	before := k.offset("server")
	if err := k.step("server", -15*time.Second); err != nil {
		t.Fatal(err)
	}
	if got := k.offset("server"); got != before-15*time.Second {
		t.Errorf("%s after a step, was %s", got, before)
	}
}

// What does not say the time that it was set to has not been hit.
func TestAStepOfAClockLandsWhenTheProcessSaysSo(t *testing.T) {
	c := Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	k, err := newClocks(c)
	if err != nil {
		t.Fatal(err)
	}
	obeys := true
	process := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		now := time.Now()
		if obeys {
			now = now.Add(k.offset(serverName(0)))
		}
		w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
	}))
	defer process.Close()
	net := &network{}
	net.at.Servers = []string{strings.TrimPrefix(process.URL, "http://"), ""}
	n := newNemesis(&stack{Config: c, clocks: k, net: net, http: process.Client()}, nil)
	i := &Injected{Fault: schedule.Fault{Kind: schedule.ClockOffset, Offset: -2 * time.Second}}
	if err := n.stepClock(t.Context(), i); err != nil || !i.Ok() || i.Target != "server" {
		t.Errorf("%v, %+v", err, i)
	}
	obeys = false
	if err := k.step(serverName(0), time.Minute); err != nil {
		t.Fatal(err)
	}
	i = &Injected{Fault: i.Fault}
	if err := n.stepClock(t.Context(), i); err == nil || i.Ok() {
		t.Errorf("a process that does not look at its clock was hit: %+v", i)
	}
}

// On an edge that is used once in a while a fault waits for that: what nobody meets is no fault.
func TestAFaultOfAQuietEdgeWaitsForSomethingToHit(t *testing.T) {
	net, err := newNetwork(1, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer net.Close()
	s := &stack{Config: Config{Log: slog.New(slog.DiscardHandler)}, net: net}
	n := newNemesis(s, nil)
	const short = 20 * time.Millisecond
	i := &Injected{Fault: schedule.Fault{Kind: schedule.LinkCut, Hold: short}}
	done := make(chan error, 1)
	go func() { done <- n.breakEdge(t.Context(), i, net.of(serverName(0), "server-log")[0], proxy.Cut) }()
	select {
	case err := <-done:
		t.Fatalf("it has not waited: %v", err)
	case <-time.After(5 * short):
	}
	if conn, err := stdnet.Dial("tcp", net.dagster[serverName(0)]); err == nil { // or it was reset already
		defer conn.Close()
	}
	if err := <-done; err != nil || !i.Ok() || i.Hits == 0 {
		t.Errorf("%v, %+v", err, i)
	}
}
