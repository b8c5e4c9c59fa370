package main

import (
	"maps"
	"testing"

	"github.com/alecthomas/kong"
)

func TestCredentialsOfTheLocalAWS(t *testing.T) {
	var c cli
	parser, err := kong.New(&c, kong.Vars{"version": "test"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse([]string{"aws", "--credentials", "AKID=a/b+c=;OTHER=x"}); err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"AKID": "a/b+c=", "OTHER": "x"}; !maps.Equal(c.AWS.Credentials, want) {
		t.Errorf("%v, want %v", c.AWS.Credentials, want)
	}
}
