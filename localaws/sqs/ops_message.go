package sqs

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/fault"
)

// sendEntry is one message of a send; the batch and the single one share it.
type sendEntry struct {
	MessageBody             string                    `json:"MessageBody"`
	DelaySeconds            *int                      `json:"DelaySeconds"`
	MessageAttributes       map[string]AttributeValue `json:"MessageAttributes"`
	MessageSystemAttributes map[string]AttributeValue `json:"MessageSystemAttributes"`
	MessageDeduplicationID  string                    `json:"MessageDeduplicationId"`
	MessageGroupID          string                    `json:"MessageGroupId"`
}

// size is what counts against the limits: the body and every attribute's name, type and value.
func (e *sendEntry) size() int { return len(e.MessageBody) + sizeOf(e.MessageAttributes) }

var groupID = regexp.MustCompile("^[A-Za-z0-9!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]{1,128}$")

func (e *sendEntry) check() error {
	if e.MessageBody == "" {
		return missing("MessageBody")
	}
	if !validText(e.MessageBody) {
		return errBadContents
	}
	if d := e.DelaySeconds; d != nil && (*d < 0 || *d > 900) {
		return invalid(*d, "DelaySeconds", "DelaySeconds must be >= 0 and <= 900.")
	}
	if e.MessageDeduplicationID != "" {
		return invalid(e.MessageDeduplicationID, "MessageDeduplicationId", "The request include parameter that is not valid for this queue type.")
	}
	if e.MessageGroupID != "" && !groupID.MatchString(e.MessageGroupID) {
		return invalid(e.MessageGroupID, "MessageGroupId", "MessageGroupId can only include alphanumeric and punctuation characters. 1 to 128 in length.")
	}
	if err := checkSystemAttributes(e.MessageSystemAttributes); err != nil {
		return err
	}
	return checkAttributes(e.MessageAttributes)
}

// message makes what the engine sends. The entry must have been checked.
func (s *Service) message(c *api.Call, e *sendEntry) outgoing {
	out := outgoing{content: content{
		id: s.ids.UUID(), body: e.MessageBody, md5: md5Text(e.MessageBody), attributes: e.MessageAttributes,
		group: e.MessageGroupID, sender: c.Account,
	}}
	if c.AccessKey != "" {
		out.sender = c.AccessKey
	}
	if trace, ok := e.MessageSystemAttributes["AWSTraceHeader"]; ok {
		out.trace = *trace.StringValue
	}
	if e.DelaySeconds != nil {
		d := time.Duration(*e.DelaySeconds) * time.Second
		out.delay = &d
	}
	return out
}

type sendMessageInput struct {
	QueueURL string `json:"QueueUrl"`
	sendEntry
}

// sent is the answer for one message.
type sent struct {
	MD5OfMessageBody             string `json:"MD5OfMessageBody"`
	MD5OfMessageAttributes       string `json:"MD5OfMessageAttributes,omitempty"`
	MD5OfMessageSystemAttributes string `json:"MD5OfMessageSystemAttributes,omitempty"`
	MessageID                    string `json:"MessageId"`
}

func sentOf(e *sendEntry, o *outgoing) sent {
	return sent{
		MD5OfMessageBody: o.md5, MessageID: o.id,
		MD5OfMessageAttributes:       md5Attributes(e.MessageAttributes),
		MD5OfMessageSystemAttributes: md5Attributes(e.MessageSystemAttributes),
	}
}

// copies is how often a send takes effect.
func copies(ctx context.Context) int {
	if fault.IsDuplicate(ctx) {
		return 2
	}
	return 1
}

