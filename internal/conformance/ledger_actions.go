package conformance

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/stepfleet/stepfleet"
)

func (p *pair) runIDs() []string { return []string{p.scope + "-run1", p.scope + "-run2"} }

func (p *pair) run() string { return rapid.SampledFrom(p.runIDs()).Draw(p.rt, "run") }
func (p *pair) queue() string {
	return rapid.SampledFrom([]string{p.scope + "-a", p.scope + "-b"}).Draw(p.rt, "queue")
}

func (p *pair) step() string {
	return rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"}).Draw(p.rt, "step")
}

func (p *pair) instance() string {
	return p.scope + rapid.SampledFrom([]string{"-i1", "-i2"}).Draw(p.rt, "instance")
}

// rarely is true once in about n draws.
func (p *pair) rarely(n int, what string) bool { return rapid.IntRange(1, n).Draw(p.rt, what) == n }

// session picks a session that was registered, or skips the action.
func (p *pair) session() int {
	if len(p.sessions.real) == 0 {
		p.rt.Skip("no session yet")
	}
	return rapid.IntRange(0, len(p.sessions.real)-1).Draw(p.rt, "session")
}

// ref picks a fence that was handed out, mostly a late one, sometimes in a wrong hand.
func (p *pair) ref() ref {
	if len(p.refs) == 0 {
		p.rt.Skip("nothing claimed yet")
	}
	r := p.refs[rapid.IntRange(max(0, len(p.refs)-6), len(p.refs)-1).Draw(p.rt, "ref")]
	if p.rarely(10, "wrong fence") {
		r.fence += stepfleet.Fence(rapid.IntRange(-1, 2).Draw(p.rt, "fence off by"))
	}
	if p.rarely(10, "wrong session") {
		r.session = p.session()
	}
	return r
}

func (s side) ref(r ref) stepfleet.Ref { return stepfleet.Ref{TaskID: s.tasks[r.task], Fence: r.fence} }

func (p *pair) actions() map[string]func(*rapid.T) {
	actions := map[string]func(){
		"submit": p.submit, "cancel": p.cancel, "close": p.closeRun, "rejoin": p.rejoin, "take epoch": p.takeEpoch, "adjudicate": p.adjudicate,
		"register": p.register, "renew": p.renew, "held": p.heldBy, "drain": p.drain, "end": p.end,
		"claim": p.claim, "claim more": p.claim, "start": p.start, "start more": p.start, "start another's": p.startAnothers,
		"settle": p.settle, "settle more": p.settle, "release": p.release, "revoke": p.revoke, "abandon": p.abandon,
		"age session": p.ageSession, "age lease": p.ageLease, "expire": p.expire, "declare dead": p.declareDead, "sweep": p.sweep, "decide": p.decide,
		"open runs": p.openRuns,
	}
	out := map[string]func(*rapid.T){}
	for name, action := range actions {
		out[name] = func(rt *rapid.T) {
			p.rt = rt
			action()
		}
	}
	return out
}

func (p *pair) submit() {
	b := stepfleet.Batch{
		RunID: p.run(), Epoch: p.epoch(), Identity: "identity", NotifyURL: rapid.SampledFrom([]string{"", "http://a"}).Draw(p.rt, "url"),
		Payloads: map[stepfleet.Digest][]byte{},
	}
	if p.rarely(12, "other identity") {
		b.Identity = "another"
	}
	for range rapid.IntRange(1, 5).Draw(p.rt, "tasks") {
		t := task(b.RunID, p.step())
		if b.Epoch == stepfleet.NoExecutor {
			t.Kind, t.StepKey = stepfleet.KindRun, stepfleet.RunStepKey
		}
		t.Attempt = rapid.SampledFrom([]int{0, 0, 0, 1, 1, 2, 3}).Draw(p.rt, "attempt")
		t.Queue, t.Priority = p.queue(), rapid.IntRange(-1, 1).Draw(p.rt, "priority")
		data := []byte(p.scope + rapid.SampledFrom([]string{"one", "two"}).Draw(p.rt, "payload"))
		t.Payload = stepfleet.DigestOf(data)
		if !p.rarely(12, "payload left out") {
			b.Payloads[t.Payload] = data
		}
		b.Tasks = append(b.Tasks, t)
	}
	var answers [][]stepfleet.Receipt
	p.both("submit", func(s side) string {
		receipts, err := s.Ledger.Submit(p.ctx, b)
		answers = append(answers, receipts)
		out := []string{code(err)}
		for _, r := range receipts {
			out = append(out, fmt.Sprint(r.Key, r.State, r.Known))
		}
		return strings.Join(out, "\n")
	})
	for i := range answers[0] {
		p.tasks.add(answers[0][i].TaskID, answers[1][i].TaskID)
	}
}

