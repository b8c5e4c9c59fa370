//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// The run launcher that most who run Dagster on ECS have, as its documentation sets it up outside of
// ECS. Daemon and webserver use it; the server and the worker are stepfleet's.
const ecsLauncher = `run_launcher:
  module: dagster_aws.ecs
  class: EcsRunLauncher
  config:
    use_current_ecs_task_config: false
    task_definition: {requires_compatibilities: [FARGATE]}
    env_vars: [DAGSTER_DATABASE_URL, STEPFLEET_URL, STEPFLEET_TOKEN_FILE]
    run_task_kwargs:
      cluster: runs
      launchType: FARGATE
      networkConfiguration: {awsvpcConfiguration: {subnets: [%s], securityGroups: []}}
`

func TestTheExecutorWorksUnderEcsRunLauncher(t *testing.T) {
	t.Parallel()
	dir, err := stackDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ecs := startECS(t, dir, "runs")
	yaml := filepath.Join(dir, "dagster.yaml")
	if err := os.WriteFile(yaml, fmt.Appendf(nil, ecsLauncher, ecs.subnet(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	defs, err := filepath.Abs("testdata/e2e_defs.py")
	if err != nil {
		t.Fatal(err)
	}
	d := startDev(t, dir, dir, []string{
		"AWS_ENDPOINT_URL=" + ecs.url, "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test",
		"AWS_REGION=us-east-1", "AWS_DEFAULT_REGION=us-east-1", "DAGSTER_CURRENT_IMAGE=project:1",
	}, "--python", python, "-f", defs, "--dagster-yaml", yaml, "--run-launcher", "default")
	if d.dagster, err = connectDagster(d.state().URLs["dagster"]); err != nil {
		t.Fatal(err)
	}

	t.Run("a run succeeds", func(t *testing.T) {
		run := d.dagster.launch(t, "chain", config{})
		container := ecs.start(t, run)
		d.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
		if status := container.exit(t); status != 0 {
			t.Errorf("its run worker ended with status %d", status)
		}
		tasks := awaitAllEnded(t, &d.stack, run)
		if len(tasks) != 4 || len(tasks.in(stepfleet.StateSucceeded).on("worker-1")) != 4 {
			t.Errorf("ledger: %s, want 4 steps that succeeded on worker-1", tasks)
		}
		for key, begin := range d.begins(t, run) {
			if begin.PID == container.cmd.Process.Pid {
				t.Errorf("step %s ran in the run worker", key)
			}
		}
		if workers := d.server.runWorkers(t, run); len(workers) > 0 {
			t.Errorf("ledger: %s, but ECS has the run worker", workers)
		}
		d.server.checkAudit(t, run)
	})

	t.Run("a cancel stops its steps", func(t *testing.T) {
		file, _ := release(t)
		run := d.dagster.launch(t, "six", config{ops: numbered("work", 6, behaviour{"release": file}, nil)})
		container := ecs.start(t, run)
		steps := d.awaitSteps(t, 6, run)
		asked := time.Now()
		d.dagster.terminate(t, run)
		container.awaitStop(t)
		d.dagster.awaitEnd(t, cancelWithin, run, dagsterapi.RunCanceled)
		checkPromise(t, "the end of the steps", awaitGone(t, cancelWithin, asked, steps), cancelPromise)
		container.exit(t)
		tasks := awaitAllEnded(t, &d.stack, run)
		if len(tasks) != 6 || len(tasks.in(stepfleet.StateCancelled)) != 6 {
			t.Errorf("ledger: %s, want 6 cancelled", tasks)
		}
		d.server.checkAudit(t, run)
	})
}

// --- ECS ------------------------------------------------------------------------------------------

// ecs is an ECS in memory, which keeps what RunTask was given and starts nothing. The test is its
// agent: it runs the tasks' commands.
type ecs struct{ url, dir, cluster string }

func startECS(t *testing.T, dir, cluster string) *ecs {
	t.Helper()
	program, err := filepath.Abs("testdata/moto_fargate.py")
	if err != nil {
		t.Fatal(err)
	}
	e := &ecs{url: startMoto(t, dir, program), dir: dir, cluster: cluster}
	// Of its own it ends a task after some questions.
	e.post(t, "/moto-api/state-manager/set-transition", nil,
		[]byte(`{"model_name": "ecs::task", "transition": {"progression": "manual", "times": 1000000}}`))
	e.call(t, "CreateCluster", map[string]any{"clusterName": cluster}, nil)
	return e
}

// container is the one of a task, running.
type container struct {
	*program
	ecs  *ecs
	task string
}

type ecsVariable struct{ Name, Value string }

// start waits for the run's task and starts its container: the command that the run launcher gave
// RunTask, with the environment that it gave RegisterTaskDefinition, and what an image has: a PATH.
func (e *ecs) start(t *testing.T, run string) *container {
	t.Helper()
	var task struct {
		TaskARN           string `json:"taskArn"`
		TaskDefinitionARN string `json:"taskDefinitionArn"`
		Tags              []struct{ Key, Value string }
		Overrides         struct {
			ContainerOverrides []struct {
				Name        string
				Command     []string
				Environment []ecsVariable
			}
		}
	}
	await(t, runTimeout, "the ECS task of run "+run, func() (bool, string) {
		var tasks struct{ TaskARNs []string }
		e.call(t, "ListTasks", map[string]any{"cluster": e.cluster}, &tasks)
		for _, arn := range tasks.TaskARNs {
			e.describe(t, arn, &task)
			for _, tag := range task.Tags {
				if tag.Key == "dagster/run_id" && tag.Value == run {
					return true, ""
				}
			}
		}
		return false, fmt.Sprintf("tasks %v", tasks.TaskARNs)
	})
	var definition struct {
		TaskDefinition struct {
			ContainerDefinitions []struct {
				Name, Image string
				Environment []ecsVariable
			}
		}
	}
	e.call(t, "DescribeTaskDefinition", map[string]any{"taskDefinition": task.TaskDefinitionARN}, &definition)
	defined, overrides := definition.TaskDefinition.ContainerDefinitions, task.Overrides.ContainerOverrides
	if len(defined) != 1 || len(overrides) != 1 || defined[0].Name != overrides[0].Name || defined[0].Image != "project:1" || len(overrides[0].Command) == 0 {
		t.Fatalf("task definition %+v, overrides %+v: want one container of the project's image, and its command", defined, overrides)
	}
	environ := []string{"PATH=" + filepath.Dir(python) + ":/usr/bin:/bin", "HOME=" + t.TempDir()}
	for _, v := range slices.Concat(defined[0].Environment, overrides[0].Environment) {
		environ = append(environ, v.Name+"="+v.Value)
	}
	command := overrides[0].Command
	p := launchWith(t, t.TempDir(), filepath.Join(e.dir, "ecs-"+run+".out"), environ, command[0], command[1:]...)
	stopAtEnd(t, p)
	return &container{program: p, ecs: e, task: task.TaskARN}
}

// awaitStop waits until somebody has stopped the task, and does what ECS does then.
func (c *container) awaitStop(t *testing.T) {
	t.Helper()
	await(t, cancelWithin, "StopTask for "+c.task, func() (bool, string) {
		var task struct{ DesiredStatus string }
		c.ecs.describe(t, c.task, &task)
		return task.DesiredStatus == "STOPPED", task.DesiredStatus
	})
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("SIGTERM to the container: %v", err)
	}
}

// exit waits for the end of the container, well within the 30 s after which ECS would kill it.
func (c *container) exit(t *testing.T) (status int) {
	t.Helper()
	select {
	case <-c.gone:
	case <-time.After(cancelWithin):
		t.Fatalf("the container goes on:\n%s", c.output(t))
	}
	return c.cmd.ProcessState.ExitCode()
}

func (e *ecs) describe(t *testing.T, arn string, into any) {
	t.Helper()
	var answer struct{ Tasks []json.RawMessage }
	e.call(t, "DescribeTasks", map[string]any{"cluster": e.cluster, "tasks": []string{arn}, "include": []string{"TAGS"}}, &answer)
	if len(answer.Tasks) != 1 {
		t.Fatalf("ECS has %d tasks %s", len(answer.Tasks), arn)
	}
	if err := json.Unmarshal(answer.Tasks[0], into); err != nil {
		t.Fatalf("task %s: %v", arn, err)
	}
}

// call is one call of ECS.
func (e *ecs) call(t *testing.T, operation string, input map[string]any, into any) {
	t.Helper()
	body, err := json.Marshal(input)
	if err != nil {
		t.Fatal(err)
	}
	answer := e.post(t, "/", map[string]string{
		"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "AmazonEC2ContainerServiceV20141113." + operation,
		"Authorization": authorization("ecs"),
	}, body)
	if into == nil {
		return
	}
	if err := json.Unmarshal(answer, into); err != nil {
		t.Fatalf("%s answers %.500s: %v", operation, answer, err)
	}
}

var subnetID = regexp.MustCompile(`<subnetId>(subnet-\w+)</subnetId>`)

// subnet returns one of the default network's.
func (e *ecs) subnet(t *testing.T) string {
	t.Helper()
	form := url.Values{"Action": {"DescribeSubnets"}, "Version": {"2016-11-15"}}
	answer := e.post(t, "/", map[string]string{
		"Content-Type": "application/x-www-form-urlencoded", "Authorization": authorization("ec2"),
	}, []byte(form.Encode()))
	found := subnetID.FindSubmatch(answer)
	if found == nil {
		t.Fatalf("EC2 has no subnet: %.500s", answer)
	}
	return string(found[1])
}

// authorization names the service; nobody checks the signature.
func authorization(service string) string {
	return "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/" + service + "/aws4_request, SignedHeaders=host, Signature=0"
}

func (e *ecs) post(t *testing.T, path string, headers map[string]string, body []byte) []byte {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, e.url+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode >= http.StatusMultipleChoices {
		t.Fatalf("POST %s %s: %s %.500s %v", path, strings.TrimSpace(headers["X-Amz-Target"]), response.Status, answer, err)
	}
	return answer
}
