// Package time is what binaries for chaos have in Go's package of this name beside its own:
// scripts/chaos-binary adds this file to it, and has Now add shift() to the seconds of the wall clock.
// So everything in such a process, libraries too, sees a wall clock that is wrong and jumps, and the
// monotonic one goes on as it does where somebody sets a machine's time.
package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

// variable names the file that says by how many seconds the wall clock is wrong: eight bytes in the
// machine's order. It is mapped, so that a write is a step of the clock.
const variable = "STEPFLEET_CHAOS_CLOCK"

var wrong = mapped()

func shift() int64 { return wrong.Load() }

// mapped maps the file; without one the clock is right.
func mapped() *atomic.Int64 {
	path, ok := syscall.Getenv(variable)
	if !ok {
		return new(atomic.Int64)
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		panic(variable + ": " + path + ": " + err.Error())
	}
	defer syscall.Close(fd)
	page, err := syscall.Mmap(fd, 0, int(unsafe.Sizeof(int64(0))), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic(variable + ": map " + path + ": " + err.Error())
	}
	return (*atomic.Int64)(unsafe.Pointer(&page[0]))
}
