//go:build linux && failpoint

package failpoints

import (
	"os"
	"syscall"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/failpoint"
	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/fault"
)

// scenario is what happens in a case. It leads the protocol over its edges; the failpoint makes it stumble
// at one of them.
type scenario struct {
	name string
	play func(*executor)
	// survives says that every step must succeed although a process fails once, unless the worker dies
	// or sleeps over its deadlines.
	survives bool
	edges    []string
}

const (
	short = 20 * time.Millisecond
	long  = time.Minute
)

// scenarios are all of them, those that take longest first.
var scenarios = []scenario{
	{"a close that is cut short", reconciled, false, []string{"reconcile"}},
	{"lost bells", lostBells, true, []string{"rering"}},
	{"a bell after a bell on a FIFO queue", fifoBells, true, []string{"ring"}},
	{"a worker cut off from its session", cutOff, false, []string{"fence"}},
	{"a worker dies", workerDies, false, []string{"expire", "sweep"}},
	{"a worker dies, with proof", provenDeath, false, []string{"declare"}},
	{"an end that was not told", untold, true, []string{"abandon", "duty", "endings", "decide"}},
	{"a drain", drained, false, []string{"drain", "revoke", "end_session"}},
	{"a claim that fails", claimFails, true, []string{"return"}},
	{"a process dies before its start", diesEarly, true, []string{"release"}},
	{"a cancel", cancelled, false, []string{"cancel", "adjudicate"}},
	{"a close", closed, false, []string{"close", "close_tasks"}},
	{"the worker begins", boot, true, []string{"template", "fork", "register"}},
	{"a long step", works, true, []string{"beat", "renew"}},
	{"steps", steps, true, []string{
		"takeover", "rejoin", "submit", "receive", "claim", "answer", "spawn", "hand_over", "gate_start", "start",
		"gate_event", "report", "settle", "notify",
	}},
}

// begin has server and worker at work, and the worker without any.
func (e *executor) begin() {
	e.server.ensure()
	e.worker.ensure()
	e.awake()
}

func (e *executor) awake() {
	e.until("the worker has a session", func() bool {
		return e.count(`SELECT count(*) FROM stepfleet.session WHERE state = 'alive'`) > 0
	})
}

// running has the worker at work on steps, so many of them already running.
func (e *executor) running(n int, steps ...plan) {
	e.begin()
	e.open()
	e.submit(steps...)
	e.in(n, stepfleet.StateRunning)
}

// underWay has one step running, and one whose first process prepares: a later one asks for its start at once.
func (e *executor) underWay() {
	e.running(1, plan{Work: long}, plan{Prepare: long, Work: short})
	e.until("the second step's process prepares", func() bool {
		_, err := os.Stat(firstMark(e.file("effects.jsonl"), e.tasks[1].Key))
		return err == nil
	})
}

// conclude waits for the end of steps that did not all end by themselves.
func (e *executor) conclude() {
	e.ended()
	e.adjudicate()
	e.close()
}

func steps(e *executor) {
	e.begin()
	e.arm()
	e.open()
	e.submit(plan{Work: short}, plan{Work: short}, plan{Work: short})
	e.ended()
	e.close()
}

func works(e *executor) {
	e.begin()
	e.open()
	e.submit(plan{Work: 1500 * time.Millisecond}, plan{Work: short})
	e.in(1, stepfleet.StateSucceeded)
	e.arm()
	e.ended()
	e.close()
}

func boot(e *executor) {
	e.arm()
	e.begin()
	e.open()
	e.submit(plan{Work: short}, plan{Work: short})
	e.ended()
	e.close()
}

func cancelled(e *executor) {
	e.running(slots, plan{Work: long}, plan{Work: long}, plan{Work: long})
	e.arm()
	e.cancel()
	e.conclude()
}

func closed(e *executor) {
	e.running(slots, plan{Work: long}, plan{Work: long}, plan{Work: long})
	e.arm()
	e.close()
	e.ended()
}

// diesEarly has a process die that has not asked for its start: the lease goes back.
func diesEarly(e *executor) { dies(e, beforeStart) }

// untold has a process die once its ending event is in Dagster's log, before it could say so.
func untold(e *executor) { dies(e, afterEvent) }

func dies(e *executor, when string) {
	e.begin()
	e.arm()
	e.open()
	e.submit(plan{Work: short, Die: when}, plan{Work: short})
	e.ended()
	e.close()
}

