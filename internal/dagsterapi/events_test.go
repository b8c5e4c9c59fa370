package dagsterapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// answers serves one answer a call, and keeps the cursor that each call named.
func answers(t *testing.T, texts ...string) (*Client, *[]any) {
	t.Helper()
	cursors := &[]any{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Variables map[string]any }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		fmt.Fprint(w, texts[min(len(*cursors), len(texts)-1)])
		*cursors = append(*cursors, body.Variables["cursor"])
	}))
	t.Cleanup(server.Close)
	return New(server.URL), cursors
}

func TestEventsAreReadPageByPage(t *testing.T) {
	page := `{"data":{"logsForRun":{"__typename":"EventConnection","cursor":%q,"hasMore":%t,"events":[
		{"__typename":"X","eventType":%q,"stepKey":"s","timestamp":"1700000000250"},{"eventType":null,"stepKey":null,"timestamp":"1700000000251"}]}}}`
	client, cursors := answers(t, fmt.Sprintf(page, "c1", true, "STEP_START"), fmt.Sprintf(page, "c2", false, "STEP_SUCCESS"))
	events, err := client.Events(t.Context(), "r")
	if err != nil {
		t.Fatal(err)
	}
	if len(events) != 4 || events[0] != (Event{"s", "STEP_START", time.UnixMilli(1700000000250)}) || events[2].Type != "STEP_SUCCESS" || events[3].Type != "" {
		t.Errorf("%+v", events)
	}
	if fmt.Sprint(*cursors) != "[<nil> c1]" {
		t.Errorf("asked with cursors %v", *cursors)
	}
}

func TestARunThatDagsterDoesNotKnowHasNoEvents(t *testing.T) {
	client, _ := answers(t, `{"data":{"logsForRun":{"__typename":"RunNotFoundError","message":"no"}}}`)
	if events, err := client.Events(t.Context(), "r"); err != nil || len(events) != 0 {
		t.Errorf("%v %v", events, err)
	}
	client, _ = answers(t, `{"data":{"logsForRun":{"__typename":"PythonError","message":"boom"}}}`)
	if _, err := client.Events(t.Context(), "r"); err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("an error passes for an empty log: %v", err)
	}
}
