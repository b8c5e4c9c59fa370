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
// and lists, fault makes things go wrong and control does so over HTTP, clock is time, journal
// outlives a kill, and each service (sqs, sts, cloudwatch) has its own package. None of them imports
// the product. An operation that is missing answers as AWS answers an unknown one, and says "not
// emulated" in the log.
package localaws

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/cloudwatch"
	"github.com/stepfleet/stepfleet/localaws/control"
	"github.com/stepfleet/stepfleet/localaws/fault"
	"github.com/stepfleet/stepfleet/localaws/journal"
	"github.com/stepfleet/stepfleet/localaws/page"
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
	// Mode is how much of what AWS permits itself is done; empty is sqs.Faithful.
	Mode sqs.Mode
	// QueueURL is how SQS makes queue URLs; empty is sqs.PathURL.
	QueueURL sqs.URLTemplate
	// Metrics has CloudWatch fed by the other services, each minute. It sets a timer that never ends.
	Metrics bool
	// OnCall, if set, is told of every call: the service, the operation, empty for one that is not
	// emulated, and ok or the code of its error.
	OnCall func(service, op, code string)
	// Scrape, if set, answers GET /metrics, for Prometheus; a queue cannot be asked for by that path.
	Scrape http.Handler
	// SQSMaxInFlight lowers the limit of messages in flight; 0 is AWS's.
	SQSMaxInFlight int
	// Dir is where state is kept that shall outlive the process; empty keeps all in memory. Only
	// Open looks at it.
	Dir string
	// Journal is how what is in Dir is kept.
	Journal journal.Options
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
	sqs         *sqs.Service
	sts         *sts.Service
	services    []*api.Service
	byName      map[string]*api.Service // by the name in a credential scope
	byTarget    map[string]*api.Service // by X-Amz-Target
	byShape     map[string]*api.Service // by the path of a CBOR call
	control     http.Handler
	scrape      http.Handler
	onCall      func(service, op, code string)
	sameOrigin  *http.CrossOriginProtection
	readTimeout time.Duration
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
		hosts: o.Hosts, credentials: o.Credentials, scrape: o.Scrape, onCall: o.OnCall,
		byName: map[string]*api.Service{}, byTarget: map[string]*api.Service{}, byShape: map[string]*api.Service{},
		sameOrigin: http.NewCrossOriginProtection(), readTimeout: readTimeout,
	}
	a.Faults.UseClock(o.Clock)
	if err := a.addServices(o); err != nil {
		return nil, err
	}
	a.control = control.New(control.Options{
		Faults: a.Faults, Clock: a.clock, Services: a.byName, Reset: a.Reset, Logger: a.log,
	})
	return a, nil
}

func (a *AWS) addServices(o Options) error {
	key := seal.NewKey(o.Seed)
	queues, err := sqs.New(sqs.Options{
		Clock: o.Clock, IDs: a.ids, Logger: o.Logger, MaxInFlight: o.SQSMaxInFlight, Mode: o.Mode, QueueURL: o.QueueURL,
		Tokens: page.NewTokens(key), Dir: o.dir("sqs"), Journal: o.Journal,
	})
	if err != nil {
		return err
	}
	a.sqs = queues
	a.add(queues.API())
	a.sts = sts.New(sts.Options{Clock: o.Clock, IDs: a.ids, Key: key})
	a.add(a.sts.API())
	metrics := cloudwatch.New(cloudwatch.Options{Clock: o.Clock, Logger: o.Logger, Tokens: page.NewTokens(key)})
	if o.Metrics {
		metrics.Feed(cloudwatch.QueueNamespace, time.Minute, cloudwatch.QueueFeed(a.queueStats))
	}
	a.add(metrics.API())
	return nil
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
	a.services = append(a.services, &s)
	a.byName[s.Name] = &s
	if s.Target != "" {
		a.byTarget[s.Target] = &s
	}
	if s.Shape != "" {
		a.byShape[s.Shape] = &s
	}
}

