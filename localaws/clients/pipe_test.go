package clients_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// pipe is a client in a program of its own: every line of its input is a call, every line of its
// output the answer. It ends when its input does.
type pipe struct {
	in      io.WriteCloser
	answers *bufio.Reader
	stderr  *strings.Builder
}

// startPipe starts a program, which gets the endpoint, the region and the account as its first
// arguments.
func startPipe(t *testing.T, endpoint, program, script string, more ...string) *pipe {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, append([]string{script, endpoint, region, account}, more...)...)
	cmd.Env = cleanEnviron()
	p := &pipe{stderr: &strings.Builder{}}
	cmd.Stderr = p.stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.in, p.answers = in, bufio.NewReaderSize(out, 1<<20)
	t.Cleanup(func() {
		_ = p.in.Close()
		_ = cmd.Wait()
	})
	return p
}

// cleanEnviron is the environment without what would send a client elsewhere.
func cleanEnviron() []string {
	env := []string{"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_EC2_METADATA_DISABLED=true"}
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "AWS_") && !strings.HasPrefix(strings.ToLower(entry), "http_proxy") {
			env = append(env, entry)
		}
	}
	return env
}

func (p *pipe) call(service, op string, in map[string]any) (answer, error) {
	line, err := json.Marshal(map[string]any{"service": service, "op": op, "in": in})
	if err != nil {
		return answer{}, err
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		return answer{}, fmt.Errorf("%w\n%s", err, p.stderr)
	}
	text, err := p.answers.ReadBytes('\n')
	if err != nil {
		return answer{}, fmt.Errorf("the client ended: %w\n%s", err, p.stderr)
	}
	var a answer
	err = json.Unmarshal(text, &a)
	return a, err
}
