package sqs

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"time"
	"unique"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/fault"
)

// sendEntry is one message of a send; the batch and the single one share it.
type sendEntry struct {
	MessageBody             string                    `json:"MessageBody"`
	DelaySeconds            *int                      `json:"DelaySeconds"`
	MessageAttributes       map[string]AttributeValue `json:"MessageAttributes" query:"MessageAttribute,flat,key=Name,value=Value"`
	MessageSystemAttributes map[string]AttributeValue `json:"MessageSystemAttributes" query:"MessageSystemAttribute,flat,key=Name,value=Value"`
	MessageDeduplicationID  string                    `json:"MessageDeduplicationId"`
	MessageGroupID          string                    `json:"MessageGroupId"`
}

// size is what counts against the limits: the body and every attribute's name, type and value.
func (e *sendEntry) size() int { return len(e.MessageBody) + sizeOf(e.MessageAttributes) }

// maxIDBytes is the longest that an id of a sender may be.
const maxIDBytes = 128

// validID reports whether a message group id, a deduplication id or an attempt id is made of what
// AWS takes: letters, digits and punctuation. It is a loop, as two are checked for each message.
func validID(id string) bool {
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return false
		}
	}
	return id != "" && len(id) <= maxIDBytes
}

// check refuses what AWS would; a FIFO queue wants more.
func (e *sendEntry) check(fifo bool) error {
	if e.MessageBody == "" {
		return missing("MessageBody")
	}
	if !validText(e.MessageBody) {
		return errBadContents
	}
	if d := e.DelaySeconds; d != nil && (*d < 0 || *d > 900) {
		return invalid(*d, "DelaySeconds", "DelaySeconds must be >= 0 and <= 900.")
	}
	if err := e.checkIDs(fifo); err != nil {
		return err
	}
	if err := checkSystemAttributes(e.MessageSystemAttributes); err != nil {
		return err
	}
	return checkAttributes(e.MessageAttributes)
}

func (e *sendEntry) checkSize(limit int) error {
	if e.size() > limit {
		return errInvalidValue.With("One or more parameters are invalid. Reason: Message must be shorter than %d bytes.", limit)
	}
	return nil
}

const wrongType = "The request include parameter that is not valid for this queue type."

func (e *sendEntry) checkIDs(fifo bool) error {
	if !fifo && e.MessageDeduplicationID != "" {
		return invalid(e.MessageDeduplicationID, "MessageDeduplicationId", wrongType)
	}
	if fifo && e.DelaySeconds != nil && *e.DelaySeconds != 0 {
		return invalid(*e.DelaySeconds, "DelaySeconds", wrongType)
	}
	if e.MessageGroupID != "" && !validID(e.MessageGroupID) {
		return invalid(e.MessageGroupID, "MessageGroupId", "MessageGroupId can only include alphanumeric and punctuation characters. 1 to 128 in length.")
	}
	if e.MessageDeduplicationID != "" && !validID(e.MessageDeduplicationID) {
		return invalid(e.MessageDeduplicationID, "MessageDeduplicationId", "MessageDeduplicationId can only include alphanumeric and punctuation characters. 1 to 128 in length.")
	}
	return nil
}

// checkFIFO refuses a message that says too little for a FIFO queue.
func (e *sendEntry) checkFIFO(contentBased bool) error {
	if e.MessageGroupID == "" {
		return missing("MessageGroupId")
	}
	if e.MessageDeduplicationID == "" && !contentBased {
		return errInvalidValue.With("The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly")
	}
	return nil
}

