package awsquery_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/awsquery"
)

type attribute struct {
	DataType    string  `json:"DataType"`
	StringValue *string `json:"StringValue,omitempty"`
	BinaryValue []byte  `json:"BinaryValue,omitempty"`
}

type entry struct {
	ID         string               `json:"Id"`
	Attributes map[string]attribute `json:"MessageAttributes,omitempty" query:"MessageAttribute,flat,key=Name,value=Value"`
}

type inner struct {
	Text   string   `json:"Text"`
	Number *int     `json:"Number"`
	Small  int8     `json:"Small"`
	Big    uint64   `json:"Big"`
	Ratio  float64  `json:"Ratio"`
	Yes    bool     `json:"Yes"`
	When   api.Time `json:"When"`
	Then   *time.Time
	Hidden string `json:"Hidden" query:"-"`
}

type everything struct {
	inner
	Names    []string          `json:"AttributeNames" query:"AttributeName,flat"`
	Plain    map[string]string `json:"Attributes" query:"Attribute,flat,key=Name,value=Value"`
	Entries  []entry           `json:"Entries" query:"Entry,flat"`
	Members  []string          `json:"Members"`
	Renamed  []entry           `json:"Groups" query:"Groups,member=Group"`
	Default  map[string]int    `json:"Default"`
	Matrix   [][]string        `json:"Matrix"`
	Optional *entry            `json:"Optional,omitempty"`
}

func parse(t *testing.T, form string) *awsquery.Codec {
	t.Helper()
	p, err := awsquery.Parse("", form)
	if err != nil {
		t.Fatal(err)
	}
	return &awsquery.Codec{Params: p, Op: "Do", Namespace: "urn:x"}
}

func ptr[T any](v T) *T { return &v }

