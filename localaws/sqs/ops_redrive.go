package sqs

import (
	"context"

	"github.com/stepfleet/stepfleet/localaws/api"
)

type listDeadLetterSourceQueuesInput struct {
	QueueURL   string `json:"QueueUrl"`
	MaxResults *int   `json:"MaxResults"`
	NextToken  string `json:"NextToken"`
}

type listDeadLetterSourceQueuesOutput struct {
	QueueURLs []string `json:"queueUrls" query:"QueueUrl,flat"`
	NextToken string   `json:"NextToken,omitempty"`
}

func (s *Service) listDeadLetterSourceQueues(ctx context.Context, in *listDeadLetterSourceQueuesInput) (*listDeadLetterSourceQueuesOutput, error) {
	c := api.CallOf(ctx)
	target, err := s.find(c, in.QueueURL)
	if err != nil {
		return nil, err
	}
	urls, token, err := s.page(c, "sources "+target.key.arn(), in.MaxResults, in.NextToken, target.isDeadLetterOf)
	if err != nil {
		return nil, err
	}
	if urls == nil {
		urls = []string{} // this list is answered even when it is empty
	}
	return &listDeadLetterSourceQueuesOutput{urls, token}, nil
}

// isDeadLetterOf reports whether source gives its messages up to this queue.
func (q *queue) isDeadLetterOf(source *queue) bool {
	redrive := source.current().redrive
	return redrive.maxReceives > 0 && redrive.target == q.key
}

type startMessageMoveTaskInput struct {
	SourceARN      string `json:"SourceArn"`
	DestinationARN string `json:"DestinationArn"`
	MaxRate        *int   `json:"MaxNumberOfMessagesPerSecond"`
}

type taskHandleOutput struct {
	TaskHandle string `json:"TaskHandle"`
}

func (s *Service) startMessageMoveTask(ctx context.Context, in *startMessageMoveTaskInput) (*taskHandleOutput, error) {
	source, err := s.byARN("SourceArn", in.SourceARN)
	if err != nil {
		return nil, err
	}
	if !s.hasSource(source) {
		return nil, errInvalidValue.With("Source queue must be configured as a Dead Letter Queue.")
	}
	t := &moveTask{
		id: s.ids.UUID(), source: source, toARN: in.DestinationARN, rate: in.MaxRate, started: s.clock.Now(), toMove: source.backlog(),
	}
	if in.DestinationARN != "" {
		if t.to, err = s.byARN("DestinationArn", in.DestinationARN); err != nil {
			return nil, err
		}
		if t.to == source || t.to.fifo != source.fifo {
			return nil, invalid(in.DestinationARN, "DestinationArn", "Must be another queue of the same type as the source.")
		}
	}
	if in.MaxRate != nil && (*in.MaxRate < 1 || *in.MaxRate > maxMoveRate) {
		return nil, invalid(*in.MaxRate, "MaxNumberOfMessagesPerSecond", "Must be between 1 and 500, if provided.")
	}
	if err := s.moves.start(s.clock, t); err != nil {
		return nil, err
	}
	return &taskHandleOutput{taskHandle{t.id, in.SourceARN}.String()}, nil
}

func (s *Service) hasSource(target *queue) bool {
	for _, q := range s.queues.all() {
		if target.isDeadLetterOf(q) {
			return true
		}
	}
	return false
}

// backlog returns how many messages the queue holds in whatever state.
func (q *queue) backlog() int {
	q.mu.Lock()
	now := q.advance()
	defer q.leave(now)
	return q.messages.n
}

type cancelMessageMoveTaskInput struct {
	TaskHandle string `json:"TaskHandle"`
}

type cancelMessageMoveTaskOutput struct {
	Moved int `json:"ApproximateNumberOfMessagesMoved"`
}

func (s *Service) cancelMessageMoveTask(_ context.Context, in *cancelMessageMoveTaskInput) (*cancelMessageMoveTaskOutput, error) {
	if in.TaskHandle == "" {
		return nil, missing("TaskHandle")
	}
	handle, err := parseTaskHandle(in.TaskHandle)
	if err != nil {
		return nil, err
	}
	source, err := s.byARN("SourceArn", handle.Source)
	if err != nil {
		return nil, err
	}
	moved, err := s.moves.cancel(source, handle.TaskID)
	if err != nil {
		return nil, err
	}
	return &cancelMessageMoveTaskOutput{moved}, nil
}

type listMessageMoveTasksInput struct {
	SourceARN  string `json:"SourceArn"`
	MaxResults *int   `json:"MaxResults"`
}

type listMessageMoveTasksOutput struct {
	Results []moveTaskResult `json:"Results,omitempty" query:"ListMessageMoveTasksResultEntry,flat"`
}

type moveTaskResult struct {
	TaskHandle       string `json:"TaskHandle,omitempty"`
	Status           string `json:"Status"`
	SourceARN        string `json:"SourceArn"`
	DestinationARN   string `json:"DestinationArn,omitempty"`
	MaxRate          *int   `json:"MaxNumberOfMessagesPerSecond,omitempty"`
	Moved            int    `json:"ApproximateNumberOfMessagesMoved"`
	ToMove           int    `json:"ApproximateNumberOfMessagesToMove"`
	FailureReason    string `json:"FailureReason,omitempty"`
	StartedTimestamp int64  `json:"StartedTimestamp"`
}

func (s *Service) listMessageMoveTasks(_ context.Context, in *listMessageMoveTasksInput) (*listMessageMoveTasksOutput, error) {
	source, err := s.byARN("SourceArn", in.SourceARN)
	if err != nil {
		return nil, err
	}
	n := 1
	if in.MaxResults != nil {
		if n = *in.MaxResults; n < 1 || n > movesKept {
			return nil, invalid(n, "MaxResults", "Must be between 1 and 10, if provided.")
		}
	}
	out := &listMessageMoveTasksOutput{}
	for _, t := range s.moves.list(source, n) {
		r := moveTaskResult{
			Status: t.status, SourceARN: in.SourceARN, DestinationARN: t.toARN, MaxRate: t.rate, Moved: t.moved, ToMove: t.toMove,
			FailureReason: t.reason, StartedTimestamp: t.started.UnixMilli(),
		}
		if t.status == moveRunning {
			r.TaskHandle = taskHandle{t.id, in.SourceARN}.String()
		}
		out.Results = append(out.Results, r)
	}
	return out, nil
}
