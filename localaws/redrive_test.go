package localaws_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/clock"
)

// dead is a queue with a dead-letter queue, on a clock that the test moves.
type dead struct {
	*sqs.Client
	t           *testing.T
	clock       *clock.Manual
	queue, dlq  *string
	arn, dlqARN string
}

func newDead(t *testing.T, suffix string, maxReceives int) *dead {
	t.Helper()
	c := clock.NewManual(time.Unix(1_700_000_000, 0))
	d := &dead{Client: inProcess(localaws.New(localaws.Options{Clock: c})), t: t, clock: c}
	var attributes map[string]string
	if suffix != "" {
		attributes = map[string]string{"FifoQueue": "true", "ContentBasedDeduplication": "true"}
	}
	d.dlq = create(t, d.Client, "dlq"+suffix, attributes)
	d.dlqARN = attributesOf(t, d.Client, d.dlq, "QueueArn")["QueueArn"]
	d.queue = create(t, d.Client, "q"+suffix, attributes)
	d.arn = attributesOf(t, d.Client, d.queue, "QueueArn")["QueueArn"]
	d.redrive(d.queue, maxReceives)
	return d
}

func (d *dead) redrive(queue *string, maxReceives int) {
	d.t.Helper()
	policy := fmt.Sprintf(`{"deadLetterTargetArn":%q,"maxReceiveCount":"%d"}`, d.dlqARN, maxReceives)
	if _, err := d.SetQueueAttributes(d.t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: queue, Attributes: map[string]string{"RedrivePolicy": policy}}); err != nil {
		d.t.Fatal(err)
	}
}

// poll receives everything that is visible, and leaves it visible.
func (d *dead) poll(queue *string) []types.Message {
	d.t.Helper()
	return receive(d.t, d.Client, &sqs.ReceiveMessageInput{
		QueueUrl: queue, MaxNumberOfMessages: 10, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"},
		VisibilityTimeout: 1,
	})
}

func TestDeadLetters(t *testing.T) {
	for _, suffix := range []string{"", ".fifo"} {
		d := newDead(t, suffix, 2)
		in := &sqs.SendMessageInput{QueueUrl: d.queue, MessageBody: aws.String("m"), MessageGroupId: aws.String("g")}
		sent, err := d.SendMessage(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got := d.poll(d.queue); len(got) != 1 {
				t.Fatalf("%s: received %d", d.arn, len(got))
			}
			d.clock.Advance(2 * time.Second)
		}
		if got := d.poll(d.queue); len(got) != 0 {
			t.Errorf("%s: a third receive got the message", d.arn)
		}
		got := d.poll(d.dlq)
		if len(got) != 1 || *got[0].MessageId != *sent.MessageId {
			t.Fatalf("%s: the dead-letter queue has %d", d.arn, len(got))
		}
		wantSent := "1700000000000" // a standard queue keeps the date
		if suffix != "" {
			wantSent = "1700000004000"
		}
		for name, want := range map[string]string{
			"DeadLetterQueueSourceArn": d.arn, "MessageGroupId": "g", "ApproximateReceiveCount": "3", "SentTimestamp": wantSent,
		} {
			if got[0].Attributes[name] != want {
				t.Errorf("%s: %s is %q, want %q", d.arn, name, got[0].Attributes[name], want)
			}
		}
	}
}

