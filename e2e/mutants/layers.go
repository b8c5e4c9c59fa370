//go:build mutant

package main

import (
	"bytes"
	"cmp"
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

// layer is a way to look for bugs.
type layer struct {
	name, dir string
	// command looks where the tests say, or everywhere when they say nothing.
	command func(tests string) []string
	// verdict reads from what the command printed which test failed, and why. A command that fails and gives
	// no verdict has found nothing.
	verdict func(out string) string
	// again are the tests that must pass without the mutant, for the verdict to count.
	again func(tests, verdict string) string
}

var (
	goFailed   = regexp.MustCompile(`(?m)^ *--- FAIL: (\S+)`)
	invariant  = regexp.MustCompile(`^[A-Z]\d+ `)
	pointSays  = regexp.MustCompile(`(?m)^ +\w+_test\.go:\d+: (\S.*)$`)
	seedBroke  = regexp.MustCompile(`seed (\d+) broke a promise.*\n +(.*)`)
	chaosSays  = regexp.MustCompile(`(?m)^ +PROBLEM ([A-Z]\d+: .*)$`) // an invariant that was not kept
	chaosFails = regexp.MustCompile(`(?m)^chaos: FAIL `)
	panics     = regexp.MustCompile(`(?m)^(panic|fatal error): .*$`)
)

// layerTimeout bounds one run of a layer.
const layerTimeout = 6 * time.Minute

// layers are all of them, the cheapest first.
func layers(dir, python string) []layer {
	program := func(name string, args ...string) []string { return append([]string{filepath.Join(dir, name)}, args...) }
	same := func(tests, _ string) string { return tests }
	return []layer{
		{
			"sim", "internal/sim", func(seeds string) []string {
				first, n := cut(cmp.Or(seeds, "1+10000"))
				return program("sim.test", "-test.run", "TestEverySeed", "-seed", first, "-seeds", n, "-failures", "1")
			},
			func(out string) string { return said(seedBroke.FindStringSubmatch(out)) },
			func(_, verdict string) string { seed, _ := cut(verdict); return seed + "+1" },
		},
		{
			"properties", "internal/postgres", func(tests string) []string {
				return program("postgres.test", "-test.failfast", "-test.timeout", "5m", "-rapid.nofailfile", "-rapid.shrinktime", "1s", "-rapid.steps", "100", "-test.run", cmp.Or(tests, ledgers))
			},
			func(out string) string { return innermost(goFailed.FindAllStringSubmatch(out, -1)) },
			same,
		},
		{
			"failpoints", "e2e/failpoints", func(points string) []string {
				return program("failpoints.test", "-test.parallel", "8", "-test.timeout", "5m", "-test.run", "TestEveryPoint/of/"+points)
			},
			pointVerdict,
			same,
		},
		{
			"chaos", ".", func(act string) []string {
				args := []string{"-stepfleet", filepath.Join(dir, "stepfleet"), "-python", python, "-dir", ".stepfleet/mutants"}
				if act == "" {
					return program("chaos", append(args, "-duration", "60s")...)
				}
				return program("chaos", append(args, "-act", act)...)
			},
			func(out string) string {
				if !chaosFails.MatchString(out) {
					return ""
				}
				return said(chaosSays.FindStringSubmatch(out))
			},
			same,
		},
	}
}

// pointVerdict prefers what the checker says. That a point was never come to, or that time ran out, is no verdict.
func pointVerdict(out string) string {
	_, point, _ := strings.Cut(innermost(goFailed.FindAllStringSubmatch(out, -1)), "/of/")
	why := ""
	for _, said := range pointSays.FindAllStringSubmatch(out, -1) {
		switch {
		case strings.Contains(said[1], "was never come to"), strings.HasPrefix(said[1], "waiting in vain"):
		case invariant.MatchString(said[1]) && !invariant.MatchString(why), why == "":
			why = said[1]
		}
	}
	if point == "" || why == "" {
		return ""
	}
	return point + ": " + why
}

// said puts the groups of a match together; nothing for no match.
func said(match []string) string {
	if match == nil {
		return ""
	}
	return strings.Join(match[1:], ": ")
}

// innermost is the deepest test below the first that failed.
func innermost(failed [][]string) (test string) {
	for _, f := range failed {
		if test == "" || strings.HasPrefix(f[1], test+"/") {
			test = f[1]
		}
	}
	return test
}

// cut returns what is before and after the first sign that is no digit.
func cut(text string) (before, after string) {
	at := strings.IndexFunc(text, func(r rune) bool { return r < '0' || r > '9' })
	if at < 0 {
		return text, ""
	}
	return text[:at], text[at+1:]
}

// runner runs layers.
type runner struct {
	root, dir  string
	layers     []layer
	limit      time.Time
	survived   int
	controlled map[string]bool // layers and tests that were seen to pass
}

func newRunner(dir, python string, limit time.Duration) (*runner, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(root, dir)
	}
	if !filepath.IsAbs(python) {
		python = filepath.Join(root, python) // not resolved: a virtual environment is known by its link
	}
	r := &runner{root: root, dir: dir, limit: time.Now().Add(limit), controlled: map[string]bool{}, layers: layers(dir, python)}
	check := exec.Command(python, "-c", "import sitecustomize; sitecustomize.check()")
	check.Env = r.environment("")
	if out, err := check.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("a mutant of the plugin %s: %w\n%s", mutant.Misfit, err, out)
	}
	return r, nil
}

