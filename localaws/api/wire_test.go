package api_test

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
)

func TestTimeInJSON(t *testing.T) {
	for text, want := range map[string]time.Time{
		"1800000000": time.Unix(1_800_000_000, 0), "1800000000.25": time.Unix(1_800_000_000, 250_000_000), "0": time.Unix(0, 0), "-1.5": time.Unix(-2, 500_000_000),
	} {
		var got struct{ T api.Time }
		if err := json.Unmarshal([]byte(`{"T":`+text+`}`), &got); err != nil || !got.T.Equal(want) {
			t.Errorf("%s: %v %v", text, got.T, err)
		}
		if back, err := json.Marshal(api.Time{Time: want}); err != nil || string(back) != text {
			t.Errorf("%s became %s, %v", text, back, err)
		}
	}
	for _, text := range []string{`"2026-11-26T10:00:00Z"`, "1e99", "true"} {
		if err := json.Unmarshal([]byte(text), new(api.Time)); err == nil {
			t.Errorf("%s was taken for a time", text)
		}
	}
	if err := json.Unmarshal([]byte("null"), new(api.Time)); err != nil {
		t.Error(err)
	}
	if _, ok := api.FromSeconds(math.NaN()); ok {
		t.Error("NaN was taken for a time")
	}
}

func TestErrorInBothWorlds(t *testing.T) {
	e := &api.Error{Type: "QueueDoesNotExist", Code: "AWS.SimpleQueueService.NonExistentQueue", Status: 400, Message: "new", QueryMessage: "old"}
	if e.TypeName("com.amazonaws.sqs") != "com.amazonaws.sqs#QueueDoesNotExist" || e.QueryCode() != "AWS.SimpleQueueService.NonExistentQueue" || e.QueryText() != "old" || e.Fault() != "Sender" {
		t.Errorf("%+v", e)
	}
	if with := e.With("other %d", 1); with.QueryText() != "other 1" || with.Message != "other 1" || e.QueryText() != "old" {
		t.Errorf("%+v", with)
	}
	if api.ErrInternal.TypeName("com.amazonaws.sqs") != "com.amazon.coral.service#InternalFailure" || api.ErrInternal.Fault() != "Receiver" || api.ErrInternal.QueryCode() != "InternalFailure" {
		t.Errorf("%+v", api.ErrInternal)
	}
}

func TestProtocols(t *testing.T) {
	s := api.Service{Target: "T", JSONVersion: "1.1", Shape: "S", Query: &api.Query{}}
	if got := s.Protocols(); len(got) != 3 || got[0] != "awsJson1_1" || got[1] != "awsQuery" || got[2] != "rpcv2Cbor" {
		t.Error(got)
	}
	s = api.Service{Query: &api.Query{EC2: true}}
	if got := s.Protocols(); len(got) != 1 || got[0] != "ec2Query" {
		t.Error(got)
	}
}
