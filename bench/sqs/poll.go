package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// longPollSeconds is the longest that SQS lets a receive wait.
const longPollSeconds = 20

// onWritten returns a context whose request calls f when the server has been sent all of it.
func onWritten(ctx context.Context, f func()) context.Context {
	var once sync.Once
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) { once.Do(f) },
	})
}

// pause lets time pass that is part of a measurement.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// longPoll measures the time from the call of a send to the return of the receive that waited.
func (b *bench) longPoll(ctx context.Context, s *server) figure {
	f := figure{Server: s.name, Name: pollLatency, Unit: "ms"}
	q, err := b.plan.newQueue(ctx, s, 2, standard)
	if err != nil {
		return f.failed(err)
	}
	for range b.plan.LongPolls {
		took, err := q.handOver(ctx)
		if err != nil {
			return f.failed(err)
		}
		f.Samples = append(f.Samples, int(took.Microseconds()))
	}
	ms := milliseconds(f.Samples)
	f.Value = quantile(ms, 0.5)
	f.Note = fmt.Sprintf("p99 %.2f ms of %d", quantile(ms, 0.99), len(ms))
	return f.orFailed(q.remove(ctx))
}

// handOver sends one message to a receiver that waits already, for 5 to 105 ms: servers that look
// at fixed times show themselves.
func (q *queue) handOver(ctx context.Context) (time.Duration, error) {
	type receipt struct {
		at  time.Time
		got []types.Message
		err error
	}
	waiting, received := make(chan struct{}), make(chan receipt, 1)
	go func() {
		got, err := q.receive(onWritten(ctx, func() { close(waiting) }), &sqs.ReceiveMessageInput{
			MaxNumberOfMessages: 1, WaitTimeSeconds: longPollSeconds,
		})
		received <- receipt{time.Now(), got, err}
	}()
	select {
	case <-waiting:
	case r := <-received:
		return 0, errors.Join(errors.New("a receive ended before it could wait"), r.err)
	}
	if err := pause(ctx, 5*time.Millisecond+rand.N(100*time.Millisecond)); err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := q.sendOne(ctx); err != nil {
		return 0, err
	}
	r := <-received
	if r.err != nil {
		return 0, r.err
	}
	if len(r.got) != 1 {
		return 0, fmt.Errorf("a receive that waited %d s got nothing", longPollSeconds)
	}
	return r.at.Sub(began), q.delete(ctx, r.got[0])
}

