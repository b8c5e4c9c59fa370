package devstack

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

// dagsterHome are the two files of DAGSTER_HOME.
type dagsterHome struct {
	Instance  string // dagster.yaml
	Workspace string // workspace.yaml
}

// Names of the variables that Dagster's processes find their storage by. dagster.yaml names them, so
// that it holds no password.
const (
	dagsterURLVariable = "DAGSTER_DATABASE_URL"
	ledgerURLVariable  = "STEPFLEET_DATABASE_URL"
)

// instanceTemplate is dagster.yaml. Intervals are short, since people wait in front of it.
const instanceTemplate = `# Written by stepfleet dev at every start; changes are lost.
storage:
  postgres:
    postgres_url:
      env: %s
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
  config:
    dequeue_interval_seconds: 1
    dequeue_use_threads: true
    dequeue_num_workers: 4
concurrency:
  runs:
    max_concurrent_runs: %d
run_monitoring:
  enabled: true
  poll_interval_seconds: 5
  start_timeout_seconds: 180
  cancel_timeout_seconds: 60
%srun_retries:
  enabled: true
  max_retries: 0
local_artifact_storage:
  module: dagster.core.storage.root
  class: LocalArtifactStorage
  config:
    base_dir: %s
compute_logs:
  module: dagster.core.storage.local_compute_log_manager
  class: LocalComputeLogManager
  config:
    base_dir: %s
telemetry:
  enabled: false
`

// runLauncher is what dagster.yaml says of our run launcher. A run whose run worker has died goes on
// with another one.
const runLauncher = `  max_resume_run_attempts: 3
run_launcher:
  module: dagster_stepfleet
  class: StepfleetRunLauncher
`

// ownKeys of dagster.yaml are the stack's: it brings the storage with it.
var ownKeys = []string{"storage", "run_storage", "event_log_storage", "schedule_storage"}

// dagsterHome renders the two files.
func (s *Stack) dagsterHome() (dagsterHome, error) {
	home := s.layout.DagsterHome()
	var workspace strings.Builder
	workspace.WriteString("# Written by stepfleet dev at every start; changes are lost.\nload_from:\n")
	for i, target := range s.targets {
		fmt.Fprintf(&workspace, "  - grpc_server:\n      host: 127.0.0.1\n      port: %d\n      location_name: %s\n",
			s.ports.code[i], quote(target.Name))
	}
	launcher := ""
	if s.config.RunLauncher == LauncherStepfleet {
		launcher = runLauncher
	}
	instance := fmt.Sprintf(instanceTemplate, dagsterURLVariable, s.config.MaxRuns, launcher,
		quote(filepath.Join(home, "artifacts")), quote(filepath.Join(home, "compute_logs")))
	if s.config.DagsterYAML != "" {
		var err error
		if instance, err = withUsers(instance, s.config.DagsterYAML); err != nil {
			return dagsterHome{}, err
		}
	}
	return dagsterHome{Instance: instance, Workspace: workspace.String()}, nil
}

// withUsers puts the top-level keys of the user's dagster.yaml in the place of the stack's own.
func withUsers(instance, path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("--dagster-yaml: %w", err)
	}
	var ours, theirs yaml.MapSlice
	if err := yaml.Unmarshal([]byte(instance), &ours); err != nil {
		return "", fmt.Errorf("dagster.yaml of the stack: %w", err)
	}
	if err := yaml.Unmarshal(raw, &theirs); err != nil {
		return "", fmt.Errorf("--dagster-yaml %s: %w", path, err)
	}
	for _, item := range theirs {
		key, ok := item.Key.(string)
		if !ok {
			return "", fmt.Errorf("--dagster-yaml %s has the key %v: keys of dagster.yaml are names", path, item.Key)
		}
		if slices.Contains(ownKeys, key) {
			return "", fmt.Errorf("--dagster-yaml %s sets %s, but the stack has its own PostgreSQL for Dagster's storage: leave %s out", path, key, key)
		}
		at := slices.IndexFunc(ours, func(own yaml.MapItem) bool { return own.Key == key })
		if at < 0 {
			ours = append(ours, item)
		} else {
			ours[at] = item
		}
	}
	merged, err := yaml.Marshal(ours)
	if err != nil {
		return "", fmt.Errorf("--dagster-yaml %s: %w", path, err)
	}
	var again map[string]any // what reads as one thing may not read so where it is put, such as a key <<
	if err := yaml.Unmarshal(merged, &again); err != nil {
		return "", fmt.Errorf("--dagster-yaml %s does not fit into the stack's own: %w", path, err)
	}
	return fmt.Sprintf("# Written by stepfleet dev at every start, with %s; changes are lost.\n%s", path, merged), nil
}

// quote makes any text a YAML scalar: a JSON string is one.
func quote(text string) string {
	quoted, _ := json.Marshal(text) // a string cannot fail
	return string(quoted)
}

// Workspace returns the path of workspace.yaml.
func (l Layout) Workspace() string { return l.path("dagster_home", "workspace.yaml") }

// WriteDagsterHome writes the two files.
func (l Layout) WriteDagsterHome(home dagsterHome) error {
	if err := os.WriteFile(l.path("dagster_home", "dagster.yaml"), []byte(home.Instance), 0o600); err != nil {
		return fmt.Errorf("write dagster.yaml: %w", err)
	}
	if err := os.WriteFile(l.Workspace(), []byte(home.Workspace), 0o600); err != nil {
		return fmt.Errorf("write workspace.yaml: %w", err)
	}
	return nil
}
