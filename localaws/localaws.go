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
// signatures are read for region and account and are not verified.
//
// The packages: api is what a service is to this front, awsjson is a wire protocol, fault makes
// things go wrong, control does so over HTTP, clock is time, and each service (sqs, cloudwatch) has
// its own package. None of them imports the product. An operation that is missing answers as AWS answers an unknown one, and says "not
// emulated" in the log.
package localaws

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/awsjson"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/cloudwatch"
	"github.com/stepfleet/stepfleet/localaws/control"
	"github.com/stepfleet/stepfleet/localaws/fault"
	"github.com/stepfleet/stepfleet/localaws/journal"
	"github.com/stepfleet/stepfleet/localaws/sqs"
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
	// Mode is how much of what AWS permits itself is done; empty is sqs.Faithful.
	Mode sqs.Mode
	// QueueURL is how SQS makes queue URLs; empty is sqs.PathURL.
	QueueURL sqs.URLTemplate
	// Metrics has CloudWatch fed by the other services, each minute. It sets a timer that never ends.
	Metrics bool
	// SQSMaxInFlight lowers the limit of messages in flight; 0 is AWS's.
	SQSMaxInFlight int
	// Dir is where state is kept that shall outlive the process; empty keeps all in memory. Only
	// Open looks at it.
	Dir string
	// Sync is when what is kept in Dir is forced to the disk; empty is journal.SyncInterval.
	Sync journal.Sync
}

// AWS is the services behind one endpoint.
type AWS struct {
	// Faults makes calls misbehave, at any time.
	Faults *fault.Set

	clock    clock.Clock
	ids      *api.IDs
	log      *slog.Logger
	region   string
	account  string
	hosts    []string
	byName   map[string]*api.Service // by the name in a credential scope
	byTarget map[string]*api.Service // by X-Amz-Target
	control  http.Handler
	guarded  http.Handler
	sqs      *sqs.Service
}

// New returns an AWS that holds nothing, and keeps what it will hold in memory.
func New(o Options) *AWS {
	o.Dir = ""
	a, err := Open(o)
	if err != nil {
		panic(err) // without a directory there is nothing that could fail
	}
	return a
}

// Open returns an AWS with what Options.Dir holds. Close it, so that the directory is free again.
func Open(o Options) (*AWS, error) {
	o = o.withDefaults()
	a := &AWS{
		Faults: o.Faults, clock: o.Clock, ids: api.NewIDs(o.Seed), log: o.Logger, region: o.Region, account: o.Account,
		hosts: o.Hosts, byName: map[string]*api.Service{}, byTarget: map[string]*api.Service{},
	}
	a.Faults.UseClock(o.Clock)
	queues, err := sqs.New(sqs.Options{
		Clock: o.Clock, IDs: a.ids, Logger: o.Logger, MaxInFlight: o.SQSMaxInFlight, Mode: o.Mode, QueueURL: o.QueueURL,
		Dir: o.dir("sqs"), Sync: o.Sync,
	})
	if err != nil {
		return nil, err
	}
	a.sqs = queues
	a.add(queues.API())
	metrics := cloudwatch.New(cloudwatch.Options{Clock: o.Clock, Logger: o.Logger})
	if o.Metrics {
		metrics.Feed(cloudwatch.QueueNamespace, time.Minute, cloudwatch.QueueFeed(a.queueStats))
	}
	a.add(metrics.API())
	a.control = control.New(control.Options{
		Faults: a.Faults, Clock: a.clock, Services: a.byName, Reset: a.Reset, Logger: a.log,
	})
	a.guarded = http.NewCrossOriginProtection().Handler(http.HandlerFunc(a.serve))
	return a, nil
}

// queueStats is what CloudWatch is told of the queues.
func (a *AWS) queueStats() []cloudwatch.QueueStats {
	stats := a.sqs.Stats()
	told := make([]cloudwatch.QueueStats, 0, len(stats))
	for _, q := range stats {
		told = append(told, cloudwatch.QueueStats(q))
	}
	return told
}

// Close writes what is not yet on the disk and frees the directory. No call may be under way.
func (a *AWS) Close() error { return a.sqs.Close() }

// dir returns where a service keeps its state, or nothing.
func (o Options) dir(service string) string {
	if o.Dir == "" {
		return ""
	}
	return filepath.Join(o.Dir, service)
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
	a.byName[s.Name] = &s
	a.byTarget[s.Target] = &s
}

// Reset ends every fault and outage and empties every service. Calls that are under way end as
// they would if their queues and alarms had been deleted.
func (a *AWS) Reset() {
	a.Faults.Clear()
	for _, s := range a.byName {
		if s.Reset != nil {
			s.Reset()
		}
	}
}

// ServeHTTP answers a call of any service. It refuses Host headers that are not loopback names,
// and calls that a browser makes from another page: whatever runs here has no other protection.
func (a *AWS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !a.hostAllowed(r.Host) {
		http.Error(w, "localaws answers to loopback names only, not to "+r.Host, http.StatusForbidden)
		return
	}
	a.guarded.ServeHTTP(w, r)
}

