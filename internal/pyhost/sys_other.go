//go:build !linux

package pyhost

import "syscall"

// setDeathSignal has no counterpart outside Linux; the child's watch on its socket does the work.
func setDeathSignal(*syscall.SysProcAttr) {}