// idlePolls measures the server's CPU while that many receives wait and nothing is sent.
func (b *bench) idlePolls(ctx context.Context, s *server) figure {
	f := figure{Server: s.name, Name: idleCPU, Unit: "% CPU"}
	n := b.plan.IdlePolls
	q, err := b.plan.newQueue(ctx, s, n, standard)
	if err != nil {
		return f.failed(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var polls sync.WaitGroup
	defer func() {
		cancel()
		polls.Wait()
	}()
	ended := make(chan error, n)
	poll := func(written func()) {
		polls.Go(func() {
			got, err := q.receive(onWritten(ctx, written), &sqs.ReceiveMessageInput{WaitTimeSeconds: longPollSeconds})
			if err == nil {
				err = fmt.Errorf("a receive ended with %d messages before its time", len(got))
			}
			ended <- err
		})
	}
	if err := b.placePolls(ctx, poll, ended); err != nil {
		return f.failed(err)
	}
	before, err := s.used()
	if err != nil {
		return f.failed(err)
	}
	began := time.Now()
	if err := pause(ctx, b.plan.IdleTime); err != nil {
		return f.failed(err)
	}
	after, err := s.used()
	if err != nil {
		return f.failed(err)
	}
	select {
	case err := <-ended:
		return f.failed(err)
	default:
	}
	f.Value = 100 * (after.cpu - before.cpu).Seconds() / time.Since(began).Seconds()
	f.Note = fmt.Sprintf("%s polls for %v", thousands(n), b.plan.IdleTime)
	return f
}

// placePolls starts the polls, each when the one before has been sent: not every server can accept
// a thousand connections at once. It returns when the server has had a moment to settle.
func (b *bench) placePolls(ctx context.Context, poll func(written func()), ended <-chan error) error {
	late := time.NewTimer(b.plan.IdlePlacing)
	defer late.Stop()
	for i := range b.plan.IdlePolls {
		sent := make(chan struct{})
		poll(func() { close(sent) })
		select {
		case <-sent:
		case err := <-ended:
			return err
		case <-late.C:
			return fmt.Errorf("it took %d of %d receives in %v", i, b.plan.IdlePolls, b.plan.IdlePlacing)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return pause(ctx, b.plan.IdleSettle)
}

// lateness measures how long after its visibility timeout a message comes back to receivers that
// wait for it. The timeout is counted from the call of the receive that hid the message, which is
// before the server begins to count.
func (b *bench) lateness(ctx context.Context, s *server) figure {
	f := figure{Server: s.name, Name: lateVisibility, Unit: "ms"}
	q, err := b.plan.newQueue(ctx, s, 2*lateReceivers, standard)
	if err != nil {
		return f.failed(err)
	}
	if _, err := closedLoop(ctx, s, 1, limit{int64(b.plan.LateMessages), b.plan.LateTime}, q.sendTen); err != nil {
		return f.failed(err)
	}
	due, err := b.hide(ctx, q)
	if err != nil {
		return f.failed(err)
	}
	if f.Samples, err = b.reappear(ctx, q, due); err != nil {
		return f.failed(err)
	}
	ms := milliseconds(f.Samples)
	f.Value = quantile(ms, 0.99)
	f.Note = fmt.Sprintf("p50 %.2f ms of %d", quantile(ms, 0.5), len(ms))
	if early := quantile(ms, 0); early < 0 {
		f.Note += fmt.Sprintf("; the first came %.1f ms EARLY", -early)
	}
	return f.orFailed(q.remove(ctx))
}

// hide receives the messages, a batch every few milliseconds, and returns when each is due again.
// It ends well before the first is.
func (b *bench) hide(ctx context.Context, q *queue) (map[string]time.Time, error) {
	due := map[string]time.Time{}
	end := time.Now().Add(b.plan.LateVisibility * 3 / 4)
	for len(due) < b.plan.LateMessages && time.Now().Before(end) {
		began := time.Now()
		got, err := q.receive(ctx, &sqs.ReceiveMessageInput{
			MaxNumberOfMessages: batchSize, VisibilityTimeout: int32(b.plan.LateVisibility.Seconds()),
		})
		if err != nil {
			return nil, err
		}
		for _, m := range got {
			due[*m.MessageId] = began.Add(b.plan.LateVisibility)
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return nil, err
		}
	}
	if len(due) == 0 {
		return nil, errors.New("no message could be received")
	}
	return due, nil
}

// lateReceivers is how many receivers wait for the messages to come back.
const lateReceivers = 4

// reappear receives until each message is back, and returns by how many microseconds each was late.
func (b *bench) reappear(ctx context.Context, q *queue, due map[string]time.Time) ([]int, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.plan.LateVisibility+b.plan.LateTime, errors.New("not every message came back"))
	defer cancel()
	var mu sync.Mutex
	var late []int
	take := func(got []types.Message, at time.Time) (all bool) {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range got {
			if then, ok := due[*m.MessageId]; ok {
				late = append(late, int(at.Sub(then).Microseconds()))
				delete(due, *m.MessageId)
			}
		}
		return len(due) == 0
	}
	errs := make(chan error, lateReceivers)
	for range lateReceivers {
		go func() {
			for {
				got, err := q.receive(ctx, &sqs.ReceiveMessageInput{
					MaxNumberOfMessages: batchSize, VisibilityTimeout: 600, WaitTimeSeconds: 1,
				})
				if err != nil || take(got, time.Now()) {
					errs <- err
					cancel() // the others have nothing to wait for
					return
				}
			}
		}()
	}
	err := <-errs
	if err != nil && context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	for range lateReceivers - 1 {
		<-errs
	}
	return late, err
}
