// Package sqs is Amazon SQS on one machine: standard, fair and FIFO queues, dead-letter queues and
// move tasks, as AWS documents them and as its recorded answers show them.
//
// Where to read: sqs.go holds the service and finds queues. The engine of a queue is queue.go with
// receive.go (long polls, attempts), lanes.go (message groups), message.go (the lists it is made
// of), dedup.go, handle.go, redrive.go (dead letters) and move.go (move tasks). The operations,
// thin over it, are ops_queue.go, ops_message.go, ops_redrive.go and ops_policy.go; attributes.go
// and message_attributes.go are validation, errors.go has AWS's codes and texts. mode.go is what
// AWS permits itself and hardly ever does; persist.go survives a kill.
//
// What is authoritative: a queue's mutex guards everything in it, and no two are held at a time. A
// queue has no goroutine and no tick. Every operation first lets pass what fell due since the last
// one (visibility, delay, retention), so a deadline is exact however late a timer is; a timer is
// armed only while a long poll waits, so an idle service costs nothing.
package sqs

import (
	"context"
	"log/slog"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/arn"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/journal"
	"github.com/stepfleet/stepfleet/localaws/page"
)

// Options is what the service needs from outside; Clock, IDs and Logger are required.
type Options struct {
	Clock  clock.Clock
	IDs    *api.IDs
	Logger *slog.Logger
	// MaxInFlight is how many messages of a queue may be received and not deleted; 0 is AWS's 120,000.
	MaxInFlight int
	// Mode is how much of what AWS permits itself the service does; empty is Faithful.
	Mode Mode
	// QueueURL is how queue URLs are made; empty is PathURL.
	QueueURL URLTemplate
	// Tokens are those of its lists.
	Tokens page.Tokens
	// Dir is where queues and messages are kept; empty keeps them in memory only.
	Dir string
	// Journal is how Dir is kept.
	Journal journal.Options
}

// MaxInFlight is AWS's limit for a queue of either type.
const MaxInFlight = 120_000

// deletedFor is how long the name of a deleted queue stays taken.
const deletedFor = 60 * time.Second

// Service is SQS with every queue of every account and region.
type Service struct {
	clock       clock.Clock
	ids         *api.IDs
	log         *slog.Logger
	maxInFlight int
	mischief    *mischief
	urls        URLTemplate
	tokens      page.Tokens
	queues      registry
	moves       moves
	journal     *keeper
}

// queueKey is what makes a queue: the same name in two regions is two queues.
type queueKey struct{ region, account, name string }

func (k queueKey) arn() string { return arn.Format("sqs", k.region, k.account, k.name) }

// parseARN reads the ARN of a queue, in the partition that its region is in.
func parseARN(text string) (queueKey, bool) {
	parts := strings.Split(text, ":")
	if len(parts) != 6 || slices.Contains(parts, "") {
		return queueKey{}, false
	}
	k := queueKey{parts[3], parts[4], parts[5]}
	return k, k.arn() == text
}

// New returns an SQS with the queues that Options.Dir holds, or none. It fails only on Dir.
func New(o Options) (*Service, error) {
	if o.MaxInFlight == 0 {
		o.MaxInFlight = MaxInFlight
	}
	if o.QueueURL == "" {
		o.QueueURL = PathURL
	}
	s := &Service{
		clock: o.Clock, ids: o.IDs, log: o.Logger, maxInFlight: o.MaxInFlight, mischief: newMischief(o.Mode, o.IDs.Uint64()),
		urls: o.QueueURL, tokens: o.Tokens,
	}
	if o.Dir == "" {
		return s, nil
	}
	return s, s.restore(o.Dir, o.Journal)
}

