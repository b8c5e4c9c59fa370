package sigv4

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
)

const (
	// maxSkew is how far a signature's time may be from ours.
	maxSkew = 5 * time.Minute
	// A presigned call that does not say how long it holds has the default.
	defaultExpiry = 15 * time.Minute
	maxExpiry     = 7 * 24 * time.Hour

	timeLayout      = "20060102T150405Z"
	unsignedPayload = "UNSIGNED-PAYLOAD"
)

// The errors of calls whose signature does not hold, with AWS's codes and texts.
var (
	ErrMissingToken = &api.Error{
		Type: "MissingAuthenticationTokenException", Common: true, Code: "MissingAuthenticationToken", Status: http.StatusForbidden,
		Message: "Request is missing Authentication Token",
	}
	ErrIncomplete = &api.Error{
		Type: "IncompleteSignatureException", Common: true, Code: "IncompleteSignature", Status: http.StatusForbidden,
	}
	ErrUnknownKey = &api.Error{
		Type: "UnrecognizedClientException", Common: true, Code: "InvalidClientTokenId", Status: http.StatusForbidden,
		Message: "The security token included in the request is invalid.",
	}
	ErrExpiredToken = &api.Error{
		Type: "ExpiredTokenException", Common: true, Code: "ExpiredToken", Status: http.StatusForbidden,
		Message: "The security token included in the request is expired",
	}
	ErrMismatch = &api.Error{
		Type: "InvalidSignatureException", Common: true, Code: "SignatureDoesNotMatch", Status: http.StatusForbidden,
		Message: "The request signature we calculated does not match the signature you provided. " +
			"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.",
	}
	ErrExpired = &api.Error{
		Type: "RequestExpired", Common: true, Status: http.StatusBadRequest, Message: "Request has expired.",
	}
)

// Secret returns the secret of an access key, or the error for a key or session token that does
// not exist or is over.
type Secret func(accessKey, sessionToken string) (string, error)

// Verify returns nil for a call whose signature holds, and an *api.Error for any other. The body
// is as it was sent. Service is the scope's service that the call is for; an empty one is any.
func Verify(r *http.Request, body []byte, service string, now time.Time, secret Secret) error {
	s, err := signatureOf(r)
	if err != nil {
		return err
	}
	if err := s.checkTime(now.UTC()); err != nil {
		return err
	}
	if err := s.checkScope(service); err != nil {
		return err
	}
	if err := s.checkHeaders(r.Header); err != nil {
		return err
	}
	key, err := secret(s.scope.AccessKey, SessionTokenOf(r))
	if err != nil {
		return err
	}
	hash, err := s.payloadHash(r, body)
	if err != nil {
		return err
	}
	if !hmac.Equal([]byte(s.sign(key, canonicalRequest(r, s.headers, hash))), []byte(s.signature)) {
		return ErrMismatch
	}
	return nil
}

// signature is what a call carries.
type signature struct {
	scope     Scope
	headers   []string
	signature string
	signedAt  time.Time
	presigned bool
	expiry    time.Duration
}

func signatureOf(r *http.Request) (*signature, error) {
	if header := r.Header.Get("Authorization"); header != "" {
		return fromHeader(r, header)
	}
	query, _ := url.ParseQuery(r.URL.RawQuery) // what could not be parsed is not there
	if query.Has("X-Amz-Algorithm") || query.Has("X-Amz-Credential") || query.Has("X-Amz-Signature") {
		return fromQuery(query)
	}
	return nil, ErrMissingToken
}

func fromHeader(r *http.Request, header string) (*signature, error) {
	name, rest, _ := strings.Cut(header, " ")
	if name != algorithm {
		return nil, ErrIncomplete.With("Unsupported AWS 'algorithm': '%s'.", name)
	}
	parts := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		parts[key] = value
	}
	date := cmp.Or(r.Header.Get("X-Amz-Date"), r.Header.Get("Date"))
	var lacks []string
	for _, name := range []string{"Credential", "Signature", "SignedHeaders"} {
		if parts[name] == "" {
			lacks = append(lacks, fmt.Sprintf("Authorization header requires '%s' parameter.", name))
		}
	}
	if date == "" {
		lacks = append(lacks, "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
	}
	if len(lacks) > 0 {
		return nil, ErrIncomplete.With("%s Authorization=%s", strings.Join(lacks, " "), name)
	}
	return newSignature(parts["Credential"], parts["SignedHeaders"], parts["Signature"], date)
}

