package devstack

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

//go:embed inspect.py
var inspectScript string

//go:embed prepare_storage.py
var prepareStorageScript string

// What the user's interpreter must be able to import, and what installs it.
var required = []struct{ Module, Package string }{
	{"dagster", "dagster"},
	{"dagster_webserver", "dagster-webserver"},
	{"dagster_postgres", "dagster-postgres"},
	{"dagster_stepfleet", "dagster-stepfleet"},
}

// inspectTimeout bounds the look at the interpreter; it imports nothing of the user's.
const inspectTimeout = 30 * time.Second

// facts is what inspect.py says of an interpreter and of the project's pyproject.toml.
type facts struct {
	Python   string            `json:"python"`
	Old      bool              `json:"old"`
	Missing  []string          `json:"missing"`
	Versions map[string]string `json:"versions"`
	// Project says what pyproject.toml names: modules, or why none.
	Project struct {
		Modules []string `json:"modules"`
		Name    string   `json:"name"`
		Problem string   `json:"problem"`
	} `json:"project"`
}

// DefaultPython returns the interpreter of the active virtual environment, or else python3.
func DefaultPython() string {
	if env := os.Getenv("VIRTUAL_ENV"); env != "" {
		return filepath.Join(env, "bin", "python")
	}
	return "python3"
}

// inspect asks the user's interpreter what it can import, and turns what is missing into an error that
// says what to install.
func inspect(ctx context.Context, config Config) (facts, error) {
	var found facts
	names := make([]string, len(required))
	for i, r := range required {
		names[i] = r.Module
	}
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, config.Python, append([]string{"-c", inspectScript}, names...)...)
	cmd.Dir = config.Project
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return found, fmt.Errorf("run %s: %w\nchoose the Python of your project with --python PATH, or activate its virtual environment", config.Python, err)
	}
	if err := json.Unmarshal(out, &found); err != nil {
		return found, fmt.Errorf("ask %s what it can import: %w", config.Python, err)
	}
	return found, found.check(config.Python)
}

// check refuses an interpreter that cannot carry the stack.
func (f facts) check(python string) error {
	if f.Old {
		return fmt.Errorf("%s is Python %s: stepfleet needs 3.10 or later", python, f.Python)
	}
	if len(f.Missing) == 0 {
		return nil
	}
	missing := map[string]bool{}
	for _, module := range f.Missing {
		missing[module] = true
	}
	var packages []string
	for _, r := range required {
		if missing[r.Module] {
			packages = append(packages, r.Package)
		}
	}
	hint := ""
	if missing["dagster_stepfleet"] {
		hint = "\n(dagster-stepfleet is not on PyPI yet: give pip the directory python/ of stepfleet's sources instead)"
	}
	return fmt.Errorf("%s cannot import %s\ninstall what is missing:  %s -m pip install %s%s\nor choose the Python of your project with --python PATH",
		python, strings.Join(f.Missing, ", "), python, strings.Join(packages, " "), hint)
}

// Target is one code location.
type Target struct {
	Name string
	Flag string // -m or -f
	Code string // the module or the file
}

// targets returns the code locations: those given, or else those of pyproject.toml.
func (c Config) targets(found facts) ([]Target, error) {
	var targets []Target
	for _, module := range c.Modules {
		targets = append(targets, Target{Name: module, Flag: "-m", Code: module})
	}
	for _, file := range c.Files {
		path := file
		if !filepath.IsAbs(path) {
			path = filepath.Join(c.Project, file)
		}
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("-f %s: %w", file, err)
		}
		targets = append(targets, Target{Name: filepath.Base(file), Flag: "-f", Code: path})
	}
	if len(targets) == 0 {
		for _, module := range found.Project.Modules {
			targets = append(targets, Target{Name: module, Flag: "-m", Code: module})
		}
		if len(targets) == 1 && found.Project.Name != "" {
			targets[0].Name = found.Project.Name
		}
	}
	if len(targets) == 0 {
		return nil, fmt.Errorf("nothing to run: %s\nname your definitions with -m MODULE or -f FILE, or in pyproject.toml:\n\n  [tool.dagster]\n  module_name = \"my_project.definitions\"",
			found.Project.Problem)
	}
	return targets, unique(targets)
}

// unique refuses two code locations of one name: Dagster tells them apart by it.
func unique(targets []Target) error {
	seen := map[string]string{}
	for _, t := range targets {
		if other, twice := seen[t.Name]; twice {
			return fmt.Errorf("%s and %s would both be the code location %q: rename one", other, t.Code, t.Name)
		}
		seen[t.Name] = t.Code
	}
	return nil
}
