package localaws_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/clock"
)

// newClient returns a real SDK client that does not retry.
func newClient(region, key string, change func(*sqs.Options)) *sqs.Client {
	return sqs.New(sqs.Options{
		Region: region, Credentials: credentials.NewStaticCredentialsProvider(key, "secret", ""), Retryer: aws.NopRetryer{},
	}, change)
}

// overHTTP returns a client that reaches the AWS through a socket.
func overHTTP(t *testing.T, local *localaws.AWS) *sqs.Client {
	t.Helper()
	server := httptest.NewServer(local)
	t.Cleanup(server.Close)
	return newClient("eu-west-1", "key", func(o *sqs.Options) { o.BaseEndpoint = &server.URL })
}

// inProcess returns a client that calls the AWS without a socket, for virtual time.
func inProcess(local *localaws.AWS) *sqs.Client {
	return newClient("eu-west-1", "key", func(o *sqs.Options) { o.HTTPClient = &http.Client{Transport: local.Transport()} })
}

func create(t *testing.T, c *sqs.Client, name string, attributes map[string]string) *string {
	t.Helper()
	out, err := c.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: &name, Attributes: attributes})
	if err != nil {
		t.Fatal(err)
	}
	return out.QueueUrl
}

func send(t *testing.T, c *sqs.Client, url *string, body string) string {
	t.Helper()
	out, err := c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: url, MessageBody: &body})
	if err != nil {
		t.Fatal(err)
	}
	return *out.MessageId
}

func receive(t *testing.T, c *sqs.Client, in *sqs.ReceiveMessageInput) []types.Message {
	t.Helper()
	out, err := c.ReceiveMessage(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return out.Messages
}

func attributesOf(t *testing.T, c *sqs.Client, url *string, names ...types.QueueAttributeName) map[string]string {
	t.Helper()
	out, err := c.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: url, AttributeNames: names})
	if err != nil {
		t.Fatal(err)
	}
	return out.Attributes
}

// counts returns visible, in flight and delayed.
func counts(t *testing.T, c *sqs.Client, url *string) [3]string {
	t.Helper()
	a := attributesOf(t, c, url, "All")
	return [3]string{a["ApproximateNumberOfMessages"], a["ApproximateNumberOfMessagesNotVisible"], a["ApproximateNumberOfMessagesDelayed"]}
}

