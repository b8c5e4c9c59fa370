package awscbor

import (
	"encoding/binary"
	"math"
	"reflect"
	"slices"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/shape"
)

// The major types of CBOR, in the place they have in an item's first byte.
const (
	majorUint   = 0 << 5
	majorNegInt = 1 << 5
	majorBytes  = 2 << 5
	majorText   = 3 << 5
	majorArray  = 4 << 5
	majorMap    = 5 << 5
	majorTag    = 6 << 5
	majorSimple = 7 << 5
)

// The items of the last major type.
const (
	simpleFalse     = majorSimple | 20
	simpleTrue      = majorSimple | 21
	simpleNull      = majorSimple | 22
	simpleUndefined = majorSimple | 23
	floatHalf       = majorSimple | 25
	floatSingle     = majorSimple | 26
	floatDouble     = majorSimple | 27
	breakItem       = majorSimple | 31
)

// tagEpoch marks seconds since 1970.
const tagEpoch = 1

// Append appends a value as CBOR, maps by key.
func Append(b []byte, v reflect.Value) []byte {
	switch {
	case !v.IsValid():
		return append(b, simpleNull)
	case shape.IsTime(v.Type()):
		seconds := float64(shape.Time(v).UnixMilli()) / 1000
		return appendFloat(appendHead(b, majorTag, tagEpoch), seconds)
	case shape.IsBytes(v.Type()):
		return append(appendHead(b, majorBytes, uint64(v.Len())), v.Bytes()...)
	}
	switch v.Kind() {
	case reflect.Pointer:
		return Append(b, v.Elem()) // of a nil one it is invalid, and null
	case reflect.Struct:
		return appendStruct(b, v)
	case reflect.String:
		return appendText(b, v.String())
	case reflect.Bool:
		if v.Bool() {
			return append(b, simpleTrue)
		}
		return append(b, simpleFalse)
	case reflect.Float32, reflect.Float64:
		return appendFloat(b, v.Float())
	case reflect.Slice:
		b = appendHead(b, majorArray, uint64(v.Len()))
		for i := range v.Len() {
			b = Append(b, v.Index(i))
		}
		return b
	case reflect.Map:
		return appendMap(b, v)
	}
	if v.CanInt() {
		return appendInt(b, v.Int())
	}
	return appendHead(b, majorUint, v.Uint())
}

func appendStruct(b []byte, v reflect.Value) []byte {
	fields := shape.Of(v.Type()).Fields
	n := 0
	for i := range fields {
		if !fields[i].Omitted(fields[i].In(v)) {
			n++
		}
	}
	b = appendHead(b, majorMap, uint64(n))
	for i := range fields {
		if value := fields[i].In(v); !fields[i].Omitted(value) {
			b = Append(appendText(b, fields[i].Name), value)
		}
	}
	return b
}

func appendMap(b []byte, v reflect.Value) []byte {
	keys := slices.SortedFunc(slices.Values(v.MapKeys()), func(x, y reflect.Value) int {
		return strings.Compare(x.String(), y.String())
	})
	b = appendHead(b, majorMap, uint64(len(keys)))
	for _, key := range keys {
		b = Append(appendText(b, key.String()), v.MapIndex(key))
	}
	return b
}

// appendText appends text; CBOR's must be UTF-8.
func appendText(b []byte, text string) []byte {
	text = strings.ToValidUTF8(text, "\uFFFD")
	return append(appendHead(b, majorText, uint64(len(text))), text...)
}

func appendInt(b []byte, x int64) []byte {
	if x >= 0 {
		return appendHead(b, majorUint, uint64(x))
	}
	return appendHead(b, majorNegInt, uint64(-1-x))
}

func appendFloat(b []byte, x float64) []byte {
	return binary.BigEndian.AppendUint64(append(b, floatDouble), math.Float64bits(x))
}

// appendHead appends an item's first byte and its argument in the fewest bytes.
func appendHead(b []byte, major byte, argument uint64) []byte {
	switch {
	case argument < 24:
		return append(b, major|byte(argument))
	case argument <= math.MaxUint8:
		return append(b, major|24, byte(argument))
	case argument <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(argument))
	case argument <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(argument))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), argument)
}
