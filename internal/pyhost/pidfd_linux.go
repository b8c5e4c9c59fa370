package pyhost

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// awaitDeath returns when the process is gone, whoever reaps it. An error says that this kernel cannot
// tell.
func awaitDeath(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that the wait takes no thread
		_ = unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("pidfd: %w", err)
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || (err != nil && err != unix.EINTR)
	})
}

// The fields of /proc/PID/stat that follow the name in brackets.
const (
	statState    = 0
	statParent   = 1
	statExitCode = 49
)

// unreaped returns how a process ended that this parent has not reaped. It is not ok once it has, or
// when the parent is dead itself.
func unreaped(pid, parent int) (status int, ok bool) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:]) // the name may hold anything
	if len(fields) <= statExitCode || string(fields[statState]) != "Z" || string(fields[statParent]) != strconv.Itoa(parent) {
		return 0, false
	}
	code, err := strconv.Atoi(string(fields[statExitCode]))
	if err != nil {
		return 0, false
	}
	return waitStatus(syscall.WaitStatus(code)), true
}