func TestMessageRoundTripOverHTTP(t *testing.T) {
	c := overHTTP(t, localaws.New(localaws.Options{}))
	url := create(t, c, "q", nil)
	sent, err := c.SendMessage(t.Context(), &sqs.SendMessageInput{
		QueueUrl: url, MessageBody: aws.String("grüße <&> \U0001F514"), MessageGroupId: aws.String("fair"),
		MessageAttributes: map[string]types.MessageAttributeValue{
			"order.id":   {DataType: aws.String("Number"), StringValue: aws.String("42")},
			"order.kind": {DataType: aws.String("String.custom"), StringValue: aws.String("big")},
			"blob":       {DataType: aws.String("Binary"), BinaryValue: []byte{0, 1, 255}},
		},
		MessageSystemAttributes: map[string]types.MessageSystemAttributeValue{
			"AWSTraceHeader": {DataType: aws.String("String"), StringValue: aws.String("Root=1-2-3")},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := receive(t, c, &sqs.ReceiveMessageInput{
		QueueUrl: url, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"}, MessageAttributeNames: []string{"All"},
	})
	if len(got) != 1 {
		t.Fatalf("received %d messages", len(got))
	}
	m := got[0]
	if *m.Body != "grüße <&> \U0001F514" || *m.MessageId != *sent.MessageId || *m.MD5OfMessageAttributes != *sent.MD5OfMessageAttributes {
		t.Errorf("received %+v", m)
	}
	if !slices.Equal(m.MessageAttributes["blob"].BinaryValue, []byte{0, 1, 255}) || *m.MessageAttributes["order.kind"].DataType != "String.custom" {
		t.Errorf("attributes %v", m.MessageAttributes)
	}
	for name, want := range map[string]string{"SenderId": "key", "ApproximateReceiveCount": "1", "MessageGroupId": "fair", "AWSTraceHeader": "Root=1-2-3"} {
		if m.Attributes[name] != want {
			t.Errorf("%s is %q, want %q", name, m.Attributes[name], want)
		}
	}
	if sent.MD5OfMessageSystemAttributes == nil {
		t.Error("no digest of the system attributes")
	}
}

func TestReceiveSelectsAttributes(t *testing.T) {
	c := inProcess(localaws.New(localaws.Options{}))
	url := create(t, c, "q", map[string]string{"VisibilityTimeout": "0"})
	attributes := map[string]types.MessageAttributeValue{}
	for name, value := range map[string]string{"Hello": "There", "General": "Kenobi", "Help.Me": "Me"} {
		attributes[name] = types.MessageAttributeValue{DataType: aws.String("String"), StringValue: &value}
	}
	if _, err := c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String("msg"), MessageAttributes: attributes}); err != nil {
		t.Fatal(err)
	}
	// The digests are those that AWS answered, as recorded in LocalStack's snapshots.
	for _, test := range []struct {
		wanted []string
		names  []string
		md5    string
	}{
		{nil, nil, ""},
		{[]string{"All"}, []string{"General", "Hello", "Help.Me"}, "4c360f3fdafd970e05fae2f149d997f5"},
		{[]string{".*"}, []string{"General", "Hello", "Help.Me"}, "4c360f3fdafd970e05fae2f149d997f5"},
		{[]string{"*"}, []string{"General", "Hello", "Help.Me"}, "4c360f3fdafd970e05fae2f149d997f5"},
		{[]string{"Foo", "Help"}, nil, ""},
		{[]string{"General", "Hello"}, []string{"General", "Hello"}, "fca026605781cb4126a1e9044df24232"},
		{[]string{"Hello", "Foo"}, []string{"Hello"}, "a311262e065454b75da111d535b8dacd"},
		{[]string{"Hel.*"}, []string{"Hello", "Help.Me"}, "83fee93c1bcd8b9a5a923ffacdc636c7"},
	} {
		m := receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: url, MessageAttributeNames: test.wanted})[0]
		var names []string
		for name := range m.MessageAttributes {
			names = append(names, name)
		}
		slices.Sort(names)
		if !slices.Equal(names, test.names) || aws.ToString(m.MD5OfMessageAttributes) != test.md5 {
			t.Errorf("%v: got %v with %s", test.wanted, names, aws.ToString(m.MD5OfMessageAttributes))
		}
	}
	m := receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: url, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"SenderId", "SequenceNumber", "SqsManagedSseEnabled"}})[0]
	if diff := cmp.Diff(map[string]string{"SenderId": "key"}, m.Attributes); diff != "" {
		t.Error(diff)
	}
}

