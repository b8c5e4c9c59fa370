package crash_test

import (
	"context"
	"fmt"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// settings is what is known of a queue's attributes and tags, and of queues that come and go. One
// worker changes them, a number at a time: the attribute is one that takes numbers beyond a million.
type settings struct {
	url      string
	next     int
	attempts map[string]int // setting: the number that was asked for, unless it was answered
	answered map[string]int // setting: the number that was answered
	gone     string         // the last queue whose deletion was answered
}

// The MessageRetentionPeriod of a queue, in seconds.
const (
	leastRetention   = 60
	defaultRetention = 345_600
)

func newSettings(url string) *settings {
	return &settings{
		url: url, next: leastRetention, attempts: map[string]int{}, answered: map[string]int{"attribute": defaultRetention, "tag": 0},
	}
}

// change makes one call for a setting, and keeps what its answer promises.
func (s *settings) change(w *worker, setting string) error {
	s.next++
	s.attempts[setting] = s.next
	w.begun()
	var err error
	number := strconv.Itoa(s.next)
	switch setting {
	case "attribute":
		_, err = w.SetQueueAttributes(w.ctx, &sqs.SetQueueAttributesInput{QueueUrl: &s.url, Attributes: map[string]string{"MessageRetentionPeriod": number}})
	case "tag":
		_, err = w.TagQueue(w.ctx, &sqs.TagQueueInput{QueueUrl: &s.url, Tags: map[string]string{"n": number}})
	case "queue":
		_, err = w.CreateQueue(w.ctx, &sqs.CreateQueueInput{QueueName: ptr("queue-" + number), Attributes: map[string]string{"DelaySeconds": "7"}})
	}
	code, err := w.answered(err)
	if err != nil {
		return err
	}
	if code != "" {
		w.history.failed("change of %s to %d: %s", setting, s.next, code)
	}
	delete(s.attempts, setting)
	s.answered[setting] = s.next
	return nil
}

// makeOrRemove makes a queue, or deletes the one that was made last: they do not pile up.
func (s *settings) makeOrRemove(w *worker) error {
	n, ok := s.answered["queue"]
	if !ok {
		return s.change(w, "queue")
	}
	delete(s.answered, "queue") // whether it is there is open until the answer
	name := "queue-" + strconv.Itoa(n)
	w.begun()
	_, err := w.DeleteQueue(w.ctx, &sqs.DeleteQueueInput{QueueUrl: &name})
	code, err := w.answered(err)
	if err != nil {
		return err
	}
	if code != "" {
		w.history.failed("deletion of %s: %s", name, code)
	}
	s.gone = name
	return nil
}

func (s *settings) run(w *worker) {
	for {
		var err error
		switch w.random.IntN(4) {
		case 0:
			err = s.change(w, "attribute")
		case 1:
			err = s.change(w, "tag")
		default:
			err = s.makeOrRemove(w)
		}
		if err != nil {
			return
		}
	}
}

// check compares what a new life knows with what was promised. A call that had no answer took
// effect or did not; from then on it is known.
func (s *settings) check(ctx context.Context, c *sqs.Client) error {
	attributes, err := c.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &s.url, AttributeNames: []types.QueueAttributeName{"MessageRetentionPeriod"}})
	if err != nil {
		return fmt.Errorf("attributes of a queue that was made: %w", err)
	}
	tags, err := c.ListQueueTags(ctx, &sqs.ListQueueTagsInput{QueueUrl: &s.url})
	if err != nil {
		return err
	}
	for setting, text := range map[string]string{"attribute": attributes.Attributes["MessageRetentionPeriod"], "tag": tags.Tags["n"]} {
		got, err := strconv.Atoi(text)
		attempt, open := s.attempts[setting]
		if err != nil || got != s.answered[setting] && !(open && got == attempt) {
			return fmt.Errorf("%s is %q, was set to %d, and perhaps to %d", setting, text, s.answered[setting], attempt)
		}
		s.answered[setting] = got
	}
	if n, ok := s.answered["queue"]; ok {
		name := "queue-" + strconv.Itoa(n)
		out, err := c.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &name, AttributeNames: []types.QueueAttributeName{"DelaySeconds"}})
		if err != nil || out.Attributes["DelaySeconds"] != "7" {
			return fmt.Errorf("%s was made and has the attributes %v: %w", name, out, err)
		}
	}
	if s.gone != "" {
		if _, err := c.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &s.gone}); err == nil {
			return fmt.Errorf("%s was deleted and is back", s.gone)
		}
	}
	clear(s.attempts)
	return nil
}

func ptr[T any](v T) *T { return &v }