func TestDecode(t *testing.T) {
	at := time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)
	for form, want := range map[string]everything{
		"Text=a%20b%2B&Number=-3&Small=-128&Big=18446744073709551615&Ratio=1.5&Yes=true&Hidden=x&Unknown.1.x=y": {
			inner: inner{Text: "a b+", Number: ptr(-3), Small: -128, Big: math.MaxUint64, Ratio: 1.5, Yes: true},
		},
		"When=2026-11-26T10:00:00Z&Then=1795687200.5": {
			inner: inner{When: api.Time{Time: at}, Then: ptr(at.Add(500 * time.Millisecond))},
		},
		"AttributeName.10=c&AttributeName.2=b&AttributeName.1=a": {Names: []string{"a", "b", "c"}},
		"AttributeName=All":                     {Names: []string{"All"}},
		"AttributeName=":                        {Names: []string{}},
		"Members.member.2=b&Members.member.1=a": {Members: []string{"a", "b"}},
		"Attribute.1.Name=A&Attribute.1.Value=1&Attribute.3.Value=2&Attribute.3.Name=B": {Plain: map[string]string{"A": "1", "B": "2"}},
		"Attribute.Name=A&Attribute.Value=1":                                            {Plain: map[string]string{"A": "1"}},
		"Default.entry.1.key=k&Default.entry.1.value=7&Default.entry.2.key=l":           {Default: map[string]int{"k": 7, "l": 0}},
		"Matrix.member.1.member.1=a&Matrix.member.1.member.2=b&Matrix.member.2.member.1=c": {
			Matrix: [][]string{{"a", "b"}, {"c"}},
		},
		"Entry.1.Id=x&Entry.1.MessageAttribute.1.Name=n&Entry.1.MessageAttribute.1.Value.DataType=Binary&Entry.1.MessageAttribute.1.Value.BinaryValue=AP8%3D": {
			Entries: []entry{{ID: "x", Attributes: map[string]attribute{"n": {DataType: "Binary", BinaryValue: []byte{0, 255}}}}},
		},
		"Groups.Group.1.Id=x&Optional.Id=y": {Renamed: []entry{{ID: "x"}}, Optional: &entry{ID: "y"}},
		"Text=%FF&Text=second":              {inner: inner{Text: "\uFFFD"}},
		"&&":                                {},
	} {
		var got everything
		if err := parse(t, form).Decode(&got); err != nil {
			t.Errorf("%s: %v", form, err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(everything{})); diff != "" {
			t.Errorf("%s: %s", form, diff)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	many := make([]string, 2001)
	for i := range many {
		many[i] = fmt.Sprintf("AttributeName.%d=x", i+1)
	}
	for _, form := range []string{
		"Number=x", "Number=", "Number=1.0", "Small=128", "Big=-1", "Ratio=NaN", "Ratio=x", "Yes=1", "When=yesterday", "When=1e99", "Then=NaN",
		"AttributeName.x=1", "AttributeName.-1=1", "AttributeName.01=1", "AttributeName.99999999999=1", "Entry.1.Id.=x&Entry.x.Id=y",
		"Attribute.1.Value=x", "Default.entry.1.key=k&Default.entry.1.value=x",
		"Entry.1.MessageAttribute.1.Name=n&Entry.1.MessageAttribute.1.Value.BinaryValue=*", strings.Join(many, "&"),
	} {
		var e *api.Error
		if err := parse(t, form).Decode(&everything{}); !errors.As(err, &e) || e.Type != "MalformedInput" || e.Status != 400 {
			t.Errorf("%.60s: %v", form, err)
		}
	}
	for _, form := range []string{"%", "a=%zz", "%zz=a", strings.Repeat("a.", 40) + "=1", strings.Repeat("a&", 20_001)} {
		var e *api.Error
		if _, err := awsquery.Parse(form); !errors.As(err, &e) || e.Type != "MalformedQueryString" {
			t.Errorf("%.60s: %v", form, err)
		}
	}
}

func TestParametersOfPathAndQueryString(t *testing.T) {
	p, err := awsquery.Parse("Action=A&QueueUrl=mine", "Action=B&Extra=x")
	if err != nil {
		t.Fatal(err)
	}
	p.Default(map[string]string{"QueueUrl": "path", "Other": "path"})
	for name, want := range map[string]string{"Action": "A", "QueueUrl": "mine", "Extra": "x", "Other": "path", "None": ""} {
		if got := p.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func answer(t *testing.T, c *awsquery.Codec, out any) string {
	t.Helper()
	w := httptest.NewRecorder()
	if err := c.Encode(w, "id", out); err != nil {
		t.Fatal(err)
	}
	if w.Header().Get("X-Amzn-Requestid") != "id" || w.Code != http.StatusOK {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	return w.Body.String()
}

const metadata = `<ResponseMetadata><RequestId>id</RequestId></ResponseMetadata></DoResponse>`

func TestEncode(t *testing.T) {
	const start = "<?xml version=\"1.0\"?>\n" + `<DoResponse xmlns="urn:x">`
	c := parse(t, "")
	if got := answer(t, c, &api.Empty{}); got != start+metadata {
		t.Error(got)
	}
	type messages struct {
		Messages []entry `json:"Messages,omitempty" query:"Message,flat"`
	}
	if got := answer(t, c, &messages{}); got != start+"<DoResult/>"+metadata {
		t.Error(got)
	}
	at := time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)
	got := answer(t, c, &everything{
		inner: inner{Text: "<a>&\"'\r\n\t\x01\xff", Number: ptr(0), When: api.Time{Time: at}, Then: ptr(at.Add(1500 * time.Millisecond)), Ratio: 1e21, Hidden: "x"},
		Names: []string{"p", "q"}, Plain: map[string]string{"b": "2", "a": "1"}, Members: []string{"x"}, Default: map[string]int{"k": 1},
		Renamed: []entry{{ID: "g"}}, Matrix: [][]string{{"a"}, {}}, Entries: []entry{},
	})
	want := start + "<DoResult><Text>&lt;a&gt;&amp;&quot;'&#xD;\n\t\uFFFD\uFFFD</Text><Number>0</Number><Small>0</Small><Big>0</Big>" +
		"<Ratio>1000000000000000000000</Ratio><Yes>false</Yes><When>2026-11-26T10:00:00Z</When><Then>2026-11-26T10:00:01.500Z</Then>" +
		"<AttributeName>p</AttributeName><AttributeName>q</AttributeName>" +
		"<Attribute><Name>a</Name><Value>1</Value></Attribute><Attribute><Name>b</Name><Value>2</Value></Attribute>" +
		"<Members><member>x</member></Members><Groups><Group><Id>g</Id></Group></Groups>" +
		"<Default><entry><key>k</key><value>1</value></entry></Default>" +
		"<Matrix><member><member>a</member></member><member/></Matrix></DoResult>" + metadata
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestEncodeJSON(t *testing.T) {
	c := parse(t, "")
	c.JSON = true
	type out struct {
		Messages []entry           `json:"Messages,omitempty" query:"Message,flat,json=messages"`
		Plain    map[string]string `json:"Attributes" query:"Attribute,flat,key=Name,value=Value"`
		When     api.Time          `json:"When"`
		Count    int               `json:"Count"`
	}
	got := answer(t, c, &out{Plain: map[string]string{"a": "1"}, When: api.Time{Time: time.Unix(1_600_000_000, 0)}, Count: 3})
	want := `{"DoResponse":{"DoResult":{"Attributes":[{"Name":"a","Value":"1"}],"Count":3,"When":1600000000,"messages":null},"ResponseMetadata":{"RequestId":"id"}}}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := answer(t, c, &api.Empty{}); got != `{"DoResponse":{"ResponseMetadata":{"RequestId":"id"}}}` {
		t.Error(got)
	}
}

func TestEncodeError(t *testing.T) {
	c := parse(t, "")
	e := &api.Error{Type: "NoQueue", Code: "Legacy.NoQueue", Status: 400, Message: "none", QueryMessage: "none <for> this version"}
	w := httptest.NewRecorder()
	c.EncodeError(w, "id", e)
	want := "<?xml version=\"1.0\"?>\n" + `<ErrorResponse xmlns="urn:x"><Error><Type>Sender</Type><Code>Legacy.NoQueue</Code>` +
		`<Message>none &lt;for&gt; this version</Message><Detail/></Error><RequestId>id</RequestId></ErrorResponse>`
	if w.Body.String() != want || w.Code != 400 || w.Header().Get("Content-Type") != "text/xml" {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	c.JSON = true
	w = httptest.NewRecorder()
	c.EncodeError(w, "id", api.ErrInternal)
	if !strings.HasPrefix(w.Body.String(), `{"Error":{"Code":"InternalFailure","Message":"The request`) || !strings.Contains(w.Body.String(), `"Type":"Receiver"},"RequestId":"id"}`) {
		t.Error(w.Body)
	}
}

// FuzzCall feeds forms: they decode or are refused, and what was decoded comes out as XML and JSON
// that other parsers take.
func FuzzCall(f *testing.F) {
	for _, form := range []string{
		"Text=a&Number=1&When=2026-11-26T10:00:00Z", "AttributeName.1=a&AttributeName.x=b", "Attribute.1.Name=a&Attribute.1.Value=b",
		"Entry.1.Id=x&Entry.1.MessageAttribute.1.Name=n&Entry.1.MessageAttribute.1.Value.BinaryValue=AA==", "Matrix.member.1.member.2=%00",
		"Default.entry.1.key=k&Default.entry.1.value=1", "a.b.c.d=1&a=2&a.b=3&.=&..=&=", "Optional=x&Optional.Id=%C3%28", "Ratio=-0&Big=9",
	} {
		f.Add(form)
	}
	f.Fuzz(func(t *testing.T, form string) {
		p, err := awsquery.Parse(form)
		if err != nil {
			return
		}
		c := &awsquery.Codec{Params: p, Op: "Do"}
		var in everything
		if c.Decode(&in) != nil {
			return
		}
		for d := xml.NewDecoder(strings.NewReader(answer(t, c, &in))); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%q: %v", form, err)
			}
		}
		c.JSON = true
		if text := answer(t, c, &in); !json.Valid([]byte(text)) {
			t.Errorf("%q: %s", form, text)
		}
	})
}

func TestForm(t *testing.T) {
	for kind, want := range map[string]bool{
		"application/x-www-form-urlencoded": true, "application/x-www-form-urlencoded; charset=utf-8": true, "text/plain": false, "": false,
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set("Content-Type", kind)
		if awsquery.Form(r) != want {
			t.Errorf("%q: %v", kind, !want)
		}
	}
}
