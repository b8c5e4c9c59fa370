package localaws

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"github.com/stepfleet/stepfleet/localaws/clock"
)

// DefaultAddr is where the command listens unless told otherwise.
const DefaultAddr = "127.0.0.1:9324"

const (
	// readHeaderTimeout, readTimeout and idleTimeout free connections whose client has gone quiet:
	// within the headers, within the body, between two requests.
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 30 * time.Second
	idleTimeout       = 2 * time.Minute
	// shutdownGrace is how long running calls may take to end; long polls end at once.
	shutdownGrace = 3 * time.Second
)

// Config is what Run needs; the zero value serves on DefaultAddr and logs nothing.
type Config struct {
	Options
	// Addr is a loopback address and a port, 0 for a free one.
	Addr string
	// MovableClock lets clients move the time forward, below /_localaws/clock.
	MovableClock bool
	// Ready, if set, is called once with the address that is served.
	Ready func(net.Addr)
}

// Run serves an AWS with what Options.Dir holds until ctx ends, and returns nil then.
func Run(ctx context.Context, c Config) error {
	if c.Addr == "" {
		c.Addr = DefaultAddr
	}
	if c.MovableClock {
		c.Clock = clock.NewOffset(clock.System())
	}
	ln, err := Listen(ctx, c.Addr)
	if err != nil {
		return err
	}
	a, err := Open(c.Options)
	if err != nil {
		_ = ln.Close()
		return err
	}
	a.log.Info("local AWS is up", "url", "http://"+ln.Addr().String())
	if c.Ready != nil {
		c.Ready(ln.Addr())
	}
	return errors.Join(a.Serve(ctx, ln), a.Close())
}

// Listen listens on a loopback address and refuses any other: what is served has no protection of
// its own. The error of a taken port says so.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	if err := checkLoopback(ctx, addr); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port %s is taken: another program listens there; stop it or choose another address: %w", addr, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return ln, nil
}

func checkLoopback(ctx context.Context, addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("listen on %q: want host:port: %w", addr, err)
	}
	if host == "" {
		return fmt.Errorf("listen on %s: an address without a host is reachable from outside; use 127.0.0.1%s", addr, addr)
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	for _, ip := range ips {
		if !ip.Unmap().IsLoopback() {
			return fmt.Errorf("listen on %s: %s is not a loopback address; local AWS checks no credentials and serves this machine only", addr, ip)
		}
	}
	return nil
}

// Serve serves on ln until ctx ends, ends long polls, and returns nil. It closes ln.
func (a *AWS) Serve(ctx context.Context, ln net.Listener) error {
	if ap, err := netip.ParseAddrPort(ln.Addr().String()); err != nil || !ap.Addr().Unmap().IsLoopback() {
		_ = ln.Close()
		return fmt.Errorf("serve on %s: not a loopback address", ln.Addr())
	}
	calls, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	server := &http.Server{
		Handler: a, ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: a.readTimeout, IdleTimeout: idleTimeout,
		BaseContext: func(net.Listener) context.Context { return calls },
		ErrorLog:    slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	end()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		_ = server.Close()
	}
	<-served
	return nil
}
