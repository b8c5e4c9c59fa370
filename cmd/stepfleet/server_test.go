package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stepfleet/stepfleet"
)

func TestAdvertisedAddress(t *testing.T) {
	for _, c := range []struct{ given, listens, host, want string }{
		{"", "127.0.0.1:8630", "box", "http://127.0.0.1:8630"},
		{"", "0.0.0.0:8630", "box", "http://box:8630"},
		{"", "[::]:8630", "box", "http://box:8630"},
		{"", "0.0.0.0:8630", "", ""},
		{"http://server.internal:80", "0.0.0.0:8630", "box", "http://server.internal:80"},
		{"https://server.internal/", "0.0.0.0:8630", "box", "https://server.internal"},
		{"server.internal:80", "0.0.0.0:8630", "box", ""},
		{"http://server/path", "0.0.0.0:8630", "box", ""},
	} {
		listens, err := net.ResolveTCPAddr("tcp", c.listens)
		if err != nil {
			t.Fatal(err)
		}
		got, err := advertised(c.given, listens, c.host)
		if c.want == "" {
			if err == nil {
				t.Errorf("%+v: %s, want an error", c, got)
			}
			continue
		}
		if err != nil || got.String() != c.want {
			t.Errorf("%+v: %s, %v", c, got, err)
		}
	}
}

// A database that may lose what is acknowledged is told of at the start, once, and not at every look.
func TestAServerTellsOfADatabaseThatMayLoseWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unsafe := fmt.Errorf("check ledger: %w: fsync is off: set fsync = on", stepfleet.ErrSchema)
		answers := []error{fmt.Errorf("check ledger: %w", stepfleet.ErrUnavailable), unsafe, unsafe, unsafe, nil}
		var out strings.Builder
		tellUnfit(t.Context(), slog.New(slog.NewTextHandler(&out, nil)), func(context.Context) error {
			answer := answers[0]
			answers = answers[1:]
			return answer
		})
		if n := strings.Count(out.String(), "set fsync = on"); n != 1 || strings.Count(out.String(), "level=ERROR") != 1 {
			t.Errorf("told %d times:\n%s", n, out.String())
		}
		if !strings.Contains(out.String(), "fits now") || len(answers) > 0 {
			t.Errorf("with %d answers left:\n%s", len(answers), out.String())
		}
	})
}
