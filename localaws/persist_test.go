package localaws_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/google/go-cmp/cmp"

	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/journal"
)

// kept is an AWS in a directory that can be closed and opened again.
type kept struct {
	t     *testing.T
	dir   string
	clock *clock.Manual
	local *localaws.AWS
	*sqs.Client
}

func newKept(t *testing.T) *kept {
	k := &kept{t: t, dir: t.TempDir(), clock: clock.NewManual(time.Unix(1_700_000_000, 0))}
	k.open()
	t.Cleanup(func() { _ = k.local.Close() })
	return k
}

func (k *kept) open() {
	k.t.Helper()
	local, err := localaws.Open(localaws.Options{Clock: k.clock, Dir: k.dir, Journal: journal.Options{Sync: journal.SyncNever}})
	if err != nil {
		k.t.Fatal(err)
	}
	k.local, k.Client = local, inProcess(local)
}

func (k *kept) reopen() {
	k.t.Helper()
	if err := k.local.Close(); err != nil {
		k.t.Fatal(err)
	}
	k.open()
}

func TestARestartKeepsEverything(t *testing.T) {
	k := newKept(t)
	ctx := t.Context()
	out, err := k.CreateQueue(ctx, &sqs.CreateQueueInput{
		QueueName: aws.String("q"), Attributes: map[string]string{"VisibilityTimeout": "60", "MessageRetentionPeriod": "600"}, Tags: map[string]string{"a": "b"},
	})
	if err != nil {
		t.Fatal(err)
	}
	url := out.QueueUrl
	if _, err := k.SendMessage(ctx, &sqs.SendMessageInput{
		QueueUrl: url, MessageBody: aws.String("grüße"), MessageGroupId: aws.String("g"),
		MessageAttributes: map[string]types.MessageAttributeValue{"n": {DataType: aws.String("Binary"), BinaryValue: []byte{0, 255}}},
	}); err != nil {
		t.Fatal(err)
	}
	flying := receive(t, k.Client, &sqs.ReceiveMessageInput{QueueUrl: url})[0]
	if _, err := k.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String("delayed"), DelaySeconds: 30}); err != nil {
		t.Fatal(err)
	}
	send(t, k.Client, url, "deleted")
	gone := receive(t, k.Client, &sqs.ReceiveMessageInput{QueueUrl: url})[0]
	if _, err := k.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: url, ReceiptHandle: gone.ReceiptHandle}); err != nil {
		t.Fatal(err)
	}
	before := attributesOf(t, k.Client, url, "All")
	for range 2 { // the second opening replays what the first left
		k.reopen()
	}
	if diff := cmp.Diff(before, attributesOf(t, k.Client, url, "All")); diff != "" {
		t.Errorf("attributes (-before +after):\n%s", diff)
	}
	tags, err := k.ListQueueTags(ctx, &sqs.ListQueueTagsInput{QueueUrl: url})
	if err != nil || tags.Tags["a"] != "b" {
		t.Errorf("tags %v, %v", tags, err)
	}
	if got := receive(t, k.Client, &sqs.ReceiveMessageInput{QueueUrl: url}); len(got) != 0 {
		t.Errorf("received %s: it was in flight, delayed or deleted", bodies(got))
	}
	k.clock.Advance(31 * time.Second)
	if got := receive(t, k.Client, &sqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: 10}); bodies(got) != "delayed" {
		t.Errorf("received %q when the delay was over", bodies(got))
	}
	k.clock.Advance(30 * time.Second)
	got := receive(t, k.Client, &sqs.ReceiveMessageInput{
		QueueUrl: url, MaxNumberOfMessages: 10, MessageAttributeNames: []string{"All"},
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"},
	})
	if bodies(got) != "grüße" || *got[0].MessageId != *flying.MessageId || got[0].Attributes["ApproximateReceiveCount"] != "2" ||
		got[0].MessageAttributes["n"].BinaryValue[1] != 255 || got[0].Attributes["MessageGroupId"] != "g" {
		t.Errorf("received %+v", got)
	}
	// A handle of before the restart still names its message.
	if _, err := k.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: url, ReceiptHandle: flying.ReceiptHandle}); err != nil {
		t.Error(err)
	}
	if n := counts(t, k.Client, url); n != [3]string{"0", "1", "0"} {
		t.Errorf("counts %v", n)
	}
}

func TestARestartKeepsFIFOPromises(t *testing.T) {
	k := newKept(t)
	url := create(t, k.Client, "q.fifo", map[string]string{"FifoQueue": "true", "DeduplicationScope": "messageGroup"})
	send := func(group, dedup string) *sqs.SendMessageOutput {
		out, err := k.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: url, MessageBody: &dedup, MessageGroupId: &group, MessageDeduplicationId: &dedup})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	first := send("g", "1")
	send("g", "2")
	held := receive(t, k.Client, &sqs.ReceiveMessageInput{QueueUrl: url})[0]
	k.reopen()
	if again := send("g", "1"); *again.MessageId != *first.MessageId || *again.SequenceNumber != *first.SequenceNumber {
		t.Error("the restart forgot what was sent")
	}
	if other := send("h", "1"); *other.SequenceNumber <= *first.SequenceNumber || *other.MessageId == *first.MessageId {
		t.Error("the scope or the sequence of numbers was lost")
	}
	if got := receive(t, k.Client, &sqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: 10}); bodies(got) != "1" {
		t.Errorf("received %q while group g is locked", bodies(got))
	}
	if _, err := k.DeleteMessage(t.Context(), &sqs.DeleteMessageInput{QueueUrl: url, ReceiptHandle: held.ReceiptHandle}); err != nil {
		t.Errorf("delete by the handle of before: %v", err)
	}
	if got := receive(t, k.Client, &sqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: 10}); bodies(got) != "2" {
		t.Errorf("received %q", bodies(got))
	}
}

