package awscbor

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"unicode/utf8"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/shape"
)

const (
	// maxDepth bounds nested lists, maps and tags.
	maxDepth = 64
	// maxElementBytes bounds what the elements of all lists and maps of a message take in memory: one
	// of a byte on the wire may be a large struct. The largest call of AWS, a PutMetricData with 1,000
	// metrics of 150 values each, takes a quarter. A length beyond the end of the input is refused
	// before anything is allocated for it.
	maxElementBytes = 16 << 20
	// minElementBytes is what an element counts at least.
	minElementBytes = 8
)

var (
	errShort   = errors.New("the input ends within an item")
	errDepth   = errors.New("items are nested too deeply")
	errSize    = errors.New("lists and maps have too many elements")
	errText    = errors.New("a text is not UTF-8")
	errInvalid = errors.New("an item is malformed")
)

// Unmarshal reads a CBOR map into the struct that in points to. Members that it has no field for
// are skipped. Errors are *api.Error.
func Unmarshal(body []byte, in any) error {
	d := decoder{rest: body}
	err := d.decode(reflect.ValueOf(in).Elem(), "", 0)
	if err == nil && len(d.rest) > 0 {
		err = errInvalid
	}
	var refused *api.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return refused
	}
	return api.ErrSerialization.With("The request body is not valid CBOR: %v.", err)
}

// decoder reads items from the front of rest.
type decoder struct {
	rest     []byte
	elements int // bytes that the elements so far take in memory
}

// element returns a new element of a list or map, or an error when there are too many.
func (d *decoder) element(t reflect.Type) (reflect.Value, error) {
	if d.elements += max(int(t.Size()), minElementBytes); d.elements > maxElementBytes {
		return reflect.Value{}, errSize
	}
	return reflect.New(t).Elem(), nil
}

// head is an item's first byte and its argument.
type head struct {
	major      byte
	info       byte // what stood beside the major type
	argument   uint64
	indefinite bool
}

func (h head) first() byte { return h.major | h.info }

func (h head) isNull() bool { return h.first() == simpleNull || h.first() == simpleUndefined }

func (d *decoder) head() (head, error) {
	if len(d.rest) == 0 {
		return head{}, errShort
	}
	h := head{major: d.rest[0] & 0xe0, info: d.rest[0] & 0x1f}
	d.rest = d.rest[1:]
	switch {
	case h.info < 24:
		h.argument = uint64(h.info)
		return h, nil
	case h.info == 31:
		h.indefinite = true
		if h.major == majorUint || h.major == majorNegInt || h.major == majorTag {
			return h, errInvalid
		}
		return h, nil
	case h.info > 27:
		return h, errInvalid
	}
	width := 1 << (h.info - 24)
	if len(d.rest) < width {
		return h, errShort
	}
	for _, b := range d.rest[:width] {
		h.argument = h.argument<<8 | uint64(b)
	}
	d.rest = d.rest[width:]
	if h.first() == majorSimple|24 && h.argument < 32 {
		return h, errInvalid // two ways to write one value
	}
	return h, nil
}

// item reads a head, past the tags before it. What a tag says is not needed: a field of type time
// takes a number, tagged or not. Tags count as levels; it fails beyond the last.
func (d *decoder) item(depth int) (head, error) {
	for range maxDepth - depth + 1 {
		if h, err := d.head(); err != nil || h.major != majorTag {
			return h, err
		}
	}
	return head{}, errDepth
}

// decode reads one item into v; name is the member's, for errors.
func (d *decoder) decode(v reflect.Value, name string, depth int) error {
	h, err := d.item(depth)
	if err != nil {
		return err
	}
	if h.isNull() {
		return nil
	}
	for v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	switch {
	case shape.IsTime(v.Type()):
		return d.decodeTime(h, v, name)
	case shape.IsBytes(v.Type()):
		if h.major != majorBytes {
			return mismatch(h, name)
		}
		b, err := d.chunks(h)
		v.SetBytes(bytes.Clone(b))
		return err
	}
	switch v.Kind() {
	case reflect.Struct:
		return d.decodeStruct(h, v, name, depth)
	case reflect.Slice:
		return d.decodeList(h, v, name, depth)
	case reflect.Map:
		return d.decodeMap(h, v, name, depth)
	case reflect.String:
		if h.major != majorText {
			return mismatch(h, name)
		}
		text, err := d.text(h)
		v.SetString(text)
		return err
	}
	return decodeScalar(h, v, name)
}

func mismatch(h head, name string) error {
	kinds := map[byte]string{
		majorUint: "A number", majorNegInt: "A number", majorBytes: "A byte string", majorText: "A text",
		majorArray: "A list", majorMap: "A map", majorSimple: "A simple value",
	}
	return api.ErrSerialization.With("%s can not be converted to the type of member %s", kinds[h.major], name)
}

// number returns a number of any kind as a float.
func (h head) number() (x float64, ok bool) {
	switch {
	case h.major == majorUint:
		return float64(h.argument), true
	case h.major == majorNegInt:
		return -1 - float64(h.argument), true
	case h.first() == floatHalf:
		return half(uint16(h.argument)), true
	case h.first() == floatSingle:
		return float64(math.Float32frombits(uint32(h.argument))), true
	case h.first() == floatDouble:
		return math.Float64frombits(h.argument), true
	}
	return 0, false
}

