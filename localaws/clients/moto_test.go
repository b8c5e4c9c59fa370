package clients_test

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestMoto plays the scenarios with boto3 against moto's server. Where moto answers otherwise than
// the scenarios say, moto.md has a row with the reason; a difference without one, and a row without
// a difference, fail.
func TestMoto(t *testing.T) {
	moto := python()
	if missing := noModule(moto, "moto.server"); !everything {
		t.Skip("runs in make test-aws")
	} else if missing != "" {
		t.Fatalf("%s; install it: make setup", missing)
	}
	endpoint := startMoto(t, moto)
	rows := explanations(t)
	for _, s := range scenarios(t) {
		if s.movesClock() {
			continue // moto's clock is the system's
		}
		// A client for each scenario: one may die of an answer that it does not understand.
		r := newRunner(startPipe(t, endpoint, moto, "boto3_client.py"), endpoint)
		differences, err := r.play(s)
		if err != nil {
			differences = append(differences, difference{"end", "client", lastLine(err.Error())})
		}
		for _, d := range differences {
			if !explain(rows, s.Name, d) {
				t.Errorf("not explained in moto.md:\n| %s | %s | %s | ? | %s |", s.Name, d.step, d.path, d.what)
			}
		}
	}
	for _, row := range rows {
		if !row.used {
			t.Errorf("moto.md explains what is no difference: %s, %s, %s", row.scenario, row.step, row.path)
		}
	}
}

var listening = regexp.MustCompile(`Running on (http://127\.0\.0\.1:\d+)`)

// startMoto starts a server, and returns its endpoint once it listens.
func startMoto(t *testing.T, python string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), python, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0")
	cmd.Env = cleanEnviron()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	rest := make(chan struct{})
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-rest
		_ = cmd.Wait()
	})
	reader := bufio.NewReader(stderr)
	defer func() {
		go func() {
			_, _ = io.Copy(io.Discard, reader)
			close(rest)
		}()
	}()
	var said strings.Builder
	for {
		line, err := reader.ReadString('\n')
		said.WriteString(line)
		if found := listening.FindStringSubmatch(line); found != nil {
			return found[1]
		}
		if err != nil {
			t.Fatalf("moto did not start: %v\n%s", err, said.String())
		}
	}
}

// explanation is a row of moto.md. A path that ends in * stands for all that begin so.
type explanation struct {
	scenario, step, path string
	used                 bool
}

func explanations(t *testing.T) []*explanation {
	t.Helper()
	text, err := os.ReadFile("moto.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows []*explanation
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if !strings.HasPrefix(line, "|") || len(cells) != 5 || strings.HasPrefix(cells[0], "---") || strings.TrimSpace(cells[0]) == "scenario" {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch cells[3] {
		case "localaws", "moto", "neither":
		default:
			t.Errorf("moto.md: %q: AWS is as localaws, moto or neither", strings.TrimSpace(line))
		}
		if cells[4] == "" {
			t.Errorf("moto.md: %q gives no reason", strings.TrimSpace(line))
		}
		rows = append(rows, &explanation{scenario: cells[0], step: cells[1], path: cells[2]})
	}
	return rows
}

func explain(rows []*explanation, scenario string, d difference) bool {
	for _, row := range rows {
		prefix, isPrefix := strings.CutSuffix(row.path, "*")
		if row.scenario == scenario && row.step == d.step && (row.path == d.path || isPrefix && strings.HasPrefix(d.path, prefix)) {
			row.used = true
			return true
		}
	}
	return false
}
