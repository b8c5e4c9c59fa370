package api_test

import (
	"testing"

	"github.com/stepfleet/stepfleet/localaws/api"
)

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
