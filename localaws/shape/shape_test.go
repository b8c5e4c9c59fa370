package shape_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/shape"
)

type base struct {
	Name  string `json:"Name"`
	Inner int    `json:"Inner,omitempty"`
}

type outer struct {
	base
	Name    string            `json:"Name" query:"Title,json=title"`
	Map     map[string]string `json:"Map" query:",flat,key=K,value=V"`
	List    []string          `json:"List" query:"Items,member=Item"`
	Secret  string            `json:"Secret" query:"-"`
	Gone    string            `json:"-"`
	Plain   *int
	private int
	When    api.Time `json:"When,omitzero"`
}

func TestOf(t *testing.T) {
	_ = outer{}.private
	s := shape.Of(reflect.TypeFor[outer]())
	type seen struct {
		name, query, json string
		list              shape.List
	}
	var got []seen
	for _, f := range s.Fields {
		got = append(got, seen{f.Name, f.Query, f.QueryJSON, f.List})
	}
	want := []seen{
		{"Name", "Title", "title", shape.Nested},
		{"Inner", "Inner", "Inner", shape.Nested},
		{"Map", "Map", "Map", shape.List{Flat: true, Key: "K", Value: "V"}},
		{"List", "Items", "List", shape.List{Member: "Item", Key: "key", Value: "value"}},
		{"Secret", "", "Secret", shape.Nested},
		{"Plain", "Plain", "Plain", shape.Nested},
		{"When", "When", "When", shape.Nested},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if s != shape.Of(reflect.TypeFor[outer]()) {
		t.Error("the shape was made twice")
	}
	v := outer{base: base{Name: "inner"}, Name: "outer"}
	if got := s.Field("Name").In(reflect.ValueOf(v)).String(); got != "outer" {
		t.Error(got)
	}
	if s.Field("Gone") != nil || s.Field("private") != nil {
		t.Error("fields that JSON does not have")
	}
}

func TestOmitted(t *testing.T) {
	s := shape.Of(reflect.TypeFor[outer]())
	full := outer{base: base{Inner: 1}, Map: map[string]string{}, List: []string{}, Plain: new(int), When: api.Time{Time: time.Unix(0, 0)}}
	for name, omitted := range map[string]bool{"Name": false, "Inner": true, "Map": true, "List": true, "Plain": true, "When": true} {
		f := s.Field(name)
		if got := f.Omitted(f.In(reflect.ValueOf(outer{}))); got != omitted {
			t.Errorf("%s of nothing: %v", name, got)
		}
		if f.Omitted(f.In(reflect.ValueOf(full))) {
			t.Errorf("%s of something is omitted", name)
		}
	}
}

func TestMalformedTags(t *testing.T) {
	for _, t2 := range []reflect.Type{
		reflect.TypeFor[struct {
			A string `query:"A,flt"`
		}](),
		reflect.TypeFor[struct {
			A string `query:"A,key="`
		}](),
		reflect.TypeFor[struct {
			A string `query:"A,flat=true"`
		}](),
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%v was taken", t2)
				}
			}()
			shape.Of(t2)
		}()
	}
}

type loop struct {
	Next *loop
	Kids []loop
}

func TestCheck(t *testing.T) {
	for _, good := range []reflect.Type{reflect.TypeFor[outer](), reflect.TypeFor[loop](), reflect.TypeFor[api.Empty]()} {
		if err := shape.Check(good); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
	for _, bad := range []reflect.Type{
		reflect.TypeFor[struct{ F func() }](), reflect.TypeFor[struct{ A any }](), reflect.TypeFor[struct{ M map[int]string }](),
		reflect.TypeFor[struct{ P **int }](), reflect.TypeFor[struct{ L []chan int }](), reflect.TypeFor[struct{ C complex128 }](),
	} {
		if shape.Check(bad) == nil {
			t.Errorf("%v passed", bad)
		}
	}
}
