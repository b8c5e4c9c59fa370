//go:build linux && failpoint

// Package failpoints has a server and a worker fail at every edge of the protocol (docs/failpoints.md).
// In each case a real server and a real worker, built with the tag, work on a PostgreSQL database and an
// SQS of their own; one of them is killed, stopped or refused at one point. What stands in for Dagster is
// small and real: an executor in this process, and step processes that speak the host protocol.
//
// stack_test.go has the processes, step_test.go what a worker starts, executor_test.go the client,
// scenarios_test.go what happens in a case, and points_test.go runs and judges all of them.
// Environment: STEPFLEET_FAILPOINT_BIN, the binary; built when unset.
package failpoints

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// hostModule is the module that a worker has Python run.
const hostModule = "dagster_stepfleet.host"

// product is a stepfleet that can be made to fail.
var product string

func TestMain(m *testing.M) {
	if at := slices.Index(os.Args, hostModule); at > 0 && at+1 < len(os.Args) {
		host(os.Args[at+1])
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if product = os.Getenv("STEPFLEET_FAILPOINT_BIN"); product != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "stepfleet-failpoints-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	product = filepath.Join(dir, "stepfleet")
	build := exec.Command("go", "build", "-buildvcs=false", "-tags", "failpoint", "-o", product, "../../cmd/stepfleet")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s\n%v\n", out, err)
		return 1
	}
	return m.Run()
}
