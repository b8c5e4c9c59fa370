// Package sigv4 reads and verifies AWS's signatures, version 4, in the Authorization header and in
// the query string of a presigned call.
//
// Where to read: this file reads the scope that a signature names, which every call needs;
// verify.go verifies; canonical.go builds the text that is signed.
package sigv4

import (
	"net/http"
	"net/url"
	"strings"
)

const (
	algorithm  = "AWS4-HMAC-SHA256"
	terminator = "aws4_request"
)

// Scope is what a signature says about a call: Credential=KEY/DATE/REGION/SERVICE/aws4_request.
type Scope struct{ AccessKey, Date, Region, Service string }

// ScopeOf reads the scope of a call, from the header or from the query of a presigned one; a call
// without a readable signature has the zero one. It verifies nothing.
func ScopeOf(r *http.Request) Scope {
	text := r.Header.Get("Authorization")
	if text == "" {
		presigned := queryValue(r, "X-Amz-Credential")
		s, _ := parseScope(presigned)
		return s
	}
	_, text, ok := strings.Cut(text, "Credential=")
	if !ok {
		return Scope{}
	}
	if end := strings.IndexAny(text, ", "); end >= 0 {
		text = text[:end]
	}
	s, _ := parseScope(text)
	return s
}

// SessionTokenOf returns the token that comes with temporary credentials.
func SessionTokenOf(r *http.Request) string {
	if token := r.Header.Get("X-Amz-Security-Token"); token != "" {
		return token
	}
	return queryValue(r, "X-Amz-Security-Token")
}

// queryValue returns a parameter of the query string, parsing it only when it can be there.
func queryValue(r *http.Request, name string) string {
	if !strings.Contains(r.URL.RawQuery, name) {
		return ""
	}
	values, _ := url.ParseQuery(r.URL.RawQuery) // what could not be parsed is not there
	return values.Get(name)
}

// parseScope reads KEY/DATE/REGION/SERVICE/aws4_request.
func parseScope(text string) (Scope, bool) {
	var parts [5]string
	for i := range parts {
		part, rest, more := strings.Cut(text, "/")
		if part == "" || more == (i == len(parts)-1) {
			return Scope{}, false
		}
		parts[i], text = part, rest
	}
	if parts[4] != terminator || !isDate(parts[1]) {
		return Scope{}, false
	}
	return Scope{parts[0], parts[1], parts[2], parts[3]}, true
}

func isDate(text string) bool {
	if len(text) != len("20060102") {
		return false
	}
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			return false
		}
	}
	return true
}
