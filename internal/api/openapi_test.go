package api_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/stepfleet/stepfleet"
)

// contract is openapi.yaml, whose schemas answers are held against.
type contract struct {
	t        *testing.T
	document map[string]any
	compiler *jsonschema.Compiler
}

func loadContract(t *testing.T) *contract {
	t.Helper()
	raw, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := yaml.YAMLToJSON(raw)
	if err != nil {
		t.Fatal(err)
	}
	c := &contract{t: t, compiler: jsonschema.NewCompiler()}
	if err := json.Unmarshal(asJSON, &c.document); err != nil {
		t.Fatal(err)
	}
	c.add("openapi.json", asJSON)
	for urn, path := range map[string]string{
		"urn:stepfleet:task:1": "task.schema.json", "urn:stepfleet:result:1": "result.schema.json",
	} {
		schema, err := os.ReadFile("../../docs/schema/" + path)
		if err != nil {
			t.Fatal(err)
		}
		c.add(urn, schema)
	}
	return c
}

func (c *contract) add(url string, raw []byte) {
	c.t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.compiler.AddResource(url, doc); err != nil {
		c.t.Fatal(err)
	}
}

// check holds a value against one of the contract's schemas.
func (c *contract) check(schema string, value any) {
	c.t.Helper()
	raw, err := json.Marshal(value)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.violation("#/components/schemas/"+schema, raw); err != nil {
		c.t.Errorf("%s: %v\n%s", schema, err, raw)
	}
}

// violation says how JSON breaks the schema that a reference within the contract names.
func (c *contract) violation(ref string, raw []byte) error {
	c.t.Helper()
	compiled, err := c.compiler.Compile("openapi.json" + ref)
	if err != nil {
		c.t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	return compiled.Validate(doc)
}

func TestEveryOperationOfTheContractIsServed(t *testing.T) {
	b, c := newBench(t), loadContract(t)
	served := 0
	for path, item := range c.document["paths"].(map[string]any) {
		for method := range item.(map[string]any) {
			if method == "parameters" || path == "/v1/runs/{run_id}/stream" {
				continue // the stream has a test of its own, and does not end
			}
			served++
			url := strings.NewReplacer("{run_id}", "r1", "{instance}", "i").Replace(path)
			status, _ := b.call(strings.ToUpper(method), url, "{}")
			if status == http.StatusNotFound || status == http.StatusMethodNotAllowed {
				t.Errorf("%s %s: %d", method, path, status)
			}
		}
	}
	if served < 13 {
		t.Errorf("%d operations: the contract is read wrongly", served)
	}
}

func TestAnswersKeepTheContract(t *testing.T) {
	b, c := newBench(t), loadContract(t)
	call := func(schema, method, path, body string) {
		t.Helper()
		status, answer := b.call(method, path, body)
		if status != http.StatusOK && schema != "Error" {
			t.Fatalf("%s %s: %d %v", method, path, status, answer)
		}
		c.check(schema, answer)
	}
	c.check("TakeEpoch", json.RawMessage(`{"v":1,"executor":"test"}`))
	c.check("TakeEpoch", json.RawMessage(`{"v":1,"executor":"test","resume":1}`))
	call("Epoch", "POST", "/v1/runs/r1/epoch", `{"v":1,"executor":"test"}`)
	submitted := submission("r1", "a", "b", "c")
	c.check("Submission", json.RawMessage(submitted))
	call("Receipts", "POST", "/v1/runs/r1/tasks", submitted)
	call("Receipts", "POST", "/v1/runs/r1/tasks", strings.Replace(submission("r1", "d", "e"), `"queue":"default"`, `"queue":"gpu"`, 1))
	b.runOne(stepfleet.StateSucceeded)
	b.runOne(stepfleet.StateFailed)
	call("Rulings", "POST", "/v1/runs/r1/adjudicate", `{"v":1,"epoch":1,"tasks":[{"step_key":"b","attempt":0},{"step_key":"z","attempt":0}]}`)
	call("Tasks", "GET", "/v1/runs/r1/tasks", "")
	call("Tasks", "GET", "/v1/runs/r1/tasks?kind=run", "")
	call("Audit", "GET", "/v1/runs/r1/audit", "")
	call("Queues", "GET", "/v1/queues", "")
	call("Sessions", "GET", "/v1/sessions", "")
	call("Changes", "POST", "/v1/runs/r1/cancel", `{"v":1,"tasks":[{"step_key":"c","attempt":0}],"reason":"asked"}`)
	call("Sessions", "POST", "/v1/instances/i/dead", `{"v":1,"reason":"gone"}`)
	call("Changes", "POST", "/v1/runs/r1/close", `{"v":1,"reason":"over"}`)
	call("Error", "POST", "/v1/runs/r1/tasks", submission("r1", "late"))
	call("Error", "POST", "/v1/runs/r1/tasks", "{}")
	call("Readiness", "GET", "/readyz", "")
}
