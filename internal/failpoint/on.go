//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/failpoint/edges"
)

// On says that this binary can be made to fail.
const On = true

// failure is what a point does to the process.
type failure struct {
	action string
	at     int64 // of the times that it is come to
	seen   atomic.Int64
}

// failures are this process's, by point.
var failures = mustParse(os.Getenv(Variable))

// armed names a file that must be there; empty is none.
var armed = os.Getenv(ArmedVariable)

func mustParse(text string) map[string]*failure {
	parsed, err := Parse(text)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", Variable, err)
		os.Exit(2)
	}
	return parsed
}

// Parse reads the variable.
func Parse(text string) (map[string]*failure, error) {
	parsed := map[string]*failure{}
	if text == "" {
		return parsed, nil
	}
	for one := range strings.SplitSeq(text, ",") {
		point, what, _ := strings.Cut(one, "=")
		action, number, _ := strings.Cut(what, "@")
		at, err := strconv.ParseInt(number, 10, 64)
		if !slices.Contains(Actions, action) || err != nil || at < 1 {
			return nil, fmt.Errorf("%q: use POINT=ACTION@N, as claim.after=kill@1; actions are %s", one, strings.Join(Actions, ", "))
		}
		if !slices.ContainsFunc(edges.All, func(e edges.Edge) bool { return slices.Contains(e.Points(), point) }) {
			return nil, fmt.Errorf("there is no failpoint %q: internal/failpoint/edges lists them", point)
		}
		parsed[point] = &failure{action: action, at: at}
	}
	return parsed, nil
}

// Hit is where the process fails, if it is the point's turn. It says so on stderr before.
func Hit(point string) error {
	f := failures[point]
	if f == nil || !isArmed() || f.seen.Add(1) != f.at {
		return nil
	}
	fmt.Fprintf(os.Stderr, "failpoint %s=%s\n", point, f.action)
	switch f.action {
	case Kill:
		signalSelf(syscall.SIGKILL)
	case Pause:
		signalSelf(syscall.SIGSTOP)
	case Error:
		return fmt.Errorf("failpoint %s: %w", point, stepfleet.ErrUnavailable)
	}
	return nil
}

func isArmed() bool {
	if armed == "" {
		return true
	}
	_, err := os.Stat(armed)
	return err == nil
}

// signalSelf sends the signal to this very thread, so that it goes not a step further.
func signalSelf(signal syscall.Signal) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, _, err := syscall.RawSyscall(syscall.SYS_TGKILL, uintptr(os.Getpid()), uintptr(syscall.Gettid()), uintptr(signal)); err != 0 {
		panic(fmt.Sprintf("signal %s to this thread: %v", signal, err))
	}
}
