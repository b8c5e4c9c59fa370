package crash_test

import (
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

// purgeEvery is how long SQS refuses another purge of a queue.
const purgeEvery = time.Minute

// purge is the last one of a queue that was not refused.
type purge struct {
	asked    time.Time
	life     int // of the server, when it was asked for
	answered bool
}

// purge empties the queue of a family, which has one worker: nothing is sent meanwhile.
func (w *worker) purge() error {
	last := w.history.purging(w.family)
	w.begun()
	_, err := w.PurgeQueue(w.ctx, &sqs.PurgeQueueInput{QueueUrl: &w.family.urls[0]})
	code, err := w.answered(err)
	if err == nil {
		w.history.purged(w.family, last, code)
	}
	return err
}

// purging notes that a purge is about to be asked for, and returns the one before.
func (h *history) purging(f *family) (last purge) {
	h.mu.Lock()
	defer h.mu.Unlock()
	last, f.lastPurge = f.lastPurge, purge{asked: h.clock(), life: h.life}
	h.left(f, func(m *message) { m.deleting++ })
	return last
}

// purged notes the answer, and judges it by the purge before, which the queue must remember: SQS
// allows one a minute. One that had no answer may have taken place as late as its life ended.
func (h *history) purged(f *family, last purge, code string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	since := f.lastPurge.asked.Sub(last.asked)
	if code != "" {
		if since > purgeEvery+lifetime {
			h.fail("%s refused a purge, %v after the last one: %s", f.name, since, code)
		}
		f.lastPurge = last
		h.left(f, func(m *message) { m.deleting-- })
		return
	}
	if last.answered && h.clock().Sub(last.asked) < purgeEvery-clockSlack {
		h.fail("%s was purged %v after it had been", f.name, since)
	}
	h.events++
	h.purges++
	f.lastPurge.answered = true
	f.backlog.Store(0)
	h.left(f, func(m *message) { m.deleted = h.events })
}

// left calls do with the family's messages that are not known to be deleted. The caller holds mu.
func (h *history) left(f *family, do func(*message)) {
	for _, m := range h.messages {
		if m.family == f && m.deleted == 0 {
			do(m)
		}
	}
}
