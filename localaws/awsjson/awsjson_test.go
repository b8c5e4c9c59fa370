package awsjson

import (
	"encoding/json"
	"errors"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet/localaws/api"
)

type everything struct {
	Text    string            `json:"Text"`
	Number  *int64            `json:"Number,omitempty"`
	Ratio   float64           `json:"Ratio,omitempty"`
	Bytes   []byte            `json:"Bytes,omitempty"`
	When    api.Time          `json:"When,omitzero"`
	Map     map[string]string `json:"Map,omitempty"`
	List    []everything      `json:"List,omitempty"`
	Pointer *everything       `json:"Pointer,omitempty"`
}

// An element of three bytes becomes a struct of many; the limit is on the whole message, however it
// is nested.
func TestTooManyValues(t *testing.T) {
	const one = `{"List":[`
	for name, test := range map[string]struct {
		body    string
		refused bool
	}{
		"a list":              {one + strings.Repeat("{},", maxItems/2) + "{}]}", true},
		"many lists":          {one + strings.Repeat(`{"List":[{},{}]},`, maxItems/6) + "{}]}", true},
		"nulls":               {one + strings.Repeat("null,", maxItems) + "null]}", true},
		"as many as may be":   {one + strings.Repeat("{},", maxItems/2-3) + "{}]}", false},
		"all of it in a text": {`{"Text":"` + strings.Repeat(`,[{\\\"`, maxItems/2) + `"}`, false},
		"a long text":         {`{"Text":"` + strings.Repeat("x", 2*maxItems) + `"}`, false},
	} {
		err := (&Codec{Body: []byte(test.body)}).Decode(&everything{})
		var e *api.Error
		if errors.As(err, &e) != test.refused || test.refused && !strings.Contains(e.Message, "more than 500000 values") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatIsOfTheWrongTypeIsNamed(t *testing.T) {
	for body, want := range map[string]string{
		`{"List":[{},{"Number":"7"}]}`:   "A string can not be converted to the type of /List/1/Number",
		`{"Number":9999999999999999999}`: "A number can not be converted to the type of /Number",
		`{"Text":["a"]}`:                 "A list can not be converted to the type of /Text",
		`[]`:                             "A list can not be converted to the type of the request",
	} {
		err := (&Codec{Body: []byte(body)}).Decode(&everything{})
		var e *api.Error
		if !errors.As(err, &e) || e.Message != want {
			t.Errorf("%s: %v, want %q", body, err, want)
		}
	}
}

// FuzzCodec feeds bodies: they decode or are refused with words of ours, and what was decoded is
// answered as JSON that decodes to the same. No text has more values than are counted.
func FuzzCodec(f *testing.F) {
	for _, body := range []string{"", "{}", " null", `{"Text":"\ud800"}`, `{"List":[{"List":[null]}],"Map":{"":""}}`, `{"When":1e99}`, `{"Bytes":"AA="}`} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		var in, again everything
		if err := (&Codec{Body: []byte(body)}).Decode(&in); err != nil {
			if e, ok := err.(*api.Error); !ok || e.Type != "SerializationException" || strings.Contains(e.Message, "Go ") {
				t.Errorf("%q: %v", body, err)
			}
			return
		}
		w := httptest.NewRecorder()
		if err := (&Codec{}).Encode(w, "id", &in); err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		if err := (&Codec{Body: w.Body.Bytes()}).Decode(&again); err != nil {
			t.Fatalf("%q became %s: %v", body, w.Body, err)
		}
		out, err := json.Marshal(&in)
		twice, err2 := json.Marshal(&again)
		if err != nil || err2 != nil || string(out) != string(twice) {
			t.Errorf("%q became %s, then %s: %v %v", body, out, twice, err, err2)
		}
		if values := count(reflect.ValueOf(in)); values > 0 && !hasMoreItems([]byte(body), values-1) {
			t.Errorf("%q has %d values, and fewer are counted", body, values)
		}
	})
}

// count returns how many elements a struct has in lists and maps, all the way down.
func count(v reflect.Value) (n int) {
	in := v.Interface().(everything)
	n = len(in.Map) + len(in.List)
	for i := range in.List {
		n += count(reflect.ValueOf(in.List[i]))
	}
	if in.Pointer != nil {
		n += count(reflect.ValueOf(*in.Pointer))
	}
	return n
}
