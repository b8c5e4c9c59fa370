package pyhost

import (
	"encoding/binary"
	"encoding/json"
	"reflect"
	"testing"
	"unicode/utf8"

	"github.com/stepfleet/stepfleet"
)

// FuzzReceive reads what a process may send, up to the first thing that is no frame. What was read is
// the same after it was written and read again. python/tests/test_frames.py feeds the same corpus to
// the other end.
func FuzzReceive(f *testing.F) {
	for _, body := range []string{
		``, `{"op":"ready","v":1,"pid":4711}`, `{"op":"gate","event":"STEP_SUCCESS"}`, `[]`, `null`, `{"op":1}`,
		`{"op":"loaded","v":1,"pid":1,"seconds":1.2,"fork_safe":true,"locations":[{"pointer":"module x","ok":true,"seconds":0.4}]}`,
		`{"op":"result","result":{"v":1,"success":true,"outcome":"succeeded","outputs":["a"],"error":{"code":"c"},"phases":{"plan":1e9}}}`,
	} {
		f.Add(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	}
	f.Add([]byte("\xff\xff\xff\xff{}"))
	f.Add([]byte("\x00\x00\x00\x02{"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 64<<10 {
			t.Skip("more than a socket takes without a reader")
		}
		for _, first := range received(t, raw) {
			again, err := encode(first)
			if err != nil {
				t.Fatalf("%+v: %v", first, err)
			}
			if second := received(t, again); len(second) != 1 || !reflect.DeepEqual(normal(first), normal(second[0])) {
				t.Errorf("%+v came back as %+v", first, second)
			}
		}
	})
}

// normal is the frame without the difference between nothing and an empty list or map.
func normal(f frame) frame {
	if len(f.Locations) == 0 {
		f.Locations = nil
	}
	if f.Result != nil && len(f.Result.Phases) == 0 {
		result := *f.Result
		result.Phases = nil
		f.Result = &result
	}
	return f
}

// received returns the frames at the beginning of raw, sent by a process that then goes.
func received(t *testing.T, raw []byte) []frame {
	t.Helper()
	conn, process, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = process.Write(raw)
	process.Close()
	if err != nil {
		t.Fatal(err)
	}
	var frames []frame
	for {
		next, err := receive(conn)
		if err != nil {
			return frames
		}
		frames = append(frames, next)
	}
}

// FuzzRunFrame hands a payload and a variable on: they reach the process as they are.
func FuzzRunFrame(f *testing.F) {
	f.Add(`{"__class__":"ExecuteStepArgs"}`, "step", "value")
	f.Add("\u2028<\x00>\\\"", "op.inner[key]", "\x7f\ufffd")
	f.Fuzz(func(t *testing.T, payload, step, value string) {
		if !utf8.ValidString(payload) || !utf8.ValidString(step) || !utf8.ValidString(value) {
			t.Skip("it has come as JSON, so it is UTF-8")
		}
		sent := runFrame{
			Op: "run", V: frameVersion, Task: stepfleet.Task{Key: stepfleet.Key{StepKey: step}}, Payload: payload,
			Env: map[string]string{"STEPFLEET_STEP_KEY": value},
		}
		raw, err := encode(sent)
		if err != nil {
			t.Fatal(err)
		}
		var got runFrame
		if err := json.Unmarshal(raw[4:], &got); err != nil || binary.BigEndian.Uint32(raw) != uint32(len(raw)-4) {
			t.Fatalf("%q: %v", raw, err)
		}
		if !reflect.DeepEqual(got, sent) {
			t.Errorf("sent %+v, got %+v", sent, got)
		}
	})
}
