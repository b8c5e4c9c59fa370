package sqs

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"

	"github.com/stepfleet/stepfleet/localaws/api"
)

type createQueueInput struct {
	QueueName  string            `json:"QueueName"`
	Attributes map[string]string `json:"Attributes"`
	Tags       map[string]string `json:"tags"`
}

type queueURLOutput struct {
	QueueURL string `json:"QueueUrl"`
}

func (s *Service) createQueue(ctx context.Context, in *createQueueInput) (*queueURLOutput, error) {
	c := api.CallOf(ctx)
	if err := checkName(in.QueueName, in.Attributes); err != nil {
		return nil, err
	}
	if len(in.Tags) > 0 {
		s.log.Warn("not emulated: queue tags are dropped", "service", "sqs", "op", c.Op, "queue", in.QueueName)
	}
	attributes, err := merge(defaults(), in.Attributes)
	if err != nil {
		return nil, err
	}
	key := queueKey{c.Region, c.Account, in.QueueName}
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.queues[key]; q != nil {
		if name, differs := differing(q.snapshot(), in.Attributes); differs {
			return nil, errQueueExists.With("A queue already exists with the same name and a different value for attribute %s", name)
		}
		return &queueURLOutput{key.url(c.BaseURL)}, nil
	}
	if at, ok := s.deleted[key]; ok && s.clock.Now().Sub(at) < deletedFor {
		return nil, errDeletedLately
	}
	delete(s.deleted, key)
	s.queues[key] = newQueue(s, key, attributes)
	return &queueURLOutput{key.url(c.BaseURL)}, nil
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
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.queues[key] == nil {
		return nil, errNoQueue
	}
	return &queueURLOutput{key.url(c.BaseURL)}, nil
}

type getQueueAttributesInput struct {
	QueueURL       string   `json:"QueueUrl"`
	AttributeNames []string `json:"AttributeNames"`
}

type getQueueAttributesOutput struct {
	Attributes map[string]string `json:"Attributes,omitempty"`
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

type setQueueAttributesInput struct {
	QueueURL   string            `json:"QueueUrl"`
	Attributes map[string]string `json:"Attributes"`
}

func (s *Service) setQueueAttributes(ctx context.Context, in *setQueueAttributesInput) (*api.Empty, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	if len(in.Attributes) == 0 {
		return nil, missing("Attribute.Name")
	}
	return &api.Empty{}, q.set(in.Attributes)
}

// maxListed is how many queues one ListQueues returns.
const maxListed = 1000

type listQueuesInput struct {
	QueueNamePrefix string `json:"QueueNamePrefix"`
	MaxResults      *int   `json:"MaxResults"`
	NextToken       string `json:"NextToken"`
}

type listQueuesOutput struct {
	QueueURLs []string `json:"QueueUrls,omitempty"`
	NextToken string   `json:"NextToken,omitempty"`
}

// listQueues lists by name. As on AWS only a call with MaxResults gets a token for the rest.
func (s *Service) listQueues(ctx context.Context, in *listQueuesInput) (*listQueuesOutput, error) {
	c := api.CallOf(ctx)
	limit := maxListed
	if in.MaxResults != nil {
		if limit = *in.MaxResults; limit < 1 || limit > maxListed {
			return nil, invalid(limit, "MaxResults", "Must be between 1 and 1000, if provided.")
		}
	}
	after, err := base64.StdEncoding.DecodeString(in.NextToken)
	if err != nil {
		return nil, invalid(in.NextToken, "NextToken", "The token is not valid.")
	}
	names := s.names(c, in.QueueNamePrefix, string(after))
	out := &listQueuesOutput{}
	if len(names) > limit {
		names = names[:limit]
		if in.MaxResults != nil {
			out.NextToken = base64.StdEncoding.EncodeToString([]byte(names[limit-1]))
		}
	}
	for _, name := range names {
		out.QueueURLs = append(out.QueueURLs, queueKey{c.Region, c.Account, name}.url(c.BaseURL))
	}
	return out, nil
}

// names returns the caller's queues with the prefix that sort behind after, in order.
func (s *Service) names(c *api.Call, prefix, after string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var names []string
	for key := range s.queues {
		if key.region == c.Region && key.account == c.Account && key.name > after && strings.HasPrefix(key.name, prefix) {
			names = append(names, key.name)
		}
	}
	slices.Sort(names)
	return names
}

type queueInput struct {
	QueueURL string `json:"QueueUrl"`
}

func (s *Service) deleteQueue(ctx context.Context, in *queueInput) (*api.Empty, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.queues[q.key] == q {
		delete(s.queues, q.key)
		s.forget()
		s.deleted[q.key] = s.clock.Now()
	}
	s.mu.Unlock()
	q.close()
	return &api.Empty{}, nil
}

// forget drops the names that are free again, so that their map does not grow for ever.
func (s *Service) forget() {
	now := s.clock.Now()
	for key, at := range s.deleted {
		if now.Sub(at) >= deletedFor {
			delete(s.deleted, key)
		}
	}
}

func (s *Service) purgeQueue(ctx context.Context, in *queueInput) (*api.Empty, error) {
	q, err := s.find(api.CallOf(ctx), in.QueueURL)
	if err != nil {
		return nil, err
	}
	return &api.Empty{}, q.purge()
}
