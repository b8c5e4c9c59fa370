package awsquery

import (
	"encoding/json"
	"math"
	"reflect"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/shape"
)

// asJSON returns what encoding/json shall write for a value in the JSON answer to a Query call: an
// old form of its own, in which absent members are null and maps are lists of pairs.
func asJSON(v reflect.Value, list shape.List) any {
	switch {
	case !v.IsValid():
		return nil
	case shape.IsTime(v.Type()):
		return api.Time{Time: shape.Time(v)}
	case shape.IsBytes(v.Type()):
		return v.Bytes()
	}
	switch v.Kind() {
	case reflect.Pointer:
		return asJSON(v.Elem(), list)
	case reflect.Struct:
		return structJSON(v)
	case reflect.Slice:
		all := make([]any, v.Len())
		for i := range all {
			all[i] = asJSON(v.Index(i), shape.Nested)
		}
		return all
	case reflect.Map:
		all := make([]any, 0, v.Len())
		for _, key := range sortedKeys(v) {
			all = append(all, map[string]any{list.Key: key.String(), list.Value: asJSON(v.MapIndex(key), shape.Nested)})
		}
		return all
	case reflect.Float32, reflect.Float64:
		if x := v.Float(); math.IsNaN(x) || math.IsInf(x, 0) {
			return string(appendFloat(nil, x, 64))
		}
	}
	return v.Interface()
}

func structJSON(v reflect.Value) map[string]any {
	out := map[string]any{}
	fields := shape.Of(v.Type()).Fields
	for i := range fields {
		f := &fields[i]
		if f.Query == "" {
			continue
		}
		out[f.QueryJSON] = nil
		if value := f.In(v); !f.Omitted(value) {
			out[f.QueryJSON] = asJSON(value, f.List)
		}
	}
	return out
}

// appendJSON returns the answer as JSON; keys come in order, so that answers repeat.
func (c *Codec) appendJSON(requestID string, out any) ([]byte, error) {
	response := map[string]any{"ResponseMetadata": map[string]string{"RequestId": requestID}}
	if _, empty := out.(*api.Empty); !empty {
		response[c.Op+"Result"] = structJSON(reflect.ValueOf(out).Elem())
	}
	return json.Marshal(map[string]any{c.Op + "Response": response})
}

func errorJSON(requestID string, e *api.Error) []byte {
	body, err := json.Marshal(map[string]any{
		"Error":     map[string]string{"Type": e.Fault(), "Code": e.QueryCode(), "Message": e.QueryText()},
		"RequestId": requestID,
	})
	if err != nil {
		panic(err) // strings always encode
	}
	return body
}