func (a *AWS) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && (r.URL.Path == "/livez" || r.URL.Path == "/readyz") {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n"))
		return
	}
	if control.Is(r.URL.Path) {
		a.control.ServeHTTP(w, r)
		return
	}
	r = decompressed(r)
	target, op, ok := awsjson.Target(r)
	if !ok {
		a.refuseProtocol(w, r)
		return
	}
	a.serveJSON(w, r, target, op)
}

// refuseProtocol answers what is of no protocol we have. A form with an Action is the old Query
// protocol, whose clients understand XML only.
func (a *AWS) refuseProtocol(w http.ResponseWriter, r *http.Request) {
	requestID := a.ids.UUID()
	w.Header().Set("X-Amzn-Requestid", requestID)
	action := r.URL.Query().Get("Action")
	form := strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded")
	if action == "" && !form {
		a.log.Warn("not emulated: a request of no known protocol", "method", r.Method, "path", r.URL.Path)
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte("<UnknownOperationException/>\n"))
		return
	}
	a.log.Warn("not emulated: the Query protocol", "service", scopeOf(r).service, "action", action)
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(http.StatusBadRequest)
	_, _ = w.Write([]byte(`<?xml version="1.0"?><ErrorResponse><Error><Type>Sender</Type><Code>InvalidAction</Code>` +
		`<Message>localaws does not emulate the Query protocol yet; use a client that speaks JSON.</Message></Error><RequestId>` +
		requestID + `</RequestId></ErrorResponse>`))
}

// exchange is one call of the JSON protocol and its answer.
type exchange struct {
	aws       *AWS
	w         http.ResponseWriter
	call      *api.Call
	version   string
	namespace string
	queryMode bool
	throttled *api.Error
}

func (a *AWS) serveJSON(w http.ResponseWriter, r *http.Request, target, op string) {
	x := &exchange{
		aws: a, w: w, call: a.callOf(r, op), version: versionOf(r),
		queryMode: r.Header.Get("X-Amzn-Query-Mode") == "true", throttled: api.ErrThrottling,
	}
	service := a.byTarget[target]
	if service == nil {
		x.unknown(target)
		return
	}
	x.call.Service, x.namespace, x.version = service.Name, service.Namespace, service.JSONVersion
	if service.Throttled != nil {
		x.throttled = service.Throttled
	}
	operation, ok := service.Ops[op]
	if !ok {
		x.unknown(target)
		return
	}
	started := a.clock.Now()
	err := x.run(r, operation)
	a.log.Debug("call", "service", service.Name, "op", op, "request_id", x.call.RequestID,
		"took", a.clock.Now().Sub(started), "error", err)
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
		out, err = decodeAndCall(rule.Mark(ctx), r, operation)
	}
	if end() || rule.Kind == fault.LoseAnswer || errors.Is(err, errDropped) {
		x.aws.log.Debug("connection dropped by a fault", "service", x.call.Service, "op", x.call.Op)
		panic(http.ErrAbortHandler) // how net/http closes a connection without an answer
	}
	if rule.Kind == fault.FailAfter {
		err = rule.Failure()
	}
	x.answer(out, err)
	return err
}

func decodeAndCall(ctx context.Context, r *http.Request, operation api.Operation) (any, error) {
	in := operation.NewIn()
	if err := awsjson.Decode(r, in); err != nil {
		return nil, err
	}
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
		return x.throttled
	case fault.Fail:
		return rule.Failure()
	}
	return x.aws.Faults.Wait(ctx, rule)
}

func (x *exchange) answer(out any, err error) {
	if err == nil {
		err = awsjson.Encode(x.w, x.version, x.call.RequestID, out)
		if err == nil {
			return
		}
	}
	var e *api.Error
	switch {
	case errors.As(err, &e):
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		e = api.ErrUnavailable // the caller is gone, or we are going
	default:
		x.aws.log.Error("internal failure", "service", x.call.Service, "op", x.call.Op, "error", err)
		e = api.ErrInternal
	}
	awsjson.EncodeError(x.w, x.version, x.call.RequestID, x.namespace, x.queryMode, e)
}

// unknown answers as AWS does to an operation it does not have.
func (x *exchange) unknown(target string) {
	x.aws.log.Warn("not emulated", "target", target, "op", x.call.Op, "request_id", x.call.RequestID)
	awsjson.EncodeError(x.w, x.version, x.call.RequestID, x.namespace, x.queryMode,
		api.ErrUnknownOperation.With("The operation %s is not emulated by localaws.", x.call.Op))
}

// versionOf is the awsJson version to answer in when the service is unknown.
func versionOf(r *http.Request) string {
	if strings.HasSuffix(r.Header.Get("Content-Type"), "1.1") {
		return "1.1"
	}
	return "1.0"
}
