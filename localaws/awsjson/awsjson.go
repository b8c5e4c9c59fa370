// Package awsjson is AWS's JSON protocol, versions 1.0 and 1.1, seen from the server: an
// operation named by X-Amz-Target, a JSON object each way, errors by __type.
package awsjson

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"

	fast "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/stepfleet/stepfleet/localaws/api"
)

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

// Version returns the version that the request is written in.
func Version(r *http.Request) string {
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if strings.HasSuffix(kind, "1.1") {
		return "1.1"
	}
	return "1.0"
}

// Codec is one call; it implements api.Codec.
type Codec struct {
	// Body is the request's.
	Body []byte
	// Version is the one to answer in.
	Version string
	// Namespace is the prefix of the service's error types.
	Namespace string
	// QueryMode adds the Query protocol's code to errors.
	QueryMode bool
}

// maxItems bounds the values of a message: an element of two bytes may become a large struct. The
// largest call of AWS, a PutMetricData with 1,000 metrics of 150 values each, has some 400,000.
const maxItems = 500_000

// Decode reads the body into in; an absent one is an empty object.
func (c *Codec) Decode(in any) error {
	if len(bytes.TrimLeft(c.Body, " \t\r\n")) == 0 {
		return nil
	}
	if hasMoreItems(c.Body, maxItems) {
		return api.ErrSerialization.With("The request body has more than %d values.", maxItems)
	}
	if err := fast.Unmarshal(c.Body, in, lenient); err != nil {
		return api.ErrSerialization.With("%s", describe(err))
	}
	return nil
}

// lenient takes what the standard library's decoder takes, but for the case of names: a member whose
// name is written otherwise is another one, as on AWS.
var lenient = fast.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// hasMoreItems reports whether a JSON text has more than limit values. Every value but the first
// stands behind a comma or is the first of its list or object.
func hasMoreItems(text []byte, limit int) bool {
	if len(text) <= limit {
		return false // nearly every text there is
	}
	if bytes.Count(text, []byte{','})+bytes.Count(text, []byte{'['})+bytes.Count(text, []byte{'{'}) <= limit {
		return false // a long message, by a quicker look
	}
	items, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ',' || c == '[' || c == '{'):
			items++
		}
	}
	return items > limit
}

// kinds are what JSON values are called.
var kinds = map[jsontext.Kind]string{
	jsontext.KindNull: "null", jsontext.KindTrue: "boolean", jsontext.KindFalse: "boolean", jsontext.KindString: "string",
	jsontext.KindNumber: "number", jsontext.KindBeginArray: "list", jsontext.KindBeginObject: "structure",
}

// describe words a decoding error without Go's own vocabulary.
func describe(err error) string {
	var wrong *fast.SemanticError
	if errors.As(err, &wrong) {
		return "A " + kinds[wrong.JSONKind] + " can not be converted to the type of " + cmp.Or(string(wrong.JSONPointer), "the request")
	}
	return "The request body is not a valid JSON object: " + err.Error()
}

// encoder is a buffer and what writes into it; one serves many answers.
type encoder struct {
	buffer bytes.Buffer
	json   *json.Encoder
}

// maxKept is the largest buffer that is kept for another answer.
const maxKept = 64 << 10

var encoders = sync.Pool{New: func() any {
	e := &encoder{}
	e.json = json.NewEncoder(&e.buffer)
	e.json.SetEscapeHTML(false)
	return e
}}

func (e *encoder) release() {
	if e.buffer.Cap() <= maxKept {
		e.buffer.Reset()
		encoders.Put(e)
	}
}

// Encode answers with an operation's output.
func (c *Codec) Encode(w http.ResponseWriter, requestID string, out any) error {
	if _, empty := out.(*api.Empty); empty {
		c.respond(w, requestID, http.StatusOK, nil)
		return nil
	}
	e := encoders.Get().(*encoder)
	if err := e.encode(out); err != nil {
		return err // with the encoder, which remembers its errors
	}
	c.respond(w, requestID, http.StatusOK, bytes.TrimSuffix(e.buffer.Bytes(), []byte{'\n'}))
	e.release()
	return nil
}

// appender is an output that appends its own JSON to b: a large one that a busy service gives all the
// time, for which reflection costs too much.
type appender interface {
	AppendJSON(b []byte) ([]byte, error)
}

func (e *encoder) encode(out any) error {
	a, ok := out.(appender)
	if !ok {
		return e.json.Encode(out)
	}
	b, err := a.AppendJSON(e.buffer.AvailableBuffer())
	if err != nil {
		return err
	}
	_, err = e.buffer.Write(b)
	return err
}

// EncodeError answers with an error.
func (c *Codec) EncodeError(w http.ResponseWriter, requestID string, e *api.Error) {
	body, err := json.Marshal(struct {
		Type    string `json:"__type"`
		Message string `json:"message,omitempty"`
	}{e.TypeName(c.Namespace), e.Message})
	if err != nil {
		panic(err) // two strings always encode
	}
	if c.QueryMode {
		api.SetQueryError(w, e)
	}
	c.respond(w, requestID, e.Status, body)
}

// Unknown returns the error for an operation that the service does not have.
func (c *Codec) Unknown(op string) *api.Error {
	return api.ErrUnknownOperation.With("The operation %s is not emulated by localaws.", op)
}

func (c *Codec) respond(w http.ResponseWriter, requestID string, status int, body []byte) {
	kind := "application/x-amz-json-1.0"
	if c.Version == "1.1" {
		kind = "application/x-amz-json-1.1"
	}
	api.Respond(w, requestID, kind, status, body)
}