func (s *Service) sendMessage(ctx context.Context, in *sendMessageInput) (*sent, error) {
	c := api.CallOf(ctx)
	q, err := s.find(c, in.QueueURL)
	if err != nil {
		return nil, err
	}
	if err := in.check(); err != nil {
		return nil, err
	}
	if limit := q.current().maxSize; in.size() > limit {
		return nil, errInvalidValue.With("One or more parameters are invalid. Reason: Message must be shorter than %d bytes.", limit)
	}
	m := s.message(c, &in.sendEntry)
	if err := q.send([]outgoing{m}, copies(ctx)); err != nil {
		return nil, err
	}
	answer := sentOf(&in.sendEntry, &m)
	return &answer, nil
}

type sendBatchEntry struct {
	ID string `json:"Id"`
	sendEntry
}

type sendMessageBatchInput struct {
	QueueURL string           `json:"QueueUrl"`
	Entries  []sendBatchEntry `json:"Entries"`
}

type sendBatchResult struct {
	ID string `json:"Id"`
	sent
}

type sendMessageBatchOutput struct {
	Successful []sendBatchResult `json:"Successful,omitempty"`
	Failed     []batchFailure    `json:"Failed,omitempty"`
}

// sendMessageBatch checks the whole batch against 1 MiB and not against the queue's own
// MaximumMessageSize, which AWS applies to single sends only.
func (s *Service) sendMessageBatch(ctx context.Context, in *sendMessageBatchInput) (*sendMessageBatchOutput, error) {
	c := api.CallOf(ctx)
	q, err := s.find(c, in.QueueURL)
	if err != nil {
		return nil, err
	}
	if err := checkBatch("SendMessage", in.Entries, func(e sendBatchEntry) string { return e.ID }); err != nil {
		return nil, err
	}
	total := 0
	for i := range in.Entries {
		total += in.Entries[i].size()
	}
	if total > MaxMessageBytes {
		return nil, errBatchTooLong.With("Batch requests cannot be longer than %d bytes. You have sent %d bytes.", MaxMessageBytes, total)
	}
	out := &sendMessageBatchOutput{}
	var messages []outgoing
	for i := range in.Entries {
		e := &in.Entries[i]
		if err := e.check(); err != nil {
			out.Failed = append(out.Failed, failureOf(e.ID, err))
			continue
		}
		m := s.message(c, &e.sendEntry)
		messages = append(messages, m)
		out.Successful = append(out.Successful, sendBatchResult{e.ID, sentOf(&e.sendEntry, &m)})
	}
	return out, q.send(messages, copies(ctx))
}

type receiveMessageInput struct {
	QueueURL                    string   `json:"QueueUrl"`
	AttributeNames              []string `json:"AttributeNames"` // the old name of MessageSystemAttributeNames
	MessageSystemAttributeNames []string `json:"MessageSystemAttributeNames"`
	MessageAttributeNames       []string `json:"MessageAttributeNames"`
	MaxNumberOfMessages         *int     `json:"MaxNumberOfMessages"`
	VisibilityTimeout           *int     `json:"VisibilityTimeout"`
	WaitTimeSeconds             *int     `json:"WaitTimeSeconds"`
}

type receivedMessage struct {
	MessageID              string                    `json:"MessageId"`
	ReceiptHandle          string                    `json:"ReceiptHandle"`
	MD5OfBody              string                    `json:"MD5OfBody"`
	Body                   string                    `json:"Body"`
	Attributes             map[string]string         `json:"Attributes,omitempty"`
	MD5OfMessageAttributes string                    `json:"MD5OfMessageAttributes,omitempty"`
	MessageAttributes      map[string]AttributeValue `json:"MessageAttributes,omitempty"`
}

type receiveMessageOutput struct {
	Messages []receivedMessage `json:"Messages,omitempty"`
}

func (s *Service) receiveMessage(ctx context.Context, in *receiveMessageInput) (*receiveMessageOutput, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	system := slices.Concat(in.AttributeNames, in.MessageSystemAttributeNames)
	if err := checkSystemNames(system); err != nil {
		return nil, err
	}
	request, err := in.request(q.current())
	if err != nil {
		return nil, err
	}
	request.visible = fault.IsDuplicate(ctx)
	got, err := q.receive(ctx, request)
	if err != nil {
		return nil, err
	}
	out := &receiveMessageOutput{}
	for _, d := range got {
		out.Messages = append(out.Messages, d.render(system, in.MessageAttributeNames))
	}
	return out, nil
}

