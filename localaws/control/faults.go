package control

import (
	"net/http"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/fault"
)

// maxRules bounds the rules in force; each call looks at all of them.
const maxRules = 1000

// maxNameBytes bounds a rule's name.
const maxNameBytes = 200

// rule is fault.Rule as JSON.
type rule struct {
	Name         string     `json:"name"`
	Service      string     `json:"service,omitempty"`
	Op           string     `json:"op,omitempty"`
	Kind         string     `json:"kind"`
	DelaySeconds float64    `json:"delay_seconds,omitempty"`
	Error        *ruleError `json:"error,omitempty"`
	Skip         int        `json:"skip,omitempty"`
	Times        int        `json:"times,omitempty"`
	ForSeconds   float64    `json:"for_seconds,omitempty"`
	Probability  float64    `json:"probability,omitempty"`
	Seed         uint64     `json:"seed,omitempty"`
}

// ruleError is the api.Error that a rule answers, member by member.
type ruleError struct {
	Type         string `json:"type"`
	Common       bool   `json:"common,omitempty"`
	Code         string `json:"code,omitempty"`
	Status       int    `json:"status,omitempty"`
	Message      string `json:"message,omitempty"`
	QueryMessage string `json:"query_message,omitempty"`
}

// errorOf returns what the rule answers, with the status that it has if the rule gives none.
func errorOf(r fault.Rule) *ruleError {
	if r.Error == nil {
		return nil
	}
	e := ruleError(*r.Failure())
	return &e
}

func (e *ruleError) fault() *api.Error {
	if e == nil {
		return nil
	}
	answered := api.Error(*e)
	return &answered
}

// ruleStatus is a rule and what became of it.
type ruleStatus struct {
	rule
	Seen  int       `json:"seen"`
	Hits  int       `json:"hits"`
	Until time.Time `json:"until,omitzero"`
	Ended bool      `json:"ended"`
}

func statusOf(s fault.Status) ruleStatus {
	r := s.Rule
	return ruleStatus{
		rule: rule{
			Name: r.Name, Service: r.Service, Op: r.Op, Kind: r.Kind.String(), DelaySeconds: r.Delay.Seconds(), Error: errorOf(r),
			Skip: r.Skip, Times: r.Times, ForSeconds: r.For.Seconds(), Probability: r.Probability, Seed: r.Seed,
		},
		Seen: s.Seen, Hits: s.Hits, Until: s.Until.UTC(), Ended: s.Ended,
	}
}

// fault returns the rule for the services, checked.
func (in rule) fault() (fault.Rule, error) {
	kind, err := fault.ParseKind(in.Kind)
	if err != nil {
		return fault.Rule{}, bad(`give the field "kind" one of them`, "%v", err)
	}
	out := fault.Rule{
		Name: in.Name, Service: in.Service, Op: in.Op, Kind: kind, Skip: in.Skip, Times: in.Times,
		Probability: in.Probability, Seed: in.Seed, Error: in.Error.fault(),
	}
	if out.Delay, err = seconds("delay_seconds", in.DelaySeconds); err != nil {
		return fault.Rule{}, err
	}
	if out.For, err = seconds("for_seconds", in.ForSeconds); err != nil {
		return fault.Rule{}, err
	}
	if out.Delay > 0 && kind != fault.Delay && kind != fault.Reorder {
		return fault.Rule{}, bad("leave out delay_seconds, or add a rule of kind delay", "a fault of kind %v takes no delay", kind)
	}
	if err := out.Check(); err != nil {
		return fault.Rule{}, bad("a fault that can not act is refused", "%v", err)
	}
	return out, nil
}

func (h *Handler) listFaults(*http.Request) (int, any, error) {
	rules := []ruleStatus{}
	for _, s := range h.o.Faults.List() {
		rules = append(rules, statusOf(s))
	}
	return http.StatusOK, struct {
		Faults  []ruleStatus   `json:"faults"`
		Outages []outageStatus `json:"outages"`
	}{rules, h.outages()}, nil
}