// TestRefusals has one row for each way to be refused: code and text are what clients match on.
func TestRefusals(t *testing.T) {
	c := overHTTP(t, localaws.New(localaws.Options{}))
	url := create(t, c, "q", nil)
	small := create(t, c, "small", map[string]string{"MaximumMessageSize": "1024"})
	ctx := t.Context()
	body := aws.String("x")
	handle := aws.String("nonsense")
	entries := func(n int, id func(int) string) []types.SendMessageBatchRequestEntry {
		var e []types.SendMessageBatchRequestEntry
		for i := range n {
			e = append(e, types.SendMessageBatchRequestEntry{Id: aws.String(id(i)), MessageBody: body})
		}
		return e
	}
	sendWith := func(in sqs.SendMessageInput) error {
		if in.QueueUrl == nil {
			in.QueueUrl = url
		}
		if in.MessageBody == nil {
			in.MessageBody = body
		}
		_, err := c.SendMessage(ctx, &in)
		return err
	}
	attribute := func(name, kind, value string) error {
		return sendWith(sqs.SendMessageInput{MessageAttributes: map[string]types.MessageAttributeValue{name: {DataType: &kind, StringValue: &value}}})
	}
	create := func(name string, attributes map[string]string) error {
		_, err := c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: &name, Attributes: attributes})
		return err
	}
	receiveWith := func(in sqs.ReceiveMessageInput) error {
		in.QueueUrl = url
		_, err := c.ReceiveMessage(ctx, &in)
		return err
	}
	batch := func(e []types.SendMessageBatchRequestEntry) error {
		_, err := c.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: url, Entries: e})
		return err
	}
	change := func(seconds int32, handle *string) error {
		_, err := c.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{QueueUrl: url, ReceiptHandle: handle, VisibilityTimeout: seconds})
		return err
	}
	big := strings.Repeat("x", 600_000)
	_, noQueue := c.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: aws.String("none")})
	_, badHandle := c.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: url, ReceiptHandle: handle})
	_, unknownAttribute := c.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: url, AttributeNames: []types.QueueAttributeName{"Nope"}})
	_, badMax := c.ListQueues(ctx, &sqs.ListQueuesInput{MaxResults: aws.Int32(1001)})
	_, emptyDelete := c.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: url, Entries: []types.DeleteMessageBatchRequestEntry{}})

	for i, test := range []struct {
		err        error
		code, text string
	}{
		{noQueue, "AWS.SimpleQueueService.NonExistentQueue", "The specified queue does not exist."},
		{sendWith(sqs.SendMessageInput{QueueUrl: aws.String("http://x/000000000000/none")}), "AWS.SimpleQueueService.NonExistentQueue", "The specified queue does not exist."},
		{sendWith(sqs.SendMessageInput{QueueUrl: aws.String("http://x/none")}), "InvalidAddress", "The address http://x/none is not valid for this endpoint."},
		{sendWith(sqs.SendMessageInput{QueueUrl: aws.String("none")}), "AWS.SimpleQueueService.NonExistentQueue", "The specified queue does not exist."},
		{create("no good", nil), "InvalidParameterValue", "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length"},
		{create(strings.Repeat("x", 81), nil), "InvalidParameterValue", "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length"},
		{create("q.fifo", nil), "InvalidParameterValue", "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length"},
		{create("q", map[string]string{"FifoQueue": "true"}), "InvalidParameterValue", "The name of a FIFO queue can only include alphanumeric characters, hyphens, or underscores, must end with .fifo suffix and be 1 to 80 in length"},
		{create("q2", map[string]string{"FifoQueue": "false"}), "InvalidAttributeName", "Unknown Attribute FifoQueue."},
		{create("q2", map[string]string{"Nope": "1"}), "InvalidAttributeName", "Unknown Attribute Nope."},
		{create("q2", map[string]string{"VisibilityTimeout": "43201"}), "InvalidAttributeValue", "Invalid value for the parameter VisibilityTimeout."},
		{create("q2", map[string]string{"RedrivePolicy": "{}"}), "InvalidParameterValue", "Value {} for parameter RedrivePolicy is invalid. Reason: Redrive policy does not contain mandatory attribute: deadLetterTargetArn."},
		{create("q", map[string]string{"DelaySeconds": "1"}), "QueueAlreadyExists", "A queue already exists with the same name and a different value for attribute DelaySeconds"},
		{unknownAttribute, "InvalidAttributeName", "Unknown Attribute Nope."},
		{badMax, "InvalidParameterValue", "Value 1001 for parameter MaxResults is invalid. Reason: Must be between 1 and 1000, if provided."},
		{sendWith(sqs.SendMessageInput{MessageBody: aws.String("")}), "MissingParameter", "The request must contain the parameter MessageBody."},
		{sendWith(sqs.SendMessageInput{MessageBody: aws.String("\x01")}), "InvalidMessageContents", "Invalid characters found. Valid unicode characters are #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF"},
		{sendWith(sqs.SendMessageInput{DelaySeconds: 901}), "InvalidParameterValue", "Value 901 for parameter DelaySeconds is invalid. Reason: DelaySeconds must be >= 0 and <= 900."},
		{sendWith(sqs.SendMessageInput{MessageDeduplicationId: aws.String("d")}), "InvalidParameterValue", "Value d for parameter MessageDeduplicationId is invalid. Reason: The request include parameter that is not valid for this queue type."},
		{sendWith(sqs.SendMessageInput{MessageBody: aws.String(strings.Repeat("x", 1<<20+1))}), "InvalidParameterValue", "One or more parameters are invalid. Reason: Message must be shorter than 1048576 bytes."},
		{sendWith(sqs.SendMessageInput{QueueUrl: small, MessageBody: aws.String(strings.Repeat("x", 1025))}), "InvalidParameterValue", "One or more parameters are invalid. Reason: Message must be shorter than 1024 bytes."},
		{attribute("AWS.x", "String", "v"), "InvalidParameterValue", "You can't use message attribute names beginning with 'AWS.' or 'Amazon.'. These strings are reserved for internal use. Additionally, they cannot start or end with '.'."},
		{attribute("x", "Wrong", "v"), "InvalidParameterValue", "The message attribute 'x' has an invalid message attribute type, the set of supported type prefixes is Binary, Number, and String."},
		{attribute("x", "String", ""), "InvalidParameterValue", "Message (user) attribute 'x' must contain a non-empty value of type 'String'."},
		{attribute("x", "String", "a\x08"), "InvalidParameterValue", "Invalid characters found. Valid unicode characters are #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF"},
		{attribute("attr.1øßä", "String", "Valida"), "", ""}, // which AWS takes
		{attribute("attr§", "String", "v"), "InvalidParameterValue", "Message (user) attributes name can only contain upper and lower score characters, digits, periods, hyphens and underscores. "},
		{attribute("x", "Number", "many"), "InvalidParameterValue", "Can't cast the value of message (user) attribute 'x' to a number."},
		{receiveWith(sqs.ReceiveMessageInput{MaxNumberOfMessages: 11}), "InvalidParameterValue", "Value 11 for parameter MaxNumberOfMessages is invalid. Reason: Must be between 1 and 10, if provided."},
		{receiveWith(sqs.ReceiveMessageInput{WaitTimeSeconds: 21}), "InvalidParameterValue", "Value 21 for parameter WaitTimeSeconds is invalid. Reason: Must be >= 0 and <= 20, if provided."},
		{receiveWith(sqs.ReceiveMessageInput{VisibilityTimeout: 43201}), "InvalidParameterValue", "Value 43201 for parameter VisibilityTimeout is invalid. Reason: Must be between 0 and 43200, if provided."},
		{receiveWith(sqs.ReceiveMessageInput{MessageSystemAttributeNames: []types.MessageSystemAttributeName{"Nope"}}), "InvalidAttributeName", "Unknown Attribute Nope."},
		{badHandle, "ReceiptHandleIsInvalid", `The input receipt handle "nonsense" is not a valid receipt handle.`},
		{change(-1, handle), "InvalidParameterValue", "Value -1 for parameter VisibilityTimeout is invalid. Reason: Must be between 0 and 43200, if provided."},
		{change(1, handle), "ReceiptHandleIsInvalid", `The input receipt handle "nonsense" is not a valid receipt handle.`},
		{batch([]types.SendMessageBatchRequestEntry{}), "AWS.SimpleQueueService.EmptyBatchRequest", "There should be at least one SendMessageBatchRequestEntry in the request."},
		{emptyDelete, "AWS.SimpleQueueService.EmptyBatchRequest", "There should be at least one DeleteMessageBatchRequestEntry in the request."},
		{batch(entries(20, func(i int) string { return fmt.Sprint(i) })), "AWS.SimpleQueueService.TooManyEntriesInBatchRequest", "Maximum number of entries per request are 10. You have sent 20."},
		{batch(entries(2, func(int) string { return "same" })), "AWS.SimpleQueueService.BatchEntryIdsNotDistinct", "Id same repeated."},
		{batch(entries(1, func(int) string { return "in:valid" })), "AWS.SimpleQueueService.InvalidBatchEntryId", "A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at most 80 letters long."},
		{batch([]types.SendMessageBatchRequestEntry{{Id: aws.String("1"), MessageBody: &big}, {Id: aws.String("2"), MessageBody: &big}}), "AWS.SimpleQueueService.BatchRequestTooLong", "Batch requests cannot be longer than 1048576 bytes. You have sent 1200000 bytes."},
	} {
		if test.code == "" {
			if test.err != nil {
				t.Errorf("row %d: %v", i, test.err)
			}
			continue
		}
		var e smithy.APIError
		if !errors.As(test.err, &e) {
			t.Errorf("row %d: %v, want %s", i, test.err, test.code)
			continue
		}
		if e.ErrorCode() != test.code || e.ErrorMessage() != test.text {
			t.Errorf("row %d:\n got %s: %s\nwant %s: %s", i, e.ErrorCode(), e.ErrorMessage(), test.code, test.text)
		}
	}
	var typed *types.QueueDoesNotExist
	if !errors.As(noQueue, &typed) {
		t.Errorf("%v is no QueueDoesNotExist", noQueue)
	}
	var invalid *types.ReceiptHandleIsInvalid
	if !errors.As(badHandle, &invalid) {
		t.Errorf("%v is no ReceiptHandleIsInvalid", badHandle)
	}
}