// environment is what the layers' processes find.
func (r *runner) environment(mutantName string) []string {
	return append(os.Environ(), mutant.Variable+"="+mutantName, "STEPFLEET_FAILPOINT_BIN="+filepath.Join(r.dir, "stepfleet"),
		"PYTHONPATH="+filepath.Join(r.root, "e2e/mutants/hooks")+":"+filepath.Join(r.root, "python")+":"+filepath.Join(r.root, "examples"))
}

// hunt returns the layer that caught the mutant and its verdict; nothing when it survives.
func (r *runner) hunt(m seeded) (name, verdict string, err error) {
	tried := ""
	for _, l := range r.layers {
		if l.name == m.layer {
			tried = l.name + " " + m.tests
			if verdict, err = r.catch(l, m.tests, m.name); verdict != "" || err != nil {
				return l.name, verdict, err
			}
		}
	}
	for _, l := range r.layers {
		if tried == l.name+" " {
			continue
		}
		if time.Now().After(r.limit) {
			return "", "", nil
		}
		if verdict, err = r.catch(l, "", m.name); verdict != "" || err != nil {
			return l.name, verdict, err
		}
	}
	return "", "", nil
}

// catch returns the layer's verdict on the mutant. What fails by itself catches nothing, and ends all.
func (r *runner) catch(l layer, tests, mutantName string) (verdict string, err error) {
	verdict, err = r.run(l, tests, mutantName)
	if verdict == "" || err != nil {
		return "", err
	}
	tests = l.again(tests, verdict)
	if key := l.name + " " + tests; !r.controlled[key] {
		own, err := r.run(l, tests, "")
		if own != "" || err != nil {
			return "", errors.Join(err, fmt.Errorf("the product itself, without a mutant, fails in the layer %s: %s", l.name, own))
		}
		r.controlled[key] = true
	}
	return verdict, nil
}

// run runs a layer's tests and returns their verdict: nothing when all pass. Its output is kept in a file.
func (r *runner) run(l layer, tests, mutantName string) (verdict string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), layerTimeout)
	defer cancel()
	argv := l.command(tests)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = filepath.Join(r.root, l.dir)
	cmd.Env = r.environment(mutantName)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	log := filepath.Join(r.dir, "log", cmp.Or(mutantName, "control")+"."+l.name+".log")
	if err := os.WriteFile(log, out.Bytes(), 0o600); err != nil {
		return "", err
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "", nil
	case ctx.Err() == nil && !errors.As(err, &exit):
		return "", fmt.Errorf("layer %s: %w", l.name, err)
	case strings.Contains(out.String(), mutant.Misfit):
		return "", fmt.Errorf("the mutant %s does not fit the product any more: see %s", mutantName, log)
	}
	why := panics.FindString(out.String())
	if ctx.Err() != nil {
		why = "it hangs"
	}
	if why == "" {
		verdict = l.verdict(out.String())
	}
	if verdict == "" {
		why = cmp.Or(why, "it gives no verdict")
		if mutantName == "" {
			return "", fmt.Errorf("%s: see %s", why, log)
		}
		fmt.Fprintf(os.Stderr, "mutants: %s in the layer %s counts as not caught, for %s: see %s\n", mutantName, l.name, why, log)
	}
	return verdict, nil
}
