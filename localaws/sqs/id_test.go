package sqs

import (
	"strings"
	"testing"
)

func TestValidID(t *testing.T) {
	const punctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
	for _, id := range []string{"a", "Z9", punctuation, strings.Repeat("x", 128)} {
		if !validID(id) {
			t.Errorf("%q is refused", id)
		}
	}
	for _, id := range []string{"", " ", "a b", "a\n", "a\t", "\x7f", "é", strings.Repeat("x", 129)} {
		if validID(id) {
			t.Errorf("%q is taken", id)
		}
	}
	for c := range 256 {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		want := letter || strings.IndexByte(punctuation, byte(c)) >= 0
		if got := validID(string([]byte{byte(c)})); got != want {
			t.Errorf("byte %#x: taken is %v, want %v", c, got, want)
		}
	}
}
