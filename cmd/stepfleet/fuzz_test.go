package main

import (
	"io"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/stepfleet/stepfleet"
)

// FuzzFlags parses a worker's and a server's settings as they stand on a command line or in the
// environment. What passes keeps the protocol's relations, and no slot count is taken that is none.
func FuzzFlags(f *testing.F) {
	f.Add("default:4", "5s", "30s", "180s", "5s")
	f.Add("default:4,gpu:1", "1s", "3s", "12s", "1s")
	f.Add("a:0", "-1s", "0", "1h", "")
	f.Add("a:99999999999999999999", "9223372036854775807ns", "2562047h", "2562047h47m16.854775807s", "1ns")
	f.Add("A:1", "1.5.5s", "5", "١s", "1e9s")
	f.Add("a:1:2", "3000000000h", "1h", "1h", "1h")
	f.Fuzz(func(t *testing.T, queue, renew, ttl, lease, margin string) {
		deadlines := []string{"--renew=" + renew, "--session-ttl=" + ttl, "--run-lease=" + lease, "--margin=" + margin}
		var c struct {
			Worker workerCmd `cmd:""`
			Server serverCmd `cmd:""`
		}
		parser, err := kong.New(&c, kong.Writers(io.Discard, io.Discard), kong.Exit(func(int) { t.Error("kong ends the process") }))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(append([]string{"worker", "--queue=" + queue}, deadlines...)); err == nil {
			checkLifetimes(t, c.Worker.lifetimeFlags)
			checkSlots(t, c.Worker)
		}
		if _, err := parser.Parse(append([]string{"server", "--queue=" + queue}, deadlines...)); err == nil {
			checkLifetimes(t, c.Server.lifetimeFlags)
		}
	})
}

func checkLifetimes(t *testing.T, flags lifetimeFlags) {
	l, err := flags.lifetimes()
	if err != nil {
		return
	}
	// As subtractions: a sum of durations may be more than one can hold.
	ok := l.Renew > 0 && l.Margin > 0 && l.SessionTTL/3 >= l.Renew && l.SessionTTL-l.Margin > l.Renew &&
		l.RunLease-l.SessionTTL >= l.Margin && l.RunLease-l.SessionTTL-l.Margin >= l.Margin
	if !ok {
		t.Errorf("lifetimes %+v pass", l)
	}
}

func checkSlots(t *testing.T, c workerCmd) {
	spec, err := c.spec()
	if err != nil {
		return
	}
	for name, n := range spec.Slots {
		if stepfleet.ValidateQueue(name) != nil || n < 1 {
			t.Errorf("%q has %d slots of queue %q", c.Queue, n, name)
		}
	}
	if idle(spec) < 0 {
		t.Errorf("%q: %d processes wait", c.Queue, idle(spec))
	}
}

// FuzzAdvertise reads --advertise: workers are told a URL that has a host and nothing secret.
func FuzzAdvertise(f *testing.F) {
	for _, given := range []string{"http://a:1", "https://a", "http://u:p@a:1", "http://a/x", "http://", "ftp://a", "http://[::1]:8630/", "http://a?b=c", "http://a\x00", "//a", "http://%41:1"} {
		f.Add(given)
	}
	f.Fuzz(func(t *testing.T, given string) {
		address, err := advertised(given, &net.TCPAddr{IP: net.IPv4zero, Port: 8630}, "host")
		if err != nil {
			return
		}
		again, err := url.Parse(address.String())
		if err != nil || again.Host == "" || again.User != nil || again.RawQuery != "" || !strings.HasPrefix(address.String(), "http") {
			t.Errorf("%q is advertised as %q: %v", given, address, err)
		}
	})
}
