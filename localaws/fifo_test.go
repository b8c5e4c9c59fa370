package localaws_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/clock"
)

// fifo is a FIFO queue on a clock that the test moves.
type fifo struct {
	*sqs.Client
	t     *testing.T
	clock *clock.Manual
	url   *string
}

func newFIFO(t *testing.T, attributes map[string]string) *fifo {
	t.Helper()
	c := clock.NewManual(time.Unix(1_700_000_000, 0))
	f := &fifo{Client: inProcess(localaws.New(localaws.Options{Clock: c})), t: t, clock: c}
	all := map[string]string{"FifoQueue": "true"}
	for k, v := range attributes {
		all[k] = v
	}
	f.url = create(t, f.Client, "q.fifo", all)
	return f
}

func (f *fifo) send(group, dedup, body string) *sqs.SendMessageOutput {
	f.t.Helper()
	in := &sqs.SendMessageInput{QueueUrl: f.url, MessageBody: &body, MessageGroupId: &group}
	if dedup != "" {
		in.MessageDeduplicationId = &dedup
	}
	out, err := f.SendMessage(f.t.Context(), in)
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

func (f *fifo) receive(n int32) []types.Message {
	f.t.Helper()
	return receive(f.t, f.Client, &sqs.ReceiveMessageInput{
		QueueUrl: f.url, MaxNumberOfMessages: n, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"},
	})
}

// receiveFor receives with a visibility timeout, which the SDK cannot send if it is 0.
func (f *fifo) receiveFor(n, seconds int32) []types.Message {
	f.t.Helper()
	f.set("VisibilityTimeout", fmt.Sprint(seconds))
	return f.receive(n)
}

func (f *fifo) delete(m types.Message) error {
	_, err := f.DeleteMessage(f.t.Context(), &sqs.DeleteMessageInput{QueueUrl: f.url, ReceiptHandle: m.ReceiptHandle})
	return err
}

func (f *fifo) hide(m types.Message, seconds int32) {
	f.t.Helper()
	if _, err := f.ChangeMessageVisibility(f.t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: f.url, ReceiptHandle: m.ReceiptHandle, VisibilityTimeout: seconds}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fifo) set(name, value string) {
	f.t.Helper()
	if _, err := f.SetQueueAttributes(f.t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: f.url, Attributes: map[string]string{name: value}}); err != nil {
		f.t.Fatal(err)
	}
}

func bodies(ms []types.Message) string {
	var all []string
	for _, m := range ms {
		all = append(all, *m.Body)
	}
	return strings.Join(all, " ")
}

// code returns the code and the text of an API error.
func code(err error) (string, string) {
	var e smithy.APIError
	if !errors.As(err, &e) {
		return fmt.Sprint(err), ""
	}
	return e.ErrorCode(), e.ErrorMessage()
}

func TestFIFOGroups(t *testing.T) {
	f := newFIFO(t, map[string]string{"VisibilityTimeout": "30", "ContentBasedDeduplication": "true"})
	for _, m := range []string{"a1", "b1", "a2", "a3", "b2"} {
		f.send(m[:1], "", m)
	}
	first := f.receive(2)
	if got := bodies(first); got != "a1 a2" {
		t.Fatalf("first receive: %s, want several of the earliest group", got)
	}
	if got := bodies(f.receive(10)); got != "b1 b2" {
		t.Errorf("second receive: %s, want the other group only", got)
	}
	if err := f.delete(first[0]); err != nil {
		t.Fatal(err)
	}
	if got := bodies(f.receive(10)); got != "" {
		t.Errorf("received %s while a message of each group is in flight", got)
	}
	f.hide(first[1], 60) // longer than b has
	f.clock.Advance(31 * time.Second)
	if got := bodies(f.receive(10)); got != "b1 b2" {
		t.Errorf("after the expiry: %s, want the original order", got)
	}
	f.clock.Advance(30 * time.Second)
	if got := bodies(f.receive(3)); got != "a2 a3 b1" {
		t.Errorf("after both expiries: %s, want the group that is visible for longer first", got)
	}
}

// fifoStep is a step of a recording, and what AWS answered.
type fifoStep struct {
	max, visibility int32         // of a receive
	wait            time.Duration // before the receive
	change          string        // instead of a receive: the visibility of this message,
	remove          string        // or its deletion
	want            string
}

