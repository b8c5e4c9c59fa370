package localaws_test

import (
	"bytes"
	"flag"
	"os"
	"testing"

	"github.com/stepfleet/stepfleet/localaws"
)

var update = flag.Bool("update", false, "write docs/localaws-operations.md")

func TestOperationsPage(t *testing.T) {
	const page = "../docs/localaws-operations.md"
	var want bytes.Buffer
	if err := localaws.New(localaws.Options{}).WriteOperations(&want); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(page, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%s is not what this code emulates: run go test ./localaws -run TestOperationsPage -update", page)
	}
}
