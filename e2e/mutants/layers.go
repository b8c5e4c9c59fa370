//go:build mutant

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/stepfleet/stepfleet/internal/mutant"
)

// layer is a group of tests. Its command runs those that match, or all of them.
type layer struct {
	name    string
	dir     string
	command func(tests string) []string
	failed  *regexp.Regexp // names the test that failed, in what the command prints
}

var (
	goFailed = regexp.MustCompile(`(?m)^(?: *--- FAIL: |panic: test timed out after \w+\n\trunning tests:\n\t\t)(\S+)`)
	pyFailed = regexp.MustCompile(`(?m)^(?:FAILED|ERROR) (\S+)`)
	verdict  = regexp.MustCompile(`(?m)^(chaos: FAIL.*)$`)
)

// layerTimeout bounds one run of a layer; a mutant that makes its tests hang is caught.
const layerTimeout = 5 * time.Minute

type runner struct {
	dir        string
	layers     []layer // the cheapest first
	limit      time.Time
	controlled map[string]bool // layers and tests that were seen to pass
}

func newRunner(dir, python string, limit time.Duration) (*runner, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	dir = filepath.Join(root, dir)
	if !filepath.IsAbs(python) {
		python = filepath.Join(root, python) // not resolved: a virtual environment is known by its link
	}
	goTests := func(name, pkg, all, timeout string) layer {
		return layer{name, "internal/" + pkg, func(tests string) []string {
			if tests == "" {
				tests = all
			}
			return []string{filepath.Join(dir, pkg+".test"), "-test.failfast", "-test.timeout", timeout, "-test.run", tests}
		}, goFailed}
	}
	return &runner{dir: dir, limit: time.Now().Add(limit), controlled: map[string]bool{}, layers: []layer{
		goTests("sqs", "sqs", ".", "2m"),
		goTests("dispatch", "dispatch", ".", "20s"),
		goTests("worker", "worker", ".", "20s"),
		goTests("conformance", "postgres", ledgers, "2m"),
		goTests("postgres", "postgres", ".", "4m"),
		goTests("pyhost", "pyhost", ".", "4m"),
		{"python", "python", func(tests string) []string {
			return []string{
				filepath.Join(dir, "withpostgres"), "STEPFLEET_TEST_POSTGRES_URL", python, "-m", "pytest", "-q", "-x", filepath.Join("tests", tests),
			}
		}, pyFailed},
		{"chaos", ".", func(string) []string {
			return []string{
				filepath.Join(dir, "chaos"), "-stepfleet", filepath.Join(dir, "stepfleet"), "-python", python,
				"-duration", "60s", "-dir", ".stepfleet/mutants",
			}
		}, verdict},
	}}, nil
}

// control runs the tests on the product itself, once: tests that fail by themselves catch nothing.
func (r *runner) control(l layer, tests string) {
	key := l.name + " " + tests
	if r.controlled[key] {
		return
	}
	r.controlled[key] = true
	if test := r.must(l, tests, ""); test != "" {
		fmt.Printf("mutants: FAIL without a mutant: layer %s, %s\n", l.name, test)
		os.Exit(exitFail)
	}
}

// catches returns the test of the layer that fails with the mutant and passes without.
func (r *runner) catches(l layer, tests, mutantName string) string {
	test := r.must(l, tests, mutantName)
	if test != "" {
		r.control(l, tests)
	}
	return test
}

// hunt returns the layer that caught the mutant, and its test; nothing when it survives.
func (r *runner) hunt(m seeded) (name, test string) {
	for _, l := range r.layers {
		if l.name == m.layer {
			if test := r.catches(l, m.tests, m.name); test != "" {
				return l.name, test
			}
		}
	}
	for _, l := range r.layers {
		if time.Now().After(r.limit) {
			return "", ""
		}
		if test := r.catches(l, "", m.name); test != "" {
			return l.name, test
		}
	}
	return "", ""
}

func (r *runner) must(l layer, tests, mutantName string) string {
	test, err := r.run(l, tests, mutantName)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
	return test
}

// run runs a layer's tests and returns the one that failed. Its output is kept in a file.
func (r *runner) run(l layer, tests, mutantName string) (failed string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), layerTimeout)
	defer cancel()
	argv := l.command(tests)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = l.dir
	cmd.Env = append(os.Environ(), mutant.Variable+"="+mutantName)
	if root, err := os.Getwd(); err == nil {
		cmd.Env = append(cmd.Env, "PYTHONPATH="+filepath.Join(root, "e2e/mutants/hooks")+":"+filepath.Join(root, "python"))
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	log := filepath.Join(r.dir, "log", strings.TrimPrefix(mutantName+"."+l.name+".log", "."))
	if err := os.WriteFile(log, out.Bytes(), 0o600); err != nil {
		return "", err
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "", nil
	case ctx.Err() != nil:
		return "(hangs)", nil
	case !errors.As(err, &exit):
		return "", fmt.Errorf("layer %s: %w", l.name, err)
	case bytes.Contains(out.Bytes(), []byte("its statement does not have")):
		return "", fmt.Errorf("the mutant %s does not fit the product any more: see %s", mutantName, log)
	}
	return name(l.failed.FindAllSubmatch(out.Bytes(), -1), log), nil
}

// name is the innermost test of the first that failed.
func name(found [][][]byte, log string) string {
	if len(found) == 0 {
		return "(see " + log + ")"
	}
	test := string(found[0][1])
	for _, f := range found[1:] {
		if strings.HasPrefix(string(f[1]), test+"/") {
			test = string(f[1])
		}
	}
	return test
}