// TestFIFOGroupsAsRecorded plays what AWS answered in the tests of LocalStack that were validated
// against it (test_fifo_..., each by its name), and the case of issue 12457 there. A group gives its
// messages in order up to the first that is hidden; groups come by since when they are visible.
func TestFIFOGroupsAsRecorded(t *testing.T) {
	for name, test := range map[string]struct {
		sends string
		steps []fifoStep
	}{
		"message_group_visibility_after_terminate_visibility_timeout": {"11 12 21", []fifoStep{
			{max: 2, visibility: 30, want: "11 12"}, {change: "11"}, {max: 3, visibility: 30, want: "21 11"},
		}},
		"message_group_visibility_after_change_message_visibility": {"11 12 21", []fifoStep{
			{max: 2, visibility: 30, want: "11 12"}, {change: "11", visibility: 1}, {wait: 2 * time.Second, max: 3, visibility: 30, want: "21 11"},
		}},
		"receive_message_with_zero_visibility_timeout": {"11 21 22 31 12", []fifoStep{
			{max: 3, want: "11 12 21"}, {max: 10, want: "31 11 12 21 22"},
		}},
		"receive_message_visibility_timeout_shared_in_group": {"11 12 13 14 21 31", []fifoStep{
			{max: 2, visibility: 1, want: "11 12"},
			{wait: time.Millisecond, max: 1, visibility: 1, want: "21"},
			{wait: 2 * time.Second, max: 10, want: "31 11 12 13 14 21"},
		}},
		"message_group_visibility_after_delete": {"11 21 12 22 13 14 31", []fifoStep{
			{max: 2, visibility: 30, want: "11 12"}, {remove: "11"}, {remove: "12"}, {max: 10, visibility: 30, want: "21 22 13 14 31"},
		}},
		"message_group_visibility_after_partial_delete": {"11 21 12 22 13 14 31", []fifoStep{
			{max: 2, visibility: 30, want: "11 12"}, {remove: "11"}, {max: 10, visibility: 30, want: "21 22 31"},
		}},
		"issue 12457, the first one extended": {"11 12 13", []fifoStep{
			{max: 5, visibility: 10, want: "11 12 13"},
			{change: "11", visibility: 15},
			{wait: 12 * time.Second, max: 5, visibility: 10, want: ""},
			{wait: 4 * time.Second, max: 5, visibility: 10, want: "11 12 13"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFIFO(t, map[string]string{"ContentBasedDeduplication": "true"})
			for _, m := range strings.Fields(test.sends) {
				f.send(m[:1], "", m)
				f.clock.Advance(time.Millisecond)
			}
			last := map[string]types.Message{}
			for i, step := range test.steps {
				f.clock.Advance(step.wait)
				switch {
				case step.change != "":
					f.hide(last[step.change], step.visibility)
				case step.remove != "":
					if err := f.delete(last[step.remove]); err != nil {
						t.Fatal(err)
					}
				default:
					got := f.receiveFor(step.max, step.visibility)
					for _, m := range got {
						last[*m.Body] = m
					}
					if bodies(got) != step.want {
						t.Errorf("step %d received %q, want %q", i, bodies(got), step.want)
					}
				}
			}
		})
	}
}

// TestAGroupThatIsGivenBackStarvesNoOther has a consumer that cannot handle the earliest group.
func TestAGroupThatIsGivenBackStarvesNoOther(t *testing.T) {
	f := newFIFO(t, map[string]string{"ContentBasedDeduplication": "true"})
	for _, m := range []string{"a1", "b1"} {
		f.send(m[:1], "", m)
	}
	var order []string
	for range 4 {
		f.clock.Advance(time.Second)
		m := f.receive(1)[0]
		order = append(order, *m.Body)
		f.hide(m, 0)
	}
	if want := []string{"a1", "b1", "a1", "b1"}; !slices.Equal(order, want) {
		t.Errorf("received %q, want %q", order, want)
	}
}

func TestFIFOHandlesExpire(t *testing.T) {
	f := newFIFO(t, map[string]string{"VisibilityTimeout": "10", "ContentBasedDeduplication": "true"})
	for _, m := range []string{"1", "2", "3"} {
		f.send("g", "", m)
	}
	got := f.receive(2)
	f.hide(got[1], 40)
	f.clock.Advance(11 * time.Second)
	if code, text := code(f.delete(got[0])); code != "InvalidParameterValue" || text != "Value "+*got[0].ReceiptHandle+" for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired." {
		t.Errorf("delete by an expired handle: %s: %s", code, text)
	}
	if err := f.delete(got[1]); err != nil {
		t.Errorf("delete by a handle that was extended: %v", err)
	}
	if all := bodies(f.receive(10)); all != "1 3" {
		t.Errorf("received %s", all)
	}
	if err := f.delete(got[1]); err != nil {
		t.Errorf("delete of a message that is gone: %v", err)
	}
}

func TestFIFOSequenceAndAttributes(t *testing.T) {
	f := newFIFO(t, nil)
	one, two := f.send("g", "d1", "1"), f.send("h", "d2", "2")
	if len(*one.SequenceNumber) != 20 || *one.SequenceNumber >= *two.SequenceNumber {
		t.Errorf("sequence numbers %s, %s", *one.SequenceNumber, *two.SequenceNumber)
	}
	m := f.receive(1)[0]
	for name, want := range map[string]string{"SequenceNumber": *one.SequenceNumber, "MessageGroupId": "g", "MessageDeduplicationId": "d1"} {
		if m.Attributes[name] != want {
			t.Errorf("%s is %q, want %q", name, m.Attributes[name], want)
		}
	}
	all := attributesOf(t, f.Client, f.url, "All")
	for name, want := range map[string]string{
		"FifoQueue": "true", "ContentBasedDeduplication": "false", "DeduplicationScope": "queue", "FifoThroughputLimit": "perQueue",
	} {
		if all[name] != want {
			t.Errorf("%s is %q, want %q", name, all[name], want)
		}
	}
}

func TestDeduplication(t *testing.T) {
	f := newFIFO(t, nil)
	first := f.send("g", "d", "one")
	got := f.receive(1)
	if err := f.delete(got[0]); err != nil {
		t.Fatal(err)
	}
	f.clock.Advance(5*time.Minute - time.Second)
	again := f.send("other-group", "d", "another body")
	if *again.MessageId != *first.MessageId || *again.SequenceNumber != *first.SequenceNumber || len(f.receive(10)) != 0 {
		t.Error("a duplicate after receive and delete was taken for a new message")
	}
	if *again.MD5OfMessageBody == *first.MD5OfMessageBody {
		t.Error("the digest of a duplicate is of another body than was sent")
	}
	f.clock.Advance(time.Second) // five minutes from the send that was accepted, not from the repeated one
	if late := f.send("g", "d", "one"); *late.MessageId == *first.MessageId || len(f.receive(10)) != 1 {
		t.Error("a send after five minutes was taken for a duplicate")
	}
}

func TestDeduplicationByContent(t *testing.T) {
	f := newFIFO(t, map[string]string{"ContentBasedDeduplication": "true"})
	first := f.send("g", "", "body")
	out, err := f.SendMessage(t.Context(), &sqs.SendMessageInput{
		QueueUrl: f.url, MessageBody: aws.String("body"), MessageGroupId: aws.String("h"),
		MessageAttributes: map[string]types.MessageAttributeValue{"a": {DataType: aws.String("String"), StringValue: aws.String("x")}},
	})
	if err != nil || *out.MessageId != *first.MessageId {
		t.Errorf("the same body with other attributes: %v, %v", out, err)
	}
	if explicit := f.send("g", "an-id", "body"); *explicit.MessageId == *first.MessageId {
		t.Error("an explicit id gave way to the body's digest")
	}
	const digest = "230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb5" // sha256 of "body"
	if again := f.send("g", digest, "other"); *again.MessageId != *first.MessageId {
		t.Error("the digest is not the SHA-256 of the body")
	}
}

func TestDeduplicationScope(t *testing.T) {
	high := map[string]string{"DeduplicationScope": "messageGroup", "FifoThroughputLimit": "perMessageGroupId"}
	f := newFIFO(t, high)
	if a, b := f.send("a", "d", "x"), f.send("b", "d", "x"); *a.MessageId == *b.MessageId {
		t.Error("an id of one group counted in another")
	}
	f = newFIFO(t, nil)
	first := f.send("a", "d", "x")
	if _, err := f.SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: f.url, Attributes: high}); err != nil {
		t.Fatal(err)
	}
	if b := f.send("b", "d", "x"); *b.MessageId != *first.MessageId {
		t.Error("a later change to high throughput changed what is a duplicate")
	}
	if _, err := f.SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: f.url, Attributes: map[string]string{"DeduplicationScope": "queue"}}); err == nil {
		t.Error("a limit per group without a scope per group was accepted")
	}
}