func TestBatchesFailByEntry(t *testing.T) {
	c := inProcess(localaws.New(localaws.Options{}))
	url := create(t, c, "q", map[string]string{"MaximumMessageSize": "1024"})
	out, err := c.SendMessageBatch(t.Context(), &sqs.SendMessageBatchInput{QueueUrl: url, Entries: []types.SendMessageBatchRequestEntry{
		{Id: aws.String("good"), MessageBody: aws.String("x")},
		{Id: aws.String("late"), MessageBody: aws.String("x"), DelaySeconds: 901},
		{Id: aws.String("empty"), MessageBody: aws.String("")},
		// AWS takes a batch that is larger than the queue's limit of a message, if its entries are not.
		{Id: aws.String("full"), MessageBody: aws.String(strings.Repeat("x", 1024))},
		{Id: aws.String("big"), MessageBody: aws.String(strings.Repeat("x", 1025))},
	}})
	if err != nil || len(out.Successful) != 2 || len(out.Failed) != 3 {
		t.Fatalf("%+v, %v", out, err)
	}
	if f := out.Failed[0]; *f.Id != "late" || *f.Code != "InvalidParameterValue" || !f.SenderFault {
		t.Errorf("failed %v", f)
	}
	if f := out.Failed[1]; *f.Id != "empty" || *f.Code != "MissingParameter" {
		t.Errorf("failed %v", f)
	}
	if f := out.Failed[2]; *f.Id != "big" || *f.Code != "InvalidParameterValue" || *f.Message != "One or more parameters are invalid. Reason: Message must be shorter than 1024 bytes." {
		t.Errorf("failed %v", f)
	}
	got := receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: 10})
	changed, err := c.ChangeMessageVisibilityBatch(t.Context(), &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: url, Entries: []types.ChangeMessageVisibilityBatchRequestEntry{
		{Id: aws.String("a"), ReceiptHandle: got[0].ReceiptHandle, VisibilityTimeout: 0},
		{Id: aws.String("b"), ReceiptHandle: aws.String("nonsense")},
	}})
	if err != nil || len(changed.Successful) != 1 || len(changed.Failed) != 1 || *changed.Failed[0].Code != "ReceiptHandleIsInvalid" {
		t.Errorf("%+v, %v", changed, err)
	}
	if n := counts(t, c, url); n != [3]string{"1", "1", "0"} {
		t.Errorf("counts %v", n)
	}
	deleted, err := c.DeleteMessageBatch(t.Context(), &sqs.DeleteMessageBatchInput{QueueUrl: url, Entries: []types.DeleteMessageBatchRequestEntry{
		{Id: aws.String("a"), ReceiptHandle: got[0].ReceiptHandle},
		{Id: aws.String("b"), ReceiptHandle: got[1].ReceiptHandle},
		{Id: aws.String("c"), ReceiptHandle: aws.String("nonsense")},
	}})
	if err != nil || len(deleted.Successful) != 2 || len(deleted.Failed) != 1 {
		t.Errorf("%+v, %v", deleted, err)
	}
	if n := counts(t, c, url); n != [3]string{"0", "0", "0"} {
		t.Errorf("counts %v", n)
	}
}