func (p *pair) cancel() {
	runID := p.run()
	var keys []stepfleet.Key
	if !p.rarely(4, "all") {
		keys = []stepfleet.Key{{RunID: runID, StepKey: p.step()}, {RunID: runID, StepKey: p.step(), Attempt: 1}}
	}
	epoch := p.epoch()
	p.both("cancel", func(s side) string { return s.changes(s.Ledger.Cancel(p.ctx, runID, epoch, keys, "asked")) })
}

func (p *pair) closeRun() {
	if !p.rarely(4, "really") {
		p.rt.Skip("a closed run has little to show")
	}
	runID, epoch := p.run(), p.epoch()
	p.both("close", func(s side) string { return s.changes(s.Ledger.CloseRun(p.ctx, runID, epoch, "over")) })
}

func (p *pair) openRuns() {
	p.both("open runs", func(s side) string {
		runs, err := s.Ledger.OpenRuns(p.ctx, p.scope, 1000)
		runs = slices.DeleteFunc(runs, func(r stepfleet.OpenRun) bool { return !slices.Contains(p.runIDs(), r.RunID) })
		return fmt.Sprint(code(err), runs)
	})
}

// epoch is one that some run may have.
func (p *pair) epoch() stepfleet.Epoch {
	return stepfleet.Epoch(rapid.SampledFrom([]int{0, 1, 1, 1, 2, 2, 3}).Draw(p.rt, "epoch"))
}

func (p *pair) takeEpoch() {
	runID, executor := p.run(), stepfleet.Executor{
		Name:   rapid.SampledFrom([]string{"x", "x", "x", "y"}).Draw(p.rt, "executor"),
		Resume: rapid.SampledFrom([]int{0, 0, 0, 0, 0, 1, 2}).Draw(p.rt, "resume"),
	}
	p.both("take epoch", func(s side) string {
		epoch, err := s.Ledger.TakeEpoch(p.ctx, runID, executor, "http://"+executor.Name)
		return fmt.Sprint(code(err), epoch)
	})
	p.both("epochs", func(s side) string {
		epochs, err := s.Ledger.Epochs(p.ctx, p.runIDs())
		return fmt.Sprint(code(err), epochs)
	})
}

func (p *pair) rejoin() {
	runID, epoch := p.run(), p.epoch()
	p.both("rejoin", func(s side) string { return code(s.Ledger.Rejoin(p.ctx, runID, epoch, "http://b")) })
}

func (p *pair) adjudicate() {
	runID, epoch := p.run(), p.epoch()
	keys := []stepfleet.Key{{RunID: runID, StepKey: p.step()}, {RunID: runID, StepKey: p.step()}}
	p.both("adjudicate", func(s side) string {
		rulings, err := s.Ledger.Adjudicate(p.ctx, runID, epoch, keys)
		return fmt.Sprint(code(err), rulings)
	})
}

func (p *pair) register() {
	spec := stepfleet.SessionSpec{
		Worker: "w", Instance: p.instance(), Slots: map[string]int{p.queue(): 2},
		SessionTTL: 32 * time.Minute, RunLease: 182 * time.Minute,
	}
	var ids []stepfleet.SessionID
	p.both("register", func(s side) string {
		got, err := s.Ledger.Register(p.ctx, spec)
		ids = append(ids, got.ID)
		return fmt.Sprint(code(err), got.SessionSpec, got.State)
	})
	p.sessions.add(ids[0], ids[1])
	p.instances = append(p.instances, spec.Instance)
}

