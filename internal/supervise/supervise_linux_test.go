package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary plays every process of these tests; roleVariable says which.
const roleVariable = "SUPERVISE_TEST_ROLE"

const patience = 20 * time.Second

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(m.Run())
	case "sleep": // ends on SIGTERM
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "stubborn": // ends on SIGKILL only
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "exit":
		fmt.Println("life " + os.Getenv("LIFE"))
		os.Exit(7)
	case "parent": // leaves a grandchild in a session of its own, beyond any group or death signal
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), roleVariable+"=sleep")
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := child.Start(); err != nil {
			panic(err)
		}
		fmt.Println(child.Process.Pid)
		time.Sleep(time.Hour)
	case "warden":
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		if err := RunWarden(os.Stdin, log); err != nil {
			panic(err)
		}
	case "supervisor":
		runSupervisor()
	}
}

// runSupervisor is a supervisor to be killed: a warden and one child, which has a grandchild.
func runSupervisor() {
	id, dir := os.Getenv("TEST_ID"), os.Getenv("TEST_DIR")
	os.Setenv(roleVariable, "warden")
	if _, err := StartWarden([]string{os.Args[0]}, id, filepath.Join(dir, "warden.log")); err != nil {
		panic(err)
	}
	s := New(nil)
	_, err := s.Start(Spec{Name: "parent", LogPath: filepath.Join(dir, "parent.log"), Command: role("parent", MarkVariable+"="+id)})
	if err != nil {
		panic(err)
	}
	fmt.Println("up")
	time.Sleep(time.Hour)
}

// role is the command of one of the processes above.
func role(name string, env ...string) func(int) Command {
	return func(life int) Command {
		full := append(Unmarked(os.Environ()), roleVariable+"="+name, fmt.Sprintf("LIFE=%d", life))
		return Command{Args: []string{os.Args[0]}, Env: append(full, env...), Tag: fmt.Sprintf("tag-%d", life)}
	}
}

func logPath(t *testing.T) string { return filepath.Join(t.TempDir(), "child.log") }

// eventually waits until ok; it looks at what other processes do, which send no signal.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, ok := parseStat(pid, string(stat))
	return ok
}

func TestStopEndsAChildPolitely(t *testing.T) {
	s := New(nil)
	exits := make(chan Exit, 1)
	log := logPath(t)
	p, err := s.Start(Spec{
		Name: "child", Command: role("sleep"), LogPath: log, Restart: true,
		Exited: func(e Exit) { exits <- e },
	})
	if err != nil {
		t.Fatal(err)
	}
	pid := p.PID()
	eventually(t, "the child writes to its log", func() bool {
		text, _ := os.ReadFile(log)
		return strings.Contains(string(text), "sleeping")
	})
	s.Stop()
	e := <-exits
	if e.PID != pid || !e.Stopped || e.Tag != "tag-0" || e.Reason != "signal: terminated" || e.RestartIn != 0 {
		t.Errorf("exit = %+v", e)
	}
	if alive(pid) || p.PID() != 0 {
		t.Errorf("pid %d is alive after Stop", pid)
	}
	if _, err := s.Start(Spec{Name: "late", Command: role("sleep"), LogPath: log}); err == nil {
		t.Error("a stopped supervisor started a child")
	}
}

func TestStopKillsAStubbornChild(t *testing.T) {
	s := New(nil)
	exits := make(chan Exit, 1)
	log := logPath(t)
	_, err := s.Start(Spec{
		Name: "child", Command: role("stubborn"), LogPath: log, StopWait: 100 * time.Millisecond,
		Exited: func(e Exit) { exits <- e },
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the child ignores SIGTERM", func() bool {
		text, _ := os.ReadFile(log)
		return len(text) > 0
	})
	s.Stop()
	if e := <-exits; e.Reason != "signal: killed" || !e.Stopped {
		t.Errorf("exit = %+v", e)
	}
}

