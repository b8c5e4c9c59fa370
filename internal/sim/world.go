package sim

import (
	"container/heap"
	"fmt"
	"iter"
	"math/rand/v2"
	"time"
)

// epoch is when every history begins.
var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// forever is longer than any history.
const forever = 1000 * time.Hour

// world is a clock, an agenda and processes. One thing happens at a time, in the order of the agenda,
// and all that is left to chance comes from one source: the same seed gives the same history.
type world struct {
	rng     *rand.Rand
	now     time.Duration
	agenda  agenda
	number  int64
	current *thread
	all     []*process
	tell    func(line string) // nil: nobody listens
}

// happening is an entry of the agenda.
type happening struct {
	at     time.Duration
	number int64
	do     func()
}

type agenda []happening

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	return a[i].at < a[j].at || a[i].at == a[j].at && a[i].number < a[j].number
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(happening)) }
func (a *agenda) Pop() any {
	last := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return last
}

func newWorld(seed uint64) *world {
	return &world{rng: rand.New(rand.NewPCG(seed, 0x5eed))}
}

// time is what an exact clock shows.
func (w *world) time() time.Time { return epoch.Add(w.now) }

func (w *world) after(d time.Duration, do func()) {
	w.number++
	heap.Push(&w.agenda, happening{w.now + d, w.number, do})
}

// run lets things happen until the world is at rest, done says so, or the time is over.
func (w *world) run(until time.Duration, done func() bool) {
	for len(w.agenda) > 0 && w.agenda[0].at <= until && !done() {
		next := heap.Pop(&w.agenda).(happening)
		w.now = next.at
		next.do()
	}
}

// chance says yes with this probability.
func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

// between is a random duration.
func (w *world) between(least, most time.Duration) time.Duration {
	return least + time.Duration(w.rng.Int64N(int64(most-least)+1))
}

func pick[T any](w *world, from ...T) T { return from[w.rng.IntN(len(from))] }

func (w *world) say(p *process, format string, args ...any) {
	if w.tell == nil {
		return
	}
	name := "world"
	if p != nil {
		name = p.name
	}
	w.tell(fmt.Sprintf("%9.4f  %-12s ", w.now.Seconds(), name) + fmt.Sprintf(format, args...))
}

// process is what is killed, stopped and cut off as a whole.
type process struct {
	w       *world
	name    string
	threads []*thread
	dead    bool
	gone    signal // sent when it dies
	resumes time.Duration
	stops   []stop
	cut     time.Duration // no link to the ledger until then
	offset  time.Duration
	drift   float64
	fragile bool // may die at any step
	onDeath func()
}

func (w *world) process(name string) *process {
	p := &process{w: w, name: name}
	w.all = append(w.all, p)
	return p
}

// end leaves nothing of the world: a thread that waits for ever would stay in memory.
func (w *world) end() {
	w.tell = nil
	for _, p := range w.all {
		p.onDeath = nil
		p.kill()
	}
}

// clock is what the process's own clock shows.
func (p *process) clock() time.Time {
	return epoch.Add(p.offset + p.w.now + time.Duration(p.drift*float64(p.w.now)))
}

// stop is SIGSTOP, with a SIGCONT after d.
func (p *process) stop(d time.Duration) {
	p.stops = append(p.stops, stop{p.w.now, p.w.now + d})
	p.resumes = max(p.resumes, p.w.now+d)
}

type stop struct{ from, until time.Duration }

// stopped is for how long at most the process was stopped in that time.
func (p *process) stopped(from, until time.Time) (sum time.Duration) {
	for _, one := range p.stops {
		begin, end := max(one.from, from.Sub(epoch)), min(one.until, until.Sub(epoch))
		sum += max(0, end-begin)
	}
	return sum
}

// kill is SIGKILL. A thread that kills its own process does not return from it.
func (p *process) kill() {
	if p.dead {
		return
	}
	p.dead = true
	w := p.w
	w.say(p, "dies")
	suicide := false
	for _, t := range p.threads {
		if t == w.current {
			suicide = true
		} else if !t.done {
			t.done = true
			t.end()
		}
	}
	p.threads = nil
	p.gone.send()
	if p.onDeath != nil {
		p.onDeath()
	}
	if suicide {
		panic(killed{})
	}
}

// killed unwinds a thread whose process has died.
type killed struct{}

// thread runs code that waits. It is a coroutine: between two waits nothing else happens.
type thread struct {
	p     *process
	next  func() (struct{}, bool)
	end   func()
	yield func(struct{}) bool
	turn  int // counts what it has waited for
	done  bool
}

// spawn starts a thread of the process.
func (p *process) spawn(f func()) {
	if p.dead {
		return
	}
	t := &thread{p: p}
	t.next, t.end = iter.Pull(iter.Seq[struct{}](func(yield func(struct{}) bool) {
		defer func() {
			if r := recover(); r != nil && r != (killed{}) {
				panic(r)
			}
		}()
		t.yield = yield
		f()
	}))
	p.threads = append(p.threads, t)
	p.w.after(0, func() { t.resume(0) })
}

// resume lets the thread go on, if it still waits for this; a stopped process first has to be resumed.
func (t *thread) resume(turn int) {
	w := t.p.w
	switch {
	case t.done || t.p.dead || t.turn != turn:
		return
	case t.p.resumes > w.now:
		w.after(t.p.resumes-w.now, func() { t.resume(turn) })
		return
	}
	t.turn++
	w.current = t
	_, more := t.next()
	w.current = nil
	if !more {
		t.done = true
		t.p.forget(t)
	}
}

func (p *process) forget(t *thread) {
	for i, other := range p.threads {
		if other == t {
			p.threads = append(p.threads[:i], p.threads[i+1:]...)
			return
		}
	}
}

// signal wakes those who wait for it now.
type signal struct{ waiting []waiter }

type waiter struct {
	t    *thread
	turn int
}

func (s *signal) send() {
	for _, one := range s.waiting {
		one.t.p.w.after(0, func() { one.t.resume(one.turn) })
	}
	s.waiting = nil
}

// await waits for one of the signals, or until the time is over. It may return for nothing.
func (w *world) await(d time.Duration, signals ...*signal) {
	t := w.current
	turn := t.turn
	for _, s := range signals {
		s.waiting = append(s.waiting, waiter{t, turn})
	}
	if d < forever {
		w.after(d, func() { t.resume(turn) })
	}
	if !t.yield(struct{}{}) {
		panic(killed{})
	}
}

func (w *world) sleep(d time.Duration) { w.await(d) }

// until waits until the condition holds, or the time is over, and says whether it holds.
func (w *world) until(d time.Duration, holds func() bool, signals ...*signal) bool {
	deadline := w.now + d
	for !holds() {
		if w.now >= deadline {
			return false
		}
		w.await(min(deadline-w.now, forever), signals...)
	}
	return true
}