func TestPurgeForgetsDuplicates(t *testing.T) {
	f := newFIFO(t, nil)
	first := f.send("g", "d", "x")
	if _, err := f.PurgeQueue(t.Context(), &sqs.PurgeQueueInput{QueueUrl: f.url}); err != nil {
		t.Fatal(err)
	}
	if again := f.send("g", "d", "x"); *again.MessageId == *first.MessageId {
		t.Error("a purged message's id is still taken")
	}
}

func TestFIFORefusals(t *testing.T) {
	f := newFIFO(t, nil)
	body, group := aws.String("x"), aws.String("g")
	send := func(in sqs.SendMessageInput) error {
		in.QueueUrl, in.MessageBody = f.url, body
		_, err := f.SendMessage(t.Context(), &in)
		return err
	}
	batch := func(e types.SendMessageBatchRequestEntry) error {
		e.Id, e.MessageBody = aws.String("1"), body
		_, err := f.SendMessageBatch(t.Context(), &sqs.SendMessageBatchInput{QueueUrl: f.url, Entries: []types.SendMessageBatchRequestEntry{e}})
		return err
	}
	setErr := func(name, value string) error {
		_, err := f.SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: f.url, Attributes: map[string]string{name: value}})
		return err
	}
	const noDedup = "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly"
	for i, test := range []struct {
		err        error
		code, text string
	}{
		{setErr("FifoQueue", "false"), "InvalidAttributeValue", "Invalid value for the parameter FifoQueue. Reason: Modifying queue type is not supported."},
		{send(sqs.SendMessageInput{}), "MissingParameter", "The request must contain the parameter MessageGroupId."},
		{batch(types.SendMessageBatchRequestEntry{}), "InvalidParameterValue", "The request must contain the parameter MessageGroupId."},
		{send(sqs.SendMessageInput{MessageGroupId: group}), "InvalidParameterValue", noDedup},
		{batch(types.SendMessageBatchRequestEntry{MessageGroupId: group}), "InvalidParameterValue", noDedup},
		{send(sqs.SendMessageInput{MessageGroupId: group, MessageDeduplicationId: group, DelaySeconds: 2}), "InvalidParameterValue", "Value 2 for parameter DelaySeconds is invalid. Reason: The request include parameter that is not valid for this queue type."},
		{send(sqs.SendMessageInput{MessageGroupId: aws.String("no spaces"), MessageDeduplicationId: group}), "InvalidParameterValue", "Value no spaces for parameter MessageGroupId is invalid. Reason: MessageGroupId can only include alphanumeric and punctuation characters. 1 to 128 in length."},
	} {
		if code, text := code(test.err); code != test.code || text != test.text {
			t.Errorf("row %d:\n got %s: %s\nwant %s: %s", i, code, text, test.code, test.text)
		}
	}
}