// TestARestartKeepsADelayThatWasChanged: the new delay of a FIFO queue holds for what is in it.
func TestARestartKeepsADelayThatWasChanged(t *testing.T) {
	k := newKept(t)
	url := create(t, k.Client, "q.fifo", map[string]string{"FifoQueue": "true", "ContentBasedDeduplication": "true", "DelaySeconds": "900"})
	delay := func(seconds string) {
		t.Helper()
		if _, err := k.SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: url, Attributes: map[string]string{"DelaySeconds": seconds}}); err != nil {
			t.Fatal(err)
		}
		k.reopen()
	}
	if _, err := k.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String("m"), MessageGroupId: aws.String("g")}); err != nil {
		t.Fatal(err)
	}
	delay("0")
	if n := counts(t, k.Client, url); n != [3]string{"1", "0", "0"} {
		t.Errorf("counts %v after the delay was taken back", n)
	}
	delay("900")
	if n := counts(t, k.Client, url); n != [3]string{"0", "0", "1"} {
		t.Errorf("counts %v after the message was delayed", n)
	}
}

// TestWhatTheRetentionDroppedStaysGone makes the retention longer when a message is over.
func TestWhatTheRetentionDroppedStaysGone(t *testing.T) {
	k := newKept(t)
	url := create(t, k.Client, "q", map[string]string{"MessageRetentionPeriod": "60"})
	send(t, k.Client, url, "m")
	k.clock.Advance(61 * time.Second)
	if n := counts(t, k.Client, url); n != [3]string{"0", "0", "0"} {
		t.Errorf("counts %v after the retention", n)
	}
	if _, err := k.SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: url, Attributes: map[string]string{"MessageRetentionPeriod": "3600"}}); err != nil {
		t.Fatal(err)
	}
	k.reopen()
	if got := receive(t, k.Client, &sqs.ReceiveMessageInput{QueueUrl: url}); len(got) != 0 {
		t.Errorf("received %s, which was over", bodies(got))
	}
}

func TestARestartKeepsDeadLettersAndDeletions(t *testing.T) {
	k := newKept(t)
	dlq := create(t, k.Client, "dlq", nil)
	url := create(t, k.Client, "q", map[string]string{"RedrivePolicy": `{"deadLetterTargetArn":"arn:aws:sqs:eu-west-1:000000000000:dlq","maxReceiveCount":1}`, "VisibilityTimeout": "0"})
	create(t, k.Client, "gone", nil)
	if _, err := k.DeleteQueue(t.Context(), &sqs.DeleteQueueInput{QueueUrl: aws.String("gone")}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		send(t, k.Client, url, fmt.Sprint(i))
	}
	for range 2 {
		receive(t, k.Client, &sqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: 10})
	}
	k.reopen()
	if a, b := counts(t, k.Client, url)[0], counts(t, k.Client, dlq)[0]; a != "0" || b != "3" {
		t.Errorf("%s messages in the queue and %s in its dead-letter queue, want 0 and 3", a, b)
	}
	if _, err := k.GetQueueUrl(t.Context(), &sqs.GetQueueUrlInput{QueueName: aws.String("gone")}); err == nil {
		t.Error("a deleted queue is back")
	}
	if code, _ := code(func() error {
		_, err := k.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: aws.String("gone")})
		return err
	}()); code != "AWS.SimpleQueueService.QueueDeletedRecently" {
		t.Errorf("create after delete and restart: %s", code)
	}
}

func TestARestartKeepsTheMinuteBetweenPurges(t *testing.T) {
	k := newKept(t)
	url := create(t, k.Client, "q", nil)
	send(t, k.Client, url, "x")
	purge := func() error {
		_, err := k.PurgeQueue(t.Context(), &sqs.PurgeQueueInput{QueueUrl: url})
		return err
	}
	if err := purge(); err != nil {
		t.Fatal(err)
	}
	k.reopen()
	if n := counts(t, k.Client, url); n != [3]string{"0", "0", "0"} {
		t.Errorf("counts %v after a purge and a restart", n)
	}
	if code, _ := code(purge()); code != "AWS.SimpleQueueService.PurgeQueueInProgress" {
		t.Errorf("the second purge: %s", code)
	}
	k.clock.Advance(61 * time.Second)
	if err := purge(); err != nil {
		t.Errorf("a purge after a minute: %v", err)
	}
}
