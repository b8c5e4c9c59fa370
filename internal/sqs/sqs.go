// Package sqs rings and hears stepfleet's bells on Amazon SQS. A bell is a hint (see queue.go in
// the root package): nothing here owns anything, so every error may be answered by going on
// without bells until the next look at the ledger. The bell JSON is the message's whole body; a
// message that is anything else is deleted where it is received, and has no effect.
package sqs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/google/uuid"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/mutant"
)

// DefaultPrefix is what the name of every SQS queue of ours starts with.
const DefaultPrefix = "stepfleet-"

const (
	// attempts bounds the SDK's retries: a bell that is late is worth less than a look at the ledger.
	attempts = 2
	// callTimeout bounds a call with its retries; a receive has its wait on top.
	callTimeout = 5 * time.Second
	// maxBatch is SQS's limit of a batch and of a receive.
	maxBatch = 10
	// maxWait is SQS's limit of a long poll.
	maxWait = 20 * time.Second
	// retention is how long a bell that nobody hears is kept: looks at the ledger have long done its work.
	retention = time.Hour
)

// Client is the part of the SDK that the bells use.
type Client interface {
	CreateQueue(context.Context, *sqs.CreateQueueInput, ...func(*sqs.Options)) (*sqs.CreateQueueOutput, error)
	GetQueueUrl(context.Context, *sqs.GetQueueUrlInput, ...func(*sqs.Options)) (*sqs.GetQueueUrlOutput, error)
	SendMessageBatch(context.Context, *sqs.SendMessageBatchInput, ...func(*sqs.Options)) (*sqs.SendMessageBatchOutput, error)
	ReceiveMessage(context.Context, *sqs.ReceiveMessageInput, ...func(*sqs.Options)) (*sqs.ReceiveMessageOutput, error)
	DeleteMessageBatch(context.Context, *sqs.DeleteMessageBatchInput, ...func(*sqs.Options)) (*sqs.DeleteMessageBatchOutput, error)
	ChangeMessageVisibilityBatch(context.Context, *sqs.ChangeMessageVisibilityBatchInput, ...func(*sqs.Options)) (*sqs.ChangeMessageVisibilityBatchOutput, error)
}

// Bells is stepfleet.Ringer and stepfleet.Listener on SQS.
type Bells struct {
	client Client
	prefix string
	fifo   bool
	log    *slog.Logger

	mu   sync.Mutex
	urls map[string]string // by queue, as looked up
}

var (
	_ stepfleet.Ringer   = (*Bells)(nil)
	_ stepfleet.Listener = (*Bells)(nil)
)

// Options configures Bells; the zero value has the default prefix and logs nothing.
type Options struct {
	// Prefix is what the names of the SQS queues start with; empty is DefaultPrefix.
	Prefix string
	// FIFO uses FIFO queues, whose names end in .fifo. Each bell is a group of its own there: order
	// and exclusivity are the ledger's, and no bell shall wait for another.
	FIFO bool
	// OnRequest is told of every request of Open's client, repeats included: the operation, and ok,
	// SQS's error code, or error; nil is nobody.
	OnRequest func(op, code string)
	Logger    *slog.Logger
}

// Open returns bells on the SQS that the SDK's standard chain finds: environment, profile or role,
// and AWS_ENDPOINT_URL for a local one. It makes no call to SQS.
func Open(ctx context.Context, o Options) (*Bells, error) {
	cfg, err := config.LoadDefaultConfig(ctx, config.WithRetryer(retryer))
	if err != nil {
		return nil, fmt.Errorf("load the AWS configuration: %w", err)
	}
	return New(sqs.NewFromConfig(cfg, func(c *sqs.Options) { c.APIOptions = append(c.APIOptions, o.watch) }), o), nil
}

// New returns bells on the client.
func New(client Client, o Options) *Bells {
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Bells{client: client, prefix: o.Prefix, fifo: o.FIFO, log: o.Logger, urls: map[string]string{}}
}

// name returns the name of the queue's SQS queue.
func (b *Bells) name(queue string) string {
	if b.fifo {
		return b.prefix + queue + ".fifo"
	}
	return b.prefix + queue
}

