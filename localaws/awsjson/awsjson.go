// Package awsjson is AWS's JSON protocol, versions 1.0 and 1.1, seen from the server: an
// operation named by X-Amz-Target, a JSON object each way, errors by __type.
package awsjson

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
)

// MaxBodyBytes bounds a request. An SQS message may have 1 MiB, which JSON may write six times as long.
const MaxBodyBytes = 8 << 20

// commonNamespace is where the error types live that all services share.
const commonNamespace = "com.amazon.coral.service"

// Target returns the service and the operation that the request names; ok is false for a request
// that is not of this protocol.
func Target(r *http.Request) (service, op string, ok bool) {
	target := r.Header.Get("X-Amz-Target")
	if r.Method != http.MethodPost || target == "" {
		return "", "", false
	}
	dot := strings.LastIndexByte(target, '.')
	if dot < 0 {
		return target, "", true
	}
	return target[:dot], target[dot+1:], true
}

// Decode reads the request's body into in. Its errors are *api.Error.
func Decode(r *http.Request, in any) error {
	body, err := io.ReadAll(io.LimitReader(r.Body, MaxBodyBytes+1))
	if err != nil {
		return api.ErrSerialization.With("The request body could not be read: %v", err)
	}
	if len(body) > MaxBodyBytes {
		return api.ErrTooLarge
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return nil // AWS takes an absent body for an empty object
	}
	if err := json.Unmarshal(body, in); err != nil {
		return api.ErrSerialization.With("%s", describe(err))
	}
	return nil
}

// describe words a decoding error without Go's own vocabulary.
func describe(err error) string {
	if wrong, ok := err.(*json.UnmarshalTypeError); ok {
		return wrong.Value + " can not be converted to the type of member " + wrong.Field
	}
	return "The request body is not a valid JSON object: " + err.Error()
}

// Encode writes an operation's output.
func Encode(w http.ResponseWriter, version, requestID string, out any) error {
	var body bytes.Buffer
	if _, empty := out.(*api.Empty); !empty {
		enc := json.NewEncoder(&body)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(out); err != nil {
			return err
		}
		body.Truncate(body.Len() - 1)
	}
	write(w, version, requestID, http.StatusOK, body.Bytes())
	return nil
}

// EncodeError writes an error. queryMode adds the header by which clients that came from the
// Query protocol go on seeing its codes.
func EncodeError(w http.ResponseWriter, version, requestID, namespace string, queryMode bool, e *api.Error) {
	if e.Common {
		namespace = commonNamespace
	}
	body, err := json.Marshal(struct {
		Type    string `json:"__type"`
		Message string `json:"message,omitempty"`
	}{namespace + "#" + e.Type, e.Message})
	if err != nil {
		panic(err) // two strings always encode
	}
	if queryMode {
		fault := "Sender"
		if !e.SenderFault() {
			fault = "Receiver"
		}
		w.Header().Set("X-Amzn-Query-Error", e.QueryCode()+";"+fault)
	}
	write(w, version, requestID, e.Status, body)
}

func write(w http.ResponseWriter, version, requestID string, status int, body []byte) {
	h := w.Header()
	h.Set("X-Amzn-Requestid", requestID)
	h.Set("Content-Type", "application/x-amz-json-"+version)
	w.WriteHeader(status)
	_, _ = w.Write(body) // the caller may be gone; there is nobody else to tell
}