// API returns the service's table of operations.
func (s *Service) API() api.Service {
	return api.Service{
		Name: "sqs", Target: "AmazonSQS", Namespace: "com.amazonaws.sqs", JSONVersion: "1.0",
		Query: query, Throttled: errThrottled, Reset: s.Reset,
		Ops: map[string]api.Operation{
			"AddPermission":                op(s, s.addPermission),
			"CancelMessageMoveTask":        op(s, s.cancelMessageMoveTask),
			"ChangeMessageVisibility":      op(s, s.changeMessageVisibility),
			"ChangeMessageVisibilityBatch": op(s, s.changeMessageVisibilityBatch),
			"CreateQueue":                  op(s, s.createQueue),
			"DeleteMessage":                op(s, s.deleteMessage),
			"DeleteMessageBatch":           op(s, s.deleteMessageBatch),
			"DeleteQueue":                  op(s, s.deleteQueue),
			"GetQueueAttributes":           op(s, s.getQueueAttributes),
			"GetQueueUrl":                  op(s, s.getQueueURL),
			"ListDeadLetterSourceQueues":   op(s, s.listDeadLetterSourceQueues),
			"ListMessageMoveTasks":         op(s, s.listMessageMoveTasks),
			"ListQueueTags":                op(s, s.listQueueTags),
			"ListQueues":                   op(s, s.listQueues),
			"PurgeQueue":                   op(s, s.purgeQueue),
			"ReceiveMessage":               op(s, s.receiveMessage),
			"RemovePermission":             op(s, s.removePermission),
			"SendMessage":                  op(s, s.sendMessage),
			"SendMessageBatch":             op(s, s.sendMessageBatch),
			"SetQueueAttributes":           op(s, s.setQueueAttributes),
			"StartMessageMoveTask":         op(s, s.startMessageMoveTask),
			"TagQueue":                     op(s, s.tagQueue),
			"UntagQueue":                   op(s, s.untagQueue),
		},
	}
}

// op makes a method an operation that is acknowledged only while the journal holds.
func op[In, Out any](s *Service, f func(context.Context, *In) (*Out, error)) api.Operation {
	return api.Op(func(ctx context.Context, in *In) (*Out, error) {
		out, err := f(ctx, in)
		if err == nil {
			err = s.journal.failed()
		}
		if err != nil {
			return nil, err
		}
		s.compact()
		return out, nil
	})
}

// Reset removes every queue, without the pause that AWS makes before a name is free again.
func (s *Service) Reset() {
	for _, q := range s.queues.clear() {
		q.close()
	}
	s.moves.drop(nil)
}

// QueueStats is what a queue holds, and what ever passed it.
type QueueStats struct {
	Region, Account, Name                             string
	Visible, NotVisible, Delayed                      int
	OldestAge                                         time.Duration // of the oldest message, 0 for none
	Sent, Received, Deleted, EmptyReceives, SentBytes uint64

	FIFO           bool
	Deduplicated   uint64 // sends that a FIFO queue had accepted before
	GroupsInFlight int    // message groups of a FIFO queue of which something is in flight
}

// Stats returns every queue's, in no order.
func (s *Service) Stats() []QueueStats {
	var all []QueueStats
	for _, q := range s.queues.all() {
		if now, err := q.enter(); err == nil {
			all = append(all, q.stats(now))
			q.leave(now)
		}
	}
	return all
}

func (q *queue) stats(now time.Time) QueueStats {
	st := QueueStats{
		Region: q.key.region, Account: q.key.account, Name: q.key.name,
		Visible: q.visible, NotVisible: q.inFlight, Delayed: len(q.hidden.items) - q.inFlight,
		Sent: q.counted.sent, SentBytes: q.counted.sentBytes, Received: q.counted.received,
		Deleted: q.counted.deleted, EmptyReceives: q.counted.emptyReceives,
		FIFO: q.fifo, Deduplicated: q.counted.deduplicated,
	}
	for _, l := range q.lanes {
		if q.fifo && l.flying > 0 {
			st.GroupsInFlight++
		}
	}
	for _, m := range []*message{q.arrivals.head, q.moved.first()} {
		if m != nil {
			st.OldestAge = max(st.OldestAge, now.Sub(m.sent))
		}
	}
	return st
}

