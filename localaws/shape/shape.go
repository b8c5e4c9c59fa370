// Package shape is what a struct of an operation looks like on the wire. It reads the tags once a
// type; the reflective protocols (awsquery, ec2query, awscbor) all work from it, so that a struct
// means the same in each. awsjson leaves the same tags to encoding/json.
//
// A field's name is that of its json tag. The tag "query" says where the Query protocol differs:
//
//	query:"Name"                               another name
//	query:"Name,flat"                          Name.N for Name.member.N; repeated <Name> elements
//	query:"Attribute,flat,key=Name,value=Value" a map as Attribute.N.Name and Attribute.N.Value
//	query:"Name,member=DBInstance"             another name for the elements of a list or map
//	query:"Name,json=messages"                 another name in JSON answers to Query calls
//	query:"-"                                  not in the Query protocol
//
// A field may be a string, bool, integer, float, []byte, time.Time, api.Time, or a pointer, slice,
// map with string keys or struct of these. Embedded structs count as their fields.
package shape

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
)

// Shape is a struct's members in order.
type Shape struct {
	Fields []Field
	byName map[string]*Field
}

// Field is one member.
type Field struct {
	// Name is the member in JSON and CBOR.
	Name string
	// Query is the member in the Query protocol; empty for one that it does not have.
	Query string
	// QueryJSON is the member in JSON answers to Query calls.
	QueryJSON string
	// List is how the Query protocol writes a list or a map.
	List List

	index               []int
	omitEmpty, omitZero bool
}

// List is how the Query protocol writes a list or a map.
type List struct {
	// Flat leaves out the level between the name and the number.
	Flat bool
	// Member is the name of that level; empty is the protocol's own.
	Member string
	// Key and Value name the halves of a map's entry.
	Key, Value string
}

// Nested is the List of what is in a list or map itself, and has no tag.
var Nested = List{Key: "key", Value: "value"}

var shapes sync.Map // of reflect.Type to *Shape

// Of returns the shape of a struct type. It panics when a tag is malformed.
func Of(t reflect.Type) *Shape {
	if s, ok := shapes.Load(t); ok {
		return s.(*Shape)
	}
	s := &Shape{byName: map[string]*Field{}}
	s.collect(t, nil)
	for i := range s.Fields {
		s.byName[s.Fields[i].Name] = &s.Fields[i]
	}
	kept, _ := shapes.LoadOrStore(t, s)
	return kept.(*Shape)
}

// Field returns the member with that JSON name, or nil.
func (s *Shape) Field(name string) *Field { return s.byName[name] }

// collect adds the fields of t, those of an embedded struct in its place. Of two with one name the
// outer one stays, as in encoding/json.
func (s *Shape) collect(t reflect.Type, index []int) {
	for i := range t.NumField() {
		f := t.Field(i)
		at := append(index[:len(index):len(index)], i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct && !IsTime(f.Type):
			s.collect(f.Type, at)
		case f.IsExported() && name != "-":
			s.add(fieldOf(f, name, options, at))
		}
	}
}

func (s *Shape) add(f Field) {
	for i := range s.Fields {
		if s.Fields[i].Name != f.Name {
			continue
		}
		if len(f.index) < len(s.Fields[i].index) {
			s.Fields[i] = f
		}
		return
	}
	s.Fields = append(s.Fields, f)
}

func fieldOf(f reflect.StructField, name, options string, index []int) Field {
	if name == "" {
		name = f.Name
	}
	out := Field{Name: name, Query: name, QueryJSON: name, List: Nested, index: index}
	for option := range strings.SplitSeq(options, ",") {
		out.omitEmpty = out.omitEmpty || option == "omitempty"
		out.omitZero = out.omitZero || option == "omitzero"
	}
	tag, ok := f.Tag.Lookup("query")
	if !ok {
		return out
	}
	parts := strings.Split(tag, ",")
	switch parts[0] {
	case "-":
		out.Query = ""
		return out
	case "":
	default:
		out.Query = parts[0]
	}
	for _, part := range parts[1:] {
		if err := out.option(part); err != nil {
			panic(fmt.Sprintf("field %s: query tag %q: %v", f.Name, tag, err))
		}
	}
	return out
}

func (f *Field) option(text string) error {
	name, value, hasValue := strings.Cut(text, "=")
	if hasValue == (name == "flat") || hasValue && value == "" {
		return fmt.Errorf("option %q: want flat, key=, value=, member= or json=", text)
	}
	switch name {
	case "flat":
		f.List.Flat = true
	case "key":
		f.List.Key = value
	case "value":
		f.List.Value = value
	case "member":
		f.List.Member = value
	case "json":
		f.QueryJSON = value
	default:
		return fmt.Errorf("option %q: want flat, key=, value=, member= or json=", text)
	}
	return nil
}

// In returns the field of a struct of the shape's type.
func (f *Field) In(v reflect.Value) reflect.Value {
	if len(f.index) == 1 {
		return v.Field(f.index[0])
	}
	return v.FieldByIndex(f.index)
}

// Omitted reports whether the field's value stays away from the wire: nil, or empty under
// omitempty. A nil one is null in JSON, which clients read as absent.
func (f *Field) Omitted(v reflect.Value) bool {
	if f.omitZero && v.IsZero() {
		return true
	}
	switch v.Kind() {
	case reflect.Pointer:
		return v.IsNil()
	case reflect.Slice, reflect.Map:
		return v.IsNil() || f.omitEmpty && v.Len() == 0
	case reflect.Struct:
		return false
	default:
		return f.omitEmpty && v.IsZero()
	}
}

var (
	timeType    = reflect.TypeFor[time.Time]()
	apiTimeType = reflect.TypeFor[api.Time]()
)

// IsTime reports whether the type is a timestamp.
func IsTime(t reflect.Type) bool { return t == timeType || t == apiTimeType }

// Time returns the timestamp in v.
func Time(v reflect.Value) time.Time {
	if v.Type() == apiTimeType {
		v = v.Field(0)
	}
	return v.Interface().(time.Time)
}

// SetTime puts a timestamp into v.
func SetTime(v reflect.Value, t time.Time) {
	if v.Type() == apiTimeType {
		v = v.Field(0)
	}
	v.Set(reflect.ValueOf(t))
}

// IsBytes reports whether the type is a []byte.
func IsBytes(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8
}

// Check returns an error when a type, or one inside it, cannot go over the wire.
func Check(t reflect.Type) error { return check(t, map[reflect.Type]bool{}) }

func check(t reflect.Type, seen map[reflect.Type]bool) error {
	if seen[t] || IsTime(t) || IsBytes(t) {
		return nil
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.String, reflect.Bool, reflect.Float32, reflect.Float64, reflect.Int, reflect.Int8, reflect.Int16,
		reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return nil
	case reflect.Pointer:
		if t.Elem().Kind() == reflect.Pointer {
			return fmt.Errorf("%v is a pointer to a pointer", t)
		}
		return check(t.Elem(), seen)
	case reflect.Slice:
		return check(t.Elem(), seen)
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			return fmt.Errorf("%v has keys that are not strings", t)
		}
		return check(t.Elem(), seen)
	case reflect.Struct:
		return checkFields(t, seen)
	}
	return fmt.Errorf("%v has no form on the wire", t)
}

func checkFields(t reflect.Type, seen map[reflect.Type]bool) error {
	for _, f := range Of(t).Fields {
		if err := check(t.FieldByIndex(f.index).Type, seen); err != nil {
			return fmt.Errorf("%v.%s: %w", t, f.Name, err)
		}
	}
	return nil
}
