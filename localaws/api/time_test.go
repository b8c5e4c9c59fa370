package api

import (
	"encoding/json"
	"testing"
	"time"
)

func TestTimeOnTheWire(t *testing.T) {
	want := time.Date(2026, 1, 31, 23, 59, 59, 125_000_000, time.UTC)
	for text, ms := range map[string]bool{
		"1769903999.125": true, "1769903999": false, "1.769903999125e9": true, `"2026-01-31T23:59:59.125Z"`: true,
		`"2026-02-01T00:59:59+01:00"`: false, `"2026-01-31T23:59:59"`: false, `"1769903999.125"`: true,
	} {
		var got struct{ T Time }
		if err := json.Unmarshal([]byte(`{"T":`+text+`}`), &got); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		want := want
		if !ms {
			want = want.Truncate(time.Second)
		}
		if !got.T.Equal(want) {
			t.Errorf("%s is %v", text, got.T)
		}
	}
	out, err := json.Marshal([]any{TimeOf(want), TimeOf(want.Truncate(time.Second)), Time{time.Unix(0, 0)}})
	if err != nil || string(out) != "[1769903999.125,1769903999,0]" {
		t.Errorf("%s %v", out, err)
	}
	if text, err := TimeOf(want).MarshalText(); err != nil || string(text) != "2026-01-31T23:59:59.125Z" {
		t.Errorf("%s %v", text, err)
	}
}

func TestTimeRefusesWhatIsNone(t *testing.T) {
	for _, text := range []string{`"yesterday"`, `{}`, `[]`, `true`, `1e300`, `-1e300`, `"NaN"`, `"Infinity"`, `""`, `"10000-01-01T00:00:00Z"`} {
		var got struct{ T Time }
		if err := json.Unmarshal([]byte(`{"T":`+text+`}`), &got); err == nil {
			t.Errorf("%s is taken for %v", text, got.T)
		}
	}
}
