// Package awsquery is the AWS Query protocol, seen from the server: an operation named by the
// parameter Action of a form or a query string, an answer in XML, or in JSON for a caller that
// accepts it.
//
// Where to read: this file has the protocol's frame around an answer; params.go parses a call's
// parameters; decode.go and encode.go move them to and from structs by way of package shape, for
// this protocol and for EC2's variant (package ec2query), which is another Style; json.go is the
// answer in JSON.
package awsquery

import (
	"net/http"
	"slices"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
)

// Style is how a protocol of the family writes lists and names.
type Style struct {
	// Element is the name of a list's elements.
	Element string
	// Capitals makes the names of parameters begin with a capital, whatever the tag says.
	Capitals bool
	// FlatIn makes every list of a call flat, NestedOut none of an answer.
	FlatIn, NestedOut bool
}

var style = Style{Element: "member"}

const (
	// Prologue begins every XML answer.
	Prologue = `<?xml version="1.0"?>` + "\n"

	typeXML  = "text/xml"
	typeJSON = "application/json"
)

// Form reports whether the request's body is a form.
func Form(r *http.Request) bool {
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	return r.Method == http.MethodPost && strings.TrimSpace(kind) == "application/x-www-form-urlencoded"
}

// AcceptsJSON reports whether the caller asks for JSON.
func AcceptsJSON(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), typeJSON) }

// HasVersion reports whether the service takes calls of that version.
func HasVersion(q *api.Query, version string) bool {
	return version == q.Version || slices.Contains(q.Others, version)
}

// Codec is one call; it implements api.Codec.
type Codec struct {
	Params *Params
	Op     string
	// Namespace is the XML namespace; an empty one is left out.
	Namespace string
	// JSON answers in JSON.
	JSON bool
}

// Decode reads the parameters into in.
func (c *Codec) Decode(in any) error { return style.Decode(c.Params, in) }

// Encode answers with an operation's output.
func (c *Codec) Encode(w http.ResponseWriter, requestID string, out any) error {
	if c.JSON {
		body, err := c.appendJSON(requestID, out)
		if err != nil {
			return err
		}
		api.Respond(w, requestID, typeJSON, http.StatusOK, body)
		return nil
	}
	b := append([]byte(Prologue), '<')
	b = Namespace(append(append(b, c.Op...), "Response"...), c.Namespace)
	if _, empty := out.(*api.Empty); !empty {
		b = c.appendResult(b, out)
	}
	b = AppendElement(append(b, "<ResponseMetadata>"...), "RequestId", requestID)
	b = closing(append(b, "</ResponseMetadata>"...), c.Op+"Response")
	api.Respond(w, requestID, typeXML, http.StatusOK, b)
	return nil
}

func (c *Codec) appendResult(b []byte, out any) []byte {
	name := c.Op + "Result"
	start := len(b)
	b = open(b, name)
	empty := len(b)
	if b = style.AppendXML(b, out); len(b) > empty {
		return closing(b, name)
	}
	return append(append(append(b[:start], '<'), name...), "/>"...)
}

// Namespace closes an opening tag, with a namespace unless that is empty.
func Namespace(b []byte, namespace string) []byte {
	if namespace != "" {
		b = append(appendText(append(b, ` xmlns="`...), namespace), '"')
	}
	return append(b, '>')
}

// EncodeError answers with an error.
func (c *Codec) EncodeError(w http.ResponseWriter, requestID string, e *api.Error) {
	if c.JSON {
		api.Respond(w, requestID, typeJSON, e.Status, errorJSON(requestID, e))
		return
	}
	b := Namespace(append([]byte(Prologue), "<ErrorResponse"...), c.Namespace)
	b = AppendElement(append(b, "<Error>"...), "Type", e.Fault())
	b = AppendElement(b, "Code", e.QueryCode())
	b = AppendElement(b, "Message", e.QueryText())
	b = AppendElement(append(b, "<Detail/></Error>"...), "RequestId", requestID)
	api.Respond(w, requestID, typeXML, e.Status, append(b, "</ErrorResponse>"...))
}

// Unknown returns the error for an operation that the service does not have.
func (c *Codec) Unknown(op string) *api.Error {
	return api.ErrInvalidAction.With("The action %s is not valid for this endpoint.", op)
}

// WrongVersion returns the error for a version that the service does not have.
func WrongVersion(op, version string) *api.Error {
	if version == "" {
		version = "NO_VERSION_SPECIFIED"
	}
	return api.ErrInvalidAction.With("Could not find operation %s for version %s", op, version)
}
