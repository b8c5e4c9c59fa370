package dispatch

import (
	"context"
	"fmt"
	"sync"

	"github.com/stepfleet/stepfleet"
)

// Hub joins the ends of tasks with the streams that wait for them.
type Hub struct {
	mu     sync.Mutex
	closed bool
	subs   map[string]map[*Stream]struct{}
}

func newHub() *Hub { return &Hub{subs: map[string]map[*Stream]struct{}{}} }

// Stream is one executor's wait for the ends of its run's tasks. Each task is told once a stream.
type Stream struct {
	hub    *Hub
	run    string
	epoch  stepfleet.Epoch
	signal chan struct{}

	mu     sync.Mutex
	told   map[stepfleet.TaskID]bool
	queue  []stepfleet.View
	closed bool
	// superseded by an executor with a later epoch.
	superseded bool
}

// Open begins the stream of the executor with this epoch and returns the tasks of the run that
// have ended so far. It subscribes before it reads, so nothing that ends in between is missed, and
// a takeover neither. It returns ErrSuperseded.
func (s *Server) Open(ctx context.Context, runID string, epoch stepfleet.Epoch) (*Stream, []stepfleet.View, error) {
	st := &Stream{hub: s.hub, run: runID, epoch: epoch, signal: make(chan struct{}, 1), told: map[stepfleet.TaskID]bool{}}
	s.hub.add(st)
	if err := s.ledger.Rejoin(ctx, runID, epoch, s.cfg.URL); err != nil {
		st.Close()
		return nil, nil, fmt.Errorf("open stream of run %s: %w", runID, err)
	}
	views, err := s.ledger.RunTasks(ctx, runID)
	if err != nil {
		st.Close()
		return nil, nil, fmt.Errorf("open stream of run %s: %w", runID, err)
	}
	st.offer(views)
	return st, st.drain(), nil
}

// Next waits for tasks that ended since the last call. It returns ctx's error, ErrSuperseded once
// another executor has taken over, and no tasks when the server is going down.
func (st *Stream) Next(ctx context.Context) ([]stepfleet.View, error) {
	for {
		if st.isSuperseded() {
			return nil, fmt.Errorf("stream of run %s with epoch %d: %w", st.run, st.epoch, stepfleet.ErrSuperseded)
		}
		if views := st.drain(); len(views) > 0 {
			return views, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-st.signal:
			st.mu.Lock()
			closed := st.closed && len(st.queue) == 0
			st.mu.Unlock()
			if closed {
				return nil, nil
			}
		}
	}
}

// Close ends the stream.
func (st *Stream) Close() { st.hub.remove(st) }

func (st *Stream) offer(views []stepfleet.View) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, v := range views {
		if v.State.Terminal() && !st.told[v.ID] {
			st.told[v.ID] = true
			st.queue = append(st.queue, v)
		}
	}
	if len(st.queue) > 0 {
		st.wake()
	}
}

func (st *Stream) drain() []stepfleet.View {
	st.mu.Lock()
	defer st.mu.Unlock()
	views := st.queue
	st.queue = nil
	return views
}

func (st *Stream) end() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.closed = true
	st.wake()
}

func (st *Stream) supersede() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.superseded = true
	st.wake()
}

func (st *Stream) isSuperseded() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.superseded
}

func (st *Stream) wake() {
	select {
	case st.signal <- struct{}{}:
	default:
	}
}

func (h *Hub) add(st *Stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subs[st.run] == nil {
		h.subs[st.run] = map[*Stream]struct{}{}
	}
	h.subs[st.run][st] = struct{}{}
	if h.closed {
		st.end()
	}
}

func (h *Hub) remove(st *Stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.subs[st.run], st)
	if len(h.subs[st.run]) == 0 {
		delete(h.subs, st.run)
	}
}

// publish offers the views to their runs' streams.
func (h *Hub) publish(views []stepfleet.View) {
	byRun := map[string][]stepfleet.View{}
	for _, v := range views {
		byRun[v.RunID] = append(byRun[v.RunID], v)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for run, vs := range byRun {
		for st := range h.subs[run] {
			st.offer(vs)
		}
	}
}

// supersede ends the streams whose epoch is older than their run's.
func (h *Hub) supersede(epochs map[string]stepfleet.Epoch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for run, epoch := range epochs {
		for st := range h.subs[run] {
			if st.epoch < epoch {
				st.supersede()
			}
		}
	}
}

func (h *Hub) runs() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	runs := make([]string, 0, len(h.subs))
	for run := range h.subs {
		runs = append(runs, run)
	}
	return runs
}

func (h *Hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, subs := range h.subs {
		for st := range subs {
			st.end()
		}
	}
}
