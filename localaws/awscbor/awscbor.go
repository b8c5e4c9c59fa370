// Package awscbor is Smithy's rpc-v2-cbor protocol, seen from the server: an operation named by
// the path, a CBOR map each way, errors by __type.
//
// Where to read: this file has the protocol's frame; decode.go and encode.go are the part of CBOR
// (RFC 8949) that the protocol uses, to and from structs by way of package shape.
package awscbor

import (
	"net/http"
	"reflect"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
)

const (
	protocolHeader = "Smithy-Protocol"
	protocolName   = "rpc-v2-cbor"
	contentType    = "application/cbor"
)

// Target returns the service's shape and the operation that the request names; ok is false for a
// request that is not of this protocol.
func Target(r *http.Request) (service, op string, ok bool) {
	if r.Header.Get(protocolHeader) != protocolName || r.Method != http.MethodPost {
		return "", "", false
	}
	// The path may have a prefix; the last four segments count.
	parts := strings.Split(r.URL.Path, "/")
	if n := len(parts); n >= 4 && parts[n-4] == "service" && parts[n-2] == "operation" {
		return parts[n-3], parts[n-1], true
	}
	return r.URL.Path, "", true
}

// Codec is one call; it implements api.Codec.
type Codec struct {
	// Body is the request's.
	Body []byte
	// Namespace is the prefix of the service's error types.
	Namespace string
	// QueryMode adds the Query protocol's code to errors.
	QueryMode bool
}

// Decode reads the body into in; an absent one is an empty map.
func (c *Codec) Decode(in any) error {
	if len(c.Body) == 0 {
		return nil
	}
	return Unmarshal(c.Body, in)
}

// Encode answers with an operation's output.
func (c *Codec) Encode(w http.ResponseWriter, requestID string, out any) error {
	w.Header()[protocolHeader] = []string{protocolName}
	if _, empty := out.(*api.Empty); empty {
		api.Respond(w, requestID, "", http.StatusOK, nil)
		return nil
	}
	api.Respond(w, requestID, contentType, http.StatusOK, Append(nil, reflect.ValueOf(out)))
	return nil
}

// EncodeError answers with an error.
func (c *Codec) EncodeError(w http.ResponseWriter, requestID string, e *api.Error) {
	w.Header()[protocolHeader] = []string{protocolName}
	if c.QueryMode {
		api.SetQueryError(w, e)
	}
	body := Append(nil, reflect.ValueOf(struct {
		Type    string `json:"__type"`
		Message string `json:"message,omitempty"`
	}{e.TypeName(c.Namespace), e.Message}))
	api.Respond(w, requestID, contentType, e.Status, body)
}

// Unknown returns the error for an operation that the service does not have.
func (c *Codec) Unknown(op string) *api.Error {
	e := api.ErrUnknownOperation.With("The operation %s is not emulated by localaws.", op)
	e.Status = http.StatusNotFound
	return e
}