func TestReceiveAttempts(t *testing.T) {
	f := newFIFO(t, map[string]string{"VisibilityTimeout": "30", "ContentBasedDeduplication": "true"})
	for _, m := range []string{"1", "2", "3"} {
		f.send("g", "", m)
	}
	attempt := func(id string) []types.Message {
		return receive(t, f.Client, &sqs.ReceiveMessageInput{QueueUrl: f.url, MaxNumberOfMessages: 2, ReceiveRequestAttemptId: &id})
	}
	first := attempt("a")
	f.clock.Advance(20 * time.Second)
	again := attempt("a")
	if bodies(again) != "1 2" || *again[0].ReceiptHandle != *first[0].ReceiptHandle {
		t.Fatalf("the repeated receive got %q by other handles", bodies(again))
	}
	f.clock.Advance(20 * time.Second) // 40 s after the first, 20 s after the repeated one
	if got := bodies(attempt("b")); got != "" {
		t.Errorf("another receive got %s: the visibility was not set anew", got)
	}
	if err := f.delete(first[0]); err != nil {
		t.Fatal(err)
	}
	if got := bodies(attempt("a")); got != "" {
		t.Errorf("an attempt whose message is deleted got %s again", got)
	}
	f.clock.Advance(31 * time.Second)
	if got := attempt("c"); bodies(got) != "2 3" {
		t.Errorf("after the expiry %s", bodies(got))
	}
	f.clock.Advance(5 * time.Minute)
	if got := attempt("c"); bodies(got) != "2 3" || *got[0].ReceiptHandle == *again[1].ReceiptHandle {
		t.Errorf("an attempt id outlived five minutes: %s", bodies(got))
	}
}

