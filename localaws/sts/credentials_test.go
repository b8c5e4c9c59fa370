package sts

import (
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/clock"
	"github.com/stepfleet/stepfleet/localaws/seal"
)

func service(seed uint64) *Service {
	return New(Options{Clock: clock.NewManual(time.Unix(1_800_000_000, 0)), IDs: api.NewIDs(seed), Key: seal.NewKey(seed)})
}

func TestTokensAreAsLongAsAsked(t *testing.T) {
	s := service(1)
	for least := range maxTokenBytes + 1 {
		c := s.issue(Session{Identity: Identity{Account: "111122223333", ARN: "arn", UserID: "id"}}, 900, least)
		if n := len(c.SessionToken); n < least || n > maxTokenBytes || least > 300 && n > least+4 {
			t.Fatalf("%d bytes, want %d", n, least)
		}
		if session, err := s.Open(c.AccessKeyID, c.SessionToken); err != nil || session.Account != "111122223333" {
			t.Fatal(least, session, err)
		}
	}
}

func TestKeysNameTheirAccount(t *testing.T) {
	s := service(1)
	seen := map[string]bool{}
	for _, account := range []string{"000000000000", "000000000001", "123456789012", "999999999999"} {
		for range 100 {
			key := s.newKey("ASIA", account)
			if got, ok := accountOfKey(key); !ok || got != account || seen[key] {
				t.Fatalf("%s of %s names %q, %v", key, account, got, ok)
			}
			seen[key] = true
		}
	}
	for _, key := range []string{"", "ASIA", "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", "ASIA7777777777777777", "ASIA!!!!!!!!!!!!!!!!"} {
		if account, ok := accountOfKey(key); ok {
			t.Errorf("%s names %s", key, account)
		}
	}
}

func TestTokensOfOthersAreRefused(t *testing.T) {
	s := service(1)
	c := s.issue(Session{Identity: Identity{Account: "111122223333"}}, 900, 0)
	if _, err := service(2).Open(c.AccessKeyID, c.SessionToken); err == nil {
		t.Error("another AWS took the token")
	}
	if _, err := s.Open("ASIAOTHER", c.SessionToken); err == nil {
		t.Error("another key took the token")
	}
	if _, err := s.Open("", ""); err == nil {
		t.Error("no token was taken")
	}
	if secret, err := s.Secret(c.AccessKeyID, c.SessionToken); err != nil || secret != c.SecretAccessKey {
		t.Errorf("%q %v", secret, err)
	}
}
