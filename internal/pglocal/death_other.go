//go:build !linux

package pglocal

import "syscall"

// deathAttr has nothing to ask for: only Linux has a parent-death signal. The supervisor of
// `stepfleet dev` watches its parent elsewhere.
func deathAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
