package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"time"
)

// maxBodyBytes bounds a body; the longest rule is far shorter.
const maxBodyBytes = 64 << 10

// maxTime bounds every time that a caller gives: the longest rule of a service, SQS's retention,
// is 14 days, and CloudWatch's 15.
const maxTime = 31 * 24 * time.Hour

// decode reads one JSON object into v and refuses what v has no field for. An absent body is an
// empty object.
func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == io.EOF {
		return nil
	}
	if err == nil {
		if _, err = d.Token(); err == io.EOF {
			return nil
		}
		if err == nil {
			return bad("send one JSON object", "there is something behind the JSON object")
		}
	}
	return describe(err)
}

// describe words a decoding error for whoever wrote the body.
func describe(err error) error {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return &problem{
			http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", tooLarge.Limit),
			"no request here needs as much",
		}
	}
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		if wrong.Field == "" {
			return bad("send one JSON object", "the body is a JSON %s", wrong.Value)
		}
		return bad("give it a value of the right type", "the field %s can not be a %s", wrong.Field, wrong.Value)
	}
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return bad("leave it out, or look for a slip in its name", "there is no field %s here", field)
	}
	return bad("send one JSON object", "the body is not valid JSON: %v", err)
}

// seconds reads a time.
func seconds(field string, n float64) (time.Duration, error) {
	if !(n >= 0 && n <= maxTime.Seconds()) {
		return 0, bad(fmt.Sprintf("give seconds from 0 to %.0f", maxTime.Seconds()), "%s is %v", field, n)
	}
	return time.Duration(math.Round(n * float64(time.Second))), nil
}
