package localaws

import (
	"net/http"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/awscbor"
	"github.com/stepfleet/stepfleet/localaws/awsjson"
	"github.com/stepfleet/stepfleet/localaws/awsquery"
	"github.com/stepfleet/stepfleet/localaws/ec2query"
	"github.com/stepfleet/stepfleet/localaws/sigv4"
)

// route is where a call goes and how it is answered.
type route struct {
	codec   api.Codec
	service *api.Service // nil when none here has the name
	name    string       // the service as the caller names it
	op      string
	refused *api.Error // set when the call is wrong before any operation is
	unread  bool       // the body did not come, or was too large
}

// protocols are tried in this order. Each claims the requests that are its own by method and
// headers, or by an Action, and reads where they go.
var protocols = []func(a *AWS, r *http.Request, plain []byte) (route, bool){
	(*AWS).routeCBOR,  // the header Smithy-Protocol; the path names service and operation
	(*AWS).routeJSON,  // the header X-Amz-Target names both
	(*AWS).routeQuery, // the parameter Action names the operation; the signature or the Version, the service
}

// routeOf returns where a call goes; ok is false for a request of no protocol.
func (a *AWS) routeOf(r *http.Request, plain []byte) (to route, ok bool) {
	for _, protocol := range protocols {
		if to, ok = protocol(a, r, plain); ok {
			return to, true
		}
	}
	return route{}, false
}

func (a *AWS) routeCBOR(r *http.Request, plain []byte) (route, bool) {
	shape, op, ok := awscbor.Target(r)
	if !ok {
		return route{}, false
	}
	codec := &awscbor.Codec{Body: plain, QueryMode: api.QueryMode(r)}
	to := route{codec: codec, service: a.byShape[shape], name: shape, op: op}
	if to.service != nil {
		codec.Namespace = to.service.Namespace
	}
	return to, true
}

func (a *AWS) routeJSON(r *http.Request, plain []byte) (route, bool) {
	target, op, ok := awsjson.Target(r)
	if !ok {
		return route{}, false
	}
	codec := &awsjson.Codec{Body: plain, QueryMode: api.QueryMode(r)}
	to := route{codec: codec, service: a.byTarget[target], name: target, op: op}
	if to.service == nil {
		codec.Version = awsjson.Version(r)
		return to, true
	}
	codec.Version, codec.Namespace = to.service.JSONVersion, to.service.Namespace
	return to, true
}

// routeQuery claims a form, and any request with an Action in its query string.
func (a *AWS) routeQuery(r *http.Request, plain []byte) (route, bool) {
	form := awsquery.Form(r)
	if !form && r.Method != http.MethodGet && r.Method != http.MethodPost {
		return route{}, false
	}
	var sent string
	if form {
		sent = string(plain)
	}
	params, err := awsquery.Parse(r.URL.RawQuery, sent)
	if err != nil {
		return route{codec: &awsquery.Codec{JSON: awsquery.AcceptsJSON(r)}, refused: err.(*api.Error)}, form || r.URL.Query().Has("Action")
	}
	op, version := params.Get("Action"), params.Get("Version")
	if op == "" && !form {
		return route{}, false
	}
	scope := sigv4.ScopeOf(r)
	to := route{service: a.byQuery(scope.Service, version, op), name: scope.Service, op: op}
	if to.service == nil {
		to.codec = &awsquery.Codec{Params: params, Op: op, JSON: awsquery.AcceptsJSON(r)}
	} else {
		query := to.service.Query
		to.codec = queryCodec(r, query, params, op)
		if !awsquery.HasVersion(query, version) {
			to.refused = awsquery.WrongVersion(op, version)
		}
		if r.URL.Path != "/" && r.URL.Path != "" && query.FromPath != nil {
			implied, ok := query.FromPath(op, r.URL.Path)
			if !ok {
				to.refused = to.codec.Unknown(op)
			}
			params.Default(implied)
		}
	}
	if op == "" {
		to.refused = errMissingAction
	}
	return to, true
}

var errMissingAction = &api.Error{
	Type: "MissingAction", Common: true, Status: http.StatusBadRequest,
	Message: "The request is missing an action or a required parameter.",
}

func queryCodec(r *http.Request, query *api.Query, params *awsquery.Params, op string) api.Codec {
	if query.EC2 {
		return &ec2query.Codec{Params: params, Op: op, Namespace: query.Namespace}
	}
	return &awsquery.Codec{Params: params, Op: op, Namespace: query.Namespace, JSON: awsquery.AcceptsJSON(r)}
}

// byQuery returns the service of a Query call: the one that the signature names; without a
// signature the one whose version it is; without a version the only one with that operation.
func (a *AWS) byQuery(name, version, op string) *api.Service {
	if name != "" {
		if s := a.byName[name]; s != nil && s.Query != nil {
			return s
		}
		return nil
	}
	var found *api.Service
	for _, s := range a.services {
		if s.Query == nil {
			continue
		}
		if version != "" {
			if awsquery.HasVersion(s.Query, version) {
				return s
			}
			continue
		}
		if _, has := s.Ops[op]; has {
			if found != nil {
				return nil
			}
			found = s
		}
	}
	return found
}