func fromQuery(query url.Values) (*signature, error) {
	if name := query.Get("X-Amz-Algorithm"); name != algorithm {
		return nil, ErrIncomplete.With("Unsupported AWS 'algorithm': '%s'.", name)
	}
	var lacks []string
	for _, name := range []string{"X-Amz-Credential", "X-Amz-Signature", "X-Amz-SignedHeaders", "X-Amz-Date"} {
		if query.Get(name) == "" {
			lacks = append(lacks, fmt.Sprintf("AWS query-string parameters must include '%s'.", name))
		}
	}
	if len(lacks) > 0 {
		return nil, ErrIncomplete.With("%s Re-examine the query-string parameters.", strings.Join(lacks, " "))
	}
	s, err := newSignature(query.Get("X-Amz-Credential"), query.Get("X-Amz-SignedHeaders"), query.Get("X-Amz-Signature"), query.Get("X-Amz-Date"))
	if err != nil {
		return nil, err
	}
	s.presigned, s.expiry = true, defaultExpiry
	if text := query.Get("X-Amz-Expires"); text != "" {
		seconds, err := strconv.Atoi(text)
		if err != nil || seconds < 0 || seconds > int(maxExpiry/time.Second) {
			return nil, ErrIncomplete.With("X-Amz-Expires must be a number of seconds of at most %d.", int(maxExpiry/time.Second))
		}
		s.expiry = time.Duration(seconds) * time.Second
	}
	return s, nil
}

func newSignature(credential, headers, text, date string) (*signature, error) {
	scope, ok := parseScope(credential)
	if !ok {
		return nil, ErrIncomplete.With("Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '%s'", credential)
	}
	at, err := time.Parse(timeLayout, date)
	if err != nil {
		return nil, ErrIncomplete.With("Date must be in ISO-8601 'basic format'. Got '%s'. See http://en.wikipedia.org/wiki/ISO_8601", date)
	}
	names := strings.Split(headers, ";")
	if !slices.Contains(names, "host") {
		return nil, ErrMismatch.With("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	return &signature{scope: scope, headers: names, signature: text, signedAt: at}, nil
}

func (s *signature) checkTime(now time.Time) error {
	const minutes = int(maxSkew / time.Minute)
	at := s.signedAt.Format(timeLayout)
	if limit := now.Add(maxSkew); s.signedAt.After(limit) {
		return ErrMismatch.With("Signature not yet current: %s is still later than %s (%s + %d min.)",
			at, limit.Format(timeLayout), now.Format(timeLayout), minutes)
	}
	if s.presigned {
		if now.After(s.signedAt.Add(s.expiry)) {
			return ErrExpired
		}
		return nil
	}
	if limit := now.Add(-maxSkew); s.signedAt.Before(limit.Truncate(time.Second)) {
		return ErrMismatch.With("Signature expired: %s is now earlier than %s (%s - %d min.)",
			at, limit.Format(timeLayout), now.Format(timeLayout), minutes)
	}
	return nil
}

func (s *signature) checkScope(service string) error {
	if day := s.signedAt.Format("20060102"); s.scope.Date != day {
		return ErrMismatch.With("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '%s' != '%s', from '%s'.",
			s.scope.Date, day, s.signedAt.Format(timeLayout))
	}
	if service != "" && s.scope.Service != service {
		return ErrMismatch.With("Credential should be scoped to correct service: '%s'. ", service)
	}
	return nil
}

// checkHeaders wants every X-Amz- header among the signed ones: an X-Amz-Target that is not would
// make a signed call another one. The session token may stand apart, as some services of AWS have it;
// it belongs to its key in any case.
func (s *signature) checkHeaders(sent http.Header) error {
	for _, name := range slices.Sorted(maps.Keys(sent)) {
		if !strings.HasPrefix(name, "X-Amz-") || name == "X-Amz-Security-Token" {
			continue
		}
		if !slices.ContainsFunc(s.headers, func(signed string) bool { return strings.EqualFold(signed, name) }) {
			return ErrMismatch.With("'%s' must be a 'SignedHeader' in the AWS Authorization.", name)
		}
	}
	return nil
}

// payloadHash returns the hash of the body as it was signed. A call that names one must name the
// right one, or say that the body is not signed.
func (s *signature) payloadHash(r *http.Request, body []byte) (string, error) {
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	named := r.Header.Get("X-Amz-Content-Sha256")
	if named == "" {
		named = queryValue(r, "X-Amz-Content-Sha256")
	}
	if named == "" || named == hash {
		return hash, nil
	}
	if named == unsignedPayload {
		return unsignedPayload, nil
	}
	return "", ErrMismatch
}

// sign returns the signature of a canonical request.
func (s *signature) sign(secret, canonical string) string {
	sum := sha256.Sum256([]byte(canonical))
	scope := strings.Join([]string{s.scope.Date, s.scope.Region, s.scope.Service, terminator}, "/")
	text := strings.Join([]string{algorithm, s.signedAt.Format(timeLayout), scope, hex.EncodeToString(sum[:])}, "\n")
	key := []byte("AWS4" + secret)
	for _, part := range []string{s.scope.Date, s.scope.Region, s.scope.Service, terminator} {
		key = mac(key, part)
	}
	return hex.EncodeToString(mac(key, text))
}

func mac(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}
