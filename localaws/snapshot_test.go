package localaws_test

import (
	"bufio"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet/localaws"
)

// TestRecordedRequests feeds the requests that the SDK's own tests record, with every member of
// every operation set: each must be understood.
func TestRecordedRequests(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/aws/aws-sdk-go-v2/service/sqs").Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "request_snapshot", "*.request.snap"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no recorded requests: %v", err)
	}
	for _, file := range files {
		target, body := recorded(t, file)
		w := post(localaws.New(localaws.Options{}), target, body, nil)
		op := strings.TrimPrefix(target, "AmazonSQS.")
		unknown := strings.Contains(w.Body.String(), "UnknownOperationException")
		if unknown || strings.Contains(w.Body.String(), "SerializationException") || w.Code >= http.StatusInternalServerError {
			t.Errorf("%s: %d %s", op, w.Code, w.Body)
		}
	}
}

// recorded reads a snapshot: request line, headers, an empty line, the body.
func recorded(t *testing.T, file string) (target, body string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "X-Amz-Target: "); ok {
			target = value
		}
		body = lines.Text()
	}
	return target, body
}