// attributes are those of a queue that EnsureQueue creates.
func (b *Bells) attributes() map[string]string {
	all := map[string]string{
		string(types.QueueAttributeNameVisibilityTimeout):             wholeSeconds(stepfleet.BellVisibility),
		string(types.QueueAttributeNameMessageRetentionPeriod):        wholeSeconds(retention),
		string(types.QueueAttributeNameReceiveMessageWaitTimeSeconds): wholeSeconds(0),
	}
	if b.fifo {
		all[string(types.QueueAttributeNameFifoQueue)] = "true"
		all[string(types.QueueAttributeNameDeduplicationScope)] = "messageGroup"
		all[string(types.QueueAttributeNameFifoThroughputLimit)] = "perMessageGroupId"
	}
	return all
}

// EnsureQueue creates the queue's SQS queue unless it is there, whatever attributes it has then.
// It is for development; a deployment declares its queues, with ReceiveMessageWaitTimeSeconds 0:
// the Go SDK leaves a zero wait out of a receive, and SQS takes the queue's own then, so a queue
// that waits by itself could not be asked without waiting (aws/aws-sdk#261).
func (b *Bells) EnsureQueue(ctx context.Context, queue string) error {
	if err := stepfleet.ValidateQueue(queue); err != nil {
		return err
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out, err := b.client.CreateQueue(call, &sqs.CreateQueueInput{
		QueueName: aws.String(b.name(queue)), Attributes: b.attributes(),
	})
	var exists *types.QueueNameExists
	if errors.As(err, &exists) {
		_, err := b.url(ctx, queue)
		return err
	}
	if err != nil {
		return b.explain(ctx, "create the SQS queue", queue, err)
	}
	b.remember(queue, aws.ToString(out.QueueUrl))
	return nil
}

func wholeSeconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

// Ring implements stepfleet.Ringer. More than MaxBellsPerRing are not needed by any queue and are not rung.
func (b *Bells) Ring(ctx context.Context, queue string, n int) error {
	url, err := b.url(ctx, queue)
	if err != nil {
		return err
	}
	body, err := json.Marshal(stepfleet.Bell{V: stepfleet.BellVersion, Queue: queue})
	if err != nil {
		return fmt.Errorf("ring queue %s: %w", queue, err)
	}
	for left := min(n, stepfleet.MaxBellsPerRing); left > 0; left -= maxBatch {
		if err := b.ringBatch(ctx, queue, url, string(body), min(left, maxBatch)); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bells) ringBatch(ctx context.Context, queue, url, body string, n int) error {
	in := &sqs.SendMessageBatchInput{QueueUrl: &url}
	for i := range n {
		e := types.SendMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), MessageBody: &body}
		if b.fifo {
			one := uuid.NewString()
			if mutant.DedupByPlace {
				one = strconv.Itoa(i)
			}
			e.MessageGroupId, e.MessageDeduplicationId = &one, &one
		}
		in.Entries = append(in.Entries, e)
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out, err := b.client.SendMessageBatch(call, in)
	if err != nil {
		return b.explain(ctx, "ring", queue, err)
	}
	if len(out.Failed) > 0 {
		return fmt.Errorf("ring queue %s: %d of %d bells: %s: %w",
			queue, len(out.Failed), n, aws.ToString(out.Failed[0].Code), stepfleet.ErrUnavailable)
	}
	return nil
}

// Receive implements stepfleet.Listener. SQS waits in whole seconds, at most 20: a wait is rounded
// up, so that a caller with a fraction of a second left does not turn into a spin of short polls.
func (b *Bells) Receive(ctx context.Context, queue string, max int, wait time.Duration) ([]stepfleet.RungBell, error) {
	url, err := b.url(ctx, queue)
	if err != nil {
		return nil, err
	}
	wait = min((wait + time.Second - 1).Truncate(time.Second), maxWait)
	call, cancel := context.WithTimeout(ctx, wait+callTimeout)
	defer cancel()
	out, err := b.client.ReceiveMessage(call, &sqs.ReceiveMessageInput{
		QueueUrl:            &url,
		MaxNumberOfMessages: int32(min(max, maxBatch)),
		WaitTimeSeconds:     int32(wait / time.Second),
		VisibilityTimeout:   int32(math.Ceil(stepfleet.BellVisibility.Seconds())),
	})
	if err != nil {
		return nil, b.explain(ctx, "receive from", queue, err)
	}
	return b.sort(ctx, queue, out.Messages), nil
}

// sort returns the bells among the messages and deletes the others.
func (b *Bells) sort(ctx context.Context, queue string, messages []types.Message) []stepfleet.RungBell {
	var bells, foreign []stepfleet.RungBell
	for _, m := range messages {
		rung := stepfleet.RungBell{Handle: aws.ToString(m.ReceiptHandle)}
		err := json.Unmarshal([]byte(aws.ToString(m.Body)), &rung.Bell)
		if err == nil && rung.V == stepfleet.BellVersion && rung.Queue == queue {
			bells = append(bells, rung)
			continue
		}
		b.log.Debug("deleted a message that is no bell", "queue", queue, "message_id", aws.ToString(m.MessageId))
		foreign = append(foreign, rung)
	}
	if len(foreign) > 0 {
		if err := b.Answer(ctx, queue, foreign); err != nil {
			b.log.Debug("a message that is no bell stays", "queue", queue, "error", err)
		}
	}
	return bells
}

// Answer implements stepfleet.Listener.
func (b *Bells) Answer(ctx context.Context, queue string, bells []stepfleet.RungBell) error {
	return b.each(ctx, "answer", queue, bells, func(ctx context.Context, url string, batch []stepfleet.RungBell) ([]types.BatchResultErrorEntry, error) {
		in := &sqs.DeleteMessageBatchInput{QueueUrl: &url}
		for i, x := range batch {
			in.Entries = append(in.Entries, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: &x.Handle})
		}
		out, err := b.client.DeleteMessageBatch(ctx, in)
		if err != nil {
			return nil, err
		}
		return out.Failed, nil
	})
}

