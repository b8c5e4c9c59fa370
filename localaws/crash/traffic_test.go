package crash_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
)

// family is a queue, or two between which messages move, and who uses them.
type family struct {
	name      string
	fifo      bool
	byContent bool          // deduplicates by content
	redrives  bool          // has a dead-letter queue
	purges    bool          // is purged now and then, by its only worker
	delay     time.Duration // of the queue
	urls      []string      // the queue, and its dead-letter queue
	workers   int
	backlog   atomic.Int64

	lastPurge purge
}

// maxBacklog is from which number of messages on a worker only receives. A small one has the
// journal rotate often.
const maxBacklog = 100

// groupsOfWorker is how many groups a worker sends to: some are locked by a life that was killed.
const groupsOfWorker = 6

// worker sends and receives, one call after another, until the server is gone.
type worker struct {
	*sqs.Client
	ctx     context.Context
	family  *family
	number  int
	history *history
	random  *rand.Rand
	begun   func() // called before every call
}

// errGone ends a worker: a call had no answer.
var errGone = errors.New("no answer")

// run works until the server is gone. It begins with what the last life did not answer, while the
// server knows for sure whether it took effect.
func (w *worker) run() {
	for i := range groupsOfWorker {
		if group := w.group(i); w.family.fifo && w.history.isPending(group) && w.send(group) != nil {
			return
		}
	}
	for {
		var err error
		if w.family.backlog.Load() < maxBacklog && w.random.IntN(2) == 0 {
			err = w.send(w.group(w.random.IntN(groupsOfWorker)))
		} else {
			err = w.receive()
		}
		if err != nil {
			return
		}
	}
}

// answered splits errors: an answer of the server comes back as it is, none as errGone.
func (w *worker) answered(err error) (code string, _ error) {
	var answer smithy.APIError
	switch {
	case err == nil:
		return "", nil
	case errors.As(err, &answer):
		return answer.ErrorCode() + ": " + answer.ErrorMessage(), nil
	}
	return "", errGone
}

func (w *worker) group(n int) string { return fmt.Sprintf("%s-%d-%d", w.family.name, w.number, n) }

func (w *worker) send(group string) error {
	f := w.family
	if body, ok := w.history.repeat(f, group); ok && f.fifo && w.random.IntN(4) == 0 {
		w.begun()
		return w.sendOne(group, []string{body}, 0)
	}
	n := 1
	if w.random.IntN(2) == 0 {
		n = 1 + w.random.IntN(10)
	}
	bodies := w.history.next(f, group, n)
	f.backlog.Add(int64(len(bodies)))
	delay := w.delay()
	w.history.sending(bodies, f.delay+delay)
	w.begun()
	if len(bodies) == 1 {
		return w.sendOne(group, bodies, delay)
	}
	return w.sendBatch(group, bodies, delay)
}

// delay is what some messages of a queue without a delay of its own get: no FIFO queue allows it.
func (w *worker) delay() time.Duration {
	if w.family.fifo || w.random.IntN(4) > 0 {
		return 0
	}
	return w.upTo(longestHidden)
}

// upTo returns so many whole seconds, one at least.
func (w *worker) upTo(most time.Duration) time.Duration {
	return time.Duration(1+w.random.Int64N(int64(most/time.Second))) * time.Second
}

// identity is what a FIFO queue wants with a message; another gets nothing.
func (w *worker) identity(group string, body *string) (groupID, dedupID *string) {
	switch f := w.family; {
	case !f.fifo:
		return nil, nil
	case f.byContent:
		return &group, nil
	}
	return &group, body
}

func (w *worker) sendOne(group string, bodies []string, delay time.Duration) error {
	in := &sqs.SendMessageInput{QueueUrl: &w.family.urls[0], MessageBody: &bodies[0], DelaySeconds: int32(delay / time.Second)}
	in.MessageGroupId, in.MessageDeduplicationId = w.identity(group, &bodies[0])
	out, err := w.SendMessage(w.ctx, in)
	code, err := w.answered(err)
	if err != nil {
		return err
	}
	if code != "" {
		w.history.failed("send: %s", code)
		return nil
	}
	w.history.accepted(bodies, []string{*out.MessageId})
	return nil
}

func (w *worker) sendBatch(group string, bodies []string, delay time.Duration) error {
	in := &sqs.SendMessageBatchInput{QueueUrl: &w.family.urls[0]}
	for i := range bodies {
		entry := types.SendMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), MessageBody: &bodies[i], DelaySeconds: int32(delay / time.Second)}
		entry.MessageGroupId, entry.MessageDeduplicationId = w.identity(group, &bodies[i])
		in.Entries = append(in.Entries, entry)
	}
	out, err := w.SendMessageBatch(w.ctx, in)
	code, err := w.answered(err)
	if err != nil {
		return err
	}
	if code != "" || len(out.Successful) != len(bodies) {
		w.history.failed("send of %d: %s %v", len(bodies), code, out)
		return nil
	}
	var ids []string
	for _, s := range out.Successful {
		ids = append(ids, *s.MessageId)
	}
	w.history.accepted(bodies, ids)
	return nil
}

