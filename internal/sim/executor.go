package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
)

// maxAttempt is the last attempt of a step.
const maxAttempt = 4

var payload = []byte(`{}`)

// run is a Dagster run: steps that need nothing, and one that needs them all.
type run struct {
	s         *simulation
	id        string
	steps     []string
	executors []*executor // all that there were
	ended     bool        // in Dagster
	cancelled bool
}

// executor is a run worker's executor, as the plugin's: it submits, reads Dagster's log and the ledger,
// retries, and says how attempts ended that did not.
type executor struct {
	run    *run
	s      *simulation
	p      *process
	at     *server // the replica that it uses
	resume int     // which resume of the run it is of
	epoch  stepfleet.Epoch
	sent   map[stepfleet.Key]bool
}

// execute starts an executor of the run; one before it may still be there.
func (r *run) execute() {
	if r.ended {
		return
	}
	x := &executor{run: r, s: r.s, at: pick(r.s.world, r.s.servers...), resume: len(r.executors), sent: map[stepfleet.Key]bool{}}
	r.executors = append(r.executors, x)
	x.p = r.s.world.process(fmt.Sprintf("%s/exec-%d", r.id, len(r.executors)))
	x.p.fragile = true
	x.p.onDeath = func() { r.s.world.after(r.s.world.between(100*time.Millisecond, 3*time.Second), r.resume) }
	x.p.spawn(x.work)
}

// resume is Dagster's monitoring: it starts an executor where none is left.
func (r *run) resume() {
	if len(r.alive()) == 0 {
		r.execute()
	}
}

func (r *run) alive() (alive []*executor) {
	for _, x := range r.executors {
		if !x.p.dead {
			alive = append(alive, x)
		}
	}
	return alive
}

// asks calls a server, and turns to another one when it does not answer.
func asks[T any](x *executor, f func(roleServer) (T, error)) (T, error) {
	v, err := ask(x.s, x.at, f)
	if errors.Is(err, stepfleet.ErrUnavailable) {
		x.at = pick(x.s.world, x.s.servers...)
	}
	return v, err
}

// takes asks a server for the run.
func (x *executor) takes(role roleServer) (stepfleet.Epoch, error) {
	who := stepfleet.Executor{Name: x.p.name, Resume: x.resume}
	if x.s.cfg.Mutant == NoOrder {
		who.Resume = 0
	}
	return role.TakeEpoch(context.Background(), x.run.id, who)
}

// leave ends an executor that another one has followed.
func (x *executor) leave() {
	x.s.world.say(x.p, "is superseded")
	x.p.kill()
}

func (x *executor) work() {
	w := x.s.world
	for {
		epoch, err := asks(x, x.takes)
		if errors.Is(err, stepfleet.ErrRunClosed) {
			x.finish()
			return
		}
		if errors.Is(err, stepfleet.ErrSuperseded) {
			x.leave()
		}
		if x.epoch = epoch; err == nil {
			break
		}
		w.sleep(w.between(0, 2*time.Second))
	}
	for {
		switch err := x.turn(); {
		case err == nil:
		case errors.Is(err, stepfleet.ErrSuperseded):
			x.leave()
		case errors.Is(err, errFinished), errors.Is(err, stepfleet.ErrRunClosed):
			x.finish()
			return
		}
		w.sleep(w.between(200*time.Millisecond, 600*time.Millisecond))
	}
}

var errFinished = errors.New("the run has ended")

// finish ends the run in Dagster; whatever is left here, the server's comparison closes.
func (x *executor) finish() {
	x.s.world.say(x.p, "ends the run")
	x.run.ended = true
}

