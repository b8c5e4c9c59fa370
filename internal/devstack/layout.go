package devstack

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Layout is where a stack keeps what it keeps:
//
//	lock                 held while a stack runs here
//	dev.json             State: addresses, process ids; for tools and tests
//	postgres/            PostgreSQL's data
//	dagster_home/        dagster.yaml, workspace.yaml, compute logs, outputs
//	secrets/             the token and the two database URLs, mode 0600
//	logs/                one file a process; the run before in *.log.1
//	spool/               notes on logs of steps that were killed, until they are finished
type Layout struct{ Dir string }

func (l Layout) path(parts ...string) string {
	return filepath.Join(append([]string{l.Dir}, parts...)...)
}

// State returns the path of dev.json.
func (l Layout) State() string { return l.path("dev.json") }

// Postgres returns the directory of PostgreSQL's data.
func (l Layout) Postgres() string { return l.path("postgres") }

// DagsterHome returns DAGSTER_HOME.
func (l Layout) DagsterHome() string { return l.path("dagster_home") }

// Logs returns the directory of the processes' logs.
func (l Layout) Logs() string { return l.path("logs") }

// Log returns the log of one process.
func (l Layout) Log(name string) string { return l.path("logs", name+".log") }

// Spool returns the workers' --spool.
func (l Layout) Spool() string { return l.path("spool") }

// TokenFile returns the file with the server's token.
func (l Layout) TokenFile() string { return l.path("secrets", "token") }

// LedgerURLFile and DagsterURLFile return the files with the databases' URLs.
func (l Layout) LedgerURLFile() string  { return l.path("secrets", "ledger.dsn") }
func (l Layout) DagsterURLFile() string { return l.path("secrets", "dagster.dsn") }

// Lock takes the directory for this process. The kernel gives it back however the process ends.
func (l Layout) Lock() (*os.File, error) {
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("create %s: %w", l.Dir, err)
	}
	file, err := os.OpenFile(l.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", l.Dir, err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return file, nil
	}
	file.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("another `stepfleet dev` runs in %s (process %d): stop it, or give this one a directory of its own with --dir",
			l.Dir, l.leftover().PIDs["dev"])
	}
	return nil, fmt.Errorf("lock %s: %w", l.Dir, err)
}

// kept are the parts that --fresh forgets. Nothing else in the directory is ever removed.
var kept = []string{"postgres", "dagster_home", "secrets", "logs", "spool", "aws", "dev.json"}

// Create makes the directories, moves the logs of the run before aside, and returns the token.
func (l Layout) Create(fresh bool) (token string, err error) {
	if fresh {
		for _, part := range kept {
			if err := os.RemoveAll(l.path(part)); err != nil {
				return "", fmt.Errorf("forget %s: %w", l.path(part), err)
			}
		}
	}
	_ = os.Remove(l.State())
	for _, dir := range []string{"dagster_home", "secrets", "logs"} {
		if err := os.MkdirAll(l.path(dir), 0o700); err != nil {
			return "", fmt.Errorf("create %s: %w", l.path(dir), err)
		}
	}
	logs, _ := filepath.Glob(l.path("logs", "*.log"))
	for _, log := range logs {
		if err := os.Rename(log, log+".1"); err != nil {
			return "", fmt.Errorf("keep the log before: %w", err)
		}
	}
	return l.loadToken()
}

// loadToken returns the token of this directory, made at random once.
func (l Layout) loadToken() (string, error) {
	text, err := os.ReadFile(l.TokenFile())
	if token := strings.TrimSpace(string(text)); err == nil && token != "" {
		return token, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the token: %w", err)
	}
	token := rand.Text()
	return token, writeSecret(l.TokenFile(), token+"\n")
}

// writeSecret replaces a file in one step, readable for its owner only.
func writeSecret(path, text string) error {
	next := path + ".new"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// State is dev.json: what runs where. It is there while a stack runs, and after one was killed.
type State struct {
	V           int               `json:"v"`
	ID          string            `json:"id"`
	Ready       bool              `json:"ready"`
	StartedAt   time.Time         `json:"started_at"`
	URLs        map[string]string `json:"urls"`      // dagster, server, aws
	PIDs        map[string]int    `json:"pids"`      // by process name
	Instances   map[string]string `json:"instances"` // by worker name
	TokenFile   string            `json:"token_file"`
	LedgerURL   string            `json:"ledger_dsn_file"`
	DagsterURL  string            `json:"dagster_dsn_file"`
	DagsterHome string            `json:"dagster_home"`
	Logs        string            `json:"logs"`
}

// ReadState reads a stack's dev.json.
func ReadState(dir string) (State, error) {
	var state State
	text, err := os.ReadFile(Layout{dir}.State())
	if err != nil {
		return state, fmt.Errorf("read the state of stepfleet dev: %w", err)
	}
	if err := json.Unmarshal(text, &state); err != nil {
		return state, fmt.Errorf("read %s: %w", Layout{dir}.State(), err)
	}
	return state, nil
}

// leftover returns the state that an earlier stack has left here, empty when it was stopped properly.
func (l Layout) leftover() State {
	state, err := ReadState(l.Dir)
	if err != nil {
		return State{}
	}
	return state
}

// writeState writes dev.json as things stand.
func (s *Stack) writeState() {
	s.writing.Lock() // the later call writes the later state
	defer s.writing.Unlock()
	pids := s.supervisor.PIDs()
	pids["dev"] = os.Getpid()
	if s.warden != nil {
		pids["warden"] = s.warden.PID()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		pids["postgres"] = s.running.PID
	}
	state := State{
		V: 1, ID: s.id, Ready: s.ready, StartedAt: s.began, PIDs: pids, Instances: s.instances,
		URLs:        map[string]string{"dagster": s.dagsterURL(), "server": s.serverURL(), "aws": s.awsURL()},
		TokenFile:   s.layout.TokenFile(),
		LedgerURL:   s.layout.LedgerURLFile(),
		DagsterURL:  s.layout.DagsterURLFile(),
		DagsterHome: s.layout.DagsterHome(),
		Logs:        s.layout.Logs(),
	}
	text, err := json.MarshalIndent(state, "", "  ")
	if err == nil {
		err = writeSecret(s.layout.State(), string(text)+"\n")
	}
	if err != nil {
		s.log.Error("write dev.json", "error", err)
	}
}
