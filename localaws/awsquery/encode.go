package awsquery

import (
	"encoding/base64"
	"math"
	"reflect"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/stepfleet/stepfleet/localaws/shape"
)

// entryElement is the name of a map's entries.
const entryElement = "entry"

// AppendXML appends the members of a struct, or of what out points to, as XML elements.
func (s Style) AppendXML(b []byte, out any) []byte {
	return s.appendStruct(b, reflect.Indirect(reflect.ValueOf(out)))
}

func (s Style) appendStruct(b []byte, v reflect.Value) []byte {
	fields := shape.Of(v.Type()).Fields
	for i := range fields {
		f := &fields[i]
		if f.Query == "" {
			continue
		}
		if value := f.In(v); !f.Omitted(value) {
			b = s.appendMember(b, f.Query, reflect.Indirect(value), f.List)
		}
	}
	return b
}

// appendMember appends one member as an element, or as one for each of its own elements when it is
// a flat list or map.
func (s Style) appendMember(b []byte, name string, v reflect.Value, list shape.List) []byte {
	isMap := v.Kind() == reflect.Map
	if !isMap && (v.Kind() != reflect.Slice || shape.IsBytes(v.Type())) {
		return s.appendElement(b, name, v)
	}
	if list.Flat && !s.NestedOut {
		return s.appendElements(b, name, v, list)
	}
	member := list.Member
	switch {
	case member != "":
	case isMap:
		member = entryElement
	default:
		member = s.Element
	}
	if v.Len() == 0 {
		return append(append(append(b, '<'), name...), "/>"...)
	}
	b = open(b, name)
	return closing(s.appendElements(b, member, v, list), name)
}

// appendElements appends what a list or map holds, maps by key.
func (s Style) appendElements(b []byte, name string, v reflect.Value, list shape.List) []byte {
	if v.Kind() == reflect.Slice {
		for i := range v.Len() {
			b = s.appendElement(b, name, reflect.Indirect(v.Index(i)))
		}
		return b
	}
	for _, key := range sortedKeys(v) {
		b = open(b, name)
		b = s.appendElement(b, list.Key, key)
		b = s.appendElement(b, list.Value, reflect.Indirect(v.MapIndex(key)))
		b = closing(b, name)
	}
	return b
}

func sortedKeys(v reflect.Value) []reflect.Value {
	return slices.SortedFunc(slices.Values(v.MapKeys()), func(a, b reflect.Value) int {
		switch x, y := a.String(), b.String(); {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
}

// appendElement appends one element with a value that is not nil; a nil pointer in a list is an
// empty element.
func (s Style) appendElement(b []byte, name string, v reflect.Value) []byte {
	if v.IsValid() && (v.Kind() == reflect.Map || v.Kind() == reflect.Slice && !shape.IsBytes(v.Type())) {
		return s.appendMember(b, name, v, shape.Nested)
	}
	return closing(s.appendValue(open(b, name), v), name)
}

func open(b []byte, name string) []byte { return append(append(append(b, '<'), name...), '>') }

func closing(b []byte, name string) []byte { return append(append(append(b, "</"...), name...), '>') }

func (s Style) appendValue(b []byte, v reflect.Value) []byte {
	switch {
	case !v.IsValid():
		return b
	case shape.IsTime(v.Type()):
		return appendTime(b, shape.Time(v))
	case shape.IsBytes(v.Type()):
		return base64.StdEncoding.AppendEncode(b, v.Bytes())
	}
	switch v.Kind() {
	case reflect.Struct:
		return s.appendStruct(b, v)
	case reflect.String:
		return appendText(b, v.String())
	case reflect.Bool:
		return strconv.AppendBool(b, v.Bool())
	case reflect.Float32, reflect.Float64:
		return appendFloat(b, v.Float(), v.Type().Bits())
	}
	if v.CanInt() {
		return strconv.AppendInt(b, v.Int(), 10)
	}
	return strconv.AppendUint(b, v.Uint(), 10)
}

// appendTime writes ISO 8601, with milliseconds where there are any.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC().Truncate(time.Millisecond)
	if t.Nanosecond() == 0 {
		return t.AppendFormat(b, "2006-01-02T15:04:05Z")
	}
	return t.AppendFormat(b, "2006-01-02T15:04:05.000Z")
}

// appendFloat writes a number as the XML schema has it.
func appendFloat(b []byte, x float64, bits int) []byte {
	switch {
	case math.IsInf(x, 1):
		return append(b, "Infinity"...)
	case math.IsInf(x, -1):
		return append(b, "-Infinity"...)
	}
	return strconv.AppendFloat(b, x, 'f', -1, bits)
}

// appendText escapes as AWS does: quotes and carriage returns too, newlines not. What XML cannot
// hold becomes U+FFFD.
func appendText(b []byte, text string) []byte {
	for i := 0; i < len(text); {
		r, width := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == '&':
			b = append(b, "&amp;"...)
		case r == '<':
			b = append(b, "&lt;"...)
		case r == '>':
			b = append(b, "&gt;"...)
		case r == '"':
			b = append(b, "&quot;"...)
		case r == '\r':
			b = append(b, "&#xD;"...)
		case !inXML(r):
			b = append(b, "\uFFFD"...)
		default:
			b = utf8.AppendRune(b, r)
		}
		i += width
	}
	return b
}

func inXML(r rune) bool {
	return r == '\t' || r == '\n' || r >= 0x20 && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= 0x10FFFF
}

// AppendElement appends an element that holds text.
func AppendElement(b []byte, name, text string) []byte {
	return closing(appendText(open(b, name), text), name)
}