// registry finds queues. It calls nothing while it is locked, so that a queue may ask it.
type registry struct {
	mu      sync.RWMutex
	queues  map[queueKey]*queue
	deleted map[queueKey]time.Time
}

func (r *registry) get(k queueKey) *queue {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.queues[k]
}

func (r *registry) all() []*queue {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := make([]*queue, 0, len(r.queues))
	for _, q := range r.queues {
		all = append(all, q)
	}
	return all
}

// add takes the queue in, unless there is one of its name, which it returns, or there was one
// until lately.
func (r *registry) add(q *queue, now time.Time) (*queue, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.queues[q.key]; old != nil {
		return old, nil
	}
	if at, ok := r.deleted[q.key]; ok && now.Sub(at) < deletedFor {
		return nil, errDeletedLately
	}
	delete(r.deleted, q.key)
	q.logQueue() // before anybody can find it: what is sent to it comes after it in the journal
	r.set(q)
	return q, nil
}

func (r *registry) put(q *queue) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set(q)
}

func (r *registry) set(q *queue) {
	if r.queues == nil {
		r.queues = map[queueKey]*queue{}
	}
	r.queues[q.key] = q
}

// remove takes the queue out and keeps its name taken from now on.
func (r *registry) remove(q *queue, now time.Time) {
	r.mu.Lock()
	if r.queues[q.key] == q {
		delete(r.queues, q.key)
	}
	r.mu.Unlock()
	r.bury(q.key, now)
}

// bury keeps a name taken, and drops the names that are free again.
func (r *registry) bury(k queueKey, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.deleted == nil {
		r.deleted = map[queueKey]time.Time{}
	}
	for old, then := range r.deleted {
		if at.Sub(then) >= deletedFor {
			delete(r.deleted, old)
		}
	}
	r.deleted[k] = at
}

func (r *registry) buried() []deletedName {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var all []deletedName
	for k, at := range r.deleted {
		all = append(all, deletedName{k.region, k.account, k.name, at})
	}
	return all
}

// clear takes every queue out and returns them; no name stays taken.
func (r *registry) clear() map[queueKey]*queue {
	r.mu.Lock()
	defer r.mu.Unlock()
	queues := r.queues
	r.queues, r.deleted = nil, nil
	return queues
}

// find returns the queue that a URL, or a bare name of the caller's, names.
func (s *Service) find(c *api.Call, url string) (*queue, error) {
	if url == "" {
		return nil, missing("QueueUrl")
	}
	key, ok := parseURL(c, url)
	if !ok {
		return nil, errInvalidAddress.With("The address %s is not valid for this endpoint.", url)
	}
	if q := s.queues.get(key); q != nil {
		return q, nil
	}
	return nil, errNoQueue
}

// byARN returns the queue of an ARN, or the error that names the parameter.
func (s *Service) byARN(parameter, text string) (*queue, error) {
	if text == "" {
		return nil, missing(parameter)
	}
	key, ok := parseARN(text)
	if !ok {
		return nil, invalid(text, parameter, "The ARN is not that of a queue.")
	}
	if q := s.queues.get(key); q != nil {
		return q, nil
	}
	return nil, errNotFound.With("The resource that you specified for the %s parameter doesn't exist.", parameter)
}

var (
	queueName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,80}$`)
	fifoName  = regexp.MustCompile(`^[A-Za-z0-9_-]{1,75}\.fifo$`)
)

// checkName refuses what may not name a queue of the type.
func checkName(name string, fifo bool) error {
	switch {
	case name == "":
		return missing("QueueName")
	case fifo && !fifoName.MatchString(name):
		return errInvalidValue.With("The name of a FIFO queue can only include alphanumeric characters, hyphens, or underscores, must end with .fifo suffix and be 1 to 80 in length")
	case !fifo && !queueName.MatchString(name):
		return errInvalidValue.With("Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")
	}
	return nil
}

// seconds returns d in whole seconds, as attributes carry it.
func seconds(d time.Duration) int { return int(math.Round(d.Seconds())) }
