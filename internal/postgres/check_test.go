package postgres

import (
	"errors"
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet"
)

func TestJudgeSaysWhatToDo(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*facts)
		want  *stepfleet.Refusal
		text  string
	}{
		{"good", func(*facts) {}, nil, ""},
		{"old", func(f *facts) { f.serverVersion, f.version = 140002, "14.2" }, stepfleet.ErrSchema, "PostgreSQL 14.2 is too old: stepfleet needs 15 or newer"},
		{"replica", func(f *facts) { f.inRecovery = true }, stepfleet.ErrUnavailable, "connect to the primary"},
		{"read-only", func(f *facts) { f.readOnly = true }, stepfleet.ErrUnavailable, "default_transaction_read_only"},
		{"fsync", func(f *facts) { f.fsync = "off" }, stepfleet.ErrSchema, "set fsync = on"},
		{"commit", func(f *facts) { f.synchronousCommit = "off" }, stepfleet.ErrSchema, "synchronous_commit"},
		{"no schema", func(f *facts) { f.schema = 0 }, stepfleet.ErrSchema, "run `stepfleet migrate`"},
		{"newer", func(f *facts) { f.schema++ }, stepfleet.ErrSchema, "upgrade this binary"},
	} {
		f := facts{serverVersion: 160004, version: "16.4", fsync: "on", synchronousCommit: "on", schema: SchemaVersion()}
		c.spoil(&f)
		err := f.judge(DefaultMinServerVersion, SchemaVersion())
		if stepfleet.RefusalOf(err) != c.want || c.want != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v is not %s", c.name, err, c.want.Code)
		}
	}
}
