package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	goawsVersion     = "v0.5.4"
	elasticmqVersion = "1.7.1"
)

// ours is the server that the bars are about; the others are its peers.
const ours = "ours"

var allServers = []string{ours, "goaws", "elasticmq", "moto"}

// contender is a server that can be started on a port.
type contender struct {
	name, version string
	// command returns what to run; dir is a directory for its files. An error says what is missing
	// and how to get it.
	command func(port int, dir string) (argv []string, err error)
	// silentBatches is whether a batch is answered without saying what was sent, so that one counts
	// when nothing failed.
	silentBatches bool
	// flat is whether the cycle with large backlogs is within its reach.
	flat bool
	// env is added to the environment.
	env []string
}

// places are where the servers are.
type places struct{ stepfleet, goaws, elasticmq, moto string }

// contenders returns those of the names, in the order in which they are measured.
func (p places) contenders(names []string) []contender {
	all := []contender{
		{name: ours, version: "this commit", command: p.ours, flat: true},
		{name: "goaws", version: goawsVersion, command: p.goawsCommand, flat: true, silentBatches: true},
		{name: "elasticmq", version: elasticmqVersion, command: p.elasticmqCommand, flat: true},
		{name: "moto", version: "of python/requirements.lock", command: p.motoCommand},
	}
	return slices.DeleteFunc(all, func(c contender) bool { return !slices.Contains(names, c.name) })
}

func (p places) ours(port int, _ string) ([]string, error) {
	if _, err := os.Stat(p.stepfleet); err != nil {
		return nil, fmt.Errorf("%s is not there: run `make build`", p.stepfleet)
	}
	return []string{p.stepfleet, "--log-level", "warn", "aws", "--listen", "127.0.0.1:" + strconv.Itoa(port)}, nil
}

const howToInstall = "run `scripts/bench-peers`, which says what it needs"

func (p places) goawsCommand(port int, dir string) ([]string, error) {
	if _, err := os.Stat(p.goaws); err != nil {
		return nil, fmt.Errorf("%s is not there: %s", p.goaws, howToInstall)
	}
	config := filepath.Join(dir, "goaws.yaml")
	text := fmt.Sprintf("Local:\n  Host: 127.0.0.1\n  Port: %d\n  Region: %s\n  AccountId: \"000000000000\"\n", port, region)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return []string{p.goaws, "-config", config, "-listen", "127.0.0.1:" + strconv.Itoa(port)}, nil
}

func (p places) elasticmqCommand(port int, _ string) ([]string, error) {
	java, err := exec.LookPath("java")
	if err != nil {
		return nil, fmt.Errorf("no java: install Debian's default-jre-headless and maven, then %s", howToInstall)
	}
	classes, err := os.ReadFile(p.elasticmq)
	if err != nil {
		return nil, fmt.Errorf("%s is not there: %s", p.elasticmq, howToInstall)
	}
	return []string{
		java, "-Drest-sqs.bind-hostname=127.0.0.1", fmt.Sprintf("-Drest-sqs.bind-port=%d", port),
		"-Dnode-address.host=127.0.0.1", fmt.Sprintf("-Dnode-address.port=%d", port), "-Drest-stats.enabled=false",
		"-cp", strings.TrimSpace(string(classes)), "org.elasticmq.server.Main",
	}, nil
}

func (p places) motoCommand(port int, _ string) ([]string, error) {
	path := p.moto
	if _, err := os.Stat(path); err != nil {
		if path, err = exec.LookPath("moto_server"); err != nil {
			return nil, fmt.Errorf("%s is not there: run `make setup`", p.moto)
		}
	}
	return []string{path, "-H", "127.0.0.1", "-p", strconv.Itoa(port)}, nil
}
