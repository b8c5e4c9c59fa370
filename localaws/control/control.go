// Package control is the HTTP face of what a test does to a local AWS, below /_localaws/: make it
// misbehave, take a service away, empty it, move its clock, ask what it emulates. Bodies and
// answers are JSON; an error is {"error": what happened, "hint": what to do}.
//
// Where to read: control.go routes and answers, faults.go has rules and outages, world.go the
// rest, decode.go the strict reading of bodies.
package control

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/fault"
)

// Prefix is where the endpoint lives. No AWS service has such a path.
const Prefix = "/_localaws/"

// Is reports whether the path belongs to this endpoint.
func Is(path string) bool {
	return strings.HasPrefix(path, Prefix) || path == strings.TrimSuffix(Prefix, "/")
}

// Options is what the endpoint acts on; every field is required.
type Options struct {
	Faults *fault.Set
	Clock  clock.Clock
	// Services are what is emulated, by name.
	Services map[string]*api.Service
	// Reset empties every service and ends every fault.
	Reset  func()
	Logger *slog.Logger
}

// Handler serves the endpoint.
type Handler struct {
	o     Options
	mux   http.ServeMux
	paths []path
}

// path is one path of the endpoint, and what each method does there. The path is a pattern of
// http.ServeMux.
type path struct {
	pattern string
	what    string
	methods map[string]action
}

// action answers one call: a status with what to write as JSON, or an error.
type action func(*http.Request) (status int, answer any, err error)

// New returns the endpoint.
func New(o Options) *Handler {
	h := &Handler{o: o}
	h.paths = []path{
		{"{$}", "what is here", on(http.MethodGet, h.index)},
		{"health", "whether each service answers", on(http.MethodGet, h.health)},
		{"operations", "what is emulated, by service", on(http.MethodGet, h.operations)},
		{"faults", "the rules by which calls misbehave; POST adds one, DELETE ends all", map[string]action{
			http.MethodGet: h.listFaults, http.MethodPost: h.addFault, http.MethodDelete: h.removeFaults,
		}},
		{"faults/{name}", "one rule; POST sets it", map[string]action{
			http.MethodGet: h.getFault, http.MethodPost: h.addFault, http.MethodDelete: h.removeFault,
		}},
		{"outages", "what is away; POST takes everything away, DELETE brings everything back", map[string]action{
			http.MethodGet: h.listOutages, http.MethodPost: h.startOutage, http.MethodDelete: h.endOutages,
		}},
		{"outages/{service}", "POST takes a service away, DELETE brings it back", map[string]action{
			http.MethodPost: h.startOutage, http.MethodDelete: h.endOutage,
		}},
		{"outages/{service}/{op}", "POST takes one operation away, DELETE brings it back", map[string]action{
			http.MethodPost: h.startOutage, http.MethodDelete: h.endOutage,
		}},
		{"reset", "POST empties every service and ends every fault", on(http.MethodPost, h.reset)},
		{"clock", "the time of the services", on(http.MethodGet, h.clock)},
		{"clock/advance", "POST moves the clock forward", on(http.MethodPost, h.advance)},
	}
	for _, p := range h.paths {
		h.mux.HandleFunc(Prefix+p.pattern, p.serve)
	}
	h.mux.HandleFunc(strings.TrimSuffix(Prefix, "/"), h.paths[0].serve)
	return h
}

func on(method string, a action) map[string]action { return map[string]action{method: a} }

// ServeHTTP answers a call below Prefix.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r = r.WithContext(r.Context()) // a copy, whose body we may bound
	r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
	if _, pattern := h.mux.Handler(r); pattern == "" {
		refuse(w, &problem{http.StatusNotFound, "there is nothing at " + r.URL.Path, "GET " + Prefix + " lists what there is"})
		return
	}
	if r.Method != http.MethodGet {
		h.o.Logger.Debug("control", "method", r.Method, "path", r.URL.Path)
	}
	h.mux.ServeHTTP(w, r)
}

// serve runs the method's action.
func (p path) serve(w http.ResponseWriter, r *http.Request) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	act, ok := p.methods[method]
	if !ok {
		allow := strings.Join(slices.Sorted(maps.Keys(p.methods)), ", ")
		w.Header().Set("Allow", allow)
		refuse(w, &problem{http.StatusMethodNotAllowed, r.Method + " does nothing at " + r.URL.Path, "it takes " + allow})
		return
	}
	status, answer, err := act(r)
	if err != nil {
		refuse(w, err)
		return
	}
	write(w, status, answer)
}

// problem is an error with its status and what to do about it.
type problem struct {
	status      int
	error, hint string
}

// Error returns what happened.
func (p *problem) Error() string { return p.error }

func bad(hint, format string, args ...any) error {
	return &problem{http.StatusBadRequest, fmt.Sprintf(format, args...), hint}
}

// refuse answers an error; one that is no problem is the caller's fault all the same, as nothing
// here can fail by itself.
func refuse(w http.ResponseWriter, err error) {
	p, ok := err.(*problem)
	if !ok {
		p = &problem{http.StatusBadRequest, err.Error(), ""}
	}
	write(w, p.status, struct {
		Error string `json:"error"`
		Hint  string `json:"hint,omitempty"`
	}{p.error, p.hint})
}

func write(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	if status == http.StatusNoContent {
		w.WriteHeader(status)
		return
	}
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	_ = enc.Encode(answer) // the caller may be gone; there is nobody else to tell
}

// serviceOf checks that the service is emulated, and the operation if one is given.
func (h *Handler) serviceOf(service, op string) error {
	if service == "" {
		if op == "" || slices.ContainsFunc(h.names(), func(name string) bool { return h.has(name, op) }) {
			return nil
		}
		return bad("GET "+Prefix+"operations lists them", "no service has an operation %q", op)
	}
	if h.o.Services[service] == nil {
		return &problem{
			http.StatusNotFound, fmt.Sprintf("there is no service %q", service),
			"the services are " + strings.Join(h.names(), ", "),
		}
	}
	if op != "" && !h.has(service, op) {
		return &problem{
			http.StatusNotFound, fmt.Sprintf("%s has no operation %q here", service, op),
			"GET " + Prefix + "operations lists what is emulated",
		}
	}
	return nil
}

func (h *Handler) has(service, op string) bool {
	_, ok := h.o.Services[service].Ops[op]
	return ok
}

func (h *Handler) names() []string { return slices.Sorted(maps.Keys(h.o.Services)) }
