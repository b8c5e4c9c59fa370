// Package localaws is AWS on one machine: the services that stepfleet needs, in one process, for
// tests and for development. Real SDKs, command lines and waiters work against it unchanged.
//
// In a test, an *AWS is an http.Handler; Transport calls it without a socket, which also works in
// the virtual time of testing/synctest:
//
//	aws := localaws.New(localaws.Options{})
//	cfg.HTTPClient = &http.Client{Transport: aws.Transport()}
//
// As a command, Run serves it on a loopback address. It is never reachable from elsewhere:
// signatures are read for region and account, and verified only where Options.Credentials says so.
//
// Where to read: localaws.go takes a call from the request to the answer; protocol.go finds the
// protocol, the service and the operation; request.go says who calls; body.go reads bodies;
// operations.go lists what exists.
//
// The packages: api is what a service is to this front; awsjson, awsquery, ec2query and awscbor are
// the wire protocols, the last three by way of shape; sigv4 is signatures, arn and page are names
// and lists, fault makes things go wrong, clock is time, and each service (sqs, sts) has its own
// package. None of them imports the product. An operation that is missing answers as AWS answers an
// unknown one, and says "not emulated" in the log.
package localaws

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/fault"
	"github.com/stepfleet/stepfleet/localaws/seal"
	"github.com/stepfleet/stepfleet/localaws/sqs"
	"github.com/stepfleet/stepfleet/localaws/sts"
)

// What an unsigned call, or a key that is no account number, is taken for.
const (
	DefaultRegion  = "us-east-1"
	DefaultAccount = "000000000000"
)

// Options configures an AWS; the zero value is ready for use.
type Options struct {
	// Clock is the time of every service; nil is the system's.
	Clock clock.Clock
	// Seed makes identifiers and probabilities repeat; 0 picks one at random.
	Seed uint64
	// Logger gets a line for every call (debug) and for what is not emulated (warn); nil is silent.
	Logger *slog.Logger
	// Region and Account stand in where a call names none.
	Region, Account string
	// Faults makes calls misbehave; nil is a fresh set, found in AWS.Faults.
	Faults *fault.Set
	// Hosts are names, besides loopback ones, that a Host header may have.
	Hosts []string
	// Credentials are access keys with their secrets. When there are any, every call must be signed
	// with one of them, or with temporary credentials that STS gave out.
	Credentials map[string]string
	// SQSMaxInFlight lowers the limit of messages in flight; 0 is AWS's.
	SQSMaxInFlight int
}

// AWS is the services behind one endpoint.
type AWS struct {
	// Faults makes calls misbehave, at any time.
	Faults *fault.Set

	clock       clock.Clock
	ids         *api.IDs
	log         *slog.Logger
	region      string
	account     string
	hosts       []string
	credentials map[string]string
	sts         *sts.Service
	services    []*api.Service
	byName      map[string]*api.Service // by the name in a credential scope
	byTarget    map[string]*api.Service // by X-Amz-Target
	byShape     map[string]*api.Service // by the path of a CBOR call
	sameOrigin  *http.CrossOriginProtection
}

// New returns an AWS that holds nothing.
func New(o Options) *AWS {
	o = o.withDefaults()
	a := &AWS{
		Faults: o.Faults, clock: o.Clock, ids: api.NewIDs(o.Seed), log: o.Logger, region: o.Region, account: o.Account,
		hosts: o.Hosts, credentials: o.Credentials,
		byName: map[string]*api.Service{}, byTarget: map[string]*api.Service{}, byShape: map[string]*api.Service{},
		sameOrigin: http.NewCrossOriginProtection(),
	}
	a.sts = sts.New(sts.Options{Clock: o.Clock, IDs: a.ids, Key: seal.NewKey(o.Seed)})
	queues := sqs.New(sqs.Options{Clock: o.Clock, IDs: a.ids, Logger: o.Logger, MaxInFlight: o.SQSMaxInFlight}).API()
	queues.Query = sqsQuery
	a.add(queues)
	a.add(a.sts.API())
	return a
}

func (o Options) withDefaults() Options {
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Region == "" {
		o.Region = DefaultRegion
	}
	if o.Account == "" {
		o.Account = DefaultAccount
	}
	if o.Faults == nil {
		o.Faults = fault.New(o.Seed)
	}
	return o
}

func (a *AWS) add(s api.Service) {
	a.services = append(a.services, &s)
	a.byName[s.Name] = &s
	if s.Target != "" {
		a.byTarget[s.Target] = &s
	}
	if s.Shape != "" {
		a.byShape[s.Shape] = &s
	}
}

// ServeHTTP answers a call of any service. It refuses Host headers that are not loopback names,
// and calls that a browser makes from another page: whatever runs here has no other protection.
func (a *AWS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !a.hostAllowed(r.Host) {
		http.Error(w, "localaws answers to loopback names only, not to "+r.Host, http.StatusForbidden)
		return
	}
	if err := a.checkOrigin(r); err != nil {
		http.Error(w, "localaws answers no page of another origin: "+err.Error(), http.StatusForbidden)
		return
	}
	a.serve(w, r)
}

