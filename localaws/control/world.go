package control

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/localaws/clock"
)

func (h *Handler) index(*http.Request) (int, any, error) {
	type entry struct {
		Path    string   `json:"path"`
		Methods []string `json:"methods"`
		What    string   `json:"what"`
	}
	var entries []entry
	for _, p := range h.paths {
		entries = append(entries, entry{
			Path: Prefix + strings.TrimSuffix(p.pattern, "{$}"), Methods: slices.Sorted(maps.Keys(p.methods)), What: p.what,
		})
	}
	return http.StatusOK, struct {
		Services []string `json:"services"`
		Paths    []entry  `json:"paths"`
	}{h.names(), entries}, nil
}

// health says "running" or "away" for each service. An outage of some operations is not one of the
// service.
func (h *Handler) health(*http.Request) (int, any, error) {
	services := map[string]string{}
	for _, name := range h.names() {
		services[name] = "running"
	}
	for _, o := range h.o.Faults.Outages() {
		for name := range services {
			if o.Outage.Op == "" && (o.Outage.Service == "" || o.Outage.Service == name) {
				services[name] = "away"
			}
		}
	}
	return http.StatusOK, struct {
		Status   string            `json:"status"`
		Services map[string]string `json:"services"`
	}{"running", services}, nil
}

func (h *Handler) operations(*http.Request) (int, any, error) {
	type service struct {
		Name       string   `json:"name"`
		Target     string   `json:"target"`
		Operations []string `json:"operations"`
	}
	var services []service
	for _, name := range h.names() {
		s := h.o.Services[name]
		services = append(services, service{s.Name, s.Target, slices.Sorted(maps.Keys(s.Ops))})
	}
	return http.StatusOK, struct {
		Services []service `json:"services"`
	}{services}, nil
}

// reset takes no settings; a body with any is refused, so that nobody believes in them.
func (h *Handler) reset(r *http.Request) (int, any, error) {
	if err := decode(r, &struct{}{}); err != nil {
		return 0, nil, err
	}
	h.o.Reset()
	return http.StatusNoContent, nil, nil
}

// clockStatus is the time of the services.
type clockStatus struct {
	Now          time.Time `json:"now"`
	Movable      bool      `json:"movable"`
	AheadSeconds float64   `json:"ahead_seconds,omitempty"`
}

func (h *Handler) clock(*http.Request) (int, any, error) {
	_, movable := h.o.Clock.(clock.Movable)
	out := clockStatus{Now: h.o.Clock.Now().UTC(), Movable: movable}
	if c, ok := h.o.Clock.(*clock.Offset); ok {
		out.AheadSeconds = c.Ahead().Seconds()
	}
	return http.StatusOK, out, nil
}

// advance moves the clock, and answers when all that fell due on the way has run.
func (h *Handler) advance(r *http.Request) (int, any, error) {
	var in struct {
		Seconds float64 `json:"seconds"`
	}
	if err := decode(r, &in); err != nil {
		return 0, nil, err
	}
	d, err := seconds("seconds", in.Seconds)
	if err != nil {
		return 0, nil, err
	}
	if d == 0 {
		return 0, nil, bad(`send {"seconds": 300} for five minutes`, "the clock needs to know how far to go")
	}
	c, ok := h.o.Clock.(clock.Movable)
	if !ok {
		return 0, nil, &problem{
			http.StatusConflict, "this AWS runs on the system's clock, which can not be moved",
			"start it with a clock that can: MovableClock in localaws.Config, or clock.NewOffset as localaws.Options.Clock",
		}
	}
	c.Advance(d)
	return h.clock(r)
}