// Reset ends every fault and outage and empties every service. Calls that are under way end as
// they would if their queues and alarms had been deleted; those that a fault holds back do not run.
func (a *AWS) Reset() {
	a.Faults.Clear()
	for _, s := range a.services {
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
	if err := a.checkOrigin(r); err != nil {
		http.Error(w, "localaws answers no page of another origin: "+err.Error(), http.StatusForbidden)
		return
	}
	a.serve(w, r)
}

// errUnknownOrigin refuses a GET that may be an image of any page.
var errUnknownOrigin = errors.New("on a name that is no loopback name a GET with parameters needs an Authorization header")

// checkOrigin refuses what a browser sends for a page of another origin. The standard library lets
// a GET pass, since it changes nothing; in the Query protocol it may. And browsers say of a GET
// whose page it is for on loopback names only; elsewhere it needs a header that no page can add.
func (a *AWS) checkOrigin(r *http.Request) error {
	told := r.Header.Get("Sec-Fetch-Site") != "" || r.Header.Get("Origin") != "" || r.Header.Get("Authorization") != ""
	if r.Method == http.MethodGet && r.URL.RawQuery != "" && !told && !isLoopback(hostName(r.Host)) {
		return errUnknownOrigin
	}
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
	if control.Is(r.URL.Path) {
		a.control.ServeHTTP(w, r)
		return
	}
	if a.scrape != nil && r.Method == http.MethodGet && r.URL.Path == "/metrics" {
		a.scrape.ServeHTTP(w, r)
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
		to.refused, to.unread = err.(*api.Error), sent.sent == nil
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
	aws       *AWS
	w         http.ResponseWriter
	call      *api.Call
	operation api.Operation
	sent      *body // until the input is decoded
}

// finish checks the call and runs its operation.
func (a *AWS) finish(r *http.Request, x *exchange) {
	known := false
	if x.service != nil {
		x.call.Service = x.service.Name
		x.operation, known = x.service.Ops[x.op]
	}
	if !known && x.refused == nil {
		x.refused = x.codec.Unknown(x.op)
	}
	refusal := a.refusalOf(r, x)
	started := a.clock.Now()
	err := x.run(r, refusal)
	if a.log.Enabled(r.Context(), slog.LevelDebug) {
		a.log.Debug("call", "service", x.call.Service, "op", x.op, "request_id", x.call.RequestID,
			"took", a.clock.Now().Sub(started), "error", err)
	}
	if a.onCall == nil {
		return
	}
	op := x.op
	if !known {
		op = ""
	}
	a.onCall(x.call.Service, op, codeOf(err))
}

// codeOf says how a call ended.
func codeOf(err error) string {
	var told *api.Error
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &told):
		return cmp.Or(told.Code, told.Type)
	}
	return "error"
}

// refusalOf returns why the call must not come to its operation, or nil.
func (a *AWS) refusalOf(r *http.Request, x *exchange) error {
	if x.unread {
		return x.refused // nobody can say whether it is signed
	}
	if err := a.authenticate(r, x); err != nil {
		return err
	}
	if x.refused == nil {
		return nil
	}
	if isAbsence(x.refused) {
		a.log.Warn("not emulated", "service", x.name, "op", x.op, "request_id", x.call.RequestID, "error", x.refused)
	}
	return x.refused
}

// isAbsence reports whether an error says that something does not exist here, which may be our lack
// and not the caller's mistake.
func isAbsence(e *api.Error) bool {
	return e.Type == api.ErrInvalidAction.Type || e.Type == api.ErrUnknownOperation.Type || e.Type == errMissingAction.Type
}

// run acts out the fault in force, if any, and the operation, unless the call is refused: a service
// that is away or misbehaves does so to every call. The error is for the log: it has been answered
// already.
func (x *exchange) run(r *http.Request, refusal error) error {
	call := x.aws.Faults.Begin(patience{r.Context(), x.w}, x.call.Service, x.call.Op)
	rule := call.Rule()
	err := x.before(call, rule)
	if err == nil {
		err = refusal
	}
	var out any
	if err == nil {
		out, err = x.decodeAndCall(api.WithCall(call, x.call))
	}
	if call.End() || rule.Kind == fault.LoseAnswer || errors.Is(err, errDropped) {
		x.aws.log.Debug("connection dropped by a fault", "service", x.call.Service, "op", x.call.Op)
		panic(http.ErrAbortHandler) // how net/http closes a connection without an answer
	}
	if rule.Kind == fault.FailAfter {
		err = rule.Failure()
	}
	x.answer(out, err)
	return err
}

// decodeAndCall reads the input, lets go of the body, which a long poll does not need, and runs the
// operation.
func (x *exchange) decodeAndCall(ctx context.Context) (any, error) {
	in := x.operation.NewIn()
	if err := x.codec.Decode(in); err != nil {
		return nil, err
	}
	x.sent.release()
	return x.operation.Call(ctx, in)
}

// errDropped is a fault's order to close the connection.
var errDropped = errors.New("dropped by a fault")

// before acts out the faults that come before the operation.
func (x *exchange) before(call *fault.Call, rule fault.Rule) error {
	switch rule.Kind {
	case fault.Drop:
		return errDropped
	case fault.Throttle:
		if x.service != nil && x.service.Throttled != nil {
			return x.service.Throttled
		}
		return api.ErrThrottling
	case fault.Fail:
		return rule.Failure()
	}
	return call.Wait()
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