// addFault puts a rule in force. One of the same name gives way, so that a script may run twice.
func (h *Handler) addFault(r *http.Request) (int, any, error) {
	var in rule
	if err := decode(r, &in); err != nil {
		return 0, nil, err
	}
	if name := r.PathValue("name"); name != "" {
		if in.Name != "" && in.Name != name {
			return 0, nil, bad("leave out the field", "the path names the fault %q, the body %q", name, in.Name)
		}
		in.Name = name
	}
	if len(in.Name) > maxNameBytes || strings.Contains(in.Name, "/") {
		return 0, nil, bad("give it a short name without a slash", "the fault can not have its name as a path")
	}
	if err := h.serviceOf(in.Service, in.Op); err != nil {
		return 0, nil, err
	}
	added, err := in.fault()
	if err != nil {
		return 0, nil, err
	}
	if n := h.inForce(); n >= maxRules {
		return 0, nil, &problem{http.StatusConflict, "there are as many faults as there may be", "DELETE " + Prefix + "faults ends them"}
	}
	s, _ := h.o.Faults.Get(h.o.Faults.Add(added).Name())
	return http.StatusCreated, statusOf(s), nil
}

func (h *Handler) inForce() (n int) {
	for _, s := range h.o.Faults.List() {
		if !s.Ended {
			n++
		}
	}
	return n
}

func (h *Handler) removeFaults(*http.Request) (int, any, error) {
	h.o.Faults.RemoveAll()
	return http.StatusNoContent, nil, nil
}

func (h *Handler) getFault(r *http.Request) (int, any, error) {
	s, ok := h.o.Faults.Get(r.PathValue("name"))
	if !ok {
		return 0, nil, noFault(r)
	}
	return http.StatusOK, statusOf(s), nil
}

func (h *Handler) removeFault(r *http.Request) (int, any, error) {
	if !h.o.Faults.Remove(r.PathValue("name")) {
		return 0, nil, noFault(r)
	}
	return http.StatusNoContent, nil, nil
}

func noFault(r *http.Request) error {
	return &problem{
		http.StatusNotFound, "there is no fault named " + r.PathValue("name"),
		"GET " + Prefix + "faults lists them; only the last that are over are remembered",
	}
}

// outageRequest is how long an outage lasts.
type outageRequest struct {
	ForSeconds float64 `json:"for_seconds,omitempty"`
	Times      int     `json:"times,omitempty"`
}

// outageStatus is an outage that goes on; without a service it is one of everything.
type outageStatus struct {
	Service string `json:"service,omitempty"`
	Op      string `json:"op,omitempty"`
	outageRequest
	Refused int       `json:"refused"`
	Until   time.Time `json:"until,omitzero"`
}

func (h *Handler) outages() []outageStatus {
	all := []outageStatus{}
	for _, o := range h.o.Faults.Outages() {
		all = append(all, outageStatus{
			Service: o.Outage.Service, Op: o.Outage.Op, Refused: o.Refused, Until: o.Until.UTC(),
			outageRequest: outageRequest{ForSeconds: o.Outage.For.Seconds(), Times: o.Outage.Times},
		})
	}
	return all
}

func (h *Handler) listOutages(*http.Request) (int, any, error) {
	return http.StatusOK, struct {
		Outages []outageStatus `json:"outages"`
	}{h.outages()}, nil
}

func (h *Handler) endOutages(*http.Request) (int, any, error) {
	h.o.Faults.EndOutages()
	return http.StatusNoContent, nil, nil
}

func (h *Handler) startOutage(r *http.Request) (int, any, error) {
	service, op := r.PathValue("service"), r.PathValue("op")
	if err := h.serviceOf(service, op); err != nil {
		return 0, nil, err
	}
	var in outageRequest
	if err := decode(r, &in); err != nil {
		return 0, nil, err
	}
	d, err := seconds("for_seconds", in.ForSeconds)
	if err != nil {
		return 0, nil, err
	}
	o := fault.Outage{Service: service, Op: op, For: d, Times: in.Times}
	if err := o.Check(); err != nil {
		return 0, nil, bad("leave it out for an outage that lasts until it is ended", "%v", err)
	}
	h.o.Faults.StartOutage(o)
	return h.listOutages(r)
}

// endOutage brings back what is away, and is content with what is not: that is what was asked for.
func (h *Handler) endOutage(r *http.Request) (int, any, error) {
	service, op := r.PathValue("service"), r.PathValue("op")
	if err := h.serviceOf(service, op); err != nil {
		return 0, nil, err
	}
	h.o.Faults.EndOutage(service, op)
	return http.StatusNoContent, nil, nil
}