// TestADeadLetterQueueCountsForItself has a dead-letter queue with one of its own, which must not
// pass a message on for the receives that it had before.
func TestADeadLetterQueueCountsForItself(t *testing.T) {
	d := newDead(t, "", 2)
	last := create(t, d.Client, "last", nil)
	policy := fmt.Sprintf(`{"deadLetterTargetArn":%q,"maxReceiveCount":2}`, strings.Replace(d.arn, ":q", ":last", 1))
	if _, err := d.SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: d.dlq, Attributes: map[string]string{"RedrivePolicy": policy}}); err != nil {
		t.Fatal(err)
	}
	send(t, d.Client, d.queue, "m")
	for _, step := range []struct {
		queue *string
		want  int
	}{{d.queue, 1}, {d.queue, 1}, {d.queue, 0}, {d.dlq, 1}, {d.dlq, 1}, {d.dlq, 0}, {last, 1}} {
		if got := d.poll(step.queue); len(got) != step.want {
			t.Errorf("received %d of %s, want %d", len(got), *step.queue, step.want)
		}
		d.clock.Advance(2 * time.Second)
	}
}

func TestRetentionOfDeadLettersCountsFromTheSend(t *testing.T) {
	d := newDead(t, "", 1)
	send(t, d.Client, d.queue, "m")
	d.clock.Advance(3 * 24 * time.Hour)
	d.poll(d.queue)
	d.clock.Advance(2 * time.Second)
	d.poll(d.queue)
	send(t, d.Client, d.dlq, "younger, and earlier in the queue's own order of dates")
	if n := counts(t, d.Client, d.dlq)[0]; n != "2" {
		t.Fatalf("%s messages in the dead-letter queue", n)
	}
	d.clock.Advance(24 * time.Hour) // four days after the send
	if got := d.poll(d.dlq); len(got) != 1 || !strings.HasPrefix(*got[0].Body, "younger") {
		t.Errorf("after the retention: %q", bodies(got))
	}
}

func TestRedrivePolicies(t *testing.T) {
	d := newDead(t, "", 3)
	if got := attributesOf(t, d.Client, d.queue, "RedrivePolicy")["RedrivePolicy"]; got != `{"deadLetterTargetArn":"`+d.dlqARN+`","maxReceiveCount":3}` {
		t.Errorf("policy %s", got)
	}
	out, err := d.ListDeadLetterSourceQueues(t.Context(), &sqs.ListDeadLetterSourceQueuesInput{QueueUrl: d.dlq})
	if err != nil || !slices.Equal(out.QueueUrls, []string{*d.queue}) {
		t.Errorf("sources %v, %v", out, err)
	}
	create(t, d.Client, "q.fifo", map[string]string{"FifoQueue": "true"})
	set := func(queue *string, name, value string) error {
		_, err := d.SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: queue, Attributes: map[string]string{name: value}})
		return err
	}
	policy := func(arn, n string) string {
		return `{"deadLetterTargetArn": "` + arn + `", "maxReceiveCount": ` + n + `}`
	}
	for text, reason := range map[string]string{
		policy("dummy", "42"):                                   "Invalid value for deadLetterTargetArn.",
		policy(d.dlqARN, "0"):                                   "Invalid value for maxReceiveCount: 0, valid values are from 1 to 1000 both inclusive.",
		policy(d.dlqARN+"x", "1"):                               "Dead letter target does not exist.",
		policy(strings.Replace(d.arn, ":q", ":q.fifo", 1), "1"): "Dead-letter queue must be same type of queue as the source.",
		"[]": "Redrive policy is not a valid JSON map.",
	} {
		if code, got := code(set(d.queue, "RedrivePolicy", text)); code != "InvalidParameterValue" || got != "Value "+text+" for parameter RedrivePolicy is invalid. Reason: "+reason {
			t.Errorf("%s: %s: %s", text, code, got)
		}
	}
	other := create(t, d.Client, "other", nil)
	for allow, want := range map[string]bool{
		`{"redrivePermission":"denyAll"}`: false, `{"redrivePermission":"allowAll"}`: true,
		`{"redrivePermission":"byQueue","sourceQueueArns":["` + d.arn + `"]}`:                                     false,
		`{"redrivePermission":"byQueue","sourceQueueArns":["` + d.arn + `x"]}`:                                    false,
		`{"redrivePermission":"byQueue","sourceQueueArns":["` + strings.Replace(d.arn, ":q", ":other", 1) + `"]}`: true,
	} {
		if err := set(d.dlq, "RedriveAllowPolicy", allow); err != nil {
			t.Fatal(err)
		}
		if err := set(other, "RedrivePolicy", policy(d.dlqARN, "1")); (err == nil) != want {
			t.Errorf("%s: %v", allow, err)
		}
	}
	if err := set(d.queue, "RedrivePolicy", ""); err != nil {
		t.Fatal(err)
	}
	if got := attributesOf(t, d.Client, d.queue, "All")["RedrivePolicy"]; got != "" {
		t.Errorf("policy after it was taken back: %s", got)
	}
}

