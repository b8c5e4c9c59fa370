package crash_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/journal"
)

// By these variables the test binary is the server that is killed.
const (
	dirVariable    = "LOCALAWS_CRASH_DIR"
	aheadVariable  = "LOCALAWS_CRASH_AHEAD"
	syncVariable   = "LOCALAWS_CRASH_SYNC"
	rotateVariable = "LOCALAWS_CRASH_ROTATE_AT"
)

// serveForever is the server. It ends when whoever started it does, however that is: then its input
// ends.
func serveForever(dir string) error {
	ahead, err := time.ParseDuration(os.Getenv(aheadVariable))
	if err != nil {
		return err
	}
	policy, err := journal.ParseSync(os.Getenv(syncVariable))
	if err != nil {
		return err
	}
	rotateAt, err := strconv.ParseInt(os.Getenv(rotateVariable), 10, 64)
	if err != nil {
		return err
	}
	c := clock.NewOffset(clock.System())
	c.Advance(ahead)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return localaws.Run(ctx, localaws.Config{
		Addr:  "127.0.0.1:0",
		Ready: func(addr net.Addr) { fmt.Printf("http://%s\n", addr) },
		Options: localaws.Options{
			Dir: dir, Clock: c, Journal: journal.Options{Sync: policy, RotateAt: rotateAt},
		},
	})
}

// server is one life of the server.
type server struct {
	cmd   *exec.Cmd
	stdin io.Closer
	url   string
}

// startServer starts a life whose clock is ahead, and returns when it has replayed its journal.
func startServer(t *testing.T, dir string, ahead time.Duration, policy journal.Sync) *server {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), dirVariable+"="+dir, aheadVariable+"="+ahead.String(), syncVariable+"="+string(policy),
		fmt.Sprintf("%s=%d", rotateVariable, rotateAt))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the server did not start: %v, %v", err, cmd.Wait())
	}
	return &server{cmd, stdin, strings.TrimSpace(line)}
}

// kill ends the life as kill -9 does. It may be called more than once, from anywhere.
func (s *server) kill() { _ = s.cmd.Process.Kill() }

// wait returns when the process is gone.
func (s *server) wait() {
	_ = s.cmd.Wait()
	_ = s.stdin.Close()
}

// files is what a life left behind.
type files struct {
	snapshot, log uint64 // the newest of each
	unfinished    bool   // a snapshot was being written
}

func filesIn(t *testing.T, dir string) files {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "sqs"))
	if err != nil {
		t.Fatal(err)
	}
	var f files
	for _, e := range entries {
		kind, number, _ := strings.Cut(e.Name(), "-")
		n, err := strconv.ParseUint(strings.TrimSuffix(number, ".part"), 10, 64)
		switch {
		case err != nil:
		case kind == "log":
			f.log = max(f.log, n)
		case strings.HasSuffix(number, ".part"):
			f.unfinished = true
		default:
			f.snapshot = max(f.snapshot, n)
		}
	}
	return f
}

// amidRotation reports whether the kill came after a new log was begun and before its snapshot was
// there.
func (f files) amidRotation() bool { return f.log > 1 && f.snapshot < f.log }
