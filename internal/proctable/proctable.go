// Package proctable reads Linux's process table, for tests that kill and stop processes.
package proctable

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Process is one process; the start time tells it from a later one of the same number.
type Process struct {
	PID, Parent int
	State       byte
	Start       string
	Command     string
}

// Read returns the process of a number, false when there is none.
func Read(pid int) (Process, bool) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, false
	}
	end := bytes.LastIndexByte(raw, ')') // the name, in brackets, may hold anything
	rest := strings.Fields(string(raw[end+1:]))
	if end < 0 || len(rest) < 20 {
		return Process{}, false
	}
	parent, err := strconv.Atoi(rest[1])
	if err != nil {
		return Process{}, false
	}
	command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return Process{
		PID: pid, Parent: parent, State: rest[0][0], Start: rest[19],
		Command: strings.TrimSpace(string(bytes.ReplaceAll(command, []byte{0}, []byte{' '}))),
	}, true
}

// Now returns the process as it is at present, false when it is gone; one that waits to be reaped is.
func (p Process) Now() (Process, bool) {
	q, ok := Read(p.PID)
	return q, ok && q.Start == p.Start && q.State != 'Z' && q.State != 'X'
}

// Alive reports whether the process still is.
func (p Process) Alive() bool {
	_, ok := p.Now()
	return ok
}

// Stopped reports whether the process stands still.
func (p Process) Stopped() bool {
	q, ok := p.Now()
	return ok && q.State == 'T'
}

// Signal signals the process, and nobody who has its number after it.
func (p Process) Signal(sig syscall.Signal) error {
	if !p.Alive() {
		return syscall.ESRCH
	}
	return syscall.Kill(p.PID, sig)
}

// Table returns all processes by their numbers.
func Table() map[int]Process {
	table := map[int]Process{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			if p, ok := Read(pid); ok {
				table[pid] = p
			}
		}
	}
	return table
}

// Descendants returns the processes below pid in the order of their numbers, pid not among them.
func Descendants(pid int) []Process {
	table := Table()
	var below []Process
	for _, p := range table {
		for q, ok := p, true; ok && q.PID != pid; q, ok = table[q.Parent] {
			if q.Parent == pid {
				below = append(below, p)
				break
			}
		}
	}
	slices.SortFunc(below, func(a, b Process) int { return cmp.Compare(a.PID, b.PID) })
	return below
}
