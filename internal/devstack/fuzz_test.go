package devstack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/stepfleet/stepfleet"
)

// FuzzQueues reads --queue of dev: what is taken says the same when it is read again.
func FuzzQueues(f *testing.F) {
	for _, text := range []string{"default:4", "default", "a:0", "a:257", "a:b", ":1", "A:1", "a:1:2", "a:+1", "a:١", "a:1 ", strings.Repeat("a", 61), "a\n:1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		queues, err := ParseQueues([]string{text})
		if err != nil {
			return
		}
		q := queues[0]
		if stepfleet.ValidateQueue(q.Name) != nil || q.Slots < 1 || q.Slots > maxSlots {
			t.Errorf("%q is taken as %+v", text, q)
		}
		if again, err := ParseQueues([]string{q.String()}); err != nil || again[0] != q {
			t.Errorf("%q is %+v, and %s is %+v: %v", text, q, q, again, err)
		}
	})
}

// FuzzDagsterYAML puts a user's dagster.yaml into the stack's: the storage stays the stack's, and the
// whole can be read.
func FuzzDagsterYAML(f *testing.F) {
	const own = "storage:\n  postgres: {}\ntelemetry:\n  enabled: false\n"
	for _, text := range []string{
		"", "telemetry:\n  enabled: true\n", "storage: {}", "? [a]\n: b", "a: &x 1\nb: *x", "- a", "1: 2", "\"storage\": x", "a: !!binary x", "<<: {storage: 1}",
		"&s storage: 1", "a: |\n  b\n", "null: 1", "~: ~", "storage\n: x", "a: {b: [c, {d: e}]}", "---\na: 1\n---\nstorage: 2", "\ufeffstorage: 1",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "dagster.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		merged, err := withUsers(own, path)
		if err != nil {
			return
		}
		var got struct {
			Storage struct {
				Postgres map[string]any `yaml:"postgres"`
			} `yaml:"storage"`
		}
		if err := yaml.Unmarshal([]byte(merged), &got); err != nil || got.Storage.Postgres == nil {
			t.Errorf("%q makes %q: %+v, %v", text, merged, got, err)
		}
	})
}