// checkOrigin refuses what a browser sends for a page of another origin. The standard library lets
// a GET pass, since it changes nothing; in the Query protocol it may.
func (a *AWS) checkOrigin(r *http.Request) error {
	if r.Method != http.MethodPost {
		changing := *r
		changing.Method = http.MethodPost
		r = &changing
	}
	return a.sameOrigin.Check(r)
}

func (a *AWS) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && (r.URL.Path == "/livez" || r.URL.Path == "/readyz") {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n"))
		return
	}
	sent, err := readBody(r)
	defer sent.release()
	to, ok := a.routeOf(r, sent.plain)
	if !ok {
		a.refuse(w, r)
		return
	}
	if err != nil {
		to.refused = err.(*api.Error)
	}
	x := &exchange{aws: a, w: w, route: to, sent: &sent, call: a.callOf(r, to.op)}
	a.finish(r, x)
}

// refuse answers what is of no protocol, as AWS does.
func (a *AWS) refuse(w http.ResponseWriter, r *http.Request) {
	a.log.Warn("not emulated: a request of no known protocol", "method", r.Method, "path", r.URL.Path)
	api.Respond(w, a.ids.UUID(), "", http.StatusNotFound, []byte("<UnknownOperationException/>\n"))
}

// exchange is one call and its answer.
type exchange struct {
	route
	aws  *AWS
	w    http.ResponseWriter
	call *api.Call
	sent *body // until the input is decoded
}

// finish checks the call and runs its operation.
func (a *AWS) finish(r *http.Request, x *exchange) {
	var operation api.Operation
	known := false
	if x.service != nil {
		x.call.Service = x.service.Name
		operation, known = x.service.Ops[x.op]
	}
	if err := a.authenticate(r, x, operation); err != nil {
		x.answer(nil, err)
		return
	}
	if !known && x.refused == nil {
		x.refused = x.codec.Unknown(x.op)
	}
	if x.refused != nil {
		if isAbsence(x.refused) {
			a.log.Warn("not emulated", "service", x.name, "op", x.op, "request_id", x.call.RequestID, "error", x.refused)
		}
		x.answer(nil, x.refused)
		return
	}
	started := a.clock.Now()
	err := x.run(r, operation)
	if a.log.Enabled(r.Context(), slog.LevelDebug) {
		a.log.Debug("call", "service", x.call.Service, "op", x.op, "request_id", x.call.RequestID,
			"took", a.clock.Now().Sub(started), "error", err)
	}
}

// isAbsence reports whether an error says that something does not exist here, which may be our lack
// and not the caller's mistake.
func isAbsence(e *api.Error) bool {
	return e.Type == api.ErrInvalidAction.Type || e.Type == api.ErrUnknownOperation.Type || e.Type == errMissingAction.Type
}

// run acts out the fault in force, if any, and the operation. The error is for the log: it has
// been answered already.
func (x *exchange) run(r *http.Request, operation api.Operation) error {
	faults := x.aws.Faults
	ctx, rule, end := faults.Begin(r.Context(), x.call.Service, x.call.Op)
	ctx = api.WithCall(ctx, x.call)
	err := x.before(ctx, rule)
	var out any
	if err == nil {
		if rule.Kind == fault.Duplicate {
			ctx = fault.WithDuplicate(ctx)
		}
		out, err = x.decodeAndCall(ctx, operation)
	}
	if end() || rule.Kind == fault.LoseAnswer || errors.Is(err, errDropped) {
		x.aws.log.Debug("connection dropped by a fault", "service", x.call.Service, "op", x.call.Op)
		panic(http.ErrAbortHandler) // how net/http closes a connection without an answer
	}
	if rule.Kind == fault.FailAfter {
		err = api.ErrInternal
	}
	x.answer(out, err)
	return err
}

// decodeAndCall reads the input, lets go of the body, which a long poll does not need, and runs the
// operation.
func (x *exchange) decodeAndCall(ctx context.Context, operation api.Operation) (any, error) {
	in := operation.NewIn()
	if err := x.codec.Decode(in); err != nil {
		return nil, err
	}
	x.sent.release()
	return operation.Call(ctx, in)
}

// errDropped is a fault's order to close the connection.
var errDropped = errors.New("dropped by a fault")

// before acts out the faults that come before the operation.
func (x *exchange) before(ctx context.Context, rule fault.Rule) error {
	switch rule.Kind {
	case fault.Drop:
		return errDropped
	case fault.Throttle:
		if x.service.Throttled != nil {
			return x.service.Throttled
		}
		return api.ErrThrottling
	case fault.Fail:
		return api.ErrInternal
	case fault.Delay:
		return x.aws.wait(ctx, rule.Delay)
	}
	return nil
}

// wait lets d pass on the clock that the services have.
func (a *AWS) wait(ctx context.Context, d time.Duration) error {
	over := make(chan struct{})
	timer := a.clock.AfterFunc(d, func() { close(over) })
	defer timer.Stop()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (x *exchange) answer(out any, err error) {
	if err == nil {
		if err = x.codec.Encode(x.w, x.call.RequestID, out); err == nil {
			return
		}
	}
	var e *api.Error
	switch {
	case errors.As(err, &e):
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		e = api.ErrUnavailable // the caller is gone, or we are going
	default:
		x.aws.log.Error("internal failure", "service", x.call.Service, "op", x.op, "error", err)
		e = api.ErrInternal
	}
	x.codec.EncodeError(x.w, x.call.RequestID, e)
}
