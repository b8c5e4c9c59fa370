// Package api puts HTTP in front of the server role. docs/protocol.md section 1 is its contract;
// openapi.yaml the same for machines.
//
// It decides nothing: it checks who asks, reads the request strictly, calls internal/dispatch,
// and maps refusals to status codes by the one table in the root package.
package api

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dispatch"
)

// Version is the version of every request and answer.
const Version = 1

const (
	// maxBodyBytes bounds a request: a batch of one large payload and two thousand tasks.
	maxBodyBytes = 64 << 20
	// retryAfterSeconds is the hint with a refusal that a caller may retry.
	retryAfterSeconds = 1
	// pingEvery keeps a silent stream apart from a dead connection; clients give up after 15 s.
	pingEvery = 5 * time.Second
	// maxDeadSessionAge is how long a dead session stays in the list of sessions.
	maxDeadSessionAge = time.Hour
)

// Config is what the API needs besides the server it fronts.
type Config struct {
	// Token is asked of every caller except probes; empty only on loopback.
	Token string
	// Hosts are the Host headers allowed besides loopback names; a browser that was led here by
	// a rebound name is refused.
	Hosts []string
	// Metrics answers GET /metrics, to those who have the token; nil where there are none.
	Metrics http.Handler
	Logger  *slog.Logger
}

// API is the handler.
type API struct {
	cfg    Config
	server *dispatch.Server
	mux    *http.ServeMux
	// guarded is mux behind the check of a browser's origin.
	guarded http.Handler
}

// New returns the handler for a server.
func New(cfg Config, server *dispatch.Server) *API {
	a := &API{cfg: cfg, server: server, mux: http.NewServeMux()}
	a.guarded = http.NewCrossOriginProtection().Handler(a.mux)
	a.mux.HandleFunc("GET /livez", a.livez)
	a.mux.HandleFunc("GET /readyz", a.readyz)
	a.route("POST /v1/runs/{run}/tasks", a.submit)
	a.route("GET /v1/runs/{run}/tasks", a.runTasks)
	a.route("GET /v1/runs/{run}/audit", a.audit)
	a.route("GET /v1/runs/{run}/stream", a.stream)
	a.route("POST /v1/runs/{run}/epoch", a.epoch)
	a.route("POST /v1/runs/{run}/adjudicate", a.adjudicate)
	a.route("POST /v1/runs/{run}/cancel", a.cancel)
	a.route("POST /v1/runs/{run}/close", a.closeRun)
	a.route("POST /v1/notify", a.notify)
	a.route("POST /v1/instances/{instance}/dead", a.instanceDead)
	a.route("GET /v1/queues", a.queues)
	a.route("GET /v1/sessions", a.sessions)
	if cfg.Metrics != nil {
		a.route("GET /metrics", a.metrics)
	}
	return a
}

// ServeHTTP checks the Host header and the origin, then routes.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !a.cfg.allows(r.Host) {
		refuseHost(w, r)
		return
	}
	a.guarded.ServeHTTP(w, r)
}

func refuseHost(w http.ResponseWriter, r *http.Request) {
	http.Error(w, fmt.Sprintf("this server does not answer to the host %q: start it with --allow-host", r.Host), http.StatusMisdirectedRequest)
}

// allows says whether the Host header is one to answer.
func (c Config) allows(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	if host == "localhost" || net.ParseIP(strings.Trim(host, "[]")).IsLoopback() {
		return true
	}
	for _, h := range c.Hosts {
		if strings.EqualFold(h, host) {
			return true
		}
	}
	return false
}

// route registers a handler that needs the token and whose error becomes the answer.
func (a *API) route(pattern string, h func(http.ResponseWriter, *http.Request) error) {
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		err := a.cfg.authorize(r)
		if err == nil {
			r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
			err = h(w, r)
		}
		if err != nil {
			a.fail(w, r, err)
		}
	})
}

