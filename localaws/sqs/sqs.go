// Package sqs is Amazon SQS in memory: standard queues as AWS documents them and as its recorded
// answers show them. FIFO queues, dead-letter queues, tags and permissions are not emulated yet
// and are refused, never half-accepted.
//
// Where to read: sqs.go holds the service and finds queues; queue.go is the engine of one queue;
// ops_queue.go and ops_message.go are the operations, thin over both; attributes.go and
// message_attributes.go are validation; errors.go has AWS's codes and texts.
//
// What is authoritative: a queue's mutex guards everything in it. A queue has no goroutine and no
// tick. Every operation first lets pass what fell due since the last one (visibility, delay,
// retention), so a deadline is exact however late a timer is; a timer is armed only while a long
// poll waits, so an idle service costs nothing.
package sqs

import (
	"log/slog"
	"math"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/clock"
)

// Options is what the service needs from outside; every field but MaxInFlight is required.
type Options struct {
	Clock  clock.Clock
	IDs    *api.IDs
	Logger *slog.Logger
	// MaxInFlight is how many messages of a queue may be received and not deleted; 0 is AWS's 120,000.
	MaxInFlight int
}

// MaxInFlight is AWS's limit for a standard queue.
const MaxInFlight = 120_000

// deletedFor is how long the name of a deleted queue stays taken.
const deletedFor = 60 * time.Second

// Service is SQS with every queue of every account and region.
type Service struct {
	clock       clock.Clock
	ids         *api.IDs
	log         *slog.Logger
	maxInFlight int

	mu      sync.RWMutex
	queues  map[queueKey]*queue
	deleted map[queueKey]time.Time
}

// queueKey is what makes a queue: the same name in two regions is two queues.
type queueKey struct{ region, account, name string }

func (k queueKey) arn() string { return "arn:aws:sqs:" + k.region + ":" + k.account + ":" + k.name }

func (k queueKey) url(base string) string { return base + "/" + k.account + "/" + k.name }

// New returns an SQS without queues.
func New(o Options) *Service {
	if o.MaxInFlight == 0 {
		o.MaxInFlight = MaxInFlight
	}
	return &Service{
		clock: o.Clock, ids: o.IDs, log: o.Logger, maxInFlight: o.MaxInFlight,
		queues: map[queueKey]*queue{}, deleted: map[queueKey]time.Time{},
	}
}

// API returns the service's table of operations.
func (s *Service) API() api.Service {
	return api.Service{
		Name: "sqs", Target: "AmazonSQS", Namespace: "com.amazonaws.sqs", JSONVersion: "1.0",
		Throttled: errThrottled,
		Ops: map[string]api.Operation{
			"CreateQueue":                  api.Op(s.createQueue),
			"GetQueueUrl":                  api.Op(s.getQueueURL),
			"GetQueueAttributes":           api.Op(s.getQueueAttributes),
			"SetQueueAttributes":           api.Op(s.setQueueAttributes),
			"ListQueues":                   api.Op(s.listQueues),
			"DeleteQueue":                  api.Op(s.deleteQueue),
			"PurgeQueue":                   api.Op(s.purgeQueue),
			"SendMessage":                  api.Op(s.sendMessage),
			"SendMessageBatch":             api.Op(s.sendMessageBatch),
			"ReceiveMessage":               api.Op(s.receiveMessage),
			"DeleteMessage":                api.Op(s.deleteMessage),
			"DeleteMessageBatch":           api.Op(s.deleteMessageBatch),
			"ChangeMessageVisibility":      api.Op(s.changeMessageVisibility),
			"ChangeMessageVisibilityBatch": api.Op(s.changeMessageVisibilityBatch),
		},
	}
}

// find returns the queue that a URL names. Only the path counts: clients reach us by many hosts.
func (s *Service) find(c *api.Call, url string) (*queue, error) {
	if url == "" {
		return nil, missing("QueueUrl")
	}
	key, ok := parseURL(c.Region, url)
	if !ok {
		return nil, errInvalidAddress.With("The address %s is not valid for this endpoint.", url)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if q := s.queues[key]; q != nil {
		return q, nil
	}
	return nil, errNoQueue
}

func parseURL(region, url string) (queueKey, bool) {
	path := url
	if _, rest, ok := strings.Cut(url, "://"); ok {
		if _, path, ok = strings.Cut(rest, "/"); !ok {
			return queueKey{}, false
		}
	}
	account, name, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if !ok || account == "" || name == "" || strings.Contains(name, "/") {
		return queueKey{}, false
	}
	return queueKey{region, account, name}, true
}

var queueName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,80}$`)

// checkName refuses what may not name a standard queue.
func checkName(name string, attributes map[string]string) error {
	if name == "" {
		return missing("QueueName")
	}
	if attributes["FifoQueue"] == "true" {
		if !strings.HasSuffix(name, ".fifo") {
			return errInvalidValue.With("The name of a FIFO queue can only include alphanumeric characters, hyphens, or underscores, must end with .fifo suffix and be 1 to 80 in length")
		}
		return errUnsupported.With("localaws does not emulate FIFO queues yet: create a standard queue instead of %s.", name)
	}
	if !queueName.MatchString(name) {
		return errInvalidValue.With("Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")
	}
	return nil
}

// seconds returns d in whole seconds, as attributes carry it.
func seconds(d time.Duration) int { return int(math.Round(d.Seconds())) }
