package worker

import (
	"context"
	"log/slog"

	"github.com/stepfleet/stepfleet"
)

// notes tells servers of ended tasks, one call at a time; what ends meanwhile goes together. A
// note that cannot be told is dropped: the server's slow look finds it.
type notes struct {
	notifier Notifier
	log      *slog.Logger
	in       chan stepfleet.Lease
	done     chan struct{}
}

// noteBacklog bounds the notes that wait; beyond it they are dropped.
const noteBacklog = 1024

func newNotes(n Notifier, log *slog.Logger) *notes {
	s := &notes{notifier: n, log: log, in: make(chan stepfleet.Lease, noteBacklog), done: make(chan struct{})}
	go s.run()
	return s
}

func (s *notes) ended(lease stepfleet.Lease) {
	if lease.NotifyURL == "" {
		return
	}
	select {
	case s.in <- lease:
	default:
		s.log.Debug("note dropped", "task_id", lease.TaskID)
	}
}

// close tells what waits and returns.
func (s *notes) close() {
	close(s.in)
	<-s.done
}

func (s *notes) run() {
	defer close(s.done)
	for lease := range s.in {
		byURL := map[string][]stepfleet.Lease{lease.NotifyURL: {lease}}
		for more := true; more; {
			select {
			case next, ok := <-s.in:
				if more = ok; ok {
					byURL[next.NotifyURL] = append(byURL[next.NotifyURL], next)
				}
			default:
				more = false
			}
		}
		for url, leases := range byURL {
			if err := s.notifier.Notify(context.Background(), url, leases); err != nil {
				s.log.Debug("notify; the server's slow look will find the ends", "err", err)
			}
		}
	}
}