func TestQueueLifeCycle(t *testing.T) {
	c := clock.NewManual(time.Unix(1_700_000_000, 0))
	client := inProcess(localaws.New(localaws.Options{Clock: c}))
	ctx := t.Context()
	url := create(t, client, "q", map[string]string{"DelaySeconds": "0"})
	if again := create(t, client, "q", map[string]string{"VisibilityTimeout": "30"}); *again != *url {
		t.Errorf("a second create with equal attributes answers %s, want %s", *again, *url)
	}
	if got := attributesOf(t, client, url); len(got) != 0 {
		t.Errorf("attributes nobody asked for: %v", got)
	}
	c.Advance(time.Minute)
	if _, err := client.SetQueueAttributes(ctx, &sqs.SetQueueAttributesInput{QueueUrl: url, Attributes: map[string]string{"DelaySeconds": "7"}}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"QueueArn": "arn:aws:sqs:eu-west-1:000000000000:q", "CreatedTimestamp": "1700000000", "LastModifiedTimestamp": "1700000060",
		"DelaySeconds": "7", "MaximumMessageSize": "1048576", "MessageRetentionPeriod": "345600", "ReceiveMessageWaitTimeSeconds": "0",
		"VisibilityTimeout": "30", "SqsManagedSseEnabled": "true", "ApproximateNumberOfMessages": "0",
		"ApproximateNumberOfMessagesDelayed": "0", "ApproximateNumberOfMessagesNotVisible": "0",
	}
	if diff := cmp.Diff(want, attributesOf(t, client, url, "All")); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	if _, err := client.DeleteQueue(ctx, &sqs.DeleteQueueInput{QueueUrl: url}); err != nil {
		t.Fatal(err)
	}
	_, err := client.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("q")})
	var recently *types.QueueDeletedRecently
	if !errors.As(err, &recently) {
		t.Errorf("create right after delete: %v, want QueueDeletedRecently", err)
	}
	c.Advance(time.Minute)
	create(t, client, "q", nil)
}

