package pgrelay

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stepfleet/stepfleet/internal/testenv"
)

// slowConn is a connection of a busy machine: while it is slow, a write ends when its answer has been
// read and the next read has begun.
type slowConn struct {
	net.Conn

	mu           sync.Mutex
	changed      *sync.Cond
	slow, broken bool
	begun, ended int // reads
}

func newSlowConn(conn net.Conn) *slowConn {
	c := &slowConn{Conn: conn, slow: true}
	c.changed = sync.NewCond(&c.mu)
	return c
}

func (c *slowConn) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	c.changed.Broadcast()
}

func (c *slowConn) Read(p []byte) (int, error) {
	c.change(func() { c.begun++ })
	n, err := c.Conn.Read(p)
	c.change(func() { c.ended++; c.broken = c.broken || err != nil })
	return n, err
}

func (c *slowConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answered := c.ended + 1
	n, err := c.Conn.Write(p)
	for c.slow && err == nil && !c.broken && (c.ended < answered || c.begun == c.ended) {
		c.changed.Wait()
	}
	return n, err
}

// pgconn reads in the background when a write takes long, and would take the first answer from
// whoever has the connection next.
func TestAConnectionMadeSlowlyAnswersItsClient(t *testing.T) {
	cfg, err := pgconn.ParseConfig(testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	var slow *slowConn
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		slow = newSlowConn(conn)
		return slow, nil
	}
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	slow.change(func() { slow.slow = false })
	b, err := hijack(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	if err := b.ask(resetTimeout, "SELECT 1"); err != nil {
		t.Errorf("the first statement: %v", err)
	}
}