func TestEveryLifeIsReportedAndRestarted(t *testing.T) {
	s := New(nil)
	exits := make(chan Exit)
	_, err := s.Start(Spec{
		Name: "child", Command: role("exit"), LogPath: logPath(t), Restart: true,
		Exited: func(e Exit) { exits <- e },
	})
	if err != nil {
		t.Fatal(err)
	}
	first, second := <-exits, <-exits
	go s.Stop()
	defer s.Stop()
	for life, e := range []Exit{first, second} {
		if e.Life != life || e.Tag != fmt.Sprintf("tag-%d", life) || e.Reason != "exit status 7" || e.Stopped {
			t.Errorf("exit of life %d = %+v", life, e)
		}
		if e.RestartIn < 750*time.Millisecond {
			t.Errorf("life %d: restart in %s", life, e.RestartIn)
		}
	}
	if first.PID == second.PID {
		t.Errorf("both lives have pid %d", first.PID)
	}
}

func TestARestartWaitsAsLongAsItIsTold(t *testing.T) {
	s := New(nil)
	exits := make(chan Exit)
	p, err := s.Start(Spec{
		Name: "child", Command: role("exit"), LogPath: logPath(t), Restart: true, RestartAfter: time.Millisecond,
		Exited: func(e Exit) { exits <- e },
	})
	if err != nil {
		t.Fatal(err)
	}
	for life := range 6 { // with the growing wait these take half a minute
		if e := <-exits; e.RestartIn != time.Millisecond {
			t.Errorf("life %d: restart in %s", life, e.RestartIn)
		}
	}
	go s.Stop()
	for {
		select {
		case <-exits:
		case <-p.Gone():
			return
		}
	}
}

func TestAChildWithoutRestartEndsOnce(t *testing.T) {
	s := New(nil)
	defer s.Stop()
	p, err := s.Start(Spec{Name: "child", Command: role("exit"), LogPath: logPath(t)})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Gone():
	case <-time.After(patience):
		t.Fatal("the child has not ended")
	}
}

func TestBackoffIsCapped(t *testing.T) {
	for failures, most := range map[int]time.Duration{1: 1, 2: 2, 3: 4, 4: 8, 5: 16, 6: 16, 60: 16} {
		for range 100 {
			if got := backoff(failures); got > most*time.Second || got < most*time.Second*3/4 {
				t.Fatalf("backoff(%d) = %s, want three quarters to all of %d s", failures, got, most)
			}
		}
	}
}

func TestWaitReady(t *testing.T) {
	s := New(nil)
	defer s.Stop()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	address := listener.Addr().String()
	ready, err := s.Start(Spec{Name: "ready", Command: role("sleep"), LogPath: logPath(t), Ready: TCP(address)})
	if err != nil {
		t.Fatal(err)
	}
	if err := ready.WaitReady(t.Context()); err != nil {
		t.Error(err)
	}
	never := func(context.Context) error { return errors.New("no plan yet") }
	dying, err := s.Start(Spec{Name: "dying", Command: role("exit"), LogPath: logPath(t), Ready: never})
	if err != nil {
		t.Fatal(err)
	}
	var exited *ExitedError
	if err := dying.WaitReady(t.Context()); !errors.As(err, &exited) || exited.Exit.Reason != "exit status 7" {
		t.Errorf("WaitReady of a dying child = %v", err)
	}
	slow, err := s.Start(Spec{Name: "slow", Command: role("sleep"), LogPath: logPath(t), Ready: never})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := slow.WaitReady(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no plan yet") {
		t.Errorf("WaitReady of a slow child = %v", err)
	}
}

func TestHTTPProbeSaysWhyNot(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ok" {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, "fsync is off\n")
		}
	}))
	defer server.Close()
	if err := HTTP(server.URL + "/ok")(t.Context()); err != nil {
		t.Error(err)
	}
	if err := HTTP(server.URL + "/readyz")(t.Context()); err == nil || !strings.HasSuffix(err.Error(), "fsync is off") {
		t.Errorf("err = %v", err)
	}
}

