package sqs

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/page"
)

type createQueueInput struct {
	QueueName  string            `json:"QueueName"`
	Attributes map[string]string `json:"Attributes" query:"Attribute,flat,key=Name,value=Value"`
	Tags       map[string]string `json:"tags" query:"Tag,flat,key=Key,value=Value"`
}

type queueURLOutput struct {
	QueueURL string `json:"QueueUrl"`
}

func (s *Service) createQueue(ctx context.Context, in *createQueueInput) (*queueURLOutput, error) {
	c := api.CallOf(ctx)
	fifo := in.Attributes["FifoQueue"] == "true"
	if err := checkName(in.QueueName, fifo); err != nil {
		return nil, err
	}
	if err := checkTags(in.Tags, 0); err != nil {
		return nil, err
	}
	attributes, err := merge(defaults(fifo), in.Attributes, fifo)
	if err != nil {
		return nil, err
	}
	key := queueKey{c.Region, c.Account, in.QueueName}
	if err := s.checkTarget(key, fifo, in.Attributes["RedrivePolicy"]); err != nil {
		return nil, err
	}
	fresh := newQueue(s, s.ids.Uint64(), key, attributes, maps.Clone(in.Tags))
	q, err := s.queues.add(fresh, s.clock.Now())
	if err != nil {
		return nil, err
	}
	if q != fresh {
		if name, differs := differing(q.snapshot(), attributes, in.Attributes); differs {
			return nil, errQueueExists.With("A queue already exists with the same name and a different value for attribute %s", name)
		}
	}
	q.awaitJournal()
	return &queueURLOutput{s.url(c, key)}, nil
}

// awaitJournal waits until the journal has what was done to the queue so far.
func (q *queue) awaitJournal() {
	q.mu.Lock()
	written := q.written
	q.mu.Unlock()
	q.service.journal.wait(written)
}

type getQueueURLInput struct {
	QueueName              string `json:"QueueName"`
	QueueOwnerAWSAccountID string `json:"QueueOwnerAWSAccountId"`
}

func (s *Service) getQueueURL(ctx context.Context, in *getQueueURLInput) (*queueURLOutput, error) {
	c := api.CallOf(ctx)
	if in.QueueName == "" {
		return nil, missing("QueueName")
	}
	account := c.Account
	if in.QueueOwnerAWSAccountID != "" {
		account = in.QueueOwnerAWSAccountID
	}
	key := queueKey{c.Region, account, in.QueueName}
	if s.queues.get(key) == nil {
		return nil, errNoQueue
	}
	return &queueURLOutput{s.url(c, key)}, nil
}

type getQueueAttributesInput struct {
	QueueURL       string   `json:"QueueUrl"`
	AttributeNames []string `json:"AttributeNames" query:"AttributeName,flat"`
}

type getQueueAttributesOutput struct {
	Attributes map[string]string `json:"Attributes,omitempty" query:"Attribute,flat,key=Name,value=Value"`
}

func (s *Service) getQueueAttributes(ctx context.Context, in *getQueueAttributesInput) (*getQueueAttributesOutput, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	selected, err := selectAttributes(q.snapshot(), in.AttributeNames)
	if err != nil {
		return nil, err
	}
	return &getQueueAttributesOutput{selected}, nil
}

// snapshot returns every attribute, the computed ones included.
func (q *queue) snapshot() map[string]string {
	q.mu.Lock()
	now := q.advance()
	defer q.leave(now)
	all := maps.Clone(q.attributes)
	shown := q.service.mischief.counters(&q.lagging, counts{q.visible, q.inFlight, len(q.hidden.items) - q.inFlight}, now)
	all["QueueArn"] = q.key.arn()
	all["CreatedTimestamp"] = strconv.FormatInt(q.created.Unix(), 10)
	all["LastModifiedTimestamp"] = strconv.FormatInt(q.modified.Unix(), 10)
	all["ApproximateNumberOfMessages"] = strconv.Itoa(shown.visible)
	all["ApproximateNumberOfMessagesNotVisible"] = strconv.Itoa(shown.notVisible)
	all["ApproximateNumberOfMessagesDelayed"] = strconv.Itoa(shown.delayed)
	return all
}

type setQueueAttributesInput struct {
	QueueURL   string            `json:"QueueUrl"`
	Attributes map[string]string `json:"Attributes" query:"Attribute,flat,key=Name,value=Value"`
}

func (s *Service) setQueueAttributes(ctx context.Context, in *setQueueAttributesInput) (*api.Empty, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	if len(in.Attributes) == 0 {
		return nil, missing("Attribute.Name")
	}
	if err := s.checkTarget(q.key, q.fifo, in.Attributes["RedrivePolicy"]); err != nil {
		return nil, err
	}
	return &api.Empty{}, q.change(func(now time.Time) error {
		merged, err := merge(q.attributes, in.Attributes, q.fifo)
		if err == nil {
			q.set(merged, now)
		}
		return err
	})
}

// maxListed is how many queues one list returns.
const maxListed = 1000

type listQueuesInput struct {
	QueueNamePrefix string `json:"QueueNamePrefix"`
	MaxResults      *int   `json:"MaxResults"`
	NextToken       string `json:"NextToken"`
}

type listQueuesOutput struct {
	QueueURLs []string `json:"QueueUrls,omitempty" query:"QueueUrl,flat"`
	NextToken string   `json:"NextToken,omitempty"`
}

func (s *Service) listQueues(ctx context.Context, in *listQueuesInput) (*listQueuesOutput, error) {
	c := api.CallOf(ctx)
	urls, token, err := s.page(c, "queues "+in.QueueNamePrefix, in.MaxResults, in.NextToken, func(q *queue) bool {
		return q.key.region == c.Region && q.key.account == c.Account && strings.HasPrefix(q.key.name, in.QueueNamePrefix)
	})
	if err != nil {
		return nil, err
	}
	return &listQueuesOutput{urls, token}, nil
}

// page lists the URLs of the queues that belong, by name; list says of what. As on AWS only a call
// with MaxResults gets a token for the rest.
func (s *Service) page(c *api.Call, list string, maxResults *int, token string, belongs func(*queue) bool) (urls []string, next string, err error) {
	limit := maxListed
	if maxResults != nil {
		if limit = *maxResults; limit < 1 || limit > maxListed {
			return nil, "", invalid(limit, "MaxResults", "Must be between 1 and 1000, if provided.")
		}
	}
	list += " " + c.Region + " " + c.Account
	after, err := s.tokens.Read(list, token)
	if err != nil {
		return nil, "", invalid(token, "NextToken", "The token is not valid.")
	}
	var found []*queue
	for _, q := range s.queues.all() {
		if belongs(q) {
			found = append(found, q)
		}
	}
	name := func(q *queue) string { return q.key.name }
	slices.SortFunc(found, func(a, b *queue) int { return strings.Compare(name(a), name(b)) })
	part, last := page.Cut(found, name, after, limit)
	if last != "" && maxResults != nil {
		next = s.tokens.Make(list, last)
	}
	for _, q := range part {
		urls = append(urls, s.url(c, q.key))
	}
	return urls, next, nil
}

type queueInput struct {
	QueueURL string `json:"QueueUrl"`
}

func (s *Service) deleteQueue(ctx context.Context, in *queueInput) (*api.Empty, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	now := s.clock.Now()
	s.queues.remove(q, now)
	s.journal.logDeleted(q.key, now)
	if q.close() {
		s.moves.drop(q)
	}
	return &api.Empty{}, nil
}

func (s *Service) purgeQueue(ctx context.Context, in *queueInput) (*api.Empty, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	return &api.Empty{}, q.purge()
}
