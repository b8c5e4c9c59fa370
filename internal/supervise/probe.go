package supervise

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// probeInterval is the time between two probes of a child that is not ready yet: short against any
// start, and a refused loopback connection costs microseconds.
const probeInterval = 50 * time.Millisecond

// probeTimeout bounds one probe.
const probeTimeout = 2 * time.Second

// maxProbeBody bounds what is read of an answer; it becomes part of a message to people.
const maxProbeBody = 2 << 10

// Probe returns nil when a child is ready, and otherwise why not.
type Probe func(ctx context.Context) error

// TCP probes that something listens at the address.
func TCP(address string) Probe {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// HTTP probes that GET of the URL answers 200. Otherwise the error carries the answer's body, which
// says why (`/readyz` lists reasons).
func HTTP(url string) Probe {
	client := &http.Client{Timeout: probeTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode == http.StatusOK {
			return nil
		}
		body, _ := io.ReadAll(io.LimitReader(response.Body, maxProbeBody))
		return fmt.Errorf("%s answers %s: %s", url, response.Status, strings.TrimSpace(string(body)))
	}
}