// bury sends n messages and lets them end in the dead-letter queue.
func (d *dead) bury(queue *string, n int) {
	d.t.Helper()
	for i := range n {
		in := &sqs.SendMessageInput{QueueUrl: queue, MessageBody: aws.String(fmt.Sprint(i))}
		if strings.HasSuffix(*queue, ".fifo") {
			in.MessageGroupId = aws.String("g")
		}
		if _, err := d.SendMessage(d.t.Context(), in); err != nil {
			d.t.Fatal(err)
		}
	}
	for range 2 * n {
		d.poll(queue)
		d.clock.Advance(2 * time.Second)
	}
	if got := counts(d.t, d.Client, queue)[0]; got != "0" {
		d.t.Fatalf("%s messages were not given up", got)
	}
}

func (d *dead) tasks() []types.ListMessageMoveTasksResultEntry {
	d.t.Helper()
	out, err := d.ListMessageMoveTasks(d.t.Context(), &sqs.ListMessageMoveTasksInput{SourceArn: &d.dlqARN, MaxResults: aws.Int32(10)})
	if err != nil {
		d.t.Fatal(err)
	}
	return out.Results
}

func TestMoveTaskToTheSources(t *testing.T) {
	d := newDead(t, "", 1)
	second := create(t, d.Client, "second", nil)
	d.redrive(second, 1)
	d.bury(d.queue, 3)
	d.bury(second, 2)
	if _, err := d.StartMessageMoveTask(t.Context(), &sqs.StartMessageMoveTaskInput{SourceArn: &d.dlqARN}); err != nil {
		t.Fatal(err)
	}
	if task := d.tasks()[0]; *task.Status != "RUNNING" || task.TaskHandle == nil || task.ApproximateNumberOfMessagesMoved != 0 || *task.ApproximateNumberOfMessagesToMove != 5 {
		t.Errorf("task %+v", task)
	}
	d.clock.Advance(time.Second)
	task := d.tasks()[0]
	if *task.Status != "COMPLETED" || task.TaskHandle != nil || task.ApproximateNumberOfMessagesMoved != 5 || task.DestinationArn != nil {
		t.Errorf("task %+v", task)
	}
	if a, b := counts(t, d.Client, d.queue)[0], counts(t, d.Client, second)[0]; a != "3" || b != "2" {
		t.Errorf("%s went back to the first, %s to the second", a, b)
	}
	m := d.poll(d.queue)[0]
	if m.Attributes["ApproximateReceiveCount"] != "1" || m.Attributes["DeadLetterQueueSourceArn"] != "" {
		t.Errorf("a message that was moved back is a new one: %v", m.Attributes)
	}
}

