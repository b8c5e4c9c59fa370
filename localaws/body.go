package localaws

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/stepfleet/stepfleet/localaws/api"
)

const (
	// MaxBodyBytes bounds a request, compressed or not. An SQS message may have 1 MiB, which JSON
	// may write six times as long.
	MaxBodyBytes = 8 << 20
	// maxDiscardedBytes is how much of a body that is too large is read all the same: many clients
	// look for an answer only when they have sent all, and find a broken connection otherwise.
	maxDiscardedBytes = 8 * MaxBodyBytes
	// maxKept is the largest buffer that is kept for another request.
	maxKept = 64 << 10
)

// body is a request's, in a buffer that serves many requests: codecs copy what they keep.
type body struct {
	sent  []byte // what a signature covers
	plain []byte // sent, uncompressed
	buf   *bytes.Buffer
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

var errSlow = &api.Error{
	Type: "RequestTimeout", Common: true, Status: http.StatusRequestTimeout,
	Message: "The request body did not arrive in time.",
}

// readBody reads the body of a request. Its error is an *api.Error; the body must be released all
// the same.
func readBody(r *http.Request) (body, error) {
	b := body{buf: buffers.Get().(*bytes.Buffer)}
	if r.ContentLength > MaxBodyBytes {
		return b, tooLarge(r)
	}
	_, err := b.buf.ReadFrom(io.LimitReader(r.Body, MaxBodyBytes+1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return b, errSlow
	}
	if err != nil {
		return b, api.ErrSerialization.With("The request body could not be read: %v", err)
	}
	if b.buf.Len() > MaxBodyBytes {
		return b, tooLarge(r)
	}
	b.sent = b.buf.Bytes()
	b.plain = b.sent
	if !strings.EqualFold(r.Header.Get("Content-Encoding"), "gzip") || len(b.sent) == 0 {
		return b, nil
	}
	b.plain, err = gunzip(b.sent)
	return b, err
}

// tooLarge returns the error for a body that is too large, and lets the caller come to its end. One
// that waits to be told to send it is told not to.
func tooLarge(r *http.Request) error {
	if r.Header.Get("Expect") == "" {
		_, _ = io.CopyN(io.Discard, r.Body, maxDiscardedBytes) // how it ends makes no difference
	}
	return api.ErrTooLarge
}

// gunzip uncompresses a body; SDKs compress the large ones of some operations.
func gunzip(sent []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(sent))
	if err != nil {
		return nil, api.ErrSerialization.With("The request body is not valid gzip: %v", err)
	}
	plain, err := io.ReadAll(io.LimitReader(z, MaxBodyBytes+1))
	if err != nil {
		return nil, api.ErrSerialization.With("The request body is not valid gzip: %v", err)
	}
	if len(plain) > MaxBodyBytes {
		return nil, api.ErrTooLarge
	}
	return plain, nil
}

func (b *body) release() {
	if b.buf != nil && b.buf.Cap() <= maxKept {
		b.buf.Reset()
		buffers.Put(b.buf)
	}
	*b = body{}
}
