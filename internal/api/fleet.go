package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/stepfleet/stepfleet"
)

type notifyRequest struct {
	versioned
	Tasks []notified `json:"tasks"`
}

type notified struct {
	TaskID stepfleet.TaskID `json:"task_id"`
	RunID  string           `json:"run_id"`
}

func (a *API) notify(w http.ResponseWriter, r *http.Request) error {
	var req notifyRequest
	if err := read(r, &req); err != nil {
		return err
	}
	ids := make([]stepfleet.TaskID, len(req.Tasks))
	for i, t := range req.Tasks {
		ids[i] = t.TaskID
	}
	if err := a.server.Notified(r.Context(), ids); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *API) instanceDead(w http.ResponseWriter, r *http.Request) error {
	var req reasonRequest
	if err := read(r, &req); err != nil {
		return err
	}
	dead, err := a.server.InstanceDead(r.Context(), r.PathValue("instance"), req.Reason)
	if err != nil {
		return err
	}
	write(w, http.StatusOK, map[string]any{"v": Version, "sessions": orEmpty(dead)})
	return nil
}

// Notifier tells a server replica which tasks have ended. It is the worker's end of the path.
type Notifier struct {
	// Token as the servers want it; may be empty.
	Token  string
	Client *http.Client
}

// notifyTimeout bounds a hint: later than this the slow look has done its work.
const notifyTimeout = 3 * time.Second

// Notify tells the server at url. An error means that it may not know; its slow look will.
func (n *Notifier) Notify(ctx context.Context, url string, ended []stepfleet.Lease) error {
	req := notifyRequest{versioned: versioned{V: Version}}
	for _, l := range ended {
		req.Tasks = append(req.Tasks, notified{TaskID: l.TaskID, RunID: l.RunID})
	}
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/notify", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	post.Header.Set("Content-Type", "application/json")
	if n.Token != "" {
		post.Header.Set("Authorization", "Bearer "+n.Token)
	}
	resp, err := n.Client.Do(post)
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("notify %s: %s", url, resp.Status)
	}
	return nil
}
