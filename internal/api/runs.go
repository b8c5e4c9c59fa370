package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/stepfleet/stepfleet"
)

type versioned struct {
	V int `json:"v"`
}

func (v versioned) version() int { return v.V }

type submitRequest struct {
	versioned
	Epoch    stepfleet.Epoch             `json:"epoch"`
	Identity string                      `json:"identity"`
	Payloads map[stepfleet.Digest]string `json:"payloads"`
	Tasks    []stepfleet.Task            `json:"tasks"`
}

// receipt is an answer to one task: a place in the ledger, or an error.
type receipt struct {
	stepfleet.Key
	TaskID stepfleet.TaskID `json:"task_id,omitempty"`
	State  stepfleet.State  `json:"state,omitempty"`
	Known  bool             `json:"known"`
	Error  *errorBody       `json:"error,omitempty"`
}

func (a *API) submit(w http.ResponseWriter, r *http.Request) error {
	var req submitRequest
	if err := read(r, &req); err != nil {
		return err
	}
	batch := stepfleet.Batch{
		RunID:    r.PathValue("run"),
		Epoch:    req.Epoch,
		Identity: req.Identity,
		Payloads: make(map[stepfleet.Digest][]byte, len(req.Payloads)),
		Tasks:    req.Tasks,
	}
	if batch.Identity == "" {
		return fmt.Errorf("%w: identity is empty: it names what the run executes", stepfleet.ErrTaskInvalid)
	}
	for digest, payload := range req.Payloads {
		batch.Payloads[digest] = []byte(payload)
	}
	answers, err := a.server.Submit(r.Context(), batch)
	if err != nil {
		return err
	}
	receipts := make([]receipt, len(answers))
	for i, ans := range answers {
		receipts[i] = receipt{Key: ans.Key, TaskID: ans.TaskID, State: ans.State, Known: ans.Known}
		if ans.Err != nil {
			body := bodyOf(ans.Err)
			receipts[i].Error = &body
		}
	}
	write(w, http.StatusOK, map[string]any{"v": Version, "receipts": receipts})
	return nil
}

func (a *API) runTasks(w http.ResponseWriter, r *http.Request) error {
	kinds, err := kindsOf(r.URL.RawQuery)
	if err != nil {
		return err
	}
	views, err := a.server.Ledger().RunTasks(r.Context(), r.PathValue("run"), kinds...)
	if err != nil {
		return err
	}
	write(w, http.StatusOK, map[string]any{"v": Version, "tasks": orEmpty(views)})
	return nil
}

// kindsOf reads which tasks a query asks for; none named are all. It is as strict as read: a filter
// that is passed over would answer more than was asked for.
func kindsOf(raw string) ([]stepfleet.Kind, error) {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: query: %w", stepfleet.ErrTaskInvalid, err)
	}
	var kinds []stepfleet.Kind
	for name, values := range query {
		if name != "kind" {
			return nil, fmt.Errorf("%w: query parameter %q: tasks are filtered by kind, as in ?kind=run", stepfleet.ErrTaskInvalid, name)
		}
		for _, value := range values {
			kind := stepfleet.Kind(value)
			if kind != stepfleet.KindStep && kind != stepfleet.KindRun {
				return nil, fmt.Errorf("%w: query parameter kind=%q is neither step nor run", stepfleet.ErrTaskInvalid, value)
			}
			kinds = append(kinds, kind)
		}
	}
	return kinds, nil
}

func (a *API) audit(w http.ResponseWriter, r *http.Request) error {
	rows, err := a.server.Ledger().Audit(r.Context(), r.PathValue("run"))
	if err != nil {
		return err
	}
	write(w, http.StatusOK, map[string]any{"v": Version, "audit": orEmpty(rows)})
	return nil
}

// attempt names a task of the run in the path.
type attempt struct {
	StepKey string `json:"step_key"`
	Attempt int    `json:"attempt"`
}