func TestMoveTaskThrottleAndCancel(t *testing.T) {
	d := newDead(t, ".fifo", 1)
	to := create(t, d.Client, "to.fifo", map[string]string{"FifoQueue": "true"})
	toARN := attributesOf(t, d.Client, to, "QueueArn")["QueueArn"]
	d.bury(d.queue, 10)
	started, err := d.StartMessageMoveTask(t.Context(), &sqs.StartMessageMoveTaskInput{SourceArn: &d.dlqARN, DestinationArn: &toARN, MaxNumberOfMessagesPerSecond: aws.Int32(2)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.StartMessageMoveTask(t.Context(), &sqs.StartMessageMoveTaskInput{SourceArn: &d.dlqARN})
	if code, text := code(err); code != "InvalidParameterValue" || text != "There is already a task running. Only one active task is allowed for a source queue arn at a given time." {
		t.Errorf("a second task: %s: %s", code, text)
	}
	d.clock.Advance(2 * time.Second)
	if n := counts(t, d.Client, to)[0]; n != "4" {
		t.Errorf("%s messages moved in two seconds at two a second", n)
	}
	cancelled, err := d.CancelMessageMoveTask(t.Context(), &sqs.CancelMessageMoveTaskInput{TaskHandle: started.TaskHandle})
	if err != nil || cancelled.ApproximateNumberOfMessagesMoved != 4 {
		t.Errorf("cancel: %v, %v", cancelled, err)
	}
	d.clock.Advance(time.Minute)
	if task := d.tasks()[0]; *task.Status != "CANCELLED" || task.ApproximateNumberOfMessagesMoved != 4 || *task.MaxNumberOfMessagesPerSecond != 2 || *task.DestinationArn != toARN {
		t.Errorf("task %+v", task)
	}
	if got := bodies(d.poll(to)); got != "0 1 2 3" {
		t.Errorf("moved %s, want the order kept", got)
	}
}

// TestMoveTaskKeepsItsRate has rates that are no multiple of what the steps of a task divide a
// second into.
func TestMoveTaskKeepsItsRate(t *testing.T) {
	for _, rate := range []int32{3, 75, 99} {
		d := newDead(t, "", 1)
		to := create(t, d.Client, "to", nil)
		toARN := attributesOf(t, d.Client, to, "QueueArn")["QueueArn"]
		for i := range 2 * rate {
			send(t, d.Client, d.queue, fmt.Sprint(i))
		}
		for range 2*rate/10 + 2 {
			d.poll(d.queue)
		}
		d.clock.Advance(2 * time.Second)
		d.poll(d.queue)
		if _, err := d.StartMessageMoveTask(t.Context(), &sqs.StartMessageMoveTaskInput{SourceArn: &d.dlqARN, DestinationArn: &toARN, MaxNumberOfMessagesPerSecond: &rate}); err != nil {
			t.Fatal(err)
		}
		d.clock.Advance(1010 * time.Millisecond)
		if n := counts(t, d.Client, to)[0]; n != fmt.Sprint(rate) {
			t.Errorf("%s messages moved in a second at %d a second", n, rate)
		}
	}
}

func TestMoveTaskFailures(t *testing.T) {
	d := newDead(t, "", 1)
	to := create(t, d.Client, "to", nil)
	toARN := attributesOf(t, d.Client, to, "QueueArn")["QueueArn"]
	start := func(source, to *string) error {
		_, err := d.StartMessageMoveTask(t.Context(), &sqs.StartMessageMoveTaskInput{SourceArn: source, DestinationArn: to, MaxNumberOfMessagesPerSecond: aws.Int32(1)})
		return err
	}
	cancel := func(handle string) error {
		_, err := d.CancelMessageMoveTask(t.Context(), &sqs.CancelMessageMoveTaskInput{TaskHandle: &handle})
		return err
	}
	missing := aws.String(d.arn + "x")
	for i, test := range []struct {
		err        error
		code, text string
	}{
		{start(&d.arn, nil), "InvalidParameterValue", "Source queue must be configured as a Dead Letter Queue."},
		{start(missing, nil), "ResourceNotFoundException", "The resource that you specified for the SourceArn parameter doesn't exist."},
		{start(&d.dlqARN, missing), "ResourceNotFoundException", "The resource that you specified for the DestinationArn parameter doesn't exist."},
		{cancel("nonsense"), "InvalidParameterValue", "Value for parameter TaskHandle is invalid."},
	} {
		if code, text := code(test.err); code != test.code || text != test.text {
			t.Errorf("row %d: %s: %s", i, code, text)
		}
	}
	d.bury(d.queue, 5)
	if err := start(&d.dlqARN, &toARN); err != nil {
		t.Fatal(err)
	}
	d.clock.Advance(2 * time.Second)
	if _, err := d.DeleteQueue(t.Context(), &sqs.DeleteQueueInput{QueueUrl: to}); err != nil {
		t.Fatal(err)
	}
	d.clock.Advance(2 * time.Second)
	task := d.tasks()[0]
	if *task.Status != "FAILED" || *task.FailureReason != "AWS.SimpleQueueService.NonExistentQueue" || task.ApproximateNumberOfMessagesMoved != 2 {
		t.Errorf("task %+v", task)
	}
	if n := counts(t, d.Client, d.dlq)[0]; n != "3" {
		t.Errorf("%s messages left, want those that were not moved", n)
	}
}

// TestARNsAreOfTheRegionsPartition has queues in China and in GovCloud.
func TestARNsAreOfTheRegionsPartition(t *testing.T) {
	local := localaws.New(localaws.Options{})
	for region, partition := range map[string]string{"cn-north-1": "aws-cn", "us-gov-west-1": "aws-us-gov", "eu-west-1": "aws"} {
		c := newClient(region, "key", func(o *sqs.Options) { o.HTTPClient = &http.Client{Transport: local.Transport()} })
		dlq, url := create(t, c, "dlq", nil), create(t, c, "q", nil)
		arn := attributesOf(t, c, dlq, "QueueArn")["QueueArn"]
		if want := "arn:" + partition + ":sqs:" + region + ":000000000000:dlq"; arn != want {
			t.Errorf("ARN %s, want %s", arn, want)
		}
		set := func(arn string) error {
			_, err := c.SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: url, Attributes: map[string]string{
				"RedrivePolicy": `{"deadLetterTargetArn":"` + arn + `","maxReceiveCount":1}`,
			}})
			return err
		}
		if err := set(arn); err != nil {
			t.Errorf("a policy with %s: %v", arn, err)
		}
		if err := set(strings.Replace(arn, partition, "aws-other", 1)); err == nil {
			t.Errorf("%s was taken in another partition", arn)
		}
		if _, err := c.StartMessageMoveTask(t.Context(), &sqs.StartMessageMoveTaskInput{SourceArn: &arn}); err != nil {
			t.Errorf("a move task of %s: %v", arn, err)
		}
		if _, err := c.AddPermission(t.Context(), &sqs.AddPermissionInput{
			QueueUrl: url, Label: aws.String("l"), AWSAccountIds: []string{"111111111111"}, Actions: []string{"SendMessage"},
		}); err != nil {
			t.Fatal(err)
		}
		if policy := attributesOf(t, c, url, "Policy")["Policy"]; !strings.Contains(policy, `"arn:`+partition+`:iam::111111111111:root"`) {
			t.Errorf("policy %s", policy)
		}
	}
}

