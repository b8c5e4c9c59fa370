package chaos

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
	"github.com/stepfleet/stepfleet/internal/devstack"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

func TestATailReadsWholeLinesOnce(t *testing.T) {
	log := tail[opened]{path: filepath.Join(t.TempDir(), "log")}
	if lines, err := log.more(); len(lines) > 0 || err != nil {
		t.Errorf("%v, %v of a log that is not there yet", lines, err)
	}
	write := func(text string) {
		t.Helper()
		file, err := os.OpenFile(log.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	write("{\"run\":\"a\",\"pid\":1}\n{\"run\":")
	first, err := log.more()
	if err != nil || len(first) != 1 || first[0].Run != "a" {
		t.Errorf("%+v, %v; want the whole line", first, err)
	}
	write("\"b\"}\n")
	second, err := log.more()
	if err != nil || len(second) != 1 || second[0].Run != "b" {
		t.Errorf("%+v, %v; want the rest", second, err)
	}
	write("nonsense\n")
	if _, err := log.more(); err == nil {
		t.Error("a damaged log passed for one")
	}
}

func TestAProcessIsSentThroughItsProxies(t *testing.T) {
	n, err := newNetwork(2, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	at := devstack.Endpoints{
		Servers: []string{"127.0.0.1:1", "127.0.0.1:2"}, AWS: "http://127.0.0.1:3", Dagster: "http://127.0.0.1:5",
		Database: devstack.Database{
			Address: "127.0.0.1:4", ServerURL: "postgres://s:p@127.0.0.1:4/stepfleet?sslmode=disable", WorkerURL: "postgres://u:p@127.0.0.1:4/stepfleet?sslmode=disable",
			DagsterURL: "postgresql+psycopg2://u:p@127.0.0.1:4/dagster?sslmode=disable",
		},
	}
	n.moved(at)
	const dagster = "DAGSTER_DATABASE_URL=postgresql+psycopg2://u:p@"
	for process, want := range map[string][]string{
		"worker-2": {
			"STEPFLEET_URL=http://" + n.api["worker-2"],
			"STEPFLEET_DATABASE_URL=postgres://u:p@" + n.ledger["worker-2"] + "/stepfleet?sslmode=disable",
			dagster + n.dagster["worker-2"] + "/dagster?sslmode=disable",
			"AWS_ENDPOINT_URL_SQS=http://" + n.sqs["worker-2"],
		},
		"server-2": {
			"STEPFLEET_URL=http://" + n.api[outsiders],
			"STEPFLEET_DATABASE_URL=postgres://s:p@" + n.ledger["server-2"] + "/stepfleet?sslmode=disable",
			"AWS_ENDPOINT_URL_SQS=http://" + n.sqs["server-2"],
			"STEPFLEET_ADVERTISE_URL=http://" + n.advertise["server-2"],
			"STEPFLEET_DAGSTER_URL=http://" + n.webserver["server-2"],
		},
		"daemon": {"STEPFLEET_URL=http://" + n.api[outsiders]},
	} {
		if diff := cmp.Diff(want, n.environment(process, at)); diff != "" {
			t.Errorf("%s: %s", process, diff)
		}
	}
	if edges := n.of("worker-2", "worker-PG", "renewals-PG", "child-PG"); len(edges) != 3 || edges[0].Targets()[0] != "127.0.0.1:4" {
		t.Errorf("%v, want the three edges of a worker to PostgreSQL", edges)
	}
}

func TestAPauseIsSeenInTheProcessTable(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	p, ok := proctable.Read(cmd.Process.Pid)
	if !ok {
		t.Fatal("no such process")
	}
	n := newNemesis(&stack{}, nil)
	i := &Injected{Fault: schedule.Fault{Kind: schedule.PauseServer, Hold: 50 * time.Millisecond}}
	seen := make(chan bool, 1)
	go func() { seen <- within(time.Second, p.Stopped) }()
	if err := n.pause(t.Context(), i, []proctable.Process{p}); err != nil || !i.Ok() {
		t.Errorf("%v, %+v", err, i)
	}
	if !<-seen || p.Stopped() || i.Healed.Sub(i.Landed) < i.Hold {
		t.Errorf("it did not stand still and go on: %+v", i)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := n.pause(t.Context(), &Injected{}, []proctable.Process{p}); err == nil {
		t.Error("a pause of a process that is gone has landed")
	}
}

// startHost starts a process with two below it, which end with the test.
func startHost(t *testing.T) proctable.Process {
	t.Helper()
	cmd := exec.Command("sh", "-c", "sleep 60 & sleep 60 & wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() })
	host, ok := proctable.Read(cmd.Process.Pid)
	if !ok || !within(time.Second, func() bool { return len(proctable.Descendants(host.PID)) == 2 }) {
		t.Fatal("no such processes")
	}
	return host
}

// A host stands still only when nothing below it goes on, and goes on whole.
func TestAHostIsStoppedWithAllBelowIt(t *testing.T) {
	host := startHost(t)
	tree := stopTree(host)
	all := func(stopped bool) func() bool {
		return func() bool {
			return !slices.ContainsFunc(tree, func(p proctable.Process) bool { return p.Stopped() != stopped })
		}
	}
	if len(tree) != 3 || tree[0].PID != host.PID || !within(time.Second, all(true)) {
		t.Errorf("%v; want the host and its two children to stand still", tree)
	}
	n := newNemesis(&stack{}, nil)
	for victim := range 2 { // both orders
		i := &Injected{Fault: schedule.Fault{Kind: schedule.FreezeHost, Victim: victim}}
		if err := n.pause(t.Context(), i, slices.Clone(tree)); err != nil || !i.Ok() || !within(time.Second, all(false)) {
			t.Errorf("%v, %+v: it does not go on", err, i)
		}
	}
}

// In the act late-worker steps go on while their worker stands still, and then that goes on, too.
func TestAWorkerWakesAfterItsSteps(t *testing.T) {
	worker := startHost(t)
	host := stopTree(worker)
	if len(host) != 3 || !within(time.Second, worker.Stopped) {
		t.Fatalf("%v does not stand still", host)
	}
	ctx, wakeIt := context.WithCancel(t.Context())
	woken := make(chan struct{})
	go func() { defer close(woken); wakeLast(ctx, host, time.Hour) }()
	ahead := func() bool { return !host[1].Stopped() && !host[2].Stopped() }
	if !within(time.Second, ahead) || !worker.Stopped() {
		t.Errorf("worker stopped: %t, steps ahead: %t; want both", worker.Stopped(), ahead())
	}
	wakeIt()
	if <-woken; !within(time.Second, func() bool { return !worker.Stopped() }) {
		t.Error("the worker does not go on")
	}
}

// The relay would hold back what the steps of the act write, whatever their gate says.
func TestOnlyTheLateWorkerHasNoRelay(t *testing.T) {
	for _, act := range append(Acts(), "") {
		c := Config{Act: act, Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
		clocks, err := newClocks(c)
		if err != nil {
			t.Fatal(err)
		}
		net, err := newNetwork(1, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer net.Close()
		s := &stack{Config: c, net: net, clocks: clocks}
		environ := s.environment(workerName(0), devstack.Endpoints{Servers: []string{""}})
		if none := slices.Contains(environ, "STEPFLEET_DATABASE_RELAY=false"); none != (act == theLateWorker) {
			t.Errorf("act %q: the worker has no relay: %t", act, none)
		}
	}
}

func TestOneThingHasOneFaultAtATime(t *testing.T) {
	n := newNemesis(&stack{}, nil)
	if !n.take("aws") || n.take("aws") {
		t.Error("it was taken twice")
	}
	if n.give("aws"); !n.take("aws") {
		t.Error("it was not given back")
	}
}
