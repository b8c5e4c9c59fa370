package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"time"
)

// Time is a moment as operations carry it, to the millisecond. AWS's JSON and CBOR have it as
// seconds since 1970, Query as ISO 8601 in UTC; its methods are both.
type Time struct{ time.Time }

// TimeOf returns t as operations carry it.
func TimeOf(t time.Time) Time { return Time{t.UTC().Truncate(time.Millisecond)} }

// maxEpochSeconds is the end of the year 9999, beyond which ISO 8601 has no words.
const maxEpochSeconds = 253_402_300_799

// TimeOfEpoch returns the moment that many seconds after the start of 1970.
func TimeOfEpoch(seconds float64) (Time, error) {
	if math.IsNaN(seconds) || math.Abs(seconds) > maxEpochSeconds {
		return Time{}, fmt.Errorf("%v seconds since 1970 is no time", seconds)
	}
	return TimeOf(time.UnixMilli(int64(math.Round(seconds * 1000)))), nil
}

// timeLayouts are the ways in which clients write a time.
var timeLayouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "20060102T150405Z", "2006-01-02"}

// ParseTime reads ISO 8601, in UTC where no zone is given, or seconds since 1970.
func ParseTime(text string) (Time, error) {
	for _, layout := range timeLayouts {
		if t, err := time.Parse(layout, text); err == nil && t.Year() >= 0 && t.Year() <= 9999 {
			return TimeOf(t), nil
		}
	}
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		return TimeOfEpoch(seconds)
	}
	return Time{}, fmt.Errorf("%q is no time; write it as in 2026-01-31T23:59:59Z", text)
}

// Epoch returns the seconds since 1970, with the milliseconds as a fraction.
func (t Time) Epoch() float64 { return float64(t.UnixMilli()) / 1000 }

// String returns the time in ISO 8601.
func (t Time) String() string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// MarshalJSON writes seconds since 1970.
func (t Time) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, t.Epoch(), 'f', -1, 64), nil
}

// UnmarshalJSON reads seconds since 1970, or a string that ParseTime reads.
func (t *Time) UnmarshalJSON(b []byte) error {
	if bytes.Equal(b, []byte("null")) {
		return nil
	}
	wrong := &json.UnmarshalTypeError{Value: string(b[:min(len(b), 40)]), Type: reflect.TypeFor[Time]()}
	var parsed Time
	var err error
	if len(b) > 0 && b[0] == '"' {
		var text string
		if err := json.Unmarshal(b, &text); err != nil {
			return err
		}
		parsed, err = ParseTime(text)
	} else {
		var seconds float64
		if err := json.Unmarshal(b, &seconds); err != nil {
			return wrong
		}
		parsed, err = TimeOfEpoch(seconds)
	}
	if err != nil {
		return wrong
	}
	*t = parsed
	return nil
}

// MarshalText writes ISO 8601.
func (t Time) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads what ParseTime reads.
func (t *Time) UnmarshalText(b []byte) error {
	parsed, err := ParseTime(string(b))
	if err == nil {
		*t = parsed
	}
	return err
}