func (in *receiveMessageInput) request(s settings) (receive, error) {
	r := receive{max: 1, wait: s.wait}
	if n := in.MaxNumberOfMessages; n != nil {
		if r.max = *n; r.max < 1 || r.max > maxBatch {
			return r, invalid(r.max, "MaxNumberOfMessages", "Must be between 1 and 10, if provided.")
		}
	}
	if n := in.WaitTimeSeconds; n != nil {
		if *n < 0 || *n > 20 {
			return r, invalid(*n, "WaitTimeSeconds", "Must be >= 0 and <= 20, if provided.")
		}
		r.wait = time.Duration(*n) * time.Second
	}
	if n := in.VisibilityTimeout; n != nil {
		if err := checkVisibility(*n); err != nil {
			return r, err
		}
		d := time.Duration(*n) * time.Second
		r.visibility = &d
	}
	return r, nil
}

func checkVisibility(n int) error {
	if n < 0 || n > maxVisibilitySeconds {
		return invalid(n, "VisibilityTimeout", "Must be between 0 and 43200, if provided.")
	}
	return nil
}

// systemNames are the system attributes a receive may ask for; those a standard queue has not got
// are no error.
var systemNames = []string{
	"All", "SenderId", "SentTimestamp", "ApproximateReceiveCount", "ApproximateFirstReceiveTimestamp",
	"SequenceNumber", "MessageDeduplicationId", "MessageGroupId", "AWSTraceHeader", "DeadLetterQueueSourceArn",
}

func checkSystemNames(names []string) error {
	for _, name := range names {
		if !slices.Contains(systemNames, name) {
			return errAttributeName.With("Unknown Attribute %s.", name)
		}
	}
	return nil
}

// render selects what the receiver asked for. It reads only what never changes, outside the mutex.
func (d *delivery) render(system, names []string) receivedMessage {
	attributes := pickAttributes(d.attributes, names)
	return receivedMessage{
		MessageID: d.id, ReceiptHandle: d.handle, MD5OfBody: d.md5, Body: d.body,
		Attributes: d.system(system), MessageAttributes: attributes, MD5OfMessageAttributes: md5Attributes(attributes),
	}
}

func (d *delivery) system(names []string) map[string]string {
	if len(names) == 0 {
		return nil
	}
	all := map[string]string{
		"SenderId":                         d.sender,
		"SentTimestamp":                    strconv.FormatInt(d.sent.UnixMilli(), 10),
		"ApproximateReceiveCount":          strconv.Itoa(d.count),
		"ApproximateFirstReceiveTimestamp": strconv.FormatInt(d.firstReceived.UnixMilli(), 10),
	}
	if d.group != "" {
		all["MessageGroupId"] = d.group
	}
	if d.trace != "" {
		all["AWSTraceHeader"] = d.trace
	}
	if slices.Contains(names, "All") {
		return all
	}
	for name := range all {
		if !slices.Contains(names, name) {
			delete(all, name)
		}
	}
	return all
}

type deleteMessageInput struct {
	QueueURL      string `json:"QueueUrl"`
	ReceiptHandle string `json:"ReceiptHandle"`
}

func (s *Service) deleteMessage(ctx context.Context, in *deleteMessageInput) (*api.Empty, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	return &api.Empty{}, q.delete(in.ReceiptHandle)
}

type changeMessageVisibilityInput struct {
	QueueURL          string `json:"QueueUrl"`
	ReceiptHandle     string `json:"ReceiptHandle"`
	VisibilityTimeout *int   `json:"VisibilityTimeout"`
}

