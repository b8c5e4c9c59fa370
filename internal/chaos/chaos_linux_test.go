package chaos

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

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
		Servers: []string{"127.0.0.1:1", "127.0.0.1:2"}, AWS: "http://127.0.0.1:3",
		Database: devstack.Database{
			Address: "127.0.0.1:4", WorkerURL: "postgres://u:p@127.0.0.1:4/stepfleet?sslmode=disable",
			DagsterURL: "postgresql+psycopg2://u:p@127.0.0.1:4/dagster?sslmode=disable",
		},
	}
	n.moved(at)
	environ := n.environment("worker-2", at)
	want := map[string]bool{
		"STEPFLEET_URL=http://" + n.api["worker-2"]:                                                            true,
		"STEPFLEET_DATABASE_URL=postgres://u:p@" + n.ledger["worker-2"] + "/stepfleet?sslmode=disable":         true,
		"DAGSTER_DATABASE_URL=postgresql+psycopg2://u:p@" + n.dagster["worker-2"] + "/dagster?sslmode=disable": true,
		"AWS_ENDPOINT_URL_SQS=http://" + n.sqs["worker-2"]:                                                     true,
	}
	for _, variable := range environ {
		if !want[variable] {
			t.Errorf("unexpected %s", variable)
		}
		delete(want, variable)
	}
	if len(want) > 0 {
		t.Errorf("missing %v of %v", want, environ)
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

func TestOneThingHasOneFaultAtATime(t *testing.T) {
	n := newNemesis(&stack{}, nil)
	if !n.take("aws") || n.take("aws") {
		t.Error("it was taken twice")
	}
	if n.give("aws"); !n.take("aws") {
		t.Error("it was not given back")
	}
}
