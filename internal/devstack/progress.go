package devstack

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress prints a line for each thing that happens, whole lines from any goroutine.
type progress struct {
	mu  sync.Mutex
	out io.Writer
}

func newProgress(out io.Writer) *progress { return &progress{out: out} }

func (p *progress) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, format+"\n", args...)
}

// up says that something is ready, where it is, and how long that took.
func (p *progress) up(name, where string, since time.Time) {
	p.line("  ready  %-18s %-34s %5.1f s", name, where, time.Since(since).Seconds())
}

// wait says that something takes longer than it should, and where to look.
func (p *progress) wait(name string, err error, log string) {
	p.line("  WAIT   %-18s %v\n         its log: %s", name, err, log)
}