// half returns the value of a half-precision float.
func half(bits uint16) float64 {
	exponent, mantissa := int(bits>>10&0x1f), float64(bits&0x3ff)
	var x float64
	switch exponent {
	case 0:
		x = math.Ldexp(mantissa, -24)
	case 31:
		x = math.Inf(1)
		if mantissa != 0 {
			x = math.NaN()
		}
	default:
		x = math.Ldexp(mantissa+1024, exponent-25)
	}
	if bits&0x8000 != 0 {
		x = -x
	}
	return x
}

func decodeScalar(h head, v reflect.Value, name string) error {
	ok := false
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(h.first() == simpleTrue)
		ok = h.first() == simpleTrue || h.first() == simpleFalse
	case reflect.Float32, reflect.Float64:
		var x float64
		x, ok = h.number()
		v.SetFloat(x)
	default:
		ok = setInteger(h, v)
	}
	if !ok {
		return mismatch(h, name)
	}
	return nil
}

// setInteger sets an integer that fits; a float must be a whole number.
func setInteger(h head, v reflect.Value) bool {
	negative, size := h.major == majorNegInt, h.argument
	if !negative && h.major != majorUint {
		x, ok := h.number()
		if !ok || x != math.Trunc(x) || math.Abs(x) > 1<<53 {
			return false
		}
		if negative, size = x < 0, uint64(math.Abs(x)); negative {
			size--
		}
	}
	if !v.CanInt() {
		if negative || v.OverflowUint(size) {
			return false
		}
		v.SetUint(size)
		return true
	}
	if size > math.MaxInt64 {
		return false
	}
	x := int64(size)
	if negative {
		x = -1 - x
	}
	if v.OverflowInt(x) {
		return false
	}
	v.SetInt(x)
	return true
}

func (d *decoder) decodeTime(h head, v reflect.Value, name string) error {
	seconds, ok := h.number()
	if !ok {
		return mismatch(h, name)
	}
	t, err := api.TimeOfEpoch(seconds)
	if err != nil {
		return mismatch(h, name)
	}
	shape.SetTime(v, t.Time)
	return nil
}

// chunks returns the bytes of a byte string or of a text; they may belong to the input.
func (d *decoder) chunks(h head) ([]byte, error) {
	if !h.indefinite {
		if h.argument > uint64(len(d.rest)) {
			return nil, errShort
		}
		b := d.rest[:h.argument]
		d.rest = d.rest[h.argument:]
		return b, nil
	}
	var all []byte
	for {
		chunk, err := d.head()
		if err != nil {
			return nil, err
		}
		if chunk.first() == breakItem {
			return all, nil
		}
		if chunk.major != h.major || chunk.indefinite {
			return nil, errInvalid
		}
		b, err := d.chunks(chunk)
		if err != nil {
			return nil, err
		}
		all = append(all, b...)
	}
}

func (d *decoder) text(h head) (string, error) {
	b, err := d.chunks(h)
	if err != nil {
		return "", err
	}
	if !utf8.Valid(b) {
		return "", errText
	}
	return string(b), nil
}

// each calls f before every item of a list, or before every key of a map.
func (d *decoder) each(h head, f func() error) error {
	if !h.indefinite && h.argument > uint64(len(d.rest)) { // an item has a byte at least
		return errShort
	}
	for n := uint64(0); h.indefinite || n < h.argument; n++ {
		if h.indefinite {
			if len(d.rest) == 0 {
				return errShort
			}
			if d.rest[0] == breakItem {
				d.rest = d.rest[1:]
				return nil
			}
		}
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// eachEntry calls f with every key of a map; f reads the value.
func (d *decoder) eachEntry(h head, name string, f func(key string) error) error {
	if h.major != majorMap {
		return mismatch(h, name)
	}
	return d.each(h, func() error {
		key, err := d.item(0)
		if err != nil {
			return err
		}
		if key.major != majorText {
			return errInvalid
		}
		text, err := d.text(key)
		if err != nil {
			return err
		}
		return f(text)
	})
}

func (d *decoder) decodeStruct(h head, v reflect.Value, name string, depth int) error {
	s := shape.Of(v.Type())
	return d.eachEntry(h, name, func(key string) error {
		f := s.Field(key)
		if f == nil {
			return d.skip(depth + 1)
		}
		return d.decode(f.In(v), f.Name, depth+1)
	})
}

func (d *decoder) decodeList(h head, v reflect.Value, name string, depth int) error {
	if h.major != majorArray {
		return mismatch(h, name)
	}
	v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	return d.each(h, func() error {
		element, err := d.element(v.Type().Elem())
		if err != nil {
			return err
		}
		if err := d.decode(element, name, depth+1); err != nil {
			return err
		}
		v.Set(reflect.Append(v, element))
		return nil
	})
}

func (d *decoder) decodeMap(h head, v reflect.Value, name string, depth int) error {
	v.Set(reflect.MakeMap(v.Type()))
	return d.eachEntry(h, name, func(key string) error {
		element, err := d.element(v.Type().Elem())
		if err != nil {
			return err
		}
		if err := d.decode(element, name, depth+1); err != nil {
			return err
		}
		v.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), element)
		return nil
	})
}

// skip reads past one item of any kind.
func (d *decoder) skip(depth int) error {
	h, err := d.item(depth)
	if err != nil {
		return err
	}
	switch h.major {
	case majorBytes:
		_, err = d.chunks(h)
		return err
	case majorText:
		_, err = d.text(h)
		return err
	case majorArray:
		return d.each(h, func() error { return d.skip(depth + 1) })
	case majorMap:
		return d.eachEntry(h, "", func(string) error { return d.skip(depth + 1) })
	}
	if h.first() == breakItem {
		return errInvalid
	}
	return nil
}
