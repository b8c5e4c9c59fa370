package pglocal

import "syscall"

// deathAttr asks the kernel to stop the server, fast but clean, when its parent dies.
func deathAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGINT}
}