// instanceOf is the instance that a session is of, rarely a wrong one.
func (p *pair) instanceOf(session int) string {
	if p.rarely(10, "wrong instance") {
		return p.instance()
	}
	return p.instances[session]
}

func (p *pair) renew() {
	i := p.session()
	instance := p.instanceOf(i)
	p.both("renew", func(s side) string {
		r, err := s.Ledger.Renew(p.ctx, s.sessions[i], instance)
		return code(err) + string(r.Was) + "\n" + s.held(r.Held)
	})
}

func (p *pair) heldBy() {
	i := p.session()
	p.both("held", func(s side) string {
		held, err := s.Ledger.Held(p.ctx, s.sessions[i])
		return code(err) + "\n" + s.held(held)
	})
}

func (p *pair) drain() {
	i := p.session()
	if !p.rarely(3, "really") {
		p.rt.Skip("a draining session has little to show")
	}
	instance := p.instanceOf(i)
	p.both("drain", func(s side) string { return code(s.Ledger.SetDraining(p.ctx, s.sessions[i], instance)) })
}

func (p *pair) end() {
	i := p.session()
	if !p.rarely(3, "really") {
		p.rt.Skip("a dead session has little to show")
	}
	instance := p.instanceOf(i)
	p.both("end", func(s side) string { return code(s.Ledger.EndSession(p.ctx, s.sessions[i], instance, "exit")) })
}

func (p *pair) claim() {
	i := p.session()
	req := stepfleet.ClaimRequest{
		Instance: p.instanceOf(i), ID: "claim", Queue: p.queue(), Max: rapid.IntRange(0, 4).Draw(p.rt, "max"),
	}
	if p.rarely(5, "cannot run the code location") {
		req.Except = []string{"location"}
	}
	p.both("claim", func(s side) string {
		req.Session = s.sessions[i]
		got, err := s.Ledger.Claim(p.ctx, req)
		out := []string{code(err), fmt.Sprint(got.More, len(got.Payloads))}
		for _, l := range got.Leases {
			out = append(out, fmt.Sprint(s.task(l.TaskID), l.Fence, l.Task, l.NotifyURL, string(got.Payloads[l.Payload])))
		}
		if slices.Equal(s.tasks, p.tasks.real) {
			for _, l := range got.Leases {
				p.refs = append(p.refs, ref{slices.Index(s.tasks, l.TaskID), i, l.Fence})
			}
		}
		return strings.Join(out, "\n")
	})
}

func (p *pair) start() {
	refs := []ref{p.ref(), p.ref()}
	p.both("start", func(s side) string {
		return codes(s.Ledger.Start(p.ctx, s.sessions[refs[0].session], []stepfleet.Ref{s.ref(refs[0]), s.ref(refs[1])}))
	})
}

// startAnothers starts a task for one who is not its owner, or no longer.
func (p *pair) startAnothers() {
	r := p.ref()
	if rapid.Bool().Draw(p.rt, "of another session") {
		r.session = p.session()
	} else {
		r.fence--
	}
	p.both("start another's", func(s side) string {
		return codes(s.Ledger.Start(p.ctx, s.sessions[r.session], []stepfleet.Ref{s.ref(r)}))
	})
}

func (p *pair) settle() {
	refs := []ref{p.ref(), p.ref()}
	outcomes := []stepfleet.State{
		stepfleet.StateSucceeded, stepfleet.StateFailed, stepfleet.StateCancelled, stepfleet.StateLost, stepfleet.StateQueued,
	}
	one := result(rapid.SampledFrom(outcomes).Draw(p.rt, "outcome"))
	two := result(rapid.SampledFrom(outcomes).Draw(p.rt, "outcome"))
	if one.Error != nil && p.rarely(2, "template died") {
		one.Error.Code = stepfleet.HostDied
	}
	p.both("settle", func(s side) string {
		return codes(s.Ledger.Settle(p.ctx, s.sessions[refs[0].session], []stepfleet.Settlement{
			{Ref: s.ref(refs[0]), Result: one}, {Ref: s.ref(refs[1]), Result: two},
		}))
	})
}

