//go:build !linux

package supervise

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// dieWithParent does nothing: there is no parent-death signal here, the warden does it.
func dieWithParent(*syscall.SysProcAttr) {}

// awaitExit returns at once: the caller waits by reaping.
func awaitExit(int) {}

// processes reads the process table with ps, which shows the environment of one's own processes.
func processes(mark string) []process {
	out, err := exec.Command("ps", "-axEwwo", "pid=,ppid=,command=").Output()
	if err != nil {
		return nil
	}
	var table []process
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		pid, errPID := strconv.Atoi(fields[0])
		parent, errParent := strconv.Atoi(fields[1])
		if errPID != nil || errParent != nil {
			continue
		}
		table = append(table, process{
			pid: pid, parent: parent, command: filepath.Base(fields[2]),
			marked: slices.Contains(fields[3:], mark),
		})
	}
	return table
}
