package devstack

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/stepfleet/stepfleet/internal/supervise"
)

// environ is what every child gets: the user's environment, which their code may need, with the
// stack's own variables over it. PATH begins with the interpreter's directory, as in an activated
// virtual environment.
func (s *Stack) environ(extra ...string) []string {
	own := []string{
		supervise.MarkVariable + "=" + s.id,
		"STEPFLEET_URL=" + s.serverURL(),
		"STEPFLEET_TOKEN_FILE=" + s.layout.TokenFile(),
		"AWS_ENDPOINT_URL=" + s.awsURL(),
		"DAGSTER_HOME=" + s.layout.DagsterHome(),
		"PYTHONUNBUFFERED=1",
	}
	if database := s.database(); database != nil { // not up yet for the local AWS, which does not need it
		own = append(own, dagsterURLVariable+"="+database.DagsterURL)
	}
	if dir := filepath.Dir(s.config.Python); dir != "." {
		own = append(own, "PATH="+dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	}
	if s.config.AWSEndpoint == "" {
		own = append(own, "AWS_REGION=us-east-1", "AWS_DEFAULT_REGION=us-east-1",
			"AWS_ACCESS_KEY_ID=local", "AWS_SECRET_ACCESS_KEY=local")
	}
	return overlay(os.Environ(), append(own, extra...))
}

// plain is the environment of processes that have no business in the ledger.
func (s *Stack) plain() []string { return s.environ() }

// withLedger adds the ledger's URL, for server and workers.
func (s *Stack) withLedger() []string {
	return s.environ(ledgerURLVariable + "=" + s.database().LedgerURL)
}

// command makes every life of a child the same command, in the project's directory.
func (s *Stack) command(environ func() []string, args ...string) func(int) supervise.Command {
	return func(int) supervise.Command {
		return supervise.Command{Args: args, Env: environ(), Dir: s.config.Project}
	}
}

// dropped are variables of the user's shell that would contradict the stack.
var dropped = []string{
	ledgerURLVariable, "STEPFLEET_TOKEN", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_SQS",
}

// overlay puts variables over an environment: of each name the last one stays.
func overlay(base, over []string) []string {
	replaced := slices.Clone(dropped)
	for _, variable := range over {
		name, _, _ := strings.Cut(variable, "=")
		replaced = append(replaced, name)
	}
	var result []string
	for _, variable := range base {
		name, _, _ := strings.Cut(variable, "=")
		if !slices.Contains(replaced, name) {
			result = append(result, variable)
		}
	}
	return append(result, over...)
}
