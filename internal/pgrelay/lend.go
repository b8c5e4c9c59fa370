package pgrelay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// take returns a connection that was left behind and still lives, or a new one.
func (r *Relay) take(ctx context.Context, who *login) (*backend, error) {
	key := who.key()
	if b := r.pop(key); b != nil {
		taken, _ := who.names()
		if b.ask(pingTimeout, rename(taken)) == nil {
			return b, nil
		}
		// The others have come from where this one has. To ask them one by one would take as long
		// as there are, when the server has gone without a word.
		r.drop(b)
		r.forget(key)
	}
	b, err := connect(ctx, who)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		b.close()
		return nil, net.ErrClosed
	}
	r.used[b] = struct{}{}
	return b, nil
}

// pop takes the connection that was used last, nil when none waits.
func (r *Relay) pop(key string) *backend {
	r.mu.Lock()
	defer r.mu.Unlock()
	waiting := r.idle[key]
	if len(waiting) == 0 {
		return nil
	}
	b := waiting[len(waiting)-1]
	r.idle[key] = waiting[:len(waiting)-1]
	r.used[b] = struct{}{}
	return b
}

func (r *Relay) drop(b *backend) {
	b.close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.used, b)
}

// forget closes what waits.
func (r *Relay) forget(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.idle[key] {
		b.close()
	}
	delete(r.idle, key)
}

// give keeps a connection for the next client, its session reset, when the last one has left it
// between two statements and outside a transaction. A reset gives it back the name that it began with,
// which is that of a process: whoever ends what that one has left must not take it for such.
func (r *Relay) give(who *login, b *backend, clean bool) {
	reset := []string{"DISCARD ALL"}
	if _, idle := who.names(); idle != "" {
		reset = append(reset, rename(idle))
	}
	if !clean || time.Since(b.born) > maxAge || b.ask(resetTimeout, reset...) != nil {
		r.drop(b)
		return
	}
	key := who.key()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.used, b)
	if r.closed {
		b.close()
		return
	}
	b.since = time.Now()
	r.idle[key] = append(r.idle[key], b)
}

// rename is the statement that gives a connection its name; an empty one, which PostgreSQL answers like
// any other, where it has none.
func rename(name string) string {
	if name == "" {
		return ""
	}
	return "SET application_name = '" + name + "'" // of letters, digits and slashes
}

func (r *Relay) using(pid uint32, secret []byte) *backend {
	r.mu.Lock()
	defer r.mu.Unlock()
	for b := range r.used {
		if b.hijacked.PID == pid && slices.Equal(b.hijacked.SecretKey, secret) {
			return b
		}
	}
	return nil
}

// keep closes what has waited for too long.
func (r *Relay) keep(ctx context.Context) {
	tick := time.NewTicker(r.cfg.KeepIdle / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			r.expire(now.Add(-r.cfg.KeepIdle))
		}
	}
}

func (r *Relay) expire(before time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, waiting := range r.idle {
		waiting = slices.DeleteFunc(waiting, func(b *backend) bool {
			old := b.since.Before(before)
			if old {
				b.close()
			}
			return old
		})
		if r.idle[key] = waiting; len(waiting) == 0 {
			delete(r.idle, key)
		}
	}
}

// connect makes a connection as the client would have made it.
func connect(ctx context.Context, who *login) (*backend, error) {
	cfg, err := pgconn.ParseConfig(who.dsn)
	if err != nil {
		return nil, errors.New("the connection string of Dagster's storage cannot be read") // why may hold a password
	}
	cfg.RuntimeParams = map[string]string{}
	for name, value := range who.params {
		switch name {
		case "user":
			cfg.User = value
		case "database":
			cfg.Database = value
		default:
			cfg.RuntimeParams[name] = value
		}
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectTimeout
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return hijack(ctx, conn)
}

// hijack takes the connection from pgconn. After a write that took long, as on a busy machine, pgconn
// may still be reading in the background, and would take the server's next answer for itself.
func hijack(ctx context.Context, conn *pgconn.PgConn) (*backend, error) {
	ctx, done := context.WithTimeout(ctx, resetTimeout)
	defer done()
	if err := conn.SyncConn(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("end what reads from the connection: %w", err), conn.Close(ctx))
	}
	hijacked, err := conn.Hijack()
	if err != nil {
		return nil, fmt.Errorf("take the connection: %w", err)
	}
	return newBackend(hijacked), nil
}
