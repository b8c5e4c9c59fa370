package stepfleet_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/stepfleet/stepfleet"
)

func compile(t *testing.T, path string) *jsonschema.Schema {
	t.Helper()
	schema, err := jsonschema.NewCompiler().Compile(path)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

func check(t *testing.T, schema *jsonschema.Schema, v any) error {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return schema.Validate(doc)
}

func exampleTask() stepfleet.Task {
	key := stepfleet.Key{RunID: "run-1", StepKey: "graph.op[key]", Attempt: 2}
	return stepfleet.Task{
		V: stepfleet.TaskVersion, Kind: stepfleet.KindStep, Key: key, Op: "op", Job: "job",
		IdempotencyKey: key.IdempotencyKey(), Queue: "default", Priority: -3, TimeoutSeconds: 90, CodeLocation: "here",
		Payload:     stepfleet.DigestOf([]byte("{}")),
		RetryBudget: stepfleet.RetryBudget{PolicyRetries: 1, LostStepRetries: 2},
	}
}

func exampleResult() stepfleet.Result {
	return stepfleet.Result{
		V: stepfleet.TaskVersion, Success: true, Outcome: stepfleet.StateSucceeded, Event: "STEP_SUCCESS",
		Outputs: []string{"result"}, ExecutionSeconds: 1.5, Worker: "worker-1",
		Phases: map[stepfleet.Phase]float64{stepfleet.PhaseBell: 1.5e9, stepfleet.PhaseClaimed: 1.5e9, stepfleet.PhaseEnded: 1.5e9 + 1},
	}
}

func TestTaskFitsItsSchema(t *testing.T) {
	schema := compile(t, "docs/schema/task.schema.json")
	if err := check(t, schema, exampleTask()); err != nil {
		t.Errorf("a valid task: %v", err)
	}
	bad := map[string]func(*stepfleet.Task){
		"version":  func(t *stepfleet.Task) { t.V = 2 },
		"kind":     func(t *stepfleet.Task) { t.Kind = "stop" },
		"run_id":   func(t *stepfleet.Task) { t.RunID = "" },
		"step_key": func(t *stepfleet.Task) { t.StepKey = "" },
		"attempt":  func(t *stepfleet.Task) { t.Attempt = -1 },
		"late":     func(t *stepfleet.Task) { t.Attempt = stepfleet.MaxAttempt + 1 },
		"queue":    func(t *stepfleet.Task) { t.Queue = "" },
		"last":     func(t *stepfleet.Task) { t.Priority = -stepfleet.MaxPriority - 1 },
		"first":    func(t *stepfleet.Task) { t.Priority = stepfleet.MaxPriority + 1 },
		"timeout":  func(t *stepfleet.Task) { t.TimeoutSeconds = -1 },
		"long":     func(t *stepfleet.Task) { t.TimeoutSeconds = stepfleet.MaxTimeoutSeconds + 1 },
		"payload":  func(t *stepfleet.Task) { t.Payload = "ABC" },
		"policy":   func(t *stepfleet.Task) { t.RetryBudget.PolicyRetries = -1 },
		"policies": func(t *stepfleet.Task) { t.RetryBudget.PolicyRetries = stepfleet.MaxRetries + 1 },
		"loss":     func(t *stepfleet.Task) { t.RetryBudget.LostStepRetries = -1 },
		"losses":   func(t *stepfleet.Task) { t.RetryBudget.LostStepRetries = stepfleet.MaxRetries + 1 },
	}
	for name, spoil := range bad {
		task := exampleTask()
		spoil(&task)
		if check(t, schema, task) == nil {
			t.Errorf("the schema accepts a task with a bad %s", name)
		}
		if stepfleet.RefusalOf(task.Validate()) != stepfleet.ErrTaskInvalid {
			t.Errorf("Validate accepts a task with a bad %s", name)
		}
	}
	if err := exampleTask().Validate(); err != nil {
		t.Errorf("Validate of a valid task: %v", err)
	}
}

func TestQueueNamesOfTheSchemaAreTheServers(t *testing.T) {
	schema := compile(t, "docs/schema/task.schema.json")
	for _, name := range []string{
		"default", "0", "a-b_c", strings.Repeat("q", 60), // good
		"", "-a", "_a", "Default", "a.b", "a b", "a@2", "ü", "a\n", strings.Repeat("q", 61), // bad
	} {
		task := exampleTask()
		task.Queue = name
		inSchema, inServer := check(t, schema, task) == nil, stepfleet.ValidateQueue(name) == nil
		if inSchema != inServer {
			t.Errorf("queue %q: the schema says %t, the server %t", name, inSchema, inServer)
		}
	}
}

func TestResultFitsItsSchema(t *testing.T) {
	schema := compile(t, "docs/schema/result.schema.json")
	failed := exampleResult()
	failed.Success, failed.Outcome, failed.Event = false, stepfleet.StateFailed, ""
	failed.Error = &stepfleet.Failure{Code: "process_died", Message: "it did"}
	failed.ExitCode = -9
	for _, r := range []stepfleet.Result{exampleResult(), failed} {
		if err := check(t, schema, r); err != nil {
			t.Errorf("a valid result: %v", err)
		}
		if err := r.Validate(); err != nil {
			t.Errorf("Validate of a valid result: %v", err)
		}
	}
	bad := map[string]func(*stepfleet.Result){
		"version": func(r *stepfleet.Result) { r.V = 0 },
		"outcome": func(r *stepfleet.Result) { r.Outcome = stepfleet.StateQueued },
		"success": func(r *stepfleet.Result) { r.Success = false },
	}
	for name, spoil := range bad {
		r := exampleResult()
		spoil(&r)
		if check(t, schema, r) == nil {
			t.Errorf("the schema accepts a result with a bad %s", name)
		}
		if r.Validate() == nil {
			t.Errorf("Validate accepts a result with a bad %s", name)
		}
	}
}