func TestListQueuesPages(t *testing.T) {
	c := inProcess(localaws.New(localaws.Options{}))
	for i := range 7 {
		create(t, c, fmt.Sprintf("a%d", i), nil)
	}
	create(t, c, "b", nil)
	var got []string
	pages := sqs.NewListQueuesPaginator(c, &sqs.ListQueuesInput{QueueNamePrefix: aws.String("a"), MaxResults: aws.Int32(3)})
	n := 0
	for ; pages.HasMorePages(); n++ {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, url := range page.QueueUrls {
			got = append(got, url[strings.LastIndexByte(url, '/')+1:])
		}
	}
	if n != 3 || !slices.Equal(got, []string{"a0", "a1", "a2", "a3", "a4", "a5", "a6"}) {
		t.Errorf("%d pages: %v", n, got)
	}
}

func TestRegionsAndAccountsAreApart(t *testing.T) {
	local := localaws.New(localaws.Options{})
	at := func(region, key string) *sqs.Client {
		return newClient(region, key, func(o *sqs.Options) { o.HTTPClient = &http.Client{Transport: local.Transport()} })
	}
	here := at("eu-west-1", "111111111111")
	url := create(t, here, "q", nil)
	if !strings.HasSuffix(*url, "/111111111111/q") {
		t.Errorf("url %s does not name the account", *url)
	}
	for _, other := range []*sqs.Client{at("us-east-1", "111111111111"), at("eu-west-1", "222222222222")} {
		if _, err := other.GetQueueUrl(t.Context(), &sqs.GetQueueUrlInput{QueueName: aws.String("q")}); err == nil {
			t.Error("a queue is seen from another region or account")
		}
	}
	shared, err := at("eu-west-1", "222222222222").GetQueueUrl(t.Context(), &sqs.GetQueueUrlInput{QueueName: aws.String("q"), QueueOwnerAWSAccountId: aws.String("111111111111")})
	if err != nil || *shared.QueueUrl != *url {
		t.Errorf("by owner: %v, %v", shared, err)
	}
}

