package page_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet/localaws/page"
	"github.com/stepfleet/stepfleet/localaws/seal"
)

func TestTokensReadWhatTheyMade(t *testing.T) {
	tokens := page.NewTokens(seal.NewKey(1))
	for _, after := range []string{"x", "", strings.Repeat("k", 1024), "\x00\xff"} {
		got, err := tokens.Read("list", tokens.Make("list", after))
		if err != nil || got != after {
			t.Errorf("%q came back as %q, %v", after, got, err)
		}
	}
	if got, err := tokens.Read("list", ""); got != "" || err != nil {
		t.Errorf("no token: %q %v", got, err)
	}
}

func TestTokensOfOthersAreRefused(t *testing.T) {
	tokens := page.NewTokens(seal.NewKey(1))
	good := tokens.Make("list", "after")
	bad := map[string]string{
		"of another list": tokens.Make("other", "after"), "of another AWS": page.NewTokens(seal.NewKey(2)).Make("list", "after"),
		"cut": good[:len(good)-1], "longer": good + "A", "nonsense": "%%%", "short": "AAAA", "huge": strings.Repeat("A", 10_000),
	}
	for i := range good {
		changed := []byte(good)
		changed[i] ^= 1
		bad["changed at "+string(rune('0'+i))] = string(changed)
	}
	for name, token := range bad {
		if got, err := tokens.Read("list", token); !errors.Is(err, page.ErrToken) {
			t.Errorf("a token %s read as %q, %v", name, got, err)
		}
	}
}

func TestCutWalksAListThatChanges(t *testing.T) {
	items := []string{"b", "d", "f", "h", "k"}
	self := func(s string) string { return s }
	part, last := page.Cut(items, self, "", 2)
	if !slices.Equal(part, []string{"b", "d"}) || last != "d" {
		t.Fatal(part, last)
	}
	items = []string{"a", "e", "f", "h", "k"} // "d" is gone, "a" and "e" came
	part, last = page.Cut(items, self, last, 3)
	if !slices.Equal(part, []string{"e", "f", "h"}) || last != "h" {
		t.Fatal(part, last)
	}
	if part, last = page.Cut(items, self, last, 1); !slices.Equal(part, []string{"k"}) || last != "" {
		t.Fatal(part, last)
	}
	if part, last = page.Cut(items, self, "z", 1); len(part) != 0 || last != "" {
		t.Fatal(part, last)
	}
}

func FuzzRead(f *testing.F) {
	tokens := page.NewTokens(seal.NewKey(1))
	f.Add("list", tokens.Make("list", "a"))
	f.Fuzz(func(t *testing.T, list, token string) {
		if after, err := tokens.Read(list, token); err == nil && token != "" && tokens.Make(list, after) != token {
			t.Errorf("%q is a second token for %q", token, after)
		}
	})
}
