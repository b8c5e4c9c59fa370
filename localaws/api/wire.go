package api

import (
	"net/http"
	"strconv"
)

// Codec is one call in one wire protocol: it knows the request and how to answer it.
type Codec interface {
	// Decode reads the call's input into the struct that in points to. Its errors are *Error.
	Decode(in any) error
	// Encode answers with an operation's output. When it returns an error it has written nothing.
	Encode(w http.ResponseWriter, requestID string, out any) error
	// EncodeError answers with an error.
	EncodeError(w http.ResponseWriter, requestID string, e *Error)
	// Unknown returns the error for an operation that the service does not have.
	Unknown(op string) *Error
}

// The headers of answers, in the form in which net/http keeps them.
const (
	headerRequestID     = "X-Amzn-Requestid"
	headerQueryError    = "X-Amzn-Query-Error"
	headerContentType   = "Content-Type"
	headerContentLength = "Content-Length"
)

// QueryMode reports whether the client came from the Query protocol and still matches on its codes.
func QueryMode(r *http.Request) bool { return r.Header.Get("X-Amzn-Query-Mode") == "true" }

// SetQueryError adds the header by which such a client sees the Query protocol's code.
func SetQueryError(w http.ResponseWriter, e *Error) {
	w.Header()[headerQueryError] = []string{e.QueryCode() + ";" + e.Fault()}
}

// Respond writes an answer. An empty content type leaves the header out.
func Respond(w http.ResponseWriter, requestID, contentType string, status int, body []byte) {
	h := w.Header()
	h[headerRequestID] = []string{requestID}
	if contentType != "" {
		h[headerContentType] = []string{contentType}
	}
	h[headerContentLength] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the caller may be gone; there is nobody else to tell
}
