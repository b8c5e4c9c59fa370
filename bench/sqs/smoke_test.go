package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/stepfleet/stepfleet/localaws"
)

// serveEnv makes this test's binary the server under measurement, on the address it holds.
const serveEnv = "STEPFLEET_BENCH_SQS_SERVE"

func TestMain(m *testing.M) {
	if addr := os.Getenv(serveEnv); addr != "" {
		if err := localaws.Run(context.Background(), localaws.Config{Addr: addr}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// served is our server without a built binary of the product.
func served(t *testing.T) contender {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return contender{name: ours, version: "test", flat: true, command: func(port int, _ string) ([]string, error) {
		return []string{"/usr/bin/env", fmt.Sprintf("%s=127.0.0.1:%d", serveEnv, port), self}, nil
	}}
}

func TestAQuickRunMeasuresEverythingOfOurs(t *testing.T) {
	b := &bench{plan: quickPlan(), contenders: []contender{served(t)}, progress: t.Output()}
	r, err := b.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{standard, fifo} {
		for _, op := range ops {
			if c := r.cell(ours, kind, op); c.reason != "" || c.Rate <= 0 {
				t.Errorf("%s, %s: %.0f/s, %s", kind, op, c.Rate, c.reason)
			}
		}
	}
	for _, name := range figureNames() {
		f := r.figure(ours, name)
		if f.Error != "" {
			t.Errorf("%s: %s", name, f.Error)
		}
		if strings.Contains(f.Note, "EARLY") || strings.Contains(f.Note, "no more were sent") {
			t.Errorf("%s: %s", name, f.Note)
		}
	}
	rereadTheResult(t, r)
}

// rereadTheResult writes the result's files, and makes the page of the JSON again.
func rereadTheResult(t *testing.T, r *result) {
	t.Helper()
	o := options{prefix: filepath.Join(t.TempDir(), "sqs")}
	if err := o.write(r); err != nil {
		t.Fatal(err)
	}
	again, err := readResult(o.prefix + ".json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(page(r, "sqs.svg"), page(again, "sqs.svg")); diff != "" {
		t.Errorf("the page of the result file is another one (-run +file):\n%s", diff)
	}
	if len(again.Stages) != len(r.Stages) || len(again.Figures) != len(r.Figures) {
		t.Errorf("the file has %d stages and %d figures, want %d and %d", len(again.Stages), len(again.Figures), len(r.Stages), len(r.Figures))
	}
}

func TestAServerThatCannotBeStarted(t *testing.T) {
	missing := contender{name: "goaws", command: places{goaws: "nowhere"}.goawsCommand}
	ends := contender{name: "moto", command: func(int, string) ([]string, error) {
		return []string{"/bin/sh", "-c", "echo out of coffee >&2"}, nil
	}}
	for c, want := range map[*contender]string{&missing: "scripts/bench-peers", &ends: "out of coffee"} {
		s, err := start(t.Context(), *c)
		if err == nil {
			s.kill()
			t.Errorf("%s started", c.name)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: the error %q does not say %q", c.name, err, want)
		}
	}
}
