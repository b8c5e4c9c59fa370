//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// process is one process; the start time tells it from a later one of the same number.
type process struct {
	pid, parent int
	state       byte
	start       string
	command     string
}

// readProcess returns the process of a number, false when there is none.
func readProcess(pid int) (process, bool) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, false
	}
	// The name, in brackets, may hold anything.
	rest := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	parent, err := strconv.Atoi(rest[1])
	if err != nil {
		return process{}, false
	}
	command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return process{
		pid: pid, parent: parent, state: rest[0][0], start: rest[19],
		command: strings.TrimSpace(string(bytes.ReplaceAll(command, []byte{0}, []byte{' '}))),
	}, true
}

// alive reports whether the process still is; one that waits to be reaped is not.
func (p process) alive() bool {
	now, ok := readProcess(p.pid)
	return ok && now.start == p.start && now.state != 'Z' && now.state != 'X'
}

// processes returns the process table.
func processes() map[int]process {
	table := map[int]process{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			if p, ok := readProcess(pid); ok {
				table[pid] = p
			}
		}
	}
	return table
}

// descendants returns the processes below pid, pid not among them.
func descendants(pid int) []process {
	table := processes()
	var below []process
	for _, p := range table {
		for q, ok := p, true; ok && q.pid != pid; q, ok = table[q.parent] {
			if q.parent == pid {
				below = append(below, p)
				break
			}
		}
	}
	return below
}

func living(all []process) []process {
	var alive []process
	for _, p := range all {
		if p.alive() {
			alive = append(alive, p)
		}
	}
	return alive
}

// awaitGone waits for the processes to be gone and returns how long after since the last one was.
func awaitGone(t *testing.T, timeout time.Duration, since time.Time, all []process) time.Duration {
	t.Helper()
	for {
		alive := living(all)
		took := time.Since(since)
		if len(alive) == 0 {
			return took
		}
		if took > timeout {
			t.Errorf("%d of %d processes still live after %s: %+v", len(alive), len(all), timeout, alive)
			return took
		}
		time.Sleep(pollInterval / 4)
	}
}