// turn looks where the steps stand and does what follows.
func (x *executor) turn() error {
	ctx, w := context.Background(), x.s.world
	views, err := asks(x, func(role roleServer) ([]stepfleet.View, error) { return role.Ledger().RunTasks(ctx, x.run.id) })
	if err != nil {
		return err
	}
	last := map[string]stepfleet.View{}
	for _, v := range views {
		last[v.StepKey] = v
	}
	w.sleep(w.between(time.Millisecond, 50*time.Millisecond)) // what was read may be old by now
	if x.s.log.away() {
		return nil
	}
	var want []stepfleet.Key
	var silent []stepfleet.Key
	open, ready := 0, true
	for i, step := range x.run.steps {
		if final := i == len(x.run.steps)-1; final && (open > 0 || !ready) {
			continue
		}
		v, known := last[step]
		key := stepfleet.Key{RunID: x.run.id, StepKey: step, Attempt: v.Attempt}
		switch event := x.s.log.ending(key); {
		case event == stepfleet.EventSuccess:
			continue
		case event == stepfleet.EventFailure:
			ready = false
			continue
		case !known:
			want = append(want, key)
		case event == stepfleet.EventRetry:
			key.Attempt++
			want = append(want, key)
		case v.State.Terminal():
			silent = append(silent, key)
		}
		open++
	}
	switch {
	case len(silent) > 0:
		return x.adjudicate(silent, last)
	case len(want) > 0:
		return x.submit(want)
	case open == 0:
		return x.close()
	}
	return nil
}

// adjudicate says in Dagster's log how attempts ended that have no end there.
func (x *executor) adjudicate(keys []stepfleet.Key, last map[string]stepfleet.View) error {
	w := x.s.world
	rulings, err := asks(x, func(role roleServer) ([]stepfleet.Ruling, error) {
		return role.Adjudicate(context.Background(), x.run.id, x.epoch, keys)
	})
	if err != nil {
		return err
	}
	w.sleep(w.between(0, 200*time.Millisecond))
	for _, r := range rulings {
		if !r.Granted {
			continue
		}
		event := stepfleet.EventFailure
		if last[r.StepKey].State == stepfleet.StateLost && r.Attempt < maxAttempt {
			event = stepfleet.EventRetry
		}
		x.s.log.verdict(r.Key, event)
	}
	return nil
}

func (x *executor) submit(keys []stepfleet.Key) error {
	digest := stepfleet.DigestOf(payload)
	b := stepfleet.Batch{
		RunID: x.run.id, Epoch: x.epoch, Identity: "job", Payloads: map[stepfleet.Digest][]byte{digest: payload},
	}
	var asked []audit.ClientEvent
	for _, key := range keys {
		if x.s.cfg.Mutant == AckEarly && x.sent[key] {
			continue
		}
		x.sent[key] = true
		t := stepfleet.Task{
			V: stepfleet.TaskVersion, Kind: stepfleet.KindStep, Key: key, Op: key.StepKey, Job: "job", Queue: queue, Payload: digest,
		}
		if key.StepKey == x.run.steps[0] {
			t.TimeoutSeconds = 5
		}
		b.Tasks = append(b.Tasks, t)
		asked = append(asked, x.s.invoke(x.p.name, audit.OpSubmit, key))
	}
	if len(b.Tasks) == 0 {
		return nil
	}
	answers, err := asks(x, func(role roleServer) ([]answerOf, error) { return role.Submit(context.Background(), b) })
	for i, e := range asked {
		if err == nil {
			e.TaskID, e.Known = answers[i].TaskID, answers[i].Known
		}
		x.s.answered(e, err)
	}
	return err
}

func (x *executor) close() error {
	e := x.s.invoke(x.p.name, audit.OpClose, stepfleet.Key{RunID: x.run.id})
	_, err := asks(x, func(role roleServer) ([]stepfleet.Change, error) {
		return role.CloseRun(context.Background(), x.run.id, x.epoch, "the run has ended")
	})
	e.Epoch = x.epoch
	x.s.answered(e, err)
	if err == nil {
		return errFinished
	}
	return err
}

// cancel is somebody who cancels all that the run has open, or closes it.
func (r *run) cancel() {
	r.cancelled = true
	s, f := r.s, pick(r.s.world, audit.OpCancel, audit.OpClose)
	s.network.spawn(func() {
		e := s.invoke(r.id+"/people", f, stepfleet.Key{RunID: r.id})
		_, err := ask(s, pick(s.world, s.servers...), func(role roleServer) ([]stepfleet.Change, error) {
			if f == audit.OpCancel {
				return role.Cancel(context.Background(), r.id, stepfleet.NoExecutor, nil, "cancelled")
			}
			return role.CloseRun(context.Background(), r.id, stepfleet.NoExecutor, "closed")
		})
		s.answered(e, err)
	})
}