// receive takes messages, and deletes them, gives them back, or keeps them until their time is up,
// which it may change before.
func (w *worker) receive() error {
	url := &w.family.urls[w.random.IntN(len(w.family.urls))]
	if w.family.redrives && w.random.IntN(40) == 0 {
		return w.startMove()
	}
	if w.family.purges && w.random.IntN(20) == 0 {
		return w.purge()
	}
	began := w.history.now()
	w.begun()
	out, err := w.ReceiveMessage(w.ctx, &sqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: int32(1 + w.random.IntN(10))})
	code, err := w.answered(err)
	if err != nil {
		return err
	}
	if code != "" {
		w.history.failed("receive: %s", code)
		return nil
	}
	w.history.received(w.family, began, visibilityTimeout, out.Messages)
	switch fate := w.random.IntN(10); {
	case len(out.Messages) == 0:
		return nil
	case fate == 0:
		return nil // forgotten
	case fate < 3:
		return w.giveBack(url, out.Messages)
	case fate < 5:
		return w.extend(url, out.Messages)
	case fate < 7:
		return w.deleteOneByOne(url, out.Messages)
	default:
		return w.deleteBatch(url, out.Messages)
	}
}

// startMove brings dead letters back. One task at a time is all that a queue has.
func (w *worker) startMove() error {
	w.begun()
	_, err := w.StartMessageMoveTask(w.ctx, &sqs.StartMessageMoveTaskInput{SourceArn: aws.String(arnOf(w.family.name + "-dead" + w.family.suffix()))})
	_, err = w.answered(err)
	return err
}

func (w *worker) giveBack(url *string, got []types.Message) error {
	for _, m := range got {
		if err := w.hide(url, m, 0); err != nil {
			return err
		}
	}
	return nil
}

// extend keeps messages, and has them come back at other times than they would.
func (w *worker) extend(url *string, got []types.Message) error {
	for _, m := range got {
		if err := w.hide(url, m, w.upTo(longestHidden)); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) hide(url *string, m types.Message, visibility time.Duration) error {
	change := w.history.changing(*m.Body, visibility)
	w.begun()
	_, err := w.ChangeMessageVisibility(w.ctx, &sqs.ChangeMessageVisibilityInput{
		QueueUrl: url, ReceiptHandle: m.ReceiptHandle, VisibilityTimeout: int32(visibility / time.Second),
	})
	code, err := w.answered(err)
	if code == "" && err == nil {
		w.history.changed(change)
	}
	return err // a refusal is of a handle that expired meanwhile
}

func (w *worker) deleteOneByOne(url *string, got []types.Message) error {
	for _, m := range got {
		w.history.deleting([]types.Message{m})
		w.begun()
		_, err := w.DeleteMessage(w.ctx, &sqs.DeleteMessageInput{QueueUrl: url, ReceiptHandle: m.ReceiptHandle})
		code, err := w.answered(err)
		if err != nil {
			return err
		}
		w.noteDeleted(m, code)
	}
	return nil
}

func (w *worker) deleteBatch(url *string, got []types.Message) error {
	in := &sqs.DeleteMessageBatchInput{QueueUrl: url}
	for i, m := range got {
		in.Entries = append(in.Entries, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: m.ReceiptHandle})
	}
	w.history.deleting(got)
	w.begun()
	out, err := w.DeleteMessageBatch(w.ctx, in)
	code, err := w.answered(err)
	if err != nil {
		return err
	}
	if code != "" {
		w.history.failed("delete of %d: %s", len(got), code)
		return nil
	}
	for _, s := range out.Successful {
		i, _ := strconv.Atoi(*s.Id)
		w.noteDeleted(got[i], "")
	}
	for _, f := range out.Failed {
		i, _ := strconv.Atoi(*f.Id)
		w.noteDeleted(got[i], *f.Code)
	}
	return nil
}

// noteDeleted takes an answer in. A FIFO queue refuses a handle that expired or whose message moved.
func (w *worker) noteDeleted(m types.Message, code string) {
	w.history.deleted(m, code == "")
	if code == "" {
		w.family.backlog.Add(-1)
	} else if !w.family.fifo {
		w.history.failed("delete: %s", code)
	}
}

func (f *family) suffix() string {
	if f.fifo {
		return ".fifo"
	}
	return ""
}

// trigger calls fire once, when so many calls have begun.
func trigger(after int, fire func()) (begun func()) {
	var calls atomic.Int64
	var once sync.Once
	return func() {
		if calls.Add(1) >= int64(after) {
			once.Do(fire)
		}
	}
}