func (c Config) authorize(r *http.Request) error {
	if c.Token == "" {
		return nil
	}
	got := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if subtle.ConstantTimeCompare([]byte(got), []byte(c.Token)) != 1 {
		return fmt.Errorf("%w: set STEPFLEET_TOKEN or STEPFLEET_TOKEN_FILE to this server's", stepfleet.ErrUnauthorized)
	}
	return nil
}

type errorBody struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Retry   bool   `json:"retry"`
}

func bodyOf(err error) errorBody {
	b := errorBody{Code: "internal", Message: err.Error()}
	if refusal := stepfleet.RefusalOf(err); refusal != nil {
		b.Code, b.Retry = refusal.Code, refusal.Retry
	}
	return b
}

func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusInternalServerError
	var tooBig *http.MaxBytesError
	gone := r.Context().Err() != nil // the caller; what it has broken off says nothing of the ledger
	switch refusal := stepfleet.RefusalOf(err); {
	case refusal != nil:
		status = refusal.HTTPStatus
		if refusal.Retry {
			w.Header().Set("Retry-After", strconv.Itoa(retryAfterSeconds))
		}
	case errors.As(err, &tooBig):
		status = http.StatusRequestEntityTooLarge
		err = fmt.Errorf("%w: a request of more than %d bytes: send smaller batches", stepfleet.ErrPayloadTooBig, tooBig.Limit)
	case gone:
		return
	}
	if status >= http.StatusInternalServerError && !gone {
		a.cfg.Logger.Warn("request failed", "path", r.URL.Path, "err", err)
	}
	write(w, status, map[string]any{"v": Version, "error": bodyOf(err)})
}

func write(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// An error here means that the caller has gone.
	_ = json.NewEncoder(w).Encode(body)
}

// read decodes a request strictly: a field this version does not know may carry a meaning that
// must not be dropped silently.
func read(r *http.Request, into interface{ version() int }) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		var tooBig *http.MaxBytesError
		if errors.As(err, &tooBig) {
			return err
		}
		return fmt.Errorf("%w: request body: %w", stepfleet.ErrTaskInvalid, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: request body: more than one JSON value", stepfleet.ErrTaskInvalid)
	}
	if v := into.version(); v != Version {
		return fmt.Errorf("%w: request version %d: this server speaks %d", stepfleet.ErrTaskInvalid, v, Version)
	}
	return nil
}

func (a *API) livez(w http.ResponseWriter, _ *http.Request) {
	write(w, http.StatusOK, map[string]any{"live": true})
}

func (a *API) readyz(w http.ResponseWriter, r *http.Request) {
	Ready(w, a.server.Ready(r.Context()))
}

func (a *API) metrics(w http.ResponseWriter, r *http.Request) error {
	a.cfg.Metrics.ServeHTTP(w, r)
	return nil
}

// Ready answers a readiness probe, for every process alike.
func Ready(w http.ResponseWriter, reasons []string) {
	status := http.StatusOK
	if len(reasons) > 0 {
		status = http.StatusServiceUnavailable
	}
	write(w, status, map[string]any{"ready": len(reasons) == 0, "reasons": append([]string{}, reasons...)})
}

// Probes is the handler of a process that serves nothing but its probes and its metrics. Probes are
// answered to anybody, as a container's health check asks by whatever address it has; metrics as the
// API answers.
func Probes(cfg Config, ready func(ctx context.Context) []string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, map[string]any{"live": true})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { Ready(w, ready(r.Context())) })
	if cfg.Metrics == nil {
		return mux
	}
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if !cfg.allows(r.Host) {
			refuseHost(w, r)
			return
		}
		if err := cfg.authorize(r); err != nil {
			write(w, http.StatusUnauthorized, map[string]any{"v": Version, "error": bodyOf(err)})
			return
		}
		cfg.Metrics.ServeHTTP(w, r)
	})
	return mux
}
