package localaws

import (
	"compress/gzip"
	"io"
	"net/http"
	"strings"
)

// decompressed returns a request whose body is no longer compressed. SDKs compress long requests of
// CloudWatch's PutMetricData. What bounds a body counts the bytes that come out, so a small one
// that swells is cut off there.
func decompressed(r *http.Request) *http.Request {
	if !strings.EqualFold(r.Header.Get("Content-Encoding"), "gzip") {
		return r
	}
	r = r.WithContext(r.Context()) // a copy, whose body we may replace
	r.Body = &gzipBody{compressed: r.Body}
	r.ContentLength = -1
	return r
}

// gzipBody decompresses as it is read; a body that is not compressed after all is an error of the
// first Read.
type gzipBody struct {
	compressed io.ReadCloser
	plain      *gzip.Reader
}

// Read returns decompressed bytes.
func (b *gzipBody) Read(p []byte) (int, error) {
	if b.plain == nil {
		plain, err := gzip.NewReader(b.compressed)
		if err != nil {
			return 0, err
		}
		b.plain = plain
	}
	return b.plain.Read(p)
}

// Close closes what is read from.
func (b *gzipBody) Close() error { return b.compressed.Close() }