// keysOf returns nil for nil.
func keysOf(run string, tasks []attempt) (keys []stepfleet.Key, err error) {
	if tasks != nil {
		keys = make([]stepfleet.Key, len(tasks))
	}
	for i, t := range tasks {
		keys[i] = stepfleet.Key{RunID: run, StepKey: t.StepKey, Attempt: t.Attempt}
		if err := keys[i].Validate(); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

type cancelRequest struct {
	versioned
	Epoch  stepfleet.Epoch `json:"epoch"`
	Tasks  []attempt       `json:"tasks"`
	Reason string          `json:"reason"`
}

func (a *API) cancel(w http.ResponseWriter, r *http.Request) error {
	var req cancelRequest
	if err := read(r, &req); err != nil {
		return err
	}
	run := r.PathValue("run")
	keys, err := keysOf(run, req.Tasks) // nil cancels all
	if err != nil {
		return err
	}
	changes, err := a.server.Cancel(r.Context(), run, req.Epoch, keys, req.Reason)
	if err != nil {
		return err
	}
	writeChanges(w, changes)
	return nil
}

type reasonRequest struct {
	versioned
	Reason string `json:"reason"`
}

type closeRequest struct {
	versioned
	Epoch  stepfleet.Epoch `json:"epoch"`
	Reason string          `json:"reason"`
}

func (a *API) closeRun(w http.ResponseWriter, r *http.Request) error {
	var req closeRequest
	if err := read(r, &req); err != nil {
		return err
	}
	changes, err := a.server.CloseRun(r.Context(), r.PathValue("run"), req.Epoch, req.Reason)
	if err != nil {
		return err
	}
	writeChanges(w, changes)
	return nil
}

func writeChanges(w http.ResponseWriter, changes []stepfleet.Change) {
	type change struct {
		stepfleet.Key
		TaskID stepfleet.TaskID `json:"task_id"`
		From   stepfleet.State  `json:"from"`
		To     stepfleet.State  `json:"to"`
	}
	out := make([]change, len(changes))
	for i, c := range changes {
		out[i] = change{Key: c.Key, TaskID: c.TaskID, From: c.From, To: c.To}
	}
	write(w, http.StatusOK, map[string]any{"v": Version, "changes": out})
}

type epochRequest struct {
	versioned
	Executor string          `json:"executor"`
	Resume   int             `json:"resume"`
	Epoch    stepfleet.Epoch `json:"epoch"`
}

// epoch makes the caller the run's executor, or confirms that it still is.
func (a *API) epoch(w http.ResponseWriter, r *http.Request) error {
	var req epochRequest
	if err := read(r, &req); err != nil {
		return err
	}
	run, epoch := r.PathValue("run"), req.Epoch
	var err error
	if epoch == stepfleet.NoExecutor {
		epoch, err = a.server.TakeEpoch(r.Context(), run, stepfleet.Executor{Name: req.Executor, Resume: req.Resume})
	} else {
		err = a.server.Confirm(r.Context(), run, epoch)
	}
	if err != nil {
		return err
	}
	write(w, http.StatusOK, map[string]any{"v": Version, "epoch": epoch})
	return nil
}

type adjudicateRequest struct {
	versioned
	Epoch stepfleet.Epoch `json:"epoch"`
	Tasks []attempt       `json:"tasks"`
}

func (a *API) adjudicate(w http.ResponseWriter, r *http.Request) error {
	var req adjudicateRequest
	if err := read(r, &req); err != nil {
		return err
	}
	run := r.PathValue("run")
	keys, err := keysOf(run, req.Tasks)
	if err != nil {
		return err
	}
	rulings, err := a.server.Adjudicate(r.Context(), run, req.Epoch, keys)
	if err != nil {
		return err
	}
	type ruling struct {
		stepfleet.Key
		State   stepfleet.State `json:"state,omitempty"`
		Granted bool            `json:"granted"`
		Earlier stepfleet.Epoch `json:"earlier_epoch"`
	}
	out := make([]ruling, len(rulings))
	for i, l := range rulings {
		out[i] = ruling(l)
	}
	write(w, http.StatusOK, map[string]any{"v": Version, "rulings": out})
	return nil
}

// ended is a stream's line about one task.
type ended struct {
	Type    string            `json:"type"`
	TaskID  stepfleet.TaskID  `json:"task_id"`
	StepKey string            `json:"step_key"`
	Attempt int               `json:"attempt"`
	State   stepfleet.State   `json:"state"`
	Reason  string            `json:"reason"`
	Worker  string            `json:"worker"`
	Result  *stepfleet.Result `json:"result"`
}

// stream tells one executor of the ends of its run's tasks, from a snapshot on, for as long as
// the connection holds or until another takes over.
func (a *API) stream(w http.ResponseWriter, r *http.Request) error {
	run := r.PathValue("run")
	epoch, err := strconv.ParseInt(r.URL.Query().Get("epoch"), 10, 64)
	if err != nil || epoch < 1 {
		return fmt.Errorf("%w: name the executor's epoch, as in ?epoch=1; to look at a run, ask for its tasks", stepfleet.ErrTaskInvalid)
	}
	st, snapshot, err := a.server.Open(r.Context(), run, stepfleet.Epoch(epoch))
	if err != nil {
		return err
	}
	defer st.Close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := lines{w: w, enc: json.NewEncoder(w), flush: http.NewResponseController(w)}
	out.line(map[string]any{"v": Version, "type": "hello", "run_id": run, "epoch": epoch})
	out.ends(snapshot)
	out.line(map[string]any{"type": "snapshot_end"})
	for out.err = out.flush.Flush(); out.err == nil; out.err = out.flush.Flush() {
		wait, cancel := context.WithTimeout(r.Context(), pingEvery)
		views, err := st.Next(wait)
		cancel()
		switch {
		case r.Context().Err() != nil:
			return nil
		case errors.Is(err, stepfleet.ErrSuperseded):
			out.line(map[string]any{"type": "superseded"})
			return nil
		case err != nil:
			out.line(map[string]any{"type": "ping"})
		case len(views) == 0:
			return nil // the server is going down; the client connects to another
		}
		out.ends(views)
	}
	return nil
}

type lines struct {
	w     http.ResponseWriter
	enc   *json.Encoder
	flush *http.ResponseController
	err   error
}

func (l *lines) line(v any) {
	if l.err == nil {
		l.err = l.enc.Encode(v)
	}
}

func (l *lines) ends(views []stepfleet.View) {
	for _, v := range views {
		l.line(ended{
			Type: "task", TaskID: v.ID, StepKey: v.StepKey, Attempt: v.Attempt,
			State: v.State, Reason: v.Reason, Worker: v.Worker, Result: v.Result,
		})
	}
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

type queueView struct {
	stepfleet.Lane
	OldestAgeSeconds float64 `json:"oldest_age_seconds"`
}

func (a *API) queues(w http.ResponseWriter, r *http.Request) error {
	lanes, err := a.server.Ledger().Lanes(r.Context())
	if err != nil {
		return err
	}
	out := make([]queueView, len(lanes))
	for i, l := range lanes {
		out[i] = queueView{Lane: l, OldestAgeSeconds: l.OldestAge.Round(time.Millisecond).Seconds()}
	}
	write(w, http.StatusOK, map[string]any{"v": Version, "queues": out})
	return nil
}

func (a *API) sessions(w http.ResponseWriter, r *http.Request) error {
	sessions, err := a.server.Ledger().Sessions(r.Context(), maxDeadSessionAge)
	if err != nil {
		return err
	}
	write(w, http.StatusOK, map[string]any{"v": Version, "sessions": orEmpty(sessions)})
	return nil
}