// message makes what the engine sends. The entry must have been checked.
func (s *Service) message(c *api.Call, e *sendEntry, fifo bool) outgoing {
	out := outgoing{content: content{
		id: s.ids.UUID(), body: e.MessageBody, md5: md5Text(e.MessageBody), attributes: e.MessageAttributes,
		group: e.MessageGroupID, dedup: e.MessageDeduplicationID, sender: senderOf(c),
	}}
	if fifo && out.dedup == "" {
		out.dedup = bodyDigest(e.MessageBody)
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

// senderOf returns who sends, as one string for all messages of the same sender: a part of the
// request's header would keep all of it.
func senderOf(c *api.Call) string {
	if c.AccessKey != "" {
		return unique.Make(c.AccessKey).Value()
	}
	return c.Account
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
	SequenceNumber               string `json:"SequenceNumber,omitempty"`
}

func sentOf(e *sendEntry, o *outgoing, q *queue, a accepted) sent {
	answer := sent{
		MD5OfMessageBody: o.md5.String(), MessageID: a.id,
		MD5OfMessageAttributes:       md5Attributes(e.MessageAttributes),
		MD5OfMessageSystemAttributes: md5Attributes(e.MessageSystemAttributes),
	}
	if q.fifo {
		answer.SequenceNumber = sequenceNumber(a.seq)
	}
	return answer
}

// sequenceNumber is the 20 digits by which AWS numbers the messages of a FIFO queue; they rise,
// and not by one.
func sequenceNumber(seq uint64) string {
	const first, step = 14_850_845_669_355_520_000, 256
	return strconv.FormatUint(first+seq*step, 10)
}

// copies is how often a send takes effect. A FIFO queue takes no duplicates, so it does not ask: the
// fault is then no hit.
func copies(ctx context.Context, fifo bool) int {
	if !fifo && fault.IsDuplicate(ctx) {
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
	settings := q.current()
	if err := in.check(q.fifo); err != nil {
		return nil, err
	}
	if q.fifo {
		if err := in.checkFIFO(settings.contentBased); err != nil {
			return nil, err
		}
	}
	if err := in.checkSize(settings.maxSize); err != nil {
		return nil, err
	}
	out := []outgoing{s.message(c, &in.sendEntry, q.fifo)}
	accepted, err := q.send(out, copies(ctx, q.fifo))
	if err != nil {
		return nil, err
	}
	answer := sentOf(&in.sendEntry, &out[0], q, accepted[0])
	return &answer, nil
}

type sendBatchEntry struct {
	ID string `json:"Id"`
	sendEntry
}

type sendMessageBatchInput struct {
	QueueURL string           `json:"QueueUrl"`
	Entries  []sendBatchEntry `json:"Entries" query:"SendMessageBatchRequestEntry,flat"`
}

type sendBatchResult struct {
	ID string `json:"Id"`
	sent
}

type sendMessageBatchOutput struct {
	Successful []sendBatchResult `json:"Successful,omitempty" query:"SendMessageBatchResultEntry,flat"`
	Failed     []batchFailure    `json:"Failed,omitempty" query:"BatchResultErrorEntry,flat"`
}

// sendMessageBatch holds the whole batch to 1 MiB, and only its entries to the queue's own
// MaximumMessageSize: AWS is recorded to take a batch that is larger than that.
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
	if err := in.checkFIFO(q); err != nil {
		return nil, err
	}
	return s.sendEntries(ctx, c, q, in.Entries)
}

// checkFIFO refuses the whole batch for an entry that says too little, and names the missing
// parameter by another code than a single send does, as AWS does.
func (in *sendMessageBatchInput) checkFIFO(q *queue) error {
	if !q.fifo {
		return nil
	}
	contentBased := q.current().contentBased
	for i := range in.Entries {
		if err := in.Entries[i].checkFIFO(contentBased); err != nil {
			return errInvalidValue.With("%s", messageOf(err))
		}
	}
	return nil
}

func (s *Service) sendEntries(ctx context.Context, c *api.Call, q *queue, entries []sendBatchEntry) (*sendMessageBatchOutput, error) {
	out := &sendMessageBatchOutput{}
	messages := make([]outgoing, 0, len(entries))
	good := make([]*sendBatchEntry, 0, len(entries))
	limit := q.current().maxSize
	for i := range entries {
		e := &entries[i]
		if err := cmp.Or(e.check(q.fifo), e.checkSize(limit)); err != nil {
			out.Failed = append(out.Failed, failureOf(e.ID, err))
			continue
		}
		messages, good = append(messages, s.message(c, &e.sendEntry, q.fifo)), append(good, e)
	}
	accepted, err := q.send(messages, copies(ctx, q.fifo))
	if err != nil {
		return nil, err
	}
	out.Successful = slices.Grow(out.Successful, len(good))
	for i, e := range good {
		out.Successful = append(out.Successful, sendBatchResult{e.ID, sentOf(&e.sendEntry, &messages[i], q, accepted[i])})
	}
	return out, nil
}

type receiveMessageInput struct {
	QueueURL                    string   `json:"QueueUrl"`
	AttributeNames              []string `json:"AttributeNames" query:"AttributeName,flat"` // the old name of MessageSystemAttributeNames
	MessageSystemAttributeNames []string `json:"MessageSystemAttributeNames" query:"MessageSystemAttributeName,flat"`
	MessageAttributeNames       []string `json:"MessageAttributeNames" query:"MessageAttributeName,flat"`
	MaxNumberOfMessages         *int     `json:"MaxNumberOfMessages"`
	VisibilityTimeout           *int     `json:"VisibilityTimeout"`
	WaitTimeSeconds             *int     `json:"WaitTimeSeconds"`
	ReceiveRequestAttemptID     string   `json:"ReceiveRequestAttemptId"`
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
	request, err := in.request(q)
	if err != nil {
		return nil, err
	}
	if !q.fifo { // a FIFO queue keeps its promises, and the fault is then no hit
		request.duplicate, request.reorder = fault.IsDuplicate(ctx), fault.IsReorder(ctx)
	}
	got, err := q.receive(ctx, request)
	if err != nil {
		return nil, err
	}
	out := &receiveMessageOutput{}
	out.Messages = slices.Grow(out.Messages, len(got))
	for _, d := range got {
		out.Messages = append(out.Messages, d.render(system, in.MessageAttributeNames))
	}
	return out, nil
}

func (in *receiveMessageInput) request(q *queue) (receive, error) {
	r := receive{max: 1}
	if id := in.ReceiveRequestAttemptID; id != "" {
		if !q.fifo {
			return r, invalid(id, "ReceiveRequestAttemptId", wrongType)
		}
		if !validID(id) {
			return r, invalid(id, "ReceiveRequestAttemptId", "ReceiveRequestAttemptId can only include alphanumeric and punctuation characters. 1 to 128 in length.")
		}
		r.attempt = id
	}
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
	} else {
		r.wait = q.current().wait
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

// systemNames are the system attributes a receive may ask for; those a standard queue, or any
// message, has not got are no error.
var systemNames = []string{
	"All", "SenderId", "SentTimestamp", "ApproximateReceiveCount", "ApproximateFirstReceiveTimestamp",
	"SequenceNumber", "MessageDeduplicationId", "MessageGroupId", "AWSTraceHeader", "DeadLetterQueueSourceArn",
	"SqsManagedSseEnabled",
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
		MessageID: d.id, ReceiptHandle: d.handle, MD5OfBody: d.md5.String(), Body: d.body,
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
	if d.lane.fifo {
		all["SequenceNumber"] = sequenceNumber(d.seq)
	}
	for name, value := range map[string]string{
		"MessageGroupId": d.group, "MessageDeduplicationId": d.dedup, "AWSTraceHeader": d.trace, "DeadLetterQueueSourceArn": d.deadFrom,
	} {
		if value != "" {
			all[name] = value
		}
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
	if in.VisibilityTimeout == nil {
		return nil, missing("VisibilityTimeout")
	}
	if err := checkVisibility(*in.VisibilityTimeout); err != nil {
		return nil, err
	}
	return &api.Empty{}, q.changeVisibility(in.ReceiptHandle, time.Duration(*in.VisibilityTimeout)*time.Second)
}

type deleteBatchEntry struct {
	ID            string `json:"Id"`
	ReceiptHandle string `json:"ReceiptHandle"`
}

type deleteMessageBatchInput struct {
	QueueURL string             `json:"QueueUrl"`
	Entries  []deleteBatchEntry `json:"Entries" query:"DeleteMessageBatchRequestEntry,flat"`
}

type batchID struct {
	ID string `json:"Id"`
}

type deleteMessageBatchOutput struct {
	Successful []batchID      `json:"Successful,omitempty" query:"DeleteMessageBatchResultEntry,flat"`
	Failed     []batchFailure `json:"Failed,omitempty" query:"BatchResultErrorEntry,flat"`
}

func (s *Service) deleteMessageBatch(ctx context.Context, in *deleteMessageBatchInput) (*deleteMessageBatchOutput, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	id := func(e deleteBatchEntry) string { return e.ID }
	if err := checkBatch("DeleteMessage", in.Entries, id); err != nil {
		return nil, err
	}
	now, err := q.enter()
	if err != nil {
		return nil, err
	}
	defer q.leave(now)
	out := &deleteMessageBatchOutput{}
	out.Successful, out.Failed = each(in.Entries, id, func(_ int, e deleteBatchEntry) error { return q.deleteOne(e.ReceiptHandle) })
	return out, nil
}

type visibilityBatchEntry struct {
	ID                string `json:"Id"`
	ReceiptHandle     string `json:"ReceiptHandle"`
	VisibilityTimeout *int   `json:"VisibilityTimeout"`
}

type visibilityBatchInput struct {
	QueueURL string                 `json:"QueueUrl"`
	Entries  []visibilityBatchEntry `json:"Entries" query:"ChangeMessageVisibilityBatchRequestEntry,flat"`
}

type visibilityBatchOutput struct {
	Successful []batchID      `json:"Successful,omitempty" query:"ChangeMessageVisibilityBatchResultEntry,flat"`
	Failed     []batchFailure `json:"Failed,omitempty" query:"BatchResultErrorEntry,flat"`
}

func (s *Service) changeMessageVisibilityBatch(ctx context.Context, in *visibilityBatchInput) (*visibilityBatchOutput, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	id := func(e visibilityBatchEntry) string { return e.ID }
	if err := checkBatch("ChangeMessageVisibility", in.Entries, id); err != nil {
		return nil, err
	}
	now, err := q.enter()
	if err != nil {
		return nil, err
	}
	defer q.leave(now)
	out := &visibilityBatchOutput{}
	out.Successful, out.Failed = each(in.Entries, id, func(i int, e visibilityBatchEntry) error {
		if e.VisibilityTimeout == nil { // AWS counts entries from one here
			return missing("ChangeMessageVisibilityBatchRequestEntry." + strconv.Itoa(i+1) + ".VisibilityTimeout")
		}
		if err := checkVisibility(*e.VisibilityTimeout); err != nil {
			return err
		}
		return q.changeOne(now, e.ReceiptHandle, time.Duration(*e.VisibilityTimeout)*time.Second)
	})
	return out, nil
}

// each runs f for every entry; one that fails does not stop the others.
func each[E any](entries []E, id func(E) string, f func(int, E) error) (done []batchID, failed []batchFailure) {
	for i, e := range entries {
		if err := f(i, e); err != nil {
			failed = append(failed, failureOf(id(e), err))
			continue
		}
		done = append(done, batchID{id(e)})
	}
	return done, failed
}

// maxBatch is how many entries a batch, and messages a receive, may have.
const maxBatch = 10

// maxBatchID is how long the id of an entry may be.
const maxBatchID = 80

// isBatchID reports whether AWS takes the id for an entry's.
func isBatchID(id string) bool {
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return id != "" && len(id) <= maxBatchID
}

// checkBatch refuses a batch as a whole.
func checkBatch[E any](action string, entries []E, id func(E) string) error {
	if len(entries) == 0 {
		return errEmptyBatch.With("There should be at least one %sBatchRequestEntry in the request.", action)
	}
	if len(entries) > maxBatch {
		return errBatchTooMany.With("Maximum number of entries per request are %d. You have sent %d.", maxBatch, len(entries))
	}
	for i, e := range entries {
		if !isBatchID(id(e)) {
			return errBatchInvalidID
		}
		for _, before := range entries[:i] { // there are few: a map would cost more
			if id(before) == id(e) {
				return errBatchSameID.With("Id %s repeated.", id(e))
			}
		}
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

func messageOf(err error) string {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

func failureOf(id string, err error) batchFailure {
	var e *api.Error
	if !errors.As(err, &e) {
		e = api.ErrInternal
	}
	return batchFailure{ID: id, SenderFault: e.SenderFault(), Code: e.QueryCode(), Message: e.Message}
}