// Return implements stepfleet.Listener.
func (b *Bells) Return(ctx context.Context, queue string, bells []stepfleet.RungBell) error {
	return b.each(ctx, "return to", queue, bells, func(ctx context.Context, url string, batch []stepfleet.RungBell) ([]types.BatchResultErrorEntry, error) {
		in := &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: &url}
		for i, x := range batch {
			in.Entries = append(in.Entries, types.ChangeMessageVisibilityBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: &x.Handle})
		}
		out, err := b.client.ChangeMessageVisibilityBatch(ctx, in)
		if err != nil {
			return nil, err
		}
		return out.Failed, nil
	})
}

// each runs a batch call for ten bells at a time. An entry that failed by our own fault names a
// bell that is gone or came back: there is nothing left to do about it.
func (b *Bells) each(ctx context.Context, doing, queue string, bells []stepfleet.RungBell,
	call func(context.Context, string, []stepfleet.RungBell) ([]types.BatchResultErrorEntry, error),
) error {
	url, err := b.url(ctx, queue)
	if err != nil {
		return err
	}
	for start := 0; start < len(bells); start += maxBatch {
		batch := bells[start:min(start+maxBatch, len(bells))]
		timed, cancel := context.WithTimeout(ctx, callTimeout)
		failed, err := call(timed, url, batch)
		cancel()
		if err != nil {
			return b.explain(ctx, doing, queue, err)
		}
		for _, f := range failed {
			if !f.SenderFault {
				return fmt.Errorf("%s queue %s: %s: %w", doing, queue, aws.ToString(f.Code), stepfleet.ErrUnavailable)
			}
			b.log.Debug("a bell was gone", "queue", queue, "doing", doing, "code", aws.ToString(f.Code))
		}
	}
	return nil
}

// url returns the queue's URL, looked up at its first use and again after the queue was found missing.
func (b *Bells) url(ctx context.Context, queue string) (string, error) {
	if err := stepfleet.ValidateQueue(queue); err != nil {
		return "", err
	}
	b.mu.Lock()
	url, ok := b.urls[queue]
	b.mu.Unlock()
	if ok {
		return url, nil
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out, err := b.client.GetQueueUrl(call, &sqs.GetQueueUrlInput{QueueName: aws.String(b.name(queue))})
	if err != nil {
		return "", b.explain(ctx, "find the SQS queue of", queue, err)
	}
	b.remember(queue, aws.ToString(out.QueueUrl))
	return aws.ToString(out.QueueUrl), nil
}

func (b *Bells) remember(queue, url string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.urls[queue] = url
}

func (b *Bells) forget(queue string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.urls, queue)
}

// explain turns an error of the SDK into one of the port's. ctx is the caller's: our own timeout
// means that SQS is unreachable, the end of ctx that the caller has gone.
func (b *Bells) explain(ctx context.Context, doing, queue string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s queue %s: %w", doing, queue, ctx.Err())
	}
	var missing *types.QueueDoesNotExist
	if errors.As(err, &missing) {
		b.forget(queue)
		return fmt.Errorf("%s queue %s: SQS has no queue %s: %w", doing, queue, b.name(queue), stepfleet.ErrUnknownQueue)
	}
	return fmt.Errorf("%s queue %s: %w: %w", doing, queue, stepfleet.ErrUnavailable, err)
}