func TestTags(t *testing.T) {
	c := overHTTP(t, localaws.New(localaws.Options{}))
	out, err := c.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: aws.String("q"), Tags: map[string]string{"a": "1", "b": ""}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.TagQueue(t.Context(), &sqs.TagQueueInput{QueueUrl: out.QueueUrl, Tags: map[string]string{"a": "2", "c": "3"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.UntagQueue(t.Context(), &sqs.UntagQueueInput{QueueUrl: out.QueueUrl, TagKeys: []string{"c", "none"}}); err != nil {
		t.Fatal(err)
	}
	tags, err := c.ListQueueTags(t.Context(), &sqs.ListQueueTagsInput{QueueUrl: out.QueueUrl})
	if err != nil || fmt.Sprint(tags.Tags) != "map[a:2 b:]" {
		t.Errorf("tags %v, %v", tags.Tags, err)
	}
	many := map[string]string{}
	for i := range 49 {
		many[fmt.Sprint(i)] = ""
	}
	if _, err := c.TagQueue(t.Context(), &sqs.TagQueueInput{QueueUrl: out.QueueUrl, Tags: many}); err == nil {
		t.Error("51 tags were accepted")
	}
}

func TestPermissions(t *testing.T) {
	c := overHTTP(t, localaws.New(localaws.Options{}))
	url := create(t, c, "q", nil)
	add := func(label string, accounts, actions []string) error {
		_, err := c.AddPermission(t.Context(), &sqs.AddPermissionInput{QueueUrl: url, Label: &label, AWSAccountIds: accounts, Actions: actions})
		return err
	}
	remove := func(label string) error {
		_, err := c.RemovePermission(t.Context(), &sqs.RemovePermissionInput{QueueUrl: url, Label: &label})
		return err
	}
	policy := func() string { return attributesOf(t, c, url, "Policy")["Policy"] }
	if err := add("one", []string{"111111111111", "222222222222"}, []string{"ReceiveMessage"}); err != nil {
		t.Fatal(err)
	}
	const arn = "arn:aws:sqs:eu-west-1:000000000000:q"
	want := `{"Version":"2008-10-17","Id":"` + arn + `/SQSDefaultPolicy","Statement":[{"Sid":"one","Effect":"Allow",` +
		`"Principal":{"AWS":["arn:aws:iam::111111111111:root","arn:aws:iam::222222222222:root"]},"Action":"SQS:ReceiveMessage","Resource":"` + arn + `"}]}`
	if got := policy(); got != want {
		t.Errorf("policy\n%s\nwant\n%s", got, want)
	}
	if code, text := code(add("one", []string{"1"}, []string{"SendMessage"})); code != "InvalidParameterValue" || text != "Value one for parameter Label is invalid. Reason: Already exists." {
		t.Errorf("the same label again: %s: %s", code, text)
	}
	if code, text := code(add("two", []string{"1"}, []string{"CreateQueue"})); code != "InvalidParameterValue" || text != "Value SQS:CreateQueue for parameter ActionName is invalid. Reason: Only the queue owner is allowed to invoke this action." {
		t.Errorf("an action of the owner's: %s: %s", code, text)
	}
	if err := add("two", []string{"111111111111"}, []string{"SendMessage", "DeleteMessage"}); err != nil {
		t.Fatal(err)
	}
	if err := remove("one"); err != nil {
		t.Fatal(err)
	}
	if got := policy(); strings.Contains(got, `"one"`) || !strings.Contains(got, `"Principal":{"AWS":"arn:aws:iam::111111111111:root"},"Action":["SQS:SendMessage","SQS:DeleteMessage"]`) {
		t.Errorf("policy %s", got)
	}
	if err := remove("two"); err != nil || policy() != "" {
		t.Errorf("after the last statement went: %v, %q", err, policy())
	}
	// A policy's Statement may be one object.
	if _, err := c.SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: url, Attributes: map[string]string{
		"Policy": `{"Version":"2012-10-17","Statement":{"Sid":"zero","Effect":"Deny","Principal":"*","Action":"*","Resource":"*"}}`,
	}}); err != nil {
		t.Fatal(err)
	}
	if err := add("one", []string{"111111111111"}, []string{"SendMessage"}); err != nil || !strings.Contains(policy(), `"Statement":[{"Sid":"zero","Effect":"Deny"`) {
		t.Errorf("a permission beside one object: %v, %s", err, policy())
	}
	for _, label := range []string{"zero", "one"} {
		if err := remove(label); err != nil {
			t.Error(err)
		}
	}
	if code, text := code(remove("two")); code != "InvalidParameterValue" || text != "Value two for parameter Label is invalid. Reason: can't find label." {
		t.Errorf("an unknown label: %s: %s", code, text)
	}
}