// TestNothingOutlivesAKilledSupervisor kills a supervisor with SIGKILL: its child must go by the
// parent-death signal or the warden, its grandchild (in a session of its own) by the warden alone.
func TestNothingOutlivesAKilledSupervisor(t *testing.T) {
	id, dir := fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano()), t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(Unmarked(os.Environ()), roleVariable+"=supervisor", "TEST_ID="+id, "TEST_DIR="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer Sweep(id)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Fatalf("the supervisor says %q (%v)", line, err)
	}
	eventually(t, "child and grandchild run", func() bool { return len(Marked(id)) == 2 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "child and grandchild are gone", func() bool { return len(Marked(id)) == 0 })
	eventually(t, "the warden says so and ends", func() bool {
		text, _ := os.ReadFile(filepath.Join(dir, "warden.log"))
		return strings.Contains(string(text), "msg=done")
	})
}

func TestADismissedWardenKillsNobody(t *testing.T) {
	id := fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano())
	t.Setenv(roleVariable, "warden")
	warden, err := StartWarden([]string{os.Args[0]}, id, logPath(t))
	if err != nil {
		t.Fatal(err)
	}
	s := New(nil)
	defer s.Stop()
	p, err := s.Start(Spec{Name: "child", Command: role("sleep", MarkVariable+"="+id), LogPath: logPath(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := warden.Dismiss(); err != nil {
		t.Fatal(err)
	}
	if !alive(p.PID()) {
		t.Error("the child is gone")
	}
}

func TestSweepSparesAndTakesDescendants(t *testing.T) {
	id := fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano())
	s := New(nil)
	defer s.Stop()
	mark := MarkVariable + "=" + id
	spared, err := s.Start(Spec{Name: "spared", Command: role("parent", mark), LogPath: logPath(t)})
	if err != nil {
		t.Fatal(err)
	}
	swept, err := s.Start(Spec{Name: "swept", Command: role("parent", mark), LogPath: logPath(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer Sweep(id)
	eventually(t, "both and their children run", func() bool { return len(Marked(id)) == 4 })
	if killed := Sweep(id, spared.PID()); killed != 2 {
		t.Errorf("killed %d processes, want 2", killed)
	}
	<-swept.Gone()
	if !alive(spared.PID()) || len(Marked(id)) != 2 {
		t.Errorf("of the spared ones %v are left", Marked(id))
	}
}

// An end is a proof of death, so nothing of the life may be left when it is reported, not even what
// is in a session of its own.
func TestAnEndIsReportedAfterAllOfTheLifeIsGone(t *testing.T) {
	s := New(nil)
	defer s.Stop()
	id := fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano())
	left := make(chan int, 1)
	p, err := s.Start(Spec{
		Name: "parent", LogPath: logPath(t),
		Command: func(int) Command {
			command := role("parent")(0)
			command.Life = id
			return command
		},
		Exited: func(Exit) { left <- len(markedProcesses(LifeVariable, id, nil)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sweep(LifeVariable, id)
	eventually(t, "child and grandchild run", func() bool { return len(markedProcesses(LifeVariable, id, nil)) == 2 })
	if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if n := <-left; n > 0 {
		t.Errorf("%d processes of the life were left when its end was reported", n)
	}
}

func TestParseStat(t *testing.T) {
	for stat, want := range map[string]process{
		"7 (a) b) S 3 7 7": {pid: 7, parent: 3, command: "a) b"},
		"7 (x) Z 3 7 7":    {},
		"7 broken":         {},
	} {
		if got, ok := parseStat(7, stat); got != want || ok != (want.pid != 0) {
			t.Errorf("parseStat(%q) = %+v, %t", stat, got, ok)
		}
	}
}
