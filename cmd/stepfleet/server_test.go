package main

import (
	"net"
	"testing"
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