// claimFails has a bell lead to a claim that cannot be made for a moment: the bell goes back, and nobody has
// answered it. On a busy machine a bell may come too late for that.
func claimFails(e *executor) {
	answers := e.aws.Faults.Add(countAnswers)
	e.begin()
	e.open()
	e.arm()
	for tries := 0; tries < 5 && !isClosed(e.hit) && !e.Failed(); tries++ {
		e.until("no bell is left", func() bool { return e.bells() == 0 })
		release, before := e.lockSession(), answers.Hits()
		e.submit(plan{Work: short})
		select {
		case <-e.hit:
		case <-time.After(lifetimes.SessionTTL / 2):
		}
		if answers.Hits() > before {
			e.Error("a bell was answered before its claim was made: if the worker dies now, nobody knows of the task")
		}
		release()
		e.ended()
	}
	e.close()
}

func drained(e *executor) {
	e.running(1, plan{Work: long})
	e.arm()
	p := e.worker.running()
	e.must(p.cmd.Process.Signal(syscall.SIGTERM))
	<-p.done
	e.worker.ensure()
	e.conclude()
}

// workerDies has a worker die with a step that runs, and one that has not begun.
func workerDies(e *executor) {
	e.underWay()
	e.arm()
	e.worker.kill()
	e.worker.ensure()
	e.conclude()
}

func provenDeath(e *executor) {
	e.underWay()
	e.arm()
	instance := e.worker.running().instance
	e.worker.kill()
	e.insist("tell of the worker's death", func() error {
		return e.ask("/v1/instances/"+instance+"/dead", map[string]any{"reason": "killed"}, nil)
	})
	e.worker.ensure()
	e.conclude()
}

// cutOff keeps the worker from renewing until it has fenced itself.
func cutOff(e *executor) {
	e.running(1, plan{Work: long})
	e.arm()
	p := e.worker.running()
	release := e.lockSession()
	select {
	case <-p.fenced:
	case <-time.After(3 * lifetimes.RunLease):
		e.Errorf("the worker runs its step on, %s after its last renewal: its run lease was %s", 3*lifetimes.RunLease, lifetimes.RunLease)
	}
	release()
	e.conclude()
}

// lostBells has the bell of a submit fail: the server rings again.
func lostBells(e *executor) {
	e.begin()
	e.worker.rest(5500 * time.Millisecond) // the idle worker looks ever less often: not before the server rings again
	e.open()
	e.aws.Faults.Add(fault.Rule{
		Service: "sqs", Op: "SendMessageBatch", Kind: fault.Fail, Times: 1,
		Error: &api.Error{Type: "InvalidMessageContents", Message: "a fault"}, // which no client repeats
	})
	e.arm()
	e.submit(plan{Work: short})
	e.ended()
	e.close()
}

// fifoBells has bells rung one after another. A FIFO queue drops what it takes for the same message for five
// minutes; the steps then wait until their worker looks.
func fifoBells(e *executor) {
	answers := e.aws.Faults.Add(countAnswers)
	e.fifo()
	e.begin()
	e.open()
	e.submit(plan{Work: short})
	e.ended()
	e.until("the first bell is answered", func() bool { return answers.Hits() > 0 && e.bells() == 0 })
	e.arm()
	first := answers.Hits()
	for range 4 {
		e.submit(plan{Work: short})
		e.ended()
	}
	for limit := time.Now().Add(lifetimes.RunLease); answers.Hits() == first; e.server.rest(pollEvery) {
		if time.Now().After(limit) {
			e.Error("four steps were submitted, one after another, and no bell came for any of them")
			break
		}
	}
	e.close()
}

// countAnswers counts the times that bells are answered.
var countAnswers = fault.Rule{Service: "sqs", Op: "DeleteMessageBatch", Kind: fault.Delay, Delay: time.Millisecond}

// startsLate is so long after a close that its start cannot have been under way then.
const startsLate = 8 * time.Second

// reconciled has the server die between the commits of a close, and nobody close the run again. A step whose
// process asks for its start in the meantime must not begin.
func reconciled(e *executor) {
	later := e.server.failpoint
	e.server.failpoint = "close_tasks.before=" + failpoint.Kill + "@1"
	e.failing = nil // that one is the scenario's own
	e.arm()
	e.begin()
	e.open()
	e.submit(plan{Work: long}, plan{Prepare: startsLate, Work: short})
	e.in(1, stepfleet.StateRunning)
	e.in(1, stepfleet.StateLeased)
	first := e.server.running()
	if err := e.closeOnce(); err == nil {
		e.Fatal("the close was answered by a server that should be dead")
	}
	<-first.done
	e.until("the second step's process has asked for its start", func() bool {
		return e.count(`SELECT count(*) FROM stepfleet.audit WHERE verb = $1`, stepfleet.VerbStart) > 1
	})
	e.failing, e.server.failpoint = e.server, later
	e.server.ensure()
	e.ended()
	e.adjudicate()
}
