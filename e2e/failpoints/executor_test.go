//go:build linux && failpoint

package failpoints

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
)

const (
	askTimeout = time.Second            // one request
	askAgain   = 100 * time.Millisecond // after one that failed
	runID      = "run"
)

// executor is what Dagster's executor is to stepfleet: it asks until it is answered.
type executor struct {
	*stack
	history *audit.Recorder
	epoch   stepfleet.Epoch
	tasks   []stepfleet.Task
}

func (s *stack) executor() *executor {
	file, err := os.Create(s.file("client.jsonl"))
	s.must(err)
	s.Cleanup(func() { file.Close() })
	return &executor{stack: s, history: audit.NewRecorder(file, time.Now)}
}

// errRefused says that the server has answered, and that asking again is in vain.
var errRefused = errors.New("refused")

// ask sends one request.
func (e *executor) ask(path string, body map[string]any, answer any) error {
	ctx, cancel := context.WithTimeout(e.ctx, askTimeout)
	defer cancel()
	body["v"] = 1
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+e.address+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var got struct {
		Error *struct {
			Code, Message string
			Retry         bool
		} `json:"error"`
	}
	var text bytes.Buffer
	if _, err := text.ReadFrom(response.Body); err != nil {
		return err
	}
	if err := json.Unmarshal(text.Bytes(), &got); err != nil {
		return err
	}
	switch {
	case got.Error != nil && got.Error.Retry:
		return fmt.Errorf("%s: %s", got.Error.Code, got.Error.Message)
	case got.Error != nil:
		return fmt.Errorf("%w: %s: %s", errRefused, got.Error.Code, got.Error.Message)
	case answer == nil:
		return nil
	}
	return json.Unmarshal(text.Bytes(), answer)
}

// insist asks until it is answered, and has each time in the history.
func (e *executor) insist(what string, once func() error) {
	e.Helper()
	for {
		err := once()
		if err == nil {
			return
		}
		if errors.Is(err, errRefused) {
			e.Fatalf("%s: %v", what, err)
		}
		select {
		case <-e.ctx.Done():
			e.Fatalf("%s: not answered in time: %v", what, err)
		case <-time.After(askAgain):
		}
	}
}

// recorded has an operation in the history: what was asked, and what came of it.
func (e *executor) recorded(f audit.Operation, once func() error) error {
	event := e.history.Invoke("executor", f, stepfleet.Key{RunID: runID})
	err := once()
	if f == audit.OpClose {
		event.Epoch = e.epoch
	}
	switch {
	case err == nil:
		e.history.Done(event, audit.OK)
	case errors.Is(err, errRefused):
		e.history.Done(event, audit.Failed)
	default:
		e.history.Done(event, audit.Info)
	}
	return err
}

// open takes the run, and confirms that.
func (e *executor) open() {
	e.insist("take the run", func() error {
		var got struct{ Epoch stepfleet.Epoch }
		err := e.ask("/v1/runs/"+runID+"/epoch", map[string]any{"executor": "e", "epoch": 0}, &got)
		e.epoch = got.Epoch
		return err
	})
	e.insist("confirm the epoch", func() error {
		return e.ask("/v1/runs/"+runID+"/epoch", map[string]any{"executor": "e", "epoch": e.epoch}, nil)
	})
}

// submit submits a step for each plan: a, b, c.
func (e *executor) submit(plans ...plan) {
	payloads := map[stepfleet.Digest]string{}
	var tasks []stepfleet.Task
	for _, p := range plans {
		raw := payload(p)
		t := task(runID, string(rune('a'+len(e.tasks)+len(tasks))), raw)
		payloads[t.Payload] = string(raw)
		tasks = append(tasks, t)
	}
	e.tasks = append(e.tasks, tasks...)
	e.insist("submit", func() error {
		var events []audit.ClientEvent
		for _, t := range tasks {
			events = append(events, e.history.Invoke("executor", audit.OpSubmit, t.Key))
		}
		var got struct {
			Receipts []struct {
				TaskID stepfleet.TaskID `json:"task_id"`
				State  stepfleet.State
				Known  bool
				Error  *struct{ Message string }
			}
		}
		err := e.ask("/v1/runs/"+runID+"/tasks", map[string]any{
			"epoch": e.epoch, "identity": "job", "payloads": payloads, "tasks": tasks,
		}, &got)
		for i, event := range events {
			kind := audit.Info
			if err == nil && len(got.Receipts) == len(tasks) && got.Receipts[i].Error == nil {
				r := got.Receipts[i]
				kind, event.TaskID, event.State, event.Known = audit.OK, r.TaskID, r.State, r.Known
			}
			e.history.Done(event, kind)
		}
		if err == nil && len(got.Receipts) != len(tasks) {
			err = fmt.Errorf("%w: %d receipts for %d tasks", errRefused, len(got.Receipts), len(tasks))
		}
		return err
	})
}

// cancel cancels all steps of the run.
func (e *executor) cancel() {
	e.insist("cancel", func() error {
		return e.recorded(audit.OpCancel, func() error {
			return e.ask("/v1/runs/"+runID+"/cancel", map[string]any{"epoch": e.epoch, "reason": "cancelled"}, nil)
		})
	})
}

// adjudicate asks for leave to say how the steps ended of whose end the log shows nothing, and says it.
func (e *executor) adjudicate() {
	for _, t := range e.tasks {
		const ended = `SELECT count(*) FROM event_logs WHERE run_id = $1 AND step_key = $2 AND dagster_event_type = ANY ($3)`
		if e.count(ended, runID, t.StepKey, stepfleet.Endings) > 0 {
			continue
		}
		var got struct{ Rulings []struct{ Granted bool } }
		e.insist("adjudicate", func() error {
			return e.ask("/v1/runs/"+runID+"/adjudicate", map[string]any{
				"epoch": e.epoch, "tasks": []map[string]any{{"step_key": t.StepKey, "attempt": 0}},
			}, &got)
		})
		if len(got.Rulings) != 1 || !got.Rulings[0].Granted {
			e.Fatalf("the run's only executor may not say how %s ended: %+v", t.Key, got)
		}
		_, err := e.db.Exec(e.ctx, insertEvent, runID, t.StepKey, stepfleet.EventFailure)
		e.must(err)
	}
}

// close closes the run.
func (e *executor) close() { e.insist("close the run", e.closeOnce) }

func (e *executor) closeOnce() error {
	return e.recorded(audit.OpClose, func() error {
		return e.ask("/v1/runs/"+runID+"/close", map[string]any{"epoch": e.epoch, "reason": "over"}, nil)
	})
}

// in waits until so many of the steps are in the state.
func (e *executor) in(n int, state stepfleet.State) {
	e.Helper()
	e.until(fmt.Sprintf("%d steps are %s", n, state), func() bool {
		return e.count(`SELECT count(*) FROM stepfleet.task WHERE state = $1`, state) == n
	})
}

// ended waits until all steps have ended.
func (e *executor) ended() {
	e.Helper()
	e.until("all steps have ended", func() bool {
		return e.count(`SELECT count(*) FROM stepfleet.task WHERE ended_at IS NOT NULL`) == len(e.tasks)
	})
}
