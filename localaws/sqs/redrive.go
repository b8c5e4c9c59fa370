package sqs

import (
	"encoding/json"
	"slices"
	"strconv"
	"time"
)

// redrivePolicy says to which queue a message goes that was received too often. The zero value
// keeps every message.
type redrivePolicy struct {
	target      queueKey
	maxReceives int
}

const (
	maxReceiveCount = 1000
	maxAllowed      = 10 // sources in a RedriveAllowPolicy
)

// redriveDocument is the RedrivePolicy attribute as AWS answers it. The count comes in as a number
// or as a string of one.
type redriveDocument struct {
	Target      string `json:"deadLetterTargetArn"`
	MaxReceives int    `json:"maxReceiveCount"`
}

// parseRedrive reads a RedrivePolicy attribute.
func parseRedrive(text string) (redriveDocument, error) {
	refuse := func(reason string) (redriveDocument, error) {
		return redriveDocument{}, invalid(text, "RedrivePolicy", reason)
	}
	var raw map[string]any
	if json.Unmarshal([]byte(text), &raw) != nil {
		return refuse("Redrive policy is not a valid JSON map.")
	}
	for name := range raw {
		if name != "deadLetterTargetArn" && name != "maxReceiveCount" {
			return refuse("Unknown attribute " + name + ".")
		}
	}
	for _, name := range []string{"deadLetterTargetArn", "maxReceiveCount"} {
		if raw[name] == nil {
			return refuse("Redrive policy does not contain mandatory attribute: " + name + ".")
		}
	}
	arn, _ := raw["deadLetterTargetArn"].(string)
	if _, ok := parseARN(arn); !ok {
		return refuse("Invalid value for deadLetterTargetArn.")
	}
	count, ok := wholeNumber(raw["maxReceiveCount"])
	if !ok || count < 1 || count > maxReceiveCount {
		return refuse("Invalid value for maxReceiveCount: " + plain(raw["maxReceiveCount"]) + ", valid values are from 1 to 1000 both inclusive.")
	}
	return redriveDocument{arn, count}, nil
}

func wholeNumber(v any) (int, bool) {
	switch v := v.(type) {
	case float64:
		return int(v), v == float64(int(v))
	case string:
		n, err := strconv.Atoi(v)
		return n, err == nil
	}
	return 0, false
}

func plain(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	text, _ := json.Marshal(v)
	return string(text)
}

// allowDocument is the RedriveAllowPolicy attribute.
type allowDocument struct {
	Permission string   `json:"redrivePermission"`
	Sources    []string `json:"sourceQueueArns,omitempty"`
}

// parseAllow reads a RedriveAllowPolicy attribute.
func parseAllow(text string) (allowDocument, error) {
	refuse := func(reason string) (allowDocument, error) {
		return allowDocument{}, invalid(text, "RedriveAllowPolicy", reason)
	}
	var a allowDocument
	if json.Unmarshal([]byte(text), &a) != nil {
		return refuse("Redrive allow policy is not a valid JSON map.")
	}
	switch a.Permission {
	case "allowAll", "denyAll":
		if len(a.Sources) > 0 {
			return refuse("sourceQueueArns is only valid with redrivePermission byQueue.")
		}
	case "byQueue":
		if len(a.Sources) == 0 || len(a.Sources) > maxAllowed {
			return refuse("sourceQueueArns must have 1 to 10 queue ARNs with redrivePermission byQueue.")
		}
	default:
		return refuse("redrivePermission must be one of allowAll, denyAll, byQueue.")
	}
	for _, arn := range a.Sources {
		if _, ok := parseARN(arn); !ok {
			return refuse("Invalid value for sourceQueueArns: " + arn + ".")
		}
	}
	return a, nil
}

func (a allowDocument) allows(source queueKey) bool {
	return a.Permission == "" || a.Permission == "allowAll" || slices.Contains(a.Sources, source.arn())
}

