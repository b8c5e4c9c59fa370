package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/devstack"
)

// fleet reads the stepfleet server's API.
type fleet struct {
	base  string
	token string
	http  *http.Client
}

// Limits on one call.
const (
	fleetTimeout   = 10 * time.Second
	maxAnswerBytes = 64 << 20
)

func newFleet(state devstack.State) (*fleet, error) {
	token, err := os.ReadFile(state.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("read the token: %w", err)
	}
	return &fleet{
		base: state.URLs["server"], token: strings.TrimSpace(string(token)),
		http: &http.Client{Timeout: fleetTimeout},
	}, nil
}

// tasks returns the tasks of the run's steps.
func (f *fleet) tasks(ctx context.Context, runID string) ([]stepfleet.View, error) {
	var answer struct {
		Tasks []stepfleet.View `json:"tasks"`
	}
	err := f.get(ctx, "/v1/runs/"+url.PathEscape(runID)+"/tasks", &answer)
	steps := slices.DeleteFunc(answer.Tasks, func(t stepfleet.View) bool { return t.Kind != stepfleet.KindStep })
	return steps, err
}

// sessions returns the workers' sessions by id.
func (f *fleet) sessions(ctx context.Context) (map[stepfleet.SessionID]stepfleet.Session, error) {
	var answer struct {
		Sessions []stepfleet.Session `json:"sessions"`
	}
	if err := f.get(ctx, "/v1/sessions", &answer); err != nil {
		return nil, err
	}
	byID := make(map[stepfleet.SessionID]stepfleet.Session, len(answer.Sessions))
	for _, s := range answer.Sessions {
		byID[s.ID] = s
	}
	return byID, nil
}

func (f *fleet) get(ctx context.Context, path string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.base+path, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+f.token)
	response, err := f.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s: %.300s", path, response.Status, body)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	return nil
}
