package sqs

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/stepfleet/stepfleet"
)

// deletions is an SQS of which only the deletions are seen.
type deletions struct {
	Client
	handles []string
}

func (d *deletions) DeleteMessageBatch(_ context.Context, in *sqs.DeleteMessageBatchInput, _ ...func(*sqs.Options)) (*sqs.DeleteMessageBatchOutput, error) {
	for _, entry := range in.Entries {
		d.handles = append(d.handles, aws.ToString(entry.ReceiptHandle))
	}
	return &sqs.DeleteMessageBatchOutput{}, nil
}

// FuzzBell receives one message: it is a bell of the queue and of this version, or it is deleted and
// has no other effect.
func FuzzBell(f *testing.F) {
	for _, body := range []string{
		``, `{"v":1,"queue":"default"}`, `{"v":1,"queue":"other"}`, `{"v":2,"queue":"default"}`, `{"queue":"default"}`, `[]`, `null`,
		`{"v":1,"queue":"default"} {}`, `{"V":1,"QUEUE":"default","run":"rm -rf /"}`, `{"v":1e0,"queue":"default"}`, "{\"v\":1,\"queue\":\"\xff\"}",
	} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		seen := &deletions{}
		bells := New(seen, Options{})
		bells.remember("default", "url")
		rung := bells.sort(t.Context(), "default", []types.Message{{Body: &body, ReceiptHandle: aws.String("handle")}})
		if len(rung)+len(seen.handles) != 1 {
			t.Fatalf("%q: %d bells and %d deletions of one message", body, len(rung), len(seen.handles))
		}
		for _, bell := range rung {
			if bell.V != stepfleet.BellVersion || bell.Queue != "default" || bell.Handle != "handle" || !json.Valid([]byte(body)) {
				t.Errorf("%q passes for the bell %+v", body, bell)
			}
		}
	})
}
