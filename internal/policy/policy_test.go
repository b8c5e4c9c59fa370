// Package policy holds the house rules as tests: each failure says which rule, where, and why the
// rule is there.
package policy

import (
	"bufio"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "github.com/stepfleet/stepfleet"
)

// maxFileLines keeps a file to what one reader can hold.
const maxFileLines = 800

// skipped are directories that are not ours, besides the hidden ones.
var skipped = []string{"bin", "node_modules", "__pycache__", "results"}

func isSkipped(name string) bool {
	hidden := strings.HasPrefix(name, ".") && name != ".ci" && name != "." && name != ".."
	return hidden || slices.Contains(skipped, name)
}

func walk(t *testing.T, visit func(path string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && isSkipped(d.Name()) {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() {
			visit(path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// imports returns what each package directory's product code imports.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	walk(t, func(path string) {
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			all[dir] = append(all[dir], strings.Trim(i.Path.Value, `"`))
		}
	})
	return all
}

func isStandard(path string) bool { return !strings.Contains(strings.SplitN(path, "/", 2)[0], ".") }

// hooks are the packages of seeded bugs and of failpoints, which are nothing in the product: any package may
// ask them.
var hooks = []string{module + "/internal/mutant", module + "/internal/failpoint"}

func isOurs(path string) bool { return path == module || strings.HasPrefix(path, module+"/") }

func TestTheRootImportsTheStandardLibraryOnly(t *testing.T) {
	for _, path := range imports(t)["."] {
		if !isStandard(path) {
			t.Errorf("the root package imports %s: it is the vocabulary, and everybody else imports it", path)
		}
	}
}

func TestRolesImportTheRootOnly(t *testing.T) {
	all := imports(t)
	for _, role := range []string{"internal/dispatch", "internal/worker", "internal/audit"} {
		if len(all[role]) == 0 {
			t.Errorf("no package %s", role)
		}
		for _, path := range all[role] {
			if isOurs(path) && path != module && !slices.Contains(hooks, path) {
				t.Errorf("%s imports %s: roles are written against the root's ports, so that they run on any adapter", role, path)
			}
		}
	}
}

func TestAdaptersImportNoRoleAndNoOtherAdapter(t *testing.T) {
	all := imports(t)
	for _, adapter := range []string{"internal/postgres", "internal/sqs", "internal/memory", "internal/pyhost", "internal/dagsterlog"} {
		if len(all[adapter]) == 0 {
			t.Errorf("no package %s", adapter)
		}
		for _, path := range all[adapter] {
			if isOurs(path) && path != module && path != module+"/"+adapter && !slices.Contains(hooks, path) {
				t.Errorf("%s imports %s: adapters know the root and one outside thing; cmd/ wires", adapter, path)
			}
		}
	}
}

func TestLocalAWSNeverImportsTheProduct(t *testing.T) {
	for dir, paths := range imports(t) {
		if dir != "localaws" && !strings.HasPrefix(dir, "localaws/") {
			continue
		}
		for _, path := range paths {
			if isOurs(path) && !strings.HasPrefix(path, module+"/localaws") {
				t.Errorf("%s imports %s: localaws must stay usable alone", dir, path)
			}
		}
	}
}

func TestOnlyPostgresKnowsSQL(t *testing.T) {
	allowed := []string{"internal/postgres", "internal/pglocal", "internal/testenv", "internal/devstack", "internal/pgrelay", "internal/dagsterlog", "internal/chaos"}
	for dir, paths := range imports(t) {
		for _, path := range paths {
			if strings.HasPrefix(path, "github.com/jackc/pgx") && !slices.ContainsFunc(allowed, func(a string) bool {
				return dir == a || strings.HasPrefix(dir, a+"/")
			}) {
				t.Errorf("%s imports %s: SQL lives in internal/postgres, and Dagster's in internal/dagsterlog", dir, path)
			}
		}
	}
}

func TestOnlyMetricsKnowsPrometheus(t *testing.T) {
	for dir, paths := range imports(t) {
		for _, path := range paths {
			if strings.HasPrefix(path, "github.com/prometheus/") && dir != "internal/metrics" {
				t.Errorf("%s imports %s: what is counted is put around the ports, in internal/metrics", dir, path)
			}
		}
	}
}

func TestFilesStayReadable(t *testing.T) {
	walk(t, func(path string) {
		ext := filepath.Ext(path)
		if ext != ".go" && ext != ".py" {
			return
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(raw), "\n"); n > maxFileLines {
			t.Errorf("%s has %d lines: split it, a file is at most %d", path, n, maxFileLines)
		}
	})
}

// An address of a package registry in the repository breaks installs behind a mirror, and leaks
// where somebody's mirror is.
func TestNoRegistryAddresses(t *testing.T) {
	address := regexp.MustCompile(`(?i)(--(extra-)?index-url|--find-links|registry\.npmjs\.` + `org|files\.pythonhosted\.` + `org|pypi\.` + `org/simple|proxy\.golang\.` + `org|repo1?\.maven\.)`)
	walk(t, func(path string) {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(path) == "policy_test.go" {
			return
		}
		if m := address.Find(raw); m != nil {
			t.Errorf("%s names a registry: %q", path, m)
		}
	})
}

// Every direct dependency is a debt; the page says what each is for.
func TestDirectDependenciesAreDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs/dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.Open(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	defer mod.Close()
	direct := map[string]bool{}
	required := regexp.MustCompile(`^(?:require )?\s*(\S+\.\S+/\S+|\S+\.\S+) v\S+$`)
	for lines := bufio.NewScanner(mod); lines.Scan(); {
		if m := required.FindStringSubmatch(lines.Text()); m != nil {
			direct[m[1]] = true
			if !strings.Contains(string(page), "`"+m[1]+"`") {
				t.Errorf("docs/dependencies.md has no line with the reason for %s", m[1])
			}
		}
	}
	if len(direct) == 0 {
		t.Fatal("go.mod has no direct dependency: this test reads it wrongly")
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9.]+\\.[a-z]+/[^`]*)` \\|").FindAllStringSubmatch(string(page), -1) {
		if !direct[m[1]] {
			t.Errorf("docs/dependencies.md explains %s, which go.mod does not require directly", m[1])
		}
	}
}

// fewestKept are the inputs that every fuzz target of the product begins with, and plain tests run.
const fewestKept = 20

var fuzzTarget = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)

func TestEveryFuzzTargetHasKeptInputs(t *testing.T) {
	targets := 0
	walk(t, func(path string) {
		if !strings.HasSuffix(path, "_test.go") || strings.Contains(path, "/localaws/") {
			return
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range fuzzTarget.FindAllStringSubmatch(string(raw), -1) {
			targets++
			kept := filepath.Join(filepath.Dir(path), "testdata", "fuzz", found[1])
			if files, _ := os.ReadDir(kept); len(files) < fewestKept {
				t.Errorf("%s has %d inputs, want %d: keep what scripts/fuzz has found, from $(go env GOCACHE)/fuzz, and what a person would try", kept, len(files), fewestKept)
			}
		}
	})
	if targets < 10 {
		t.Errorf("there are %d fuzz targets: has their form changed?", targets)
	}
}