func (p *pair) release() {
	r := p.ref()
	p.both("release", func(s side) string {
		return codes(s.Ledger.Release(p.ctx, s.sessions[r.session], []stepfleet.Ref{s.ref(r)}, "drain"))
	})
}

func (p *pair) revoke() {
	r := p.ref()
	var fence stepfleet.Fence
	answer := p.both("revoke", func(s side) string {
		got, err := s.Ledger.Revoke(p.ctx, s.sessions[r.session], s.ref(r), "timeout")
		fence = got
		return fmt.Sprint(code(err), got)
	})
	if strings.HasPrefix(answer, "ok") {
		p.refs = append(p.refs, ref{r.task, r.session, fence})
	}
}

// Times pass in steps that add up to no deadline exactly, so that the moments between two
// ledgers' clocks decide nothing.
func (p *pair) ageSession() {
	i, d := p.session(), time.Duration(rapid.SampledFrom([]int{10, 35, 190}).Draw(p.rt, "minutes"))*time.Minute
	p.real.AgeSession(p.sessions.real[i], d)
	p.model.AgeSession(p.sessions.model[i], d)
}

func (p *pair) ageLease() {
	r := p.ref()
	p.real.AgeLease(p.tasks.real[r.task], 65*time.Minute)
	p.model.AgeLease(p.tasks.model[r.task], 65*time.Minute)
}

func (p *pair) expire() {
	p.both("expire", func(s side) string {
		at, err := s.Ledger.Beat(p.ctx, "sweeper")
		if err != nil {
			return code(err)
		}
		return s.sessionList(s.Ledger.ExpireSessions(p.ctx, stepfleet.Beats{Last: at, Unbroken: 32 * time.Minute}))
	})
}

func (p *pair) declareDead() {
	instance := p.instance()
	if !p.rarely(3, "really") {
		p.rt.Skip("a dead session has little to show")
	}
	p.both("declare dead", func(s side) string { return s.sessionList(s.Ledger.DeclareDead(p.ctx, instance, "stopped")) })
}

func (p *pair) sweep() {
	most := rapid.IntRange(1, 3).Draw(p.rt, "max")
	p.both("sweep", func(s side) string { return s.changes(s.Ledger.Sweep(p.ctx, lives.StartWithin, most)) })
}

func (p *pair) abandon() {
	r := p.ref()
	p.both("abandon", func(s side) string {
		return codes(s.Ledger.Abandon(p.ctx, s.sessions[r.session], []stepfleet.Ref{s.ref(r)}, abandonedProcess, "gone"))
	})
}

// decide takes one page of what nobody owns, and sometimes gets a fence or the flag wrong.
func (p *pair) decide() {
	most := rapid.IntRange(1, 3).Draw(p.rt, "max")
	event := rapid.SampledFrom([]string{"", stepfleet.EventSuccess, stepfleet.EventFailure, stepfleet.EventRetry}).Draw(p.rt, "event")
	late, flagged := p.rarely(8, "wrong fence"), p.rarely(8, "wrong flag")
	p.both("decide", func(s side) string {
		orphans, err := s.Ledger.Orphans(p.ctx, 0, most)
		out := []string{code(err)}
		var decisions []stepfleet.Decision
		for _, o := range orphans {
			out = append(out, fmt.Sprint(s.task(o.TaskID), o.Fence, o.Key, o.Kind, o.CancelRequested, o.FirstAttempt, s.text(o.Reason), o.Worker))
			d := o.Decide(event, s.text(o.Reason))
			if late {
				d.Fence--
			}
			d.CancelRequested = d.CancelRequested != flagged
			decisions = append(decisions, d)
		}
		return strings.Join(out, "\n") + "\n" + s.changes(s.Ledger.Decide(p.ctx, decisions))
	})
}
