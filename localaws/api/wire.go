package api

import (
	"math"
	"net/http"
	"strconv"
	"time"
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

// Time is a timestamp in a struct that goes over the wire. Each protocol has its own form: JSON
// and CBOR count seconds since 1970, with milliseconds; XML writes ISO 8601.
type Time struct{ time.Time }

// MarshalJSON writes seconds since 1970.
func (t Time) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(t.UnixMilli())/1000, 'f', -1, 64), nil
}

// UnmarshalJSON reads seconds since 1970; null leaves the time as it is.
func (t *Time) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	seconds, err := strconv.ParseFloat(string(b), 64)
	if err != nil {
		return err
	}
	parsed, ok := FromSeconds(seconds)
	if !ok {
		return strconv.ErrRange
	}
	t.Time = parsed
	return nil
}

// maxSeconds is the end of the year 9999, the last that ISO 8601 can write.
const maxSeconds = 253402300799

// FromSeconds returns the time that many seconds after 1970, to the millisecond; false for one that
// no calendar has.
func FromSeconds(seconds float64) (time.Time, bool) {
	if !(math.Abs(seconds) <= maxSeconds) {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(math.Round(seconds * 1000))).UTC(), true
}
