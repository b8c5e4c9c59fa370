package pyhost

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// Linux sends the parent-death signal when the *thread* ends that has started the process, and Go ends
// threads.
func TestAProcessOutlivesTheThreadThatAskedForIt(t *testing.T) {
	conn, theirs, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	var proc *command
	inAThreadThatEnds(t, func() { proc, err = startPython(Config{Python: interpreter(t)}, "child", theirs) })
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	c := newChild(conn, 0, slog.New(slog.NewTextHandler(t.Output(), nil)))
	go func() {
		<-proc.gone
		c.exited(proc.status)
	}()
	select {
	case <-c.ready:
	case <-proc.gone:
		t.Fatalf("ended with status %d before it was ready", proc.status)
	case <-time.After(testWait):
		t.Fatal("the process is not ready")
	}
	conn.Close() // as the end of the worker does
	closedWithin(t, proc.gone, "the process outlives its worker")
}

// inAThreadThatEnds calls f in a thread, and returns when the thread is gone.
func inAThreadThatEnds(t *testing.T, f func()) {
	t.Helper()
	tid := make(chan int)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if syscall.Gettid() == os.Getpid() {
			inAThreadThatEnds(t, f) // which this one is not, since the main thread never ends
			tid <- 0
			return
		}
		f()
		tid <- syscall.Gettid()
	}()
	gone := fmt.Sprintf("/proc/self/task/%d", <-tid)
	for end := time.Now().Add(testWait); gone != "/proc/self/task/0"; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(gone); err != nil {
			return
		}
		if time.Now().After(end) {
			t.Error("the thread does not end")
			return
		}
	}
}
