package devstack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/supervise"
)

// startDagster starts Dagster's own processes and says of every code location whether it loaded.
// Nobody else may open Dagster's storage before its tables are there: each would create them, and
// two at once fail.
func (s *Stack) startDagster(ctx context.Context) error {
	began := time.Now()
	if err := s.prepareStorage(ctx); err != nil {
		return err
	}
	close(s.prepared)
	s.out.up("Dagster storage", "tables are current", began)
	code, err := s.startCodeServers()
	if err != nil {
		return err
	}
	began = time.Now()
	// A daemon that finds no code server keeps that answer, and fails the first run with it.
	for i, p := range code {
		if err := s.awaitUser(ctx, p, "code server", s.targets[i].Name, began); err != nil {
			return err
		}
	}
	began = time.Now()
	webserver, err := s.startWebserver()
	if err != nil {
		return err
	}
	daemon, err := s.startDaemon()
	if err != nil {
		return err
	}
	if err := s.await(ctx, webserver, "Dagster webserver", s.dagsterURL(), dagsterTimeout, began); err != nil {
		return err
	}
	if err := s.await(ctx, daemon, "Dagster daemon", "", dagsterTimeout, began); err != nil {
		return err
	}
	return s.sayLocations(ctx)
}

// prepareStorage runs prepare_storage.py, and closes the runs in the ledger that it ended.
func (s *Stack) prepareStorage(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.config.Python, "-c", prepareStorageScript)
	cmd.Env, cmd.Dir = s.ofDagster("prepare"), s.config.Project
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return fmt.Errorf("prepare Dagster's storage: %w", err)
	}
	// Dagster may print warnings of its own before the answer, which is the last line.
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	var answer struct {
		Ended []string `json:"ended"`
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &answer); err != nil {
		return fmt.Errorf("prepare Dagster's storage: its answer %q: %w", out, err)
	}
	for _, run := range answer.Ended {
		s.out.line("  ended  run %s, which was going on when the stack before was stopped", run)
		s.deaths.closeRun(run, "stepfleet dev was stopped while this run was going on")
	}
	return nil
}

// startCodeServers starts one server for each code location. What is wrong with the user's code is
// Dagster's to show: it is loaded lazily, so that the server comes up in any case.
func (s *Stack) startCodeServers() ([]*supervise.Process, error) {
	var all []*supervise.Process
	for i, target := range s.targets {
		port := s.ports.code[i]
		name := fmt.Sprintf("code-%d", i+1)
		p, err := s.start(supervise.Spec{
			Name: name,
			Command: s.command(name, s.ofDagster, s.config.Python, "-u", "-m", "dagster", "api", "grpc",
				"--lazy-load-user-code", "--use-python-environment-entry-point",
				"--host", "127.0.0.1", "--port", strconv.Itoa(port), "--location-name", target.Name,
				"--working-directory", s.config.Project, target.Flag, target.Code),
			Ready: supervise.TCP(loopback(port)),
			// The run workers it started may go on when it dies.
			KeepGroup: true,
		})
		if err != nil {
			return nil, err
		}
		s.stopFirst(p)
		all = append(all, p)
	}
	return all, nil
}

func (s *Stack) startWebserver() (*supervise.Process, error) {
	p, err := s.start(supervise.Spec{
		Name: "webserver",
		Command: s.command("webserver", s.ofDagster, s.config.Python, "-u", "-m", "dagster_webserver",
			"--host", "127.0.0.1", "--port", strconv.Itoa(s.ports.dagster), "--workspace", s.layout.Workspace()),
		Ready: supervise.HTTP(s.dagsterURL() + "/server_info"),
	})
	if err == nil {
		s.stopFirst(p)
	}
	return p, err
}

func (s *Stack) startDaemon() (*supervise.Process, error) {
	client := dagsterapi.New(s.dagsterURL())
	began := time.Now()
	p, err := s.start(supervise.Spec{
		Name:    "daemon",
		Command: s.command("daemon", s.ofDagster, s.config.Python, "-u", "-m", "dagster._daemon", "run", "--workspace", s.layout.Workspace()),
		Ready:   func(ctx context.Context) error { return client.DaemonBeats(ctx, began) },
	})
	if err == nil {
		s.stopFirst(p)
	}
	return p, err
}

// sayLocations says which code locations loaded, and why others did not. Only its own error, or the
// context's, is one for the start: the user mends the code while the stack runs.
func (s *Stack) sayLocations(ctx context.Context) error {
	locations, err := dagsterapi.New(s.dagsterURL()).Locations(ctx)
	if err != nil {
		return fmt.Errorf("ask Dagster for its code locations: %w", err)
	}
	for _, location := range locations {
		if location.Error == "" {
			s.out.line("  ready  code location %s: %d jobs", location.Name, len(location.Jobs))
			continue
		}
		s.out.line("  WAIT   code location %s did not load; mend it and press Reload in the UI:\n%s", location.Name, location.Error)
	}
	return nil
}