// checkTarget refuses a RedrivePolicy whose dead-letter queue is not there, is of the other type,
// or does not want this source.
func (s *Service) checkTarget(source queueKey, fifo bool, text string) error {
	if text == "" {
		return nil
	}
	policy, err := parseRedrive(text)
	if err != nil {
		return err
	}
	key, _ := parseARN(policy.Target)
	target := s.queues.get(key)
	switch {
	case target == nil || key.region != source.region:
		return invalid(text, "RedrivePolicy", "Dead letter target does not exist.")
	case target.fifo != fifo:
		return invalid(text, "RedrivePolicy", "Dead-letter queue must be same type of queue as the source.")
	case !target.current().allowed.allows(source):
		return invalid(text, "RedrivePolicy", "The dead-letter queue's redrive permission does not allow this source queue.")
	}
	return nil
}

// departure is a message on its way from one queue to another, in no queue until it is accepted.
type departure struct {
	from, to *queue
	message  *message // as it arrives
	left     uint64   // its number in from
}

// deadLetters returns where m must go instead of being delivered once more; nil delivers it, also
// when the dead-letter queue is gone.
func (q *queue) deadLetters(m *message) *queue {
	p := q.settings.redrive
	if p.maxReceives == 0 || m.receives-m.elsewhere < p.maxReceives {
		return nil
	}
	if to := q.service.queues.get(p.target); to != q {
		return to
	}
	return nil
}

// depart sends m, which is in no lane any more, to its dead-letter queue. It keeps its id, its
// receives and, on a standard queue, its date.
func (q *queue) depart(now time.Time, m *message, to *queue) {
	q.forget(m)
	moved := &message{content: m.content, sent: m.sent, receives: m.receives, elsewhere: m.receives, firstReceived: m.firstReceived}
	moved.deadFrom = q.key.arn()
	if q.fifo {
		moved.sent = now
	}
	q.post(departure{from: q, to: to, message: moved}, m)
}

// redrive moves up to n visible messages to the queue, or with none to where each was given up,
// as new messages. It returns how many, and why it cannot go on: nothing is left, or reason.
func (q *queue) redrive(n int, to *queue) (moved int, empty bool, reason string) {
	now, err := q.enter()
	if err != nil {
		return 0, false, errNoQueue.QueryCode()
	}
	defer q.leave(now)
	for ; moved < n; moved++ {
		l := q.open.first()
		if l == nil {
			return moved, true, ""
		}
		m := l.ready.head
		target, reason := q.destination(m, to)
		if target == nil {
			return moved, false, reason
		}
		q.pop(l)
		q.forget(m)
		fresh := &message{content: m.content, sent: now}
		fresh.id, fresh.deadFrom = q.service.ids.UUID(), ""
		q.post(departure{from: q, to: target, message: fresh}, m)
	}
	return moved, q.visible == 0, ""
}

func (q *queue) destination(m *message, to *queue) (_ *queue, reason string) {
	if to == nil {
		key, ok := parseARN(m.deadFrom)
		if !ok {
			return nil, "CouldNotDetermineMessageSource"
		}
		to = q.service.queues.get(key)
	}
	if to == nil || to == q || to.isGone() {
		return nil, errNoQueue.QueryCode()
	}
	return to, ""
}

func (q *queue) isGone() bool { return q.service.queues.get(q.key) != q }

// post puts a departure into the outbox. The message m, as it was here, is kept until the other
// queue has it: the record that adds it there is also the one that removes it here.
func (q *queue) post(d departure, m *message) {
	d.left = m.seq
	q.outbox = append(q.outbox, d)
	if q.leaving == nil {
		q.leaving = map[uint64]*message{}
	}
	q.leaving[d.left] = m
}

// accept takes a message from another queue in, and returns the record to wait for. If this queue is
// gone by now, so is the message.
func (q *queue) accept(d departure) ticket {
	now, err := q.enter()
	if err != nil {
		return d.from.logDeparture(d.left)
	}
	q.seq++
	d.message.seq = q.seq
	d.message.due = now
	q.insert(d.message, false)
	q.logArrival(d.message, d.from, d.left)
	return q.exit(now)
}
