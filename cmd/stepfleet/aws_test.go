package main

import (
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

func TestAccountIsOfTwelveDigits(t *testing.T) {
	for account, ok := range map[string]bool{
		"123456789012": true, "000000000000": true, "": false, "12345": false, "team": false, "1234567890123": false,
		"12345678901x": false, " 123456789012": false, "123456789012\n": false, "١٢٣٤٥٦٧٨٩٠١٢": false,
	} {
		parser, err := kong.New(&cli{}, kong.Vars{"version": "test"})
		if err != nil {
			t.Fatal(err)
		}
		_, err = parser.Parse([]string{"aws", "--account=" + account})
		if (err == nil) != ok || !ok && !strings.Contains(err.Error(), "give twelve digits") {
			t.Errorf("%q: %v", account, err)
		}
	}
	parser, err := kong.New(&cli{}, kong.Vars{"version": "test"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse([]string{"aws"}); err != nil {
		t.Errorf("the default: %v", err)
	}
}
