// Package proxy stands between two processes of a chaos run and lets the connection between them
// misbehave as networks do.
//
// An Edge is who talks to whom. A Listener carries the connections of one edge, or of several that
// share an address and are told apart by the first bytes of a connection. At any time one fault is in
// force on an edge; it acts on the connections that are open and on those that come. The edge counts
// what a fault really hit: a fault that met no connection has not landed.
//
// Where to read: fault.go has the modes, proxy.go the listener, conn.go one connection.
package proxy

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Limits on one connection: how long the far side may take to accept, how long a client may take to
// say its first word where the word decides the edge, and how much of it is read.
const (
	dialTimeout  = 5 * time.Second
	firstTimeout = 10 * time.Second
	firstBytes   = 4 << 10
)

// Edge is one who-talks-to-whom.
type Edge struct {
	// Name says so, as in "worker-PG/worker-1".
	Name string
	// Targets returns the addresses of the far side. Connections take them in turn, and the next one
	// where one refuses.
	Targets func() []string

	turn atomic.Uint64

	mu      sync.Mutex
	fault   *Injection // nil when there is none
	changed chan struct{}
	conns   map[*conn]struct{}
}

// NewEdge returns an edge without a fault.
func NewEdge(name string, targets func() []string) *Edge {
	return &Edge{Name: name, Targets: targets, changed: make(chan struct{}), conns: map[*conn]struct{}{}}
}

// Connections returns how many connections are open on the edge.
func (e *Edge) Connections() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns)
}

// dial connects to one of the targets.
func (e *Edge) dial() (*net.TCPConn, error) {
	targets := e.Targets()
	if len(targets) == 0 {
		return nil, fmt.Errorf("edge %s has no target yet", e.Name)
	}
	first := e.turn.Add(1)
	var errs []error
	for i := range targets {
		target := targets[(int(first%uint64(len(targets)))+i)%len(targets)]
		c, err := net.DialTimeout("tcp", target, dialTimeout)
		if err == nil {
			return c.(*net.TCPConn), nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// Listener accepts the connections of its edges on an address of its own.
type Listener struct {
	net   net.Listener
	route func(first []byte) *Edge // nil when there is one edge
	only  *Edge
	work  sync.WaitGroup

	mu      sync.Mutex
	greeted map[net.Conn]struct{} // connections whose edge is not known yet
	edges   map[*Edge]struct{}
	closed  bool
}

// Listen opens a listener for one edge.
func Listen(edge *Edge) (*Listener, error) { return listen(edge, nil) }

// ListenMany opens a listener for several edges: route picks one by the first bytes that the client
// sends. It is for protocols in which the client speaks first.
func ListenMany(route func(first []byte) *Edge) (*Listener, error) { return listen(nil, route) }

func listen(edge *Edge, route func([]byte) *Edge) (*Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p := &Listener{net: l, only: edge, route: route, greeted: map[net.Conn]struct{}{}, edges: map[*Edge]struct{}{}}
	p.work.Go(p.accept)
	return p, nil
}

// Addr returns where the listener listens.
func (l *Listener) Addr() string { return l.net.Addr().String() }

// Close ends the listener and its connections, and returns when nothing of them is left.
func (l *Listener) Close() error {
	err := l.net.Close()
	l.mu.Lock()
	l.closed = true
	for c := range l.greeted {
		_ = c.Close()
	}
	edges := make([]*Edge, 0, len(l.edges))
	for e := range l.edges {
		edges = append(edges, e)
	}
	l.mu.Unlock()
	for _, e := range edges {
		e.reset(func(c *conn) bool { return c.owner == l })
	}
	l.work.Wait()
	return err
}

func (l *Listener) accept() {
	for {
		c, err := l.net.Accept()
		if err != nil {
			return
		}
		client := c.(*net.TCPConn)
		l.work.Go(func() { l.serve(client) })
	}
}

// serve carries one connection from its first byte to its last.
func (l *Listener) serve(client *net.TCPConn) {
	edge, first, err := l.edgeOf(client)
	if err != nil {
		_ = reset(client)
		return
	}
	c := newConn(l, edge, client)
	if !l.admit(c) {
		_ = reset(client)
		return
	}
	defer edge.remove(c)
	c.carry(first)
}

// admit adds the connection to its edge, unless the listener is closed.
func (l *Listener) admit(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.edges[c.edge] = struct{}{}
	c.edge.add(c)
	return true
}

// edgeOf returns the connection's edge, and what had to be read to know it.
func (l *Listener) edgeOf(client *net.TCPConn) (*Edge, []byte, error) {
	if l.route == nil {
		return l.only, nil, nil
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, nil, net.ErrClosed
	}
	l.greeted[client] = struct{}{}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.greeted, client)
		l.mu.Unlock()
	}()
	first := make([]byte, firstBytes)
	_ = client.SetReadDeadline(time.Now().Add(firstTimeout))
	n, err := client.Read(first)
	if err != nil {
		return nil, nil, err
	}
	_ = client.SetReadDeadline(time.Time{})
	return l.route(first[:n]), first[:n], nil
}
