//go:build failpoint

package failpoint_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/failpoint"
)

const childVariable = "FAILPOINT_TEST_CHILD"

// TestMain is also the main function of the processes that the tests start: they come to a point twice.
func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	for range 2 {
		if err := failpoint.Hit("claim.after"); errors.Is(err, stepfleet.ErrUnavailable) {
			os.Stdout.WriteString("refused ")
		}
		os.Stdout.WriteString("went on ")
	}
}

// child starts a process with the variable and returns what it said, and its end.
func child(t *testing.T, value string, more ...string) (stdout, stderr string, status syscall.WaitStatus) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs strings.Builder
	cmd := exec.Command(self)
	cmd.Env = append(append(os.Environ(), childVariable+"=1", failpoint.Variable+"="+value), more...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // how it ended is in its state
	return out.String(), errs.String(), cmd.ProcessState.Sys().(syscall.WaitStatus)
}

func TestAKilledProcessGoesNoFurther(t *testing.T) {
	out, said, status := child(t, "claim.after=kill@2")
	if out != "went on " || status.Signal() != syscall.SIGKILL || !strings.Contains(said, "failpoint claim.after=kill") {
		t.Errorf("%q, %q, %v", out, said, status)
	}
}

func TestAnErrorIsThatOfSomethingAway(t *testing.T) {
	if out, said, _ := child(t, "claim.before=kill@1,claim.after=error@1"); out != "refused went on went on " {
		t.Errorf("%q, %q", out, said)
	}
}

func TestAPausedProcessGoesOnWhenItIsWoken(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVariable+"=1", failpoint.Variable+"=claim.after=pause@1")
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("%v, %v", status, err)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || out.String() != "went on went on " {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestPointsSeeNothingUntilTheyAreArmed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "armed")
	if out, _, _ := child(t, "claim.after=kill@1", failpoint.ArmedVariable+"="+file); out != "went on went on " {
		t.Errorf("before: %q", out)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, _ := child(t, "claim.after=kill@1", failpoint.ArmedVariable+"="+file); out != "" {
		t.Errorf("after: %q", out)
	}
}

func TestWhatIsNoFailpointIsRefused(t *testing.T) {
	for value, want := range map[string]string{
		"clam.after=kill@1":  `there is no failpoint "clam.after"`,
		"claim=kill@1":       `there is no failpoint "claim"`,
		"claim.after=die@1":  "use POINT=ACTION@N",
		"claim.after=kill":   "use POINT=ACTION@N",
		"claim.after=kill@0": "use POINT=ACTION@N",
	} {
		if out, said, status := child(t, value); out != "" || status.ExitStatus() != 2 || !strings.Contains(said, want) {
			t.Errorf("%s: %q, %q, %v", value, out, said, status)
		}
	}
}
