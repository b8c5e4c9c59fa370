package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet"
)

// lifetimeFlags are the deadlines that server and workers must be given alike.
type lifetimeFlags struct {
	Renew       time.Duration `help:"How often a worker renews its session." default:"5s" env:"STEPFLEET_RENEW"`
	SessionTTL  time.Duration `name:"session-ttl" help:"Without a renewal for this long a session is suspect." default:"30s" env:"STEPFLEET_SESSION_TTL"`
	RunLease    time.Duration `help:"Without a renewal for this long a session is dead and what it ran is lost." default:"180s" env:"STEPFLEET_RUN_LEASE"`
	Margin      time.Duration `help:"How long before a deadline a worker acts on it." default:"5s" env:"STEPFLEET_MARGIN"`
	StartWithin time.Duration `help:"A leased task that has not started for this long is taken back." default:"60s" env:"STEPFLEET_START_WITHIN"`
}

func (f lifetimeFlags) lifetimes() (stepfleet.Lifetimes, error) {
	l := stepfleet.Lifetimes{
		Renew: f.Renew, SessionTTL: f.SessionTTL, RunLease: f.RunLease, Margin: f.Margin, StartWithin: f.StartWithin,
	}
	return l, l.Validate()
}

// databaseURL reads the ledger's address. It carries a password, so there is no flag for it.
func databaseURL() (string, error) {
	dsn := os.Getenv("STEPFLEET_DATABASE_URL")
	if dsn == "" {
		return "", errors.New("STEPFLEET_DATABASE_URL is not set: give the ledger's address as postgres://user:password@host:5432/stepfleet")
	}
	return dsn, nil
}

// token reads the API's token from the environment or from the file it names; there may be none.
func token() (string, error) {
	if t := os.Getenv("STEPFLEET_TOKEN"); t != "" {
		return t, nil
	}
	path := os.Getenv("STEPFLEET_TOKEN_FILE")
	if path == "" {
		return "", nil
	}
	t, err := secretFile(path)
	if err != nil {
		return "", fmt.Errorf("STEPFLEET_TOKEN_FILE: %w", err)
	}
	return t, nil
}

// secretFile reads what must not stand in a flag.
func secretFile(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(raw))
	if text == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return text, nil
}

// listen opens the address, and says what to do when it is taken or would be open to the network
// without a token.
func listen(ctx context.Context, addr, token string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("--listen %q: use host:port: %w", addr, err)
	}
	if token == "" && host != "localhost" && !net.ParseIP(host).IsLoopback() {
		return nil, fmt.Errorf("--listen %s reaches beyond this machine: set STEPFLEET_TOKEN or STEPFLEET_TOKEN_FILE first", addr)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w: choose another address with --listen", addr, err)
	}
	return l, nil
}

// shutdownTimeout bounds the end of an HTTP server; streams are cut by then.
const shutdownTimeout = 3 * time.Second

// serve answers on l until ctx ends.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	// Requests outlive ctx by design: those under way are answered. Streams end with the role.
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	stopped := make(chan error, 1)
	go func() { stopped <- srv.Serve(l) }()
	select {
	case err := <-stopped:
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if srv.Shutdown(end) != nil {
		srv.Close()
	}
	<-stopped
	return nil
}
