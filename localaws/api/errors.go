package api

import (
	"fmt"
	"net/http"
)

// commonNamespace is where the error types live that all services share.
const commonNamespace = "com.amazon.coral.service"

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
	// QueryMessage is the text in the Query protocol; empty is Message.
	QueryMessage string
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

// Fault returns whom the Query protocol blames: "Sender" or "Receiver".
func (e *Error) Fault() string {
	if e.SenderFault() {
		return "Sender"
	}
	return "Receiver"
}

// QueryText returns the text of the Query protocol.
func (e *Error) QueryText() string {
	if e.QueryMessage != "" {
		return e.QueryMessage
	}
	return e.Message
}

// TypeName returns the full name of the error's type in a service's namespace.
func (e *Error) TypeName(namespace string) string {
	if e.Common || namespace == "" {
		namespace = commonNamespace
	}
	return namespace + "#" + e.Type
}

// With returns a copy of the error with this message, in every protocol.
func (e *Error) With(format string, args ...any) *Error {
	copied := *e
	copied.Message, copied.QueryMessage = fmt.Sprintf(format, args...), ""
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
	ErrThrottling = &Error{
		Type: "ThrottlingException", Common: true, Code: "Throttling", Status: http.StatusBadRequest, Message: "Rate exceeded",
	}
	ErrInvalidAction  = &Error{Type: "InvalidAction", Common: true, Status: http.StatusBadRequest}
	ErrMalformedInput = &Error{Type: "MalformedInput", Common: true, Status: http.StatusBadRequest}
	ErrTooLarge       = &Error{
		Type: "RequestEntityTooLargeException", Common: true, Status: http.StatusRequestEntityTooLarge,
		Message: "The request body is too large.",
	}
)
