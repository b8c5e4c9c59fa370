package chaos

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
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
	end := bytes.LastIndexByte(raw, ')') // the name, in brackets, may hold anything
	rest := strings.Fields(string(raw[end+1:]))
	if end < 0 || len(rest) < 20 {
		return process{}, false
	}
	parent, _ := strconv.Atoi(rest[1])
	command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return process{
		pid: pid, parent: parent, state: rest[0][0], start: rest[19],
		command: strings.TrimSpace(string(bytes.ReplaceAll(command, []byte{0}, []byte{' '}))),
	}, true
}

// now returns the process as it is at present, false when it is gone.
func (p process) now() (process, bool) {
	q, ok := readProcess(p.pid)
	return q, ok && q.start == p.start && q.state != 'Z' && q.state != 'X'
}

func (p process) alive() bool {
	_, ok := p.now()
	return ok
}

// stopped reports whether the process stands still.
func (p process) stopped() bool {
	q, ok := p.now()
	return ok && q.state == 'T'
}

func (p process) signal(sig syscall.Signal) error {
	if !p.alive() {
		return syscall.ESRCH
	}
	return syscall.Kill(p.pid, sig)
}

// descendants returns the processes below pid by their numbers, pid not among them.
func descendants(pid int) []process {
	table := map[int]process{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if n, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			if p, ok := readProcess(n); ok {
				table[n] = p
			}
		}
	}
	var below []process
	for _, p := range table {
		for q, ok := p, true; ok && q.pid != pid; q, ok = table[q.parent] {
			if q.parent == pid {
				below = append(below, p)
				break
			}
		}
	}
	slices.SortFunc(below, func(a, b process) int { return a.pid - b.pid })
	return below
}

// templateOf returns the process that forks a worker's children.
func templateOf(worker int) (process, bool) {
	for _, p := range descendants(worker) {
		if p.parent == worker && strings.Contains(p.command, "dagster_stepfleet.host template") {
			return p, true
		}
	}
	return process{}, false
}

// look is how often the state of a process is looked at: a signal says nothing of its effect.
const look = 5 * time.Millisecond

// within waits until the condition holds, at most so long.
func within(wait time.Duration, condition func() bool) bool {
	for deadline := time.Now().Add(wait); ; time.Sleep(look) {
		if condition() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}