// TestTimes passes hours in virtual time; every deadline is exact.
func TestTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := inProcess(localaws.New(localaws.Options{}))
		url := create(t, c, "q", map[string]string{"MessageRetentionPeriod": "3600", "VisibilityTimeout": "10"})
		poll := func() []types.Message {
			return receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: url, WaitTimeSeconds: 20})
		}
		took := func(want time.Duration, f func() []types.Message) types.Message {
			t.Helper()
			started := time.Now()
			got := f()
			if d := time.Since(started); d != want || len(got) != 1 {
				t.Fatalf("got %d messages after %v, want one after %v", len(got), d, want)
			}
			return got[0]
		}
		send(t, c, url, "m")
		first := took(0, poll)
		second := took(10*time.Second, poll) // the visibility ends
		if *first.ReceiptHandle == *second.ReceiptHandle || *first.MessageId != *second.MessageId {
			t.Error("each receive has its own handle of the same message")
		}
		hide := func(seconds int32, handle *string) error {
			_, err := c.ChangeMessageVisibility(t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: url, ReceiptHandle: handle, VisibilityTimeout: seconds})
			return err
		}
		time.Sleep(5 * time.Second)
		if err := hide(15, second.ReceiptHandle); err != nil {
			t.Fatal(err)
		}
		third := took(15*time.Second, poll) // counted from the change
		time.Sleep(time.Second)
		if err := hide(43200, third.ReceiptHandle); err == nil || !strings.Contains(err.Error(), "beyond the limit [43200 seconds]") {
			t.Errorf("more than 12 hours in all: %v", err)
		}
		if err := hide(43199, third.ReceiptHandle); err != nil {
			t.Errorf("12 hours in all: %v", err)
		}
		if n := counts(t, c, url); n != [3]string{"0", "1", "0"} {
			t.Errorf("counts %v", n)
		}
		time.Sleep(time.Hour) // the retention ends it, in flight or not
		if n := counts(t, c, url); n != [3]string{"0", "0", "0"} {
			t.Errorf("counts after the retention %v", n)
		}
		if err := hide(1, third.ReceiptHandle); err == nil || !strings.Contains(err.Error(), "Message does not exist") {
			t.Errorf("visibility of a message that is gone: %v", err)
		}

		if _, err := c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String("d"), DelaySeconds: 7}); err != nil {
			t.Fatal(err)
		}
		if n := counts(t, c, url); n != [3]string{"0", "0", "1"} {
			t.Errorf("counts of a delayed message %v", n)
		}
		took(7*time.Second, poll)
	})
}

