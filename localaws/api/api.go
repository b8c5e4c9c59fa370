// Package api is what a service of localaws is to the front that serves it: a table of typed
// operations, free of any wire protocol. A protocol (package awsjson, others later) decodes into
// an operation's input and encodes its output or its *Error.
package api

import (
	"context"
	"fmt"
	"net/http"
)

// Service is one AWS service.
type Service struct {
	// Name is the service in a SigV4 credential scope: "sqs", "ecs".
	Name string
	// Target is the service in an X-Amz-Target header, before the dot: "AmazonSQS".
	Target string
	// Namespace is the prefix of the service's own error types: "com.amazonaws.sqs".
	Namespace string
	// JSONVersion is the service's awsJson version: "1.0" or "1.1".
	JSONVersion string
	// Ops is every operation that is emulated, by name.
	Ops map[string]Operation
	// Throttled is how the service says that the caller is too fast; nil is ThrottlingException.
	Throttled *Error
	// Reset empties the service: afterwards it is as when it was made. Nil is for a service that
	// holds nothing.
	Reset func()
}

// Operation is one operation with its types put away; make it with Op.
type Operation struct {
	newIn func() any
	call  func(context.Context, any) (any, error)
}

// Op makes a typed function an operation. In and Out are structs with json tags. The function
// returns an *Error for what AWS would answer; any other error is answered as an internal failure.
func Op[In, Out any](f func(context.Context, *In) (*Out, error)) Operation {
	return Operation{
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

// NewIn returns a fresh input to decode into.
func (o Operation) NewIn() any { return o.newIn() }

// Call runs the operation with an input that NewIn made.
func (o Operation) Call(ctx context.Context, in any) (any, error) { return o.call(ctx, in) }

// Empty is the output of an operation that has none; it is answered with an empty body.
type Empty struct{}

// Error is an error as a service answers it.
type Error struct {
	// Type is the shape's name: "QueueDoesNotExist".
	Type string
	// Common marks a type that all services share, outside the service's own namespace.
	Common bool
	// Code is the code of the old Query protocol, which clients go on matching on; empty is Type.
	Code    string
	Status  int
	Message string
}

// Error returns code and message as AWS's own clients print them.
func (e *Error) Error() string { return e.QueryCode() + ": " + e.Message }

// QueryCode returns the code of the Query protocol.
func (e *Error) QueryCode() string {
	if e.Code != "" {
		return e.Code
	}
	return e.Type
}

// SenderFault reports whether the caller is to blame.
func (e *Error) SenderFault() bool { return e.Status < http.StatusInternalServerError }

// With returns a copy of the error with this message.
func (e *Error) With(format string, args ...any) *Error {
	copied := *e
	copied.Message = fmt.Sprintf(format, args...)
	return &copied
}

// The errors of every service.
var (
	ErrUnknownOperation = &Error{Type: "UnknownOperationException", Common: true, Status: http.StatusBadRequest}
	ErrSerialization    = &Error{Type: "SerializationException", Common: true, Status: http.StatusBadRequest}
	ErrInternal         = &Error{
		Type: "InternalFailure", Common: true, Status: http.StatusInternalServerError,
		Message: "The request processing has failed because of an unknown error, exception or failure.",
	}
	ErrUnavailable = &Error{
		Type: "ServiceUnavailable", Common: true, Status: http.StatusServiceUnavailable,
		Message: "The request has failed due to a temporary failure of the server.",
	}
	ErrThrottling = &Error{Type: "ThrottlingException", Common: true, Status: http.StatusBadRequest, Message: "Rate exceeded"}
	ErrTooLarge   = &Error{
		Type: "RequestEntityTooLargeException", Common: true, Status: http.StatusRequestEntityTooLarge,
		Message: "The request body is too large.",
	}
)

// Call is what an operation may know of the call it serves.
type Call struct {
	Service, Op string
	Region      string
	Account     string
	// AccessKey is the caller's, empty for an unsigned call. Signatures are not verified.
	AccessKey string
	RequestID string
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
