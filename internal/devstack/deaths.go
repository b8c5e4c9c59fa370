package devstack

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// deaths tells the server which worker processes are gone. The supervisor has reaped them, so this is
// proof: the server need not wait for their run lease before it calls what they ran lost.
type deaths struct {
	bases []string // of the servers
	token string
	log   *slog.Logger
	http  *http.Client

	ctx    context.Context
	cancel context.CancelFunc
	sent   sync.WaitGroup
}

// One call's bound, and the wait between two while the server does not answer.
const (
	reportTimeout  = 3 * time.Second
	reportInterval = 500 * time.Millisecond
)

func newDeaths(bases []string, token string, log *slog.Logger) *deaths {
	ctx, cancel := context.WithCancel(context.Background())
	return &deaths{
		bases: bases, token: token, log: log, ctx: ctx, cancel: cancel,
		http: &http.Client{Timeout: reportTimeout},
	}
}

// report tells of one death, in the background, again and again until the server has heard it.
func (d *deaths) report(instance, reason string) {
	d.post("/v1/instances/"+url.PathEscape(instance)+"/dead", reason)
}

// closeRun tells that a run is over: its process ended with the stack before.
func (d *deaths) closeRun(runID, reason string) {
	d.post("/v1/runs/"+url.PathEscape(runID)+"/close", reason)
}

func (d *deaths) post(path, reason string) {
	d.sent.Go(func() {
		for try := 0; ; try++ {
			retry, err := d.once(d.bases[try%len(d.bases)]+path, reason)
			if err == nil {
				return
			}
			if !retry {
				d.log.Warn("tell the server", "path", path, "error", err)
				return
			}
			d.log.Debug("tell the server, again soon", "path", path, "error", err) // it may not be up yet
			select {
			case <-d.ctx.Done():
				return
			case <-time.After(reportInterval):
			}
		}
	})
}

// once makes one call and says whether another one could do better.
func (d *deaths) once(url, reason string) (retry bool, err error) {
	body, err := json.Marshal(map[string]any{"v": 1, "reason": reason})
	if err != nil {
		return false, err
	}
	request, err := http.NewRequestWithContext(d.ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+d.token)
	response, err := d.http.Do(request)
	if err != nil {
		return true, err
	}
	defer response.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	if response.StatusCode/100 == 2 {
		return false, nil
	}
	retry = response.StatusCode >= 500 || response.StatusCode == http.StatusTooManyRequests
	return retry, fmt.Errorf("%s: %s", response.Status, bytes.TrimSpace(answer))
}

// finish waits for what is under way, at most this long, and gives the rest up: the run lease ends it.
func (d *deaths) finish(wait time.Duration) {
	timer := time.AfterFunc(wait, d.cancel)
	defer timer.Stop()
	d.sent.Wait()
	d.cancel()
}
