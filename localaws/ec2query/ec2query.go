// Package ec2query is EC2's variant of the AWS Query protocol, seen from the server. Lists of a
// call are flat and its names begin with a capital; lists of an answer hold <item>s, and its
// members stand directly in the answer. What it shares with Query is in package awsquery.
package ec2query

import (
	"net/http"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/awsquery"
)

var style = awsquery.Style{Element: "item", Capitals: true, FlatIn: true, NestedOut: true}

const contentType = "text/xml;charset=UTF-8"

// Codec is one call; it implements api.Codec.
type Codec struct {
	Params *awsquery.Params
	Op     string
	// Namespace is the XML namespace.
	Namespace string
}

// Decode reads the parameters into in.
func (c *Codec) Decode(in any) error { return style.Decode(c.Params, in) }

// Encode answers with an operation's output; one that has none returns true.
func (c *Codec) Encode(w http.ResponseWriter, requestID string, out any) error {
	b := append([]byte(awsquery.Prologue), '<')
	b = awsquery.Namespace(append(append(b, c.Op...), "Response"...), c.Namespace)
	b = awsquery.AppendElement(b, "requestId", requestID)
	if _, empty := out.(*api.Empty); empty {
		b = awsquery.AppendElement(b, "return", "true")
	} else {
		b = style.AppendXML(b, out)
	}
	b = append(append(append(b, "</"...), c.Op...), "Response>"...)
	api.Respond(w, requestID, contentType, http.StatusOK, b)
	return nil
}

// EncodeError answers with an error.
func (c *Codec) EncodeError(w http.ResponseWriter, requestID string, e *api.Error) {
	b := append([]byte(awsquery.Prologue), "<Response><Errors><Error>"...)
	b = awsquery.AppendElement(b, "Code", e.QueryCode())
	b = awsquery.AppendElement(b, "Message", e.QueryText())
	b = awsquery.AppendElement(append(b, "</Error></Errors>"...), "RequestID", requestID)
	api.Respond(w, requestID, contentType, e.Status, append(b, "</Response>"...))
}

// Unknown returns the error for an operation that the service does not have.
func (c *Codec) Unknown(op string) *api.Error {
	return api.ErrInvalidAction.With("The action %s is not valid for this web service.", op)
}
