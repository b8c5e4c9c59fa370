package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

const region = "us-east-1"

// batchSize is what SQS allows.
const batchSize = 10

// dial returns a client of the server with that many connections, which does not try again: an
// error is a result.
func dial(s *server, connections int) *sqs.Client {
	transport := &http.Transport{
		MaxIdleConns: connections, MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections,
		IdleConnTimeout: time.Minute, DisableCompression: true,
	}
	return sqs.New(sqs.Options{
		Region: region, BaseEndpoint: aws.String("http://" + s.addr), Retryer: aws.NopRetryer{},
		Credentials: credentials.NewStaticCredentialsProvider("bench", "bench", ""),
		HTTPClient:  &http.Client{Transport: transport},
	})
}

// Kinds of queues.
const (
	standard = "standard"
	fifo     = "fifo"
)

// queue is a queue of a server under measurement.
type queue struct {
	client *sqs.Client
	kind   string
	url    string
	body   string
	groups int          // the number of message groups, of a FIFO queue
	silent bool         // whether the server answers a batch without saying what was sent
	last   atomic.Int64 // the number of the last message sent
}

var queueNumber atomic.Int64

// newQueue creates a queue with a name of its own, and a client for it with that many connections.
func (p plan) newQueue(ctx context.Context, s *server, connections int, kind string) (*queue, error) {
	client := dial(s, connections)
	in := &sqs.CreateQueueInput{QueueName: aws.String("bench-" + strconv.FormatInt(queueNumber.Add(1), 10))}
	if kind == fifo {
		*in.QueueName += ".fifo"
		in.Attributes = map[string]string{"FifoQueue": "true"}
	}
	out, err := client.CreateQueue(ctx, in)
	if err != nil {
		return nil, fmt.Errorf("create a queue: %w", err)
	}
	return &queue{
		client: client, kind: kind, url: *out.QueueUrl, body: strings.Repeat("x", p.BodyBytes), groups: p.Groups,
		silent: s.silentBatches,
	}, nil
}

func (q *queue) remove(ctx context.Context) error {
	_, err := q.client.DeleteQueue(ctx, &sqs.DeleteQueueInput{QueueUrl: &q.url})
	if err != nil {
		return fmt.Errorf("delete a queue: %w", err)
	}
	return nil
}

// ids returns group and deduplication id of the next message, or nothing for a standard queue.
func (q *queue) ids() (group, dedup *string) {
	n := q.last.Add(1)
	if q.kind != fifo {
		return nil, nil
	}
	return aws.String("group-" + strconv.FormatInt(n%int64(q.groups), 10)), aws.String("message-" + strconv.FormatInt(n, 10))
}

func (q *queue) sendOne(ctx context.Context) (int, error) {
	group, dedup := q.ids()
	_, err := q.client.SendMessage(ctx, &sqs.SendMessageInput{
		QueueUrl: &q.url, MessageBody: &q.body, MessageGroupId: group, MessageDeduplicationId: dedup,
	})
	if err != nil {
		return 0, err
	}
	return 1, nil
}

var entryIDs = [batchSize]string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}

func (q *queue) sendTen(ctx context.Context) (int, error) {
	entries := make([]types.SendMessageBatchRequestEntry, batchSize)
	for i := range entries {
		group, dedup := q.ids()
		entries[i] = types.SendMessageBatchRequestEntry{
			Id: &entryIDs[i], MessageBody: &q.body, MessageGroupId: group, MessageDeduplicationId: dedup,
		}
	}
	out, err := q.client.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: &q.url, Entries: entries})
	if err != nil {
		return 0, err
	}
	if len(out.Failed) > 0 || len(out.Successful) != batchSize && !q.silent {
		return 0, fmt.Errorf("%d of a batch of %d were sent", len(out.Successful), batchSize)
	}
	return batchSize, nil
}

var errBody = errors.New("a message came back with another body")

// takeTen receives up to ten messages and deletes them.
func (q *queue) takeTen(ctx context.Context) (int, error) {
	got, err := q.receive(ctx, &sqs.ReceiveMessageInput{MaxNumberOfMessages: batchSize})
	if err != nil || len(got) == 0 {
		return 0, err
	}
	entries := make([]types.DeleteMessageBatchRequestEntry, len(got))
	for i := range got {
		if *got[i].Body != q.body {
			return 0, errBody
		}
		entries[i] = types.DeleteMessageBatchRequestEntry{Id: &entryIDs[i], ReceiptHandle: got[i].ReceiptHandle}
	}
	out, err := q.client.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &q.url, Entries: entries})
	if err != nil {
		return 0, err
	}
	if len(out.Failed) > 0 {
		return 0, fmt.Errorf("%d of %d deletes failed: %s", len(out.Failed), len(got), aws.ToString(out.Failed[0].Code))
	}
	return len(got), nil
}

func (q *queue) receive(ctx context.Context, in *sqs.ReceiveMessageInput) ([]types.Message, error) {
	in.QueueUrl = &q.url
	out, err := q.client.ReceiveMessage(ctx, in)
	if err != nil {
		return nil, err
	}
	return out.Messages, nil
}

func (q *queue) delete(ctx context.Context, m types.Message) error {
	_, err := q.client.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &q.url, ReceiptHandle: m.ReceiptHandle})
	return err
}
