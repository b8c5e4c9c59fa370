package awsquery

import (
	"encoding/base64"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/shape"
)

// maxElements bounds a list or a map in a call.
const maxElements = 2_000

// Decode fills the struct that in points to. Parameters that it has no field for are ignored, as
// on AWS. Errors are *api.Error.
func (s Style) Decode(p *Params, in any) error {
	return s.decodeStruct(&p.root, reflect.ValueOf(in).Elem())
}

func malformed(format string, args ...any) error { return api.ErrMalformedInput.With(format, args...) }

func (s Style) decodeStruct(n *node, v reflect.Value) error {
	fields := shape.Of(v.Type()).Fields
	for i := range fields {
		f := &fields[i]
		if f.Query == "" {
			continue
		}
		name := f.Query
		if s.Capitals {
			name = capital(name)
		}
		if kid := n.kids[name]; kid != nil {
			if err := s.decode(kid, f.In(v), name, f.List); err != nil {
				return err
			}
		}
	}
	return nil
}

func capital(name string) string {
	if name[0] < 'a' || name[0] > 'z' {
		return name
	}
	return string(name[0]-'a'+'A') + name[1:]
}

// decode fills one value; name is for errors.
func (s Style) decode(n *node, v reflect.Value, name string, list shape.List) error {
	switch {
	case shape.IsTime(v.Type()):
		return decodeTime(n.value, v, name)
	case shape.IsBytes(v.Type()):
		return decodeBytes(n.value, v, name)
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return s.decode(n, v.Elem(), name, list)
	case reflect.Struct:
		return s.decodeStruct(n, v)
	case reflect.Slice:
		return s.decodeList(n, v, name, list)
	case reflect.Map:
		return s.decodeMap(n, v, name, list)
	default:
		return decodeScalar(n.value, v, name)
	}
}

func decodeTime(text string, v reflect.Value, name string) error {
	if t, err := api.ParseTime(text); err == nil {
		shape.SetTime(v, t.Time)
		return nil
	}
	return malformed("%s is not a valid timestamp for parameter %s", text, name)
}

func decodeBytes(text string, v reflect.Value, name string) error {
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return malformed("The value of parameter %s is not valid base64", name)
	}
	v.SetBytes(b)
	return nil
}

func decodeScalar(text string, v reflect.Value, name string) error {
	ok := true
	switch v.Kind() {
	case reflect.String:
		v.SetString(strings.Clone(text)) // a part of the request would keep all of it
	case reflect.Bool:
		v.SetBool(strings.EqualFold(text, "true"))
		ok = v.Bool() || strings.EqualFold(text, "false")
	case reflect.Float32, reflect.Float64:
		x, err := strconv.ParseFloat(text, v.Type().Bits())
		v.SetFloat(x)
		ok = err == nil && !math.IsNaN(x) && !math.IsInf(x, 0)
	default:
		ok = setInteger(text, v)
	}
	if !ok {
		return malformed("%s can not be converted to the type of parameter %s", strconv.Quote(text), name)
	}
	return nil
}

func setInteger(text string, v reflect.Value) bool {
	if v.CanInt() {
		x, err := strconv.ParseInt(text, 10, v.Type().Bits())
		v.SetInt(x)
		return err == nil
	}
	x, err := strconv.ParseUint(text, 10, v.Type().Bits())
	v.SetUint(x)
	return err == nil
}

// decodeList fills a slice. An empty value is an empty list, which is how SDKs write one; a flat
// list may leave out the number of its only element.
func (s Style) decodeList(n *node, v reflect.Value, name string, list shape.List) error {
	var elements []*node
	if s.isFlat(list) && n.set && n.value != "" {
		elements = []*node{n}
	} else {
		var err error
		if elements, err = s.elements(n, name, list, s.Element); err != nil {
			return err
		}
	}
	v.Set(reflect.MakeSlice(v.Type(), len(elements), len(elements)))
	for i, kid := range elements {
		if err := s.decode(kid, v.Index(i), name, shape.Nested); err != nil {
			return err
		}
	}
	return nil
}

func (s Style) decodeMap(n *node, v reflect.Value, name string, list shape.List) error {
	elements := []*node{n}
	if n.kids[list.Key] == nil || !s.isFlat(list) {
		var err error
		if elements, err = s.elements(n, name, list, entryElement); err != nil {
			return err
		}
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), len(elements)))
	for _, kid := range elements {
		key, value := kid.kids[list.Key], reflect.New(v.Type().Elem()).Elem()
		if key == nil {
			return malformed("An entry of parameter %s has no %s", name, list.Key)
		}
		if half := kid.kids[list.Value]; half != nil {
			if err := s.decode(half, value, name, shape.Nested); err != nil {
				return err
			}
		}
		v.SetMapIndex(reflect.ValueOf(key.value).Convert(v.Type().Key()), value)
	}
	return nil
}

func (s Style) isFlat(list shape.List) bool { return list.Flat || s.FlatIn }

// elements returns the numbered nodes of a list or map in order; numbers may have gaps.
func (s Style) elements(n *node, name string, list shape.List, member string) ([]*node, error) {
	if !s.isFlat(list) {
		if list.Member != "" {
			member = list.Member
		}
		if n = n.kids[member]; n == nil {
			return nil, nil
		}
	}
	if len(n.kids) > maxElements {
		return nil, malformed("Parameter %s has more than %d elements", name, maxElements)
	}
	type numbered struct {
		number int
		node   *node
	}
	all := make([]numbered, 0, len(n.kids))
	for text, kid := range n.kids {
		number, err := strconv.ParseUint(text, 10, 31)
		if err != nil || strconv.FormatUint(number, 10) != text { // no two ways to write one number
			return nil, malformed("%s is not the number of an element of parameter %s", strconv.Quote(text), name)
		}
		all = append(all, numbered{int(number), kid})
	}
	slices.SortFunc(all, func(a, b numbered) int { return a.number - b.number })
	nodes := make([]*node, len(all))
	for i := range all {
		nodes[i] = all[i].node
	}
	return nodes, nil
}
