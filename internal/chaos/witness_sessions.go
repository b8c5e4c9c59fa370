package chaos

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

const (
	// sightEvery is how often the sessions are looked at, and how exactly the time of a change is known.
	sightEvery = 100 * time.Millisecond
	// sightTimeout bounds a look: the database is a victim too.
	sightTimeout = time.Second
)

// selectSessions dates a session that has ended by its end, any other by the look.
const selectSessions = `SELECT id, worker, instance, state, renewed_at, end_reason, coalesce(ended_at, clock_timestamp())
	FROM stepfleet.session ORDER BY id`

// sighting is a session at a moment, by the ledger's clock, at which it stood otherwise than before. The
// ledger itself forgets when a session that came back had been heard of last.
type sighting struct {
	ID        stepfleet.SessionID    `json:"session_id"`
	Worker    string                 `json:"worker"`
	Instance  string                 `json:"instance"`
	State     stepfleet.SessionState `json:"state"`
	RenewedAt time.Time              `json:"renewed_at"`
	EndReason string                 `json:"end_reason,omitempty"`
	At        time.Time              `json:"at"`
	changed   bool                   // its state has
}

// watch looks at the sessions all the time.
type watch struct {
	dsn  func() string
	seen []sighting
	last map[stepfleet.SessionID]sighting
	stop context.CancelFunc
	over chan struct{}
}

// watchSessions begins to look. The watch has a connection of its own, without a proxy.
func (s *stack) watchSessions(ctx context.Context) *watch {
	w := &watch{
		dsn:  func() string { return s.net.endpoints().Database.OwnerURL },
		last: map[stepfleet.SessionID]sighting{}, over: make(chan struct{}),
	}
	ctx, w.stop = context.WithCancel(ctx)
	go func() {
		defer close(w.over)
		for ctx.Err() == nil {
			w.follow(ctx)
			hold(ctx, sightEvery)
		}
	}()
	return w
}

// end stops the watch and returns what it has seen.
func (w *watch) end() []sighting {
	w.stop()
	<-w.over
	return w.seen
}

// follow looks until a look fails.
func (w *watch) follow(ctx context.Context) {
	connecting, cancel := context.WithTimeout(ctx, sightTimeout)
	defer cancel()
	conn, err := pgx.Connect(connecting, w.dsn())
	if err != nil {
		return
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), sightTimeout)
		defer cancel()
		_ = conn.Close(closing)
	}()
	for w.look(ctx, conn) == nil {
		hold(ctx, sightEvery)
	}
}

func (w *watch) look(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, sightTimeout)
	defer cancel()
	all, err := read(ctx, conn, selectSessions, scanSighting)
	for _, s := range all {
		w.take(s)
	}
	return err
}

func scanSighting(row pgx.CollectableRow) (s sighting, err error) {
	err = row.Scan(&s.ID, &s.Worker, &s.Instance, &s.State, &s.RenewedAt, &s.EndReason, &s.At)
	return s, err
}

// take keeps a sighting of a session that stands otherwise than before.
func (w *watch) take(s sighting) {
	before, known := w.last[s.ID]
	if known && before.State == s.State && before.RenewedAt.Equal(s.RenewedAt) {
		return
	}
	s.changed = before.State != s.State
	w.last[s.ID] = s
	w.seen = append(w.seen, s)
}
