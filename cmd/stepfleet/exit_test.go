package main

import (
	"bufio"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asCommand has the test's own binary be the command.
const asCommand = "STEPFLEET_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	os.Exit(m.Run())
}

// aServer is a real server's process, whose PostgreSQL and SQS are away.
type aServer struct {
	*exec.Cmd
	address string
}

func startServer(t *testing.T) aServer {
	t.Helper()
	s := aServer{Cmd: exec.CommandContext(t.Context(), os.Args[0], "server", "--listen", "127.0.0.1:0")}
	s.Env = append(os.Environ(), asCommand+"=1", "STEPFLEET_DATABASE_URL=postgres://u:p@127.0.0.1:1/none",
		"AWS_ENDPOINT_URL=http://127.0.0.1:1", "AWS_REGION=us-east-1", "AWS_ACCESS_KEY_ID=x", "AWS_SECRET_ACCESS_KEY=x")
	log, err := s.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Process.Kill() })
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		if _, after, ok := strings.Cut(lines.Text(), "url="); ok && strings.Contains(lines.Text(), "server listens") {
			u, err := url.Parse(strings.Fields(after)[0])
			if err != nil {
				t.Fatal(err)
			}
			s.address = u.Host
			go func() { _, _ = io.Copy(io.Discard, log) }()
			return s
		}
	}
	t.Fatal("the server did not say where it listens")
	return s
}

// holdUp makes a call whose body never comes: it keeps the server from its orderly end.
func (s aServer) holdUp(t *testing.T) {
	t.Helper()
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, "POST /v1/runs/r/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"+
		"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "100") {
		t.Fatalf("the server does not wait for the body: %q %v", line, err)
	}
}

// stop tells the server to stop and waits until it takes no more calls.
func (s aServer) stop(t *testing.T) {
	t.Helper()
	s.signal(t)
	for {
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			return
		}
		conn.Close()
		time.Sleep(time.Millisecond)
	}
}

func (s aServer) signal(t *testing.T) {
	t.Helper()
	if err := s.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

func TestAServerThatIsToldToStopExitsWithZero(t *testing.T) {
	s := startServer(t)
	s.stop(t)
	if err := s.Wait(); err != nil {
		t.Errorf("%v, want exit status 0", err)
	}
}

// A second SIGTERM is not caught: the server is gone by it, and its supervisor sees so.
func TestASecondSIGTERMEndsAServerBySignal(t *testing.T) {
	s := startServer(t)
	s.holdUp(t)
	s.stop(t)
	began := time.Now()
	s.signal(t)
	_ = s.Wait()
	status, _ := s.ProcessState.Sys().(syscall.WaitStatus)
	if !status.Signaled() || status.Signal() != syscall.SIGTERM {
		t.Errorf("%s, want the end by SIGTERM", s.ProcessState)
	}
	if took := time.Since(began); took > shutdownTimeout-time.Second {
		t.Errorf("it took %s, as long as an orderly end", took)
	}
}
