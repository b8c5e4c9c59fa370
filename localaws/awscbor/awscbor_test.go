package awscbor_test

import (
	"encoding/hex"
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/aws/smithy-go/encoding/cbor"
	"github.com/google/go-cmp/cmp"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/awscbor"
)

type everything struct {
	Text   string            `json:"text,omitempty"`
	Number *int64            `json:"number,omitempty"`
	Small  int8              `json:"small,omitempty"`
	Big    uint64            `json:"big,omitempty"`
	Ratio  float64           `json:"ratio,omitempty"`
	Single float32           `json:"single,omitempty"`
	Yes    bool              `json:"yes,omitempty"`
	Bytes  []byte            `json:"bytes,omitempty"`
	When   api.Time          `json:"when,omitzero"`
	List   []everything      `json:"list,omitempty"`
	Map    map[string]string `json:"map,omitempty"`
	Floats []float64         `json:"floats,omitempty"`
}

func unmarshal(t *testing.T, hexed string, in any) error {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(hexed, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return awscbor.Unmarshal(b, in)
}

// TestNumbersOfTheStandard decodes numbers of appendix A of RFC 8949.
func TestNumbersOfTheStandard(t *testing.T) {
	for hexed, want := range map[string]float64{
		"00": 0, "17": 23, "1818": 24, "1864": 100, "1903e8": 1000, "1a000f4240": 1000000, "1b000000e8d4a51000": 1000000000000,
		"20": -1, "29": -10, "3863": -100, "3903e7": -1000, "f90000": 0, "f98000": math.Copysign(0, -1), "f93c00": 1,
		"fb3ff199999999999a": 1.1, "f93e00": 1.5, "f97bff": 65504, "fa47c35000": 100000, "fa7f7fffff": 3.4028234663852886e+38,
		"fb7e37e43c8800759c": 1e300, "f90001": 5.960464477539063e-8, "f90400": 0.00006103515625, "f9c400": -4, "fbc010666666666666": -4.1,
		"f97c00": math.Inf(1), "f9fc00": math.Inf(-1), "fa7f800000": math.Inf(1),
	} {
		var got struct {
			X float64 `json:"x"`
		}
		if err := unmarshal(t, "a1 6178"+hexed, &got); err != nil || math.Float64bits(got.X) != math.Float64bits(want) {
			t.Errorf("%s: %v %v, want %v", hexed, got.X, err, want)
		}
	}
	var nan struct {
		X float64 `json:"x"`
	}
	if err := unmarshal(t, "a16178f97e00", &nan); err != nil || !math.IsNaN(nan.X) {
		t.Errorf("NaN: %v %v", nan.X, err)
	}
}

func TestDecode(t *testing.T) {
	n := int64(-5)
	for hexed, want := range map[string]everything{
		"a0":                                   {},
		"bfff":                                 {},
		"f6":                                   {},
		"a1 6474657874 7f 6161 626263 ff":      {Text: "abc"},            // a text in chunks
		"a1 656279746573 5f 4101 420203 ff":    {Bytes: []byte{1, 2, 3}}, // bytes in chunks
		"a1 656279746573 40":                   {Bytes: nil},
		"a1 666e756d626572 24":                 {Number: &n},
		"a1 666e756d626572 fbc014000000000000": {Number: &n}, // -5.0
		"a1 666e756d626572 f6":                 {},
		"a1 63626967 1bffffffffffffffff":       {Big: math.MaxUint64},
		"a1 65736d616c6c 387f":                 {Small: -128},
		"a1 63796573 f5":                       {Yes: true},
		"a1 63796573 f7":                       {},
		"a1 6477 68656e c1 1a5f5e1000":         {When: api.Time{Time: time.Unix(1600000000, 0).UTC()}},
		"a1 6477 68656e c1 fb41d7d78400200000": {When: api.Time{Time: time.Unix(1600000000, 500_000_000).UTC()}},
		"bf 646c697374 9f a0 bf 6474657874 6161 ff ff ff":              {List: []everything{{}, {Text: "a"}}},
		"a1 636d6170 a2 6161 6162 6163 6164":                           {Map: map[string]string{"a": "b", "c": "d"}},
		"a2 617a 83 01 d9d9f7 82 02 f4 a1 6161 f93c00 6474657874 6161": {Text: "a"}, // what is unknown is skipped
	} {
		var got everything
		if err := unmarshal(t, hexed, &got); err != nil {
			t.Errorf("%s: %v", hexed, err)
		}
		if len(got.Bytes) == 0 {
			got.Bytes = nil
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", hexed, diff)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	deep := strings.Repeat("81", 100) + "00"
	many := "a1 646c697374 9f" + strings.Repeat("a0", 200_000) + "ff"
	for _, hexed := range []string{
		"", "a1", "a161", "a1 6474657874", "a1 6474657874 63 6161", "a1 6474657874 01", "a1 6474657874 62 c328", // cut, wrong, not UTF-8
		"a0 00", "80", "01", "ff", "1c", "a1 ff", "bf 6161", "bf 6161 ff", "a1 01 02", "a1 6161 ff", // no map, or a broken one
		"a1 65736d616c6c 1880", "a1 65736d616c6c f93e00", "a1 65736d616c6c fb7ff0000000000000", "a1 63626967 20", "a1 666e756d626572 3bffffffffffffffff",
		"a1 63796573 01", "a1 656279746573 6161", "a1 656279746573 5f 6161 ff", "a1 656279746573 5f 5f ff ff", "a1 6477 68656e 6161",
		"a1 6477 68656e c1 fb7e37e43c8800759c", "bb ffffffffffffffff", "a1 646c697374 9b ffffffffffffffff", "5b ffffffffffffffff", "a1 6474657874 7bffffffffffffffff",
		"a1 6161" + deep, "a1 646c697374 " + deep, many, strings.Repeat("c1", 100), "f801", "a1 636d6170 a1 6161 01", "1f", "df",
	} {
		var e *api.Error
		if err := unmarshal(t, hexed, &everything{}); !errors.As(err, &e) || e.Type != "SerializationException" {
			t.Errorf("%.60s: %v", hexed, err)
		}
	}
}

// An element of a byte becomes a struct of many; the limit is on the whole message, so that a list of
// lists may have no more than one list.
func TestElementsAreCountedForTheWholeMessage(t *testing.T) {
	const lists = 50
	size := int(reflect.TypeFor[everything]().Size())
	for each, refused := range map[int]bool{(16<<20)/size/lists - 1: false, (16<<20)/size/lists + 1: true} {
		kids := "646c697374 9f" + strings.Repeat("a0", each-1) + "ff"
		err := unmarshal(t, "a1 646c697374 9f"+strings.Repeat("a1"+kids, lists)+"ff", &everything{})
		if (err != nil) != refused {
			t.Errorf("%d lists of %d: %v", lists, each, err)
		}
	}
	entries := "636d6170 bf" + strings.Repeat("616160", (16<<20)/16+1) + "ff"
	if err := unmarshal(t, "a1"+entries, &everything{}); err == nil {
		t.Error("a map of too many entries is taken")
	}
}

// TestTheSDKReadsWhatWeWrite and the next one hold our CBOR against the SDK's.
func TestTheSDKReadsWhatWeWrite(t *testing.T) {
	n := int64(math.MinInt64)
	b := awscbor.Append(nil, reflect.ValueOf(&everything{
		Text: strings.Repeat("x", 70_000), Number: &n, Big: 1 << 40, Ratio: -0.1, Yes: true, Bytes: make([]byte, 300),
		When: api.Time{Time: time.Unix(1600000000, 250_000_000)}, List: []everything{{Small: -1}, {}}, Map: map[string]string{"b": "\xff", "a": ""},
	}))
	got, err := cbor.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	want := cbor.Map{
		"text": cbor.String(strings.Repeat("x", 70_000)), "number": cbor.NegInt(1 << 63), "big": cbor.Uint(1 << 40), "ratio": cbor.Float64(-0.1),
		"yes": cbor.Bool(true), "bytes": cbor.Slice(make([]byte, 300)), "when": &cbor.Tag{ID: 1, Value: cbor.Float64(1600000000.25)},
		"list": cbor.List{cbor.Map{"small": cbor.NegInt(1)}, cbor.Map{}}, "map": cbor.Map{"a": cbor.String(""), "b": cbor.String("\uFFFD")},
	}
	if diff := cmp.Diff(cbor.Value(want), got); diff != "" {
		t.Error(diff)
	}
}

func TestWeReadWhatTheSDKWrites(t *testing.T) {
	b := cbor.Encode(cbor.Map{
		"text": cbor.String("x"), "number": cbor.NegInt(7), "single": cbor.Float32(1.5), "bytes": cbor.Slice{1}, "yes": cbor.Bool(true),
		"when": &cbor.Tag{ID: 1, Value: cbor.Uint(1600000000)}, "floats": cbor.List{cbor.Float64(0.5), cbor.Uint(2)},
	})
	n := int64(-7)
	want := everything{
		Text: "x", Number: &n, Single: 1.5, Bytes: []byte{1}, Yes: true, When: api.Time{Time: time.Unix(1600000000, 0).UTC()}, Floats: []float64{0.5, 2},
	}
	var got everything
	if err := awscbor.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTarget(t *testing.T) {
	for path, want := range map[string][2]string{
		"/service/Granite/operation/PutMetricData": {"Granite", "PutMetricData"}, "/x/service/A/operation/B": {"A", "B"}, "/": {"/", ""}, "/service/A/operations/B": {"/service/A/operations/B", ""},
	} {
		r := httptest.NewRequest(http.MethodPost, path, nil)
		if _, _, ok := awscbor.Target(r); ok {
			t.Error("claimed a request without the header")
		}
		r.Header.Set("Smithy-Protocol", "rpc-v2-cbor")
		if service, op, ok := awscbor.Target(r); !ok || service != want[0] || op != want[1] {
			t.Errorf("%s: %q %q %v", path, service, op, ok)
		}
	}
}

func TestAnswers(t *testing.T) {
	c := &awscbor.Codec{Namespace: "com.amazonaws.x", QueryMode: true}
	w := httptest.NewRecorder()
	if err := c.Encode(w, "id", &api.Empty{}); err != nil || w.Body.Len() != 0 || w.Header().Get("Content-Type") != "" || w.Header().Get("Smithy-Protocol") != "rpc-v2-cbor" {
		t.Errorf("%v %v %x", err, w.Header(), w.Body)
	}
	w = httptest.NewRecorder()
	c.EncodeError(w, "id", &api.Error{Type: "Gone", Code: "Legacy.Gone", Status: 400, Message: "it is"})
	got, err := cbor.Decode(w.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(cbor.Value(cbor.Map{"__type": cbor.String("com.amazonaws.x#Gone"), "message": cbor.String("it is")}), got); diff != "" {
		t.Error(diff)
	}
	for name, want := range map[string]string{
		"Smithy-Protocol": "rpc-v2-cbor", "Content-Type": "application/cbor", "X-Amzn-Query-Error": "Legacy.Gone;Sender", "X-Amzn-Requestid": "id",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	n := int64(1)
	f.Add(awscbor.Append(nil, reflect.ValueOf(&everything{Text: "x", Number: &n, Bytes: []byte{1}, List: []everything{{Yes: true}}, Map: map[string]string{"a": "b"}})))
	for _, hexed := range []string{"bf6161ff", "a1646c6973749fa0ff", "5f41014102ff", "c1fb41d7d78400200000", "9b7fffffffffffffff", "a16477 68656ec1fb7e37e43c8800759c"} {
		b, _ := hex.DecodeString(strings.ReplaceAll(hexed, " ", ""))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var in, again everything
		if awscbor.Unmarshal(body, &in) != nil {
			return
		}
		out := awscbor.Append(nil, reflect.ValueOf(&in))
		if err := awscbor.Unmarshal(out, &again); err != nil {
			t.Fatalf("%x became %x: %v", body, out, err)
		}
		if twice := awscbor.Append(nil, reflect.ValueOf(&again)); string(twice) != string(out) {
			t.Errorf("%x became %x, then %x", body, out, twice)
		}
	})
}