func (s *Service) changeMessageVisibility(ctx context.Context, in *changeMessageVisibilityInput) (*api.Empty, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	return &api.Empty{}, q.change(in.ReceiptHandle, in.VisibilityTimeout)
}

func (q *queue) change(handle string, visibility *int) error {
	if visibility == nil {
		return missing("VisibilityTimeout")
	}
	if err := checkVisibility(*visibility); err != nil {
		return err
	}
	return q.changeVisibility(handle, time.Duration(*visibility)*time.Second)
}

// handleEntry is an entry of a batch that names received messages.
type handleEntry struct {
	ID                string `json:"Id"`
	ReceiptHandle     string `json:"ReceiptHandle"`
	VisibilityTimeout *int   `json:"VisibilityTimeout"`
}

type handleBatchInput struct {
	QueueURL string        `json:"QueueUrl"`
	Entries  []handleEntry `json:"Entries"`
}

type batchID struct {
	ID string `json:"Id"`
}

type handleBatchOutput struct {
	Successful []batchID      `json:"Successful,omitempty"`
	Failed     []batchFailure `json:"Failed,omitempty"`
}

func (s *Service) deleteMessageBatch(ctx context.Context, in *handleBatchInput) (*handleBatchOutput, error) {
	return s.each(ctx, "DeleteMessage", in, func(q *queue, _ int, e handleEntry) error { return q.delete(e.ReceiptHandle) })
}

func (s *Service) changeMessageVisibilityBatch(ctx context.Context, in *handleBatchInput) (*handleBatchOutput, error) {
	return s.each(ctx, "ChangeMessageVisibility", in, func(q *queue, i int, e handleEntry) error {
		if e.VisibilityTimeout == nil { // AWS counts entries from one here
			return missing("ChangeMessageVisibilityBatchRequestEntry." + strconv.Itoa(i+1) + ".VisibilityTimeout")
		}
		return q.change(e.ReceiptHandle, e.VisibilityTimeout)
	})
}

// each runs f for every entry; one that fails does not stop the others.
func (s *Service) each(ctx context.Context, action string, in *handleBatchInput, f func(*queue, int, handleEntry) error) (*handleBatchOutput, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	if err := checkBatch(action, in.Entries, func(e handleEntry) string { return e.ID }); err != nil {
		return nil, err
	}
	out := &handleBatchOutput{}
	for i, e := range in.Entries {
		if err := f(q, i, e); err != nil {
			out.Failed = append(out.Failed, failureOf(e.ID, err))
			continue
		}
		out.Successful = append(out.Successful, batchID{e.ID})
	}
	return out, nil
}

// maxBatch is how many entries a batch, and messages a receive, may have.
const maxBatch = 10

var batchEntryID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,80}$`)

// checkBatch refuses a batch as a whole.
func checkBatch[E any](action string, entries []E, id func(E) string) error {
	if len(entries) == 0 {
		return errEmptyBatch.With("There should be at least one %sBatchRequestEntry in the request.", action)
	}
	if len(entries) > maxBatch {
		return errBatchTooMany.With("Maximum number of entries per request are %d. You have sent %d.", maxBatch, len(entries))
	}
	seen := map[string]bool{}
	for _, e := range entries {
		if !batchEntryID.MatchString(id(e)) {
			return errBatchInvalidID
		}
		if seen[id(e)] {
			return errBatchSameID.With("Id %s repeated.", id(e))
		}
		seen[id(e)] = true
	}
	return nil
}

// batchFailure is one entry that failed.
type batchFailure struct {
	ID          string `json:"Id"`
	SenderFault bool   `json:"SenderFault"`
	Code        string `json:"Code"`
	Message     string `json:"Message,omitempty"`
}

func failureOf(id string, err error) batchFailure {
	var e *api.Error
	if !errors.As(err, &e) {
		e = api.ErrInternal
	}
	return batchFailure{ID: id, SenderFault: e.SenderFault(), Code: e.QueryCode(), Message: e.Message}
}