func TestFIFODelayIsRetroactive(t *testing.T) {
	f := newFIFO(t, map[string]string{"ContentBasedDeduplication": "true", "DelaySeconds": "10"})
	f.send("g", "", "1")
	f.set("DelaySeconds", "2")
	f.clock.Advance(2 * time.Second)
	got := f.receive(1)
	if bodies(got) != "1" {
		t.Fatalf("received %q after the shorter delay", bodies(got))
	}
	f.send("h", "", "2")
	f.clock.Advance(3 * time.Second)
	f.set("DelaySeconds", "60")
	if late := bodies(f.receive(10)); late != "" {
		t.Errorf("received %s, which a longer delay holds back", late)
	}
	f.clock.Advance(57 * time.Second)
	if late := bodies(f.receive(10)); late != "1 2" {
		t.Errorf("received %q after the longer delay", late)
	}
}

// TestFIFOInFlightLimit reaches the limit, which is no error on a FIFO queue.
func TestFIFOInFlightLimit(t *testing.T) {
	c := inProcess(localaws.New(localaws.Options{SQSMaxInFlight: 2}))
	url := create(t, c, "q.fifo", map[string]string{"FifoQueue": "true", "ContentBasedDeduplication": "true"})
	for i := range 4 {
		if _, err := c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String(fmt.Sprint(i)), MessageGroupId: aws.String(fmt.Sprint(i))}); err != nil {
			t.Fatal(err)
		}
	}
	if got := receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: 10}); len(got) != 2 {
		t.Fatalf("received %d, want 2", len(got))
	}
	if got := receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: 10}); len(got) != 0 {
		t.Errorf("received %d at the limit", len(got))
	}
}

func TestSameNameInTwoRegionsIsTwoURLs(t *testing.T) {
	local := localaws.New(localaws.Options{QueueURL: "{scheme}://sqs.{region}.{host}/{account}/{name}"})
	var urls []string
	for _, region := range []string{"eu-west-1", "us-east-1"} {
		c := newClient(region, "key", func(o *sqs.Options) {
			o.HTTPClient = inProcess(local).Options().HTTPClient
			o.BaseEndpoint = aws.String("http://localhost:9324")
		})
		url := create(t, c, "q", nil)
		send(t, c, url, region)
		urls = append(urls, *url)
	}
	want := []string{"http://sqs.eu-west-1.localhost:9324/000000000000/q", "http://sqs.us-east-1.localhost:9324/000000000000/q"}
	if !slices.Equal(urls, want) {
		t.Fatalf("URLs %v, want %v", urls, want)
	}
	// So it does in a call without a signature.
	call := httptest.NewRequestWithContext(t.Context(), http.MethodGet, urls[0]+"?Action=ReceiveMessage&VisibilityTimeout=0", nil)
	answer := httptest.NewRecorder()
	if local.ServeHTTP(answer, call); answer.Code != http.StatusOK || !strings.Contains(answer.Body.String(), "<Body>eu-west-1</Body>") {
		t.Errorf("%s answers %d: %s", call.URL, answer.Code, answer.Body)
	}
	// The URL names the region, whatever the client's own is.
	got := receive(t, inProcess(local), &sqs.ReceiveMessageInput{QueueUrl: &urls[1]})
	if bodies(got) != "us-east-1" {
		t.Errorf("received %q by the URL of us-east-1", bodies(got))
	}
}
