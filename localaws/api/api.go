// Package api is what a service of localaws is to the front that serves it: a table of typed
// operations, free of any wire protocol. A Codec decodes into an operation's input and encodes its
// output or its *Error; each wire protocol is a package with one (awsjson, awsquery, ec2query,
// awscbor), and all of them work on the same structs.
//
// Where to read: api.go is services, operations and calls; errors.go is errors and the codes that
// every service has; wire.go is what codecs share; ids.go makes identifiers.
package api

import (
	"context"
	"reflect"
)

// Service is one AWS service.
type Service struct {
	// Name is the service in a SigV4 credential scope: "sqs", "ecs".
	Name string
	// Target is the service in an X-Amz-Target header, before the dot: "AmazonSQS". It is empty
	// for a service that has no JSON protocol.
	Target string
	// Namespace is the prefix of the service's own error types: "com.amazonaws.sqs".
	Namespace string
	// JSONVersion is the service's awsJson version: "1.0" or "1.1".
	JSONVersion string
	// Query is the service's Query or EC2 protocol; nil for a service that has neither.
	Query *Query
	// Shape is the service in the path of an rpc-v2-cbor call: "GraniteServiceVersion20100801".
	// It is empty for a service that has no CBOR protocol.
	Shape string
	// Ops is every operation that is emulated, by name.
	Ops map[string]Operation
	// Throttled is how the service says that the caller is too fast; nil is ThrottlingException.
	Throttled *Error
	// Reset empties the service: afterwards it is as when it was made. Nil is for a service that
	// holds nothing.
	Reset func()
}

// Query is a service's side of the AWS Query protocol, or of its EC2 variant.
type Query struct {
	// Version is the API's date, "2012-11-05"; calls name it.
	Version string
	// Others are versions that are taken for Version; "" is a call that names none.
	Others []string
	// Namespace is the XML namespace of answers.
	Namespace string
	// EC2 marks the variant that only EC2 speaks.
	EC2 bool
	// FromPath returns the parameters that a URL path other than "/" stands for; those that the
	// call has itself win. It returns false for an operation that does not exist at that path. A
	// service without it ignores the path.
	FromPath func(op, path string) (parameters map[string]string, ok bool)
}

// Protocols returns the names of the wire protocols that the service speaks, as AWS's models have
// them.
func (s *Service) Protocols() []string {
	var names []string
	if s.Target != "" {
		names = append(names, map[string]string{"1.0": "awsJson1_0", "1.1": "awsJson1_1"}[s.JSONVersion])
	}
	switch {
	case s.Query == nil:
	case s.Query.EC2:
		names = append(names, "ec2Query")
	default:
		names = append(names, "awsQuery")
	}
	if s.Shape != "" {
		names = append(names, "rpcv2Cbor")
	}
	return names
}

// Operation is one operation with its types put away; make it with Op.
type Operation struct {
	in, out  reflect.Type
	unsigned bool
	newIn    func() any
	call     func(context.Context, any) (any, error)
}

// Op makes a typed function an operation. In and Out are structs with json tags, and query tags
// where the Query protocol differs; package shape says what they may hold. The function returns an
// *Error for what AWS would answer; any other error is answered as an internal failure.
func Op[In, Out any](f func(context.Context, *In) (*Out, error)) Operation {
	return Operation{
		in: reflect.TypeFor[In](), out: reflect.TypeFor[Out](),
		newIn: func() any { return new(In) },
		call: func(ctx context.Context, in any) (any, error) {
			out, err := f(ctx, in.(*In))
			if err != nil {
				return nil, err
			}
			return out, nil
		},
	}
}

// Unsigned returns the operation open to calls without a signature, where signatures are verified.
func (o Operation) Unsigned() Operation {
	o.unsigned = true
	return o
}

// IsUnsigned reports whether a call needs no signature.
func (o Operation) IsUnsigned() bool { return o.unsigned }

// Types returns the structs of the input and of the output.
func (o Operation) Types() (in, out reflect.Type) { return o.in, o.out }

// NewIn returns a fresh input to decode into.
func (o Operation) NewIn() any { return o.newIn() }

// Call runs the operation with an input that NewIn made.
func (o Operation) Call(ctx context.Context, in any) (any, error) { return o.call(ctx, in) }

// Empty is the output of an operation that has none; it is answered with an empty body.
type Empty struct{}

// Call is what an operation may know of the call it serves.
type Call struct {
	Service, Op string
	Region      string
	Account     string
	// AccessKey is the caller's, empty for an unsigned call.
	AccessKey string
	// SessionToken comes with temporary credentials.
	SessionToken string
	RequestID    string
	// BaseURL is scheme and host as the caller reached us, for addresses in answers.
	BaseURL string
}

type callKey struct{}

// WithCall returns ctx with the call in it.
func WithCall(ctx context.Context, c *Call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// CallOf returns the call that ctx serves. It panics outside of one.
func CallOf(ctx context.Context) *Call { return ctx.Value(callKey{}).(*Call) }
