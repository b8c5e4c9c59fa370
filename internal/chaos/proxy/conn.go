package proxy

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// pieceBytes is how much is read at a time.
const pieceBytes = 32 << 10

// conn is one connection, from the client through this process to the far side.
type conn struct {
	owner  *Listener
	edge   *Edge
	client *net.TCPConn
	over   chan struct{} // closed when it ends
	end    sync.Once
	// replied is how many bytes of the present reply have passed; a request begins the next one.
	replied atomic.Int64
	lossy   atomic.Bool // some of its replies were swallowed

	mu     sync.Mutex
	server *net.TCPConn // nil before it is connected

	hitBy *Injection // guarded by the edge's mutex
}

func newConn(owner *Listener, edge *Edge, client *net.TCPConn) *conn {
	return &conn{owner: owner, edge: edge, client: client, over: make(chan struct{})}
}

// carry connects to the far side and copies both ways until the connection is over.
func (c *conn) carry(first []byte) {
	defer c.reset()
	if !c.enter() {
		return
	}
	server, err := c.edge.dial()
	if err != nil || !c.joined(server) {
		return
	}
	if len(first) > 0 && !c.pass(server, first, false) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { c.copy(server, c.client, false) })
	both.Go(func() { c.copy(c.client, server, true) })
	both.Wait()
	c.finish((*net.TCPConn).Close) // what is still in the buffers arrives
}

// enter lets a new connection wait out a stall; false when it is cut.
func (c *conn) enter() bool {
	for {
		fault, changed := c.edge.present()
		switch {
		case fault == nil:
			return true
		case fault.Mode == Cut:
			c.edge.hit(fault, c)
			return false
		case fault.Mode != Stall:
			return true
		}
		c.edge.hit(fault, c)
		select {
		case <-changed:
		case <-c.over:
			return false
		}
	}
}

// joined keeps the far side's connection, unless this one was reset meanwhile.
func (c *conn) joined(server *net.TCPConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.over:
		_ = reset(server)
		return false
	default:
		c.server = server
		return true
	}
}

// copy carries one direction until its end, which it passes on.
func (c *conn) copy(to, from *net.TCPConn, reply bool) {
	piece := make([]byte, pieceBytes)
	for {
		n, err := from.Read(piece)
		if n > 0 && !c.pass(to, piece[:n], reply) {
			return
		}
		if err != nil {
			if c.pass(to, nil, reply) {
				_ = to.CloseWrite()
			}
			return
		}
	}
}

// pass writes a piece as the fault in force has it; nil is the end of the stream. It returns false when
// nothing more goes this way.
func (c *conn) pass(to *net.TCPConn, piece []byte, reply bool) bool {
	for {
		fault, changed := c.edge.present()
		if fault == nil {
			return c.write(to, piece, reply)
		}
		switch fault.Mode {
		case Cut:
			c.reset()
			return false
		case Stall:
			c.edge.hit(fault, c)
			select {
			case <-changed:
				continue
			case <-c.over:
				return false
			}
		case HalfOpen:
			if !reply {
				return c.write(to, piece, reply)
			}
			c.edge.hit(fault, c)
			c.lossy.Store(true)
			return len(piece) > 0
		case Reset:
			return c.passUpTo(fault, to, piece, reply)
		case Delay:
			c.edge.hit(fault, c)
			if !c.sleep(fault.Delay, changed) {
				return false
			}
		}
		return c.write(to, piece, reply)
	}
}

// passUpTo writes a piece of a reply as far as the byte at which the fault resets the connection.
func (c *conn) passUpTo(fault *Injection, to *net.TCPConn, piece []byte, reply bool) bool {
	last := int64(fault.Byte) - c.replied.Load() // bytes that may still pass
	if !reply || len(piece) == 0 || last < 0 || int64(len(piece)) <= last || !c.edge.spend(fault) {
		return c.write(to, piece, reply)
	}
	c.write(to, piece[:last], reply)
	c.reset()
	return false
}

// sleep waits, at most until the fault is healed; false when the connection has ended.
func (c *conn) sleep(wait time.Duration, changed <-chan struct{}) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	case <-c.over:
		return false
	}
	return true
}

func (c *conn) write(to *net.TCPConn, piece []byte, reply bool) bool {
	if reply {
		c.replied.Add(int64(len(piece)))
	} else {
		c.replied.Store(0)
	}
	if len(piece) == 0 {
		return true
	}
	if _, err := to.Write(piece); err != nil {
		c.reset()
		return false
	}
	return true
}

// reset ends both sides with a TCP reset, so that neither takes it for an orderly end.
func (c *conn) reset() { c.finish(reset) }

// finish ends both sides, once.
func (c *conn) finish(end func(*net.TCPConn) error) {
	c.end.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		close(c.over)
		_ = end(c.client)
		if c.server != nil {
			_ = end(c.server)
		}
	})
}

func reset(c *net.TCPConn) error {
	_ = c.SetLinger(0)
	return c.Close()
}