func TestOldHandlesWorkOnStandardQueues(t *testing.T) {
	c := clock.NewManual(time.Unix(0, 0))
	client := inProcess(localaws.New(localaws.Options{Clock: c}))
	url := create(t, client, "q", nil)
	send(t, client, url, "m")
	first := receive(t, client, &sqs.ReceiveMessageInput{QueueUrl: url})[0]
	c.Advance(31 * time.Second)
	if n := counts(t, client, url); n != [3]string{"1", "0", "0"} {
		t.Fatalf("counts after the visibility %v", n)
	}
	if _, err := client.ChangeMessageVisibility(t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: url, ReceiptHandle: first.ReceiptHandle, VisibilityTimeout: 60}); err != nil {
		t.Errorf("visibility by a handle that expired: %v", err)
	}
	for range 2 { // twice is no error
		if _, err := client.DeleteMessage(t.Context(), &sqs.DeleteMessageInput{QueueUrl: url, ReceiptHandle: first.ReceiptHandle}); err != nil {
			t.Fatal(err)
		}
	}
	if n := counts(t, client, url); n != [3]string{"0", "0", "0"} {
		t.Errorf("counts after the delete %v", n)
	}
}

func TestPurge(t *testing.T) {
	c := clock.NewManual(time.Unix(0, 0))
	client := inProcess(localaws.New(localaws.Options{Clock: c}))
	url := create(t, client, "q", nil)
	send(t, client, url, "in flight")
	receive(t, client, &sqs.ReceiveMessageInput{QueueUrl: url})
	send(t, client, url, "ready")
	purge := func() error {
		_, err := client.PurgeQueue(t.Context(), &sqs.PurgeQueueInput{QueueUrl: url})
		return err
	}
	if err := purge(); err != nil {
		t.Fatal(err)
	}
	if n := counts(t, client, url); n != [3]string{"0", "0", "0"} {
		t.Errorf("counts %v", n)
	}
	var busy *types.PurgeQueueInProgress
	if err := purge(); !errors.As(err, &busy) || !strings.Contains(err.Error(), "Only one PurgeQueue operation on q is allowed every 60 seconds.") {
		t.Errorf("second purge: %v", err)
	}
	c.Advance(time.Minute)
	if err := purge(); err != nil {
		t.Error(err)
	}
}

func TestInFlightLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := inProcess(localaws.New(localaws.Options{SQSMaxInFlight: 3}))
		url := create(t, c, "q", nil)
		for range 5 {
			send(t, c, url, "m")
		}
		got := receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: 10})
		if len(got) != 3 {
			t.Fatalf("received %d, want 3", len(got))
		}
		_, err := c.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: url})
		var over *types.OverLimit
		if !errors.As(err, &over) {
			t.Errorf("short poll at the limit: %v, want OverLimit", err)
		}
		go func() {
			time.Sleep(2 * time.Second)
			_, _ = c.DeleteMessage(context.WithoutCancel(t.Context()), &sqs.DeleteMessageInput{QueueUrl: url, ReceiptHandle: got[0].ReceiptHandle})
		}()
		started := time.Now()
		if n := len(receive(t, c, &sqs.ReceiveMessageInput{QueueUrl: url, WaitTimeSeconds: 20, MaxNumberOfMessages: 10})); n != 1 || time.Since(started) != 2*time.Second {
			t.Errorf("long poll at the limit got %d after %v, want 1 when there is room", n, time.Since(started))
		}
	})
}

func TestDeletingAQueueEndsItsLongPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := inProcess(localaws.New(localaws.Options{}))
		url := create(t, c, "q", nil)
		failed := make(chan error)
		go func() {
			_, err := c.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: url, WaitTimeSeconds: 20})
			failed <- err
		}()
		synctest.Wait()
		if _, err := c.DeleteQueue(t.Context(), &sqs.DeleteQueueInput{QueueUrl: url}); err != nil {
			t.Fatal(err)
		}
		var gone *types.QueueDoesNotExist
		if err := <-failed; !errors.As(err, &gone) {
			t.Errorf("the long poll ended with %v, want QueueDoesNotExist", err)
		}
	})
}
