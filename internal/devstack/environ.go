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
func (s *Stack) environ(process string, extra ...string) []string {
	own := []string{
		supervise.MarkVariable + "=" + s.id,
		"STEPFLEET_URL=" + s.serverURL(),
		"STEPFLEET_TOKEN_FILE=" + s.layout.TokenFile(),
		"DAGSTER_HOME=" + s.layout.DagsterHome(),
	}
	if dir := filepath.Dir(s.config.Python); dir != "." {
		own = append(own, "PATH="+dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	}
	own = append(own, extra...)
	if s.config.Environment != nil {
		own = append(own, s.config.Environment(process, s.endpoints())...)
	}
	return overlay(os.Environ(), own)
}

// plain is the environment of processes that have no business in any database.
func (s *Stack) plain(process string) []string { return s.environ(process) }

// ofDagster is that of Dagster's processes, ofServer that of the server, and ofWorker that of workers,
// whose step processes write into Dagster's database.
func (s *Stack) ofDagster(process string) []string { return s.environ(process, s.dagsterStorage()) }

func (s *Stack) ofServer(process string) []string {
	return s.withLedger(process, s.database().ServerURL,
		"STEPFLEET_DAGSTER_URL="+s.dagsterURL(), "STEPFLEET_DAGSTER_DSN_FILE="+s.layout.DagsterURLFile())
}

func (s *Stack) ofWorker(process string) []string {
	return s.withLedger(process, s.database().WorkerURL, s.dagsterStorage())
}

func (s *Stack) dagsterStorage() string { return dagsterURLVariable + "=" + s.database().DagsterURL }

// withLedger adds what server and workers need: the ledger, and where SQS is. Of AWS only SQS is
// redirected, and steps do not inherit that: they use AWS as the user's other processes do.
func (s *Stack) withLedger(process, url string, extra ...string) []string {
	aws := []string{"AWS_ENDPOINT_URL_SQS=" + s.awsURL()}
	if !hasAWSSettings() {
		// The SDK signs every request with something; the local SQS takes any signature.
		aws = append(aws, "AWS_ACCESS_KEY_ID=local", "AWS_SECRET_ACCESS_KEY=local")
		if os.Getenv("AWS_REGION") == "" {
			aws = append(aws, "AWS_REGION=us-east-1")
		}
	}
	var withheld []string
	for _, variable := range aws {
		name, _, _ := strings.Cut(variable, "=")
		withheld = append(withheld, name)
	}
	extra = append(append(aws, extra...),
		ledgerURLVariable+"="+url,
		"STEPFLEET_PREPARE=true", // there is no pooler in between
		"STEPFLEET_WITHHELD_ENV="+strings.Join(withheld, ","),
	)
	return s.environ(process, extra...)
}

// hasAWSSettings reports whether the user has settings of AWS that the SDK would find.
func hasAWSSettings() bool {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} {
		if os.Getenv(name) != "" {
			return true
		}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(home, ".aws"))
	return err == nil
}

// command makes every life of a child the same command, in the project's directory.
func (s *Stack) command(process string, environ func(string) []string, args ...string) func(int) supervise.Command {
	return func(int) supervise.Command {
		return supervise.Command{Args: args, Env: environ(process), Dir: s.config.Project}
	}
}

// dropped are variables of the user's shell that would contradict the stack.
var dropped = []string{ledgerURLVariable, dagsterURLVariable, "STEPFLEET_TOKEN"}

// overlay puts variables over an environment. Of two with one name among them, os/exec takes the last.
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
