package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/stepfleet/stepfleet/internal/demo"
	"github.com/stepfleet/stepfleet/internal/devstack"
)

// exitFail is the exit status of a verdict that is FAIL.
const exitFail = 5

type demoCmd struct {
	Dir       string  `help:"Directory for its stack and its report; forgotten at every start." default:".stepfleet/demo"`
	Python    string  `help:"Python with the example project. Default: the active virtual environment's, else .venv's, else python3." env:"STEPFLEET_PYTHON"`
	TimeScale float64 `help:"Factor on the duration of the example steps." default:"0.05"`
}

// Run runs the demo; the last line of its output is the verdict.
func (c *demoCmd) Run(g *globals) error {
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the stepfleet binary: %w", err)
	}
	python, err := c.python()
	if err != nil {
		return err
	}
	verdict, err := demo.Run(g.ctx, demo.Config{
		Executable: executable, Python: python, Dir: c.Dir, TimeScale: c.TimeScale, Out: g.stdout, Log: g.log,
	})
	if err != nil {
		fmt.Fprintf(g.stdout, "%s\n", demo.Failed())
		return &exitCode{exitFail, fmt.Errorf("demo: %w; see %s", err, filepath.Join(c.Dir, "dev.log"))}
	}
	if !verdict.Pass() {
		return &exitCode{exitFail, errors.New("the demo's verdict is FAIL: see its PROBLEM lines")}
	}
	return nil
}

// python returns the interpreter, with an absolute path: the stack runs in another directory.
func (c *demoCmd) python() (string, error) {
	if c.Python != "" && filepath.Base(c.Python) != c.Python {
		return filepath.Abs(c.Python)
	}
	if c.Python != "" {
		return c.Python, nil
	}
	own, err := filepath.Abs(filepath.Join(".venv", "bin", "python"))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(own); err == nil && os.Getenv("VIRTUAL_ENV") == "" {
		return own, nil
	}
	return devstack.DefaultPython(), nil
}
