// Command sqs measures the local SQS beside other servers that speak SQS, in one run on this
// machine, with the AWS SDK for Go over loopback: `make bench-sqs`, or
//
//	go run ./bench/sqs --quick --servers ours --out .cache/sqs    does it work? seconds, and nothing is judged
//	go run ./bench/sqs --show bench/results/sqs.json    page, picture and verdicts again
//
// It writes PREFIX.json (every sample), PREFIX.md and PREFIX.svg, prints the page, and exits with
// 1 when a bar is missed, when our own server could not be measured, or when a bar could not be judged
// although all servers were asked for.
//
// Where to read: plan.go has the sizes of everything, contender.go what is measured and how it is
// started, server.go a running process and what the kernel says of it. load.go is the closed loop,
// cycle.go, poll.go and memory.go measure the other quantities; bench.go puts them in order.
// result.go is what was measured, judge.go the bars, page.go and picture.go show both.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
)

// clientGC lets the client collect garbage more seldom than usual: it shares the CPUs with what is
// measured, and the less it takes the more a rate says of the server.
const clientGC = 400

func main() {
	debug.SetGCPercent(clientGC)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

var (
	errMissed     = errors.New("a bar is missed")
	errUnmeasured = errors.New("a bar was not measured")
)

// resultsDir is where results are published.
const resultsDir = "bench/results"

type options struct {
	plan    plan
	servers []string
	places  places
	prefix  string
	show    string
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err == nil {
		err = o.run(ctx, stdout, stderr)
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench-sqs:", err)
		return 1
	}
	return 0
}

func parse(args []string, stderr io.Writer) (options, error) {
	o := options{}
	f := flag.NewFlagSet("bench-sqs", flag.ContinueOnError)
	f.SetOutput(stderr)
	quick := f.Bool("quick", false, "everything small and once, in seconds; bars are told and not judged")
	repetitions := f.Int("repetitions", 3, "how often each load is measured, in turn with the other servers; medians count")
	servers := f.String("servers", "ours,goaws,elasticmq,moto", "what to measure")
	f.StringVar(&o.places.stepfleet, "stepfleet", "bin/stepfleet", "our binary")
	f.StringVar(&o.places.goaws, "goaws", ".cache/bin/goaws-"+goawsVersion, "goaws's binary")
	f.StringVar(&o.places.elasticmq, "elasticmq", ".cache/elasticmq-"+elasticmqVersion+".classpath", "a file with the class path of ElasticMQ's server")
	f.StringVar(&o.places.moto, "moto", ".venv/bin/moto_server", "moto's server")
	f.StringVar(&o.prefix, "out", resultsDir+"/sqs", "where results go, without the ending")
	f.StringVar(&o.show, "show", "", "make page and picture again of this result, and measure nothing")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.plan = fullPlan()
	if *quick {
		o.plan = quickPlan()
	} else {
		o.plan.Repetitions = *repetitions
	}
	o.servers = strings.Split(*servers, ",")
	for _, name := range o.servers {
		if !slices.Contains(allServers, name) {
			return o, fmt.Errorf("no server %q; there are %s", name, strings.Join(allServers, ", "))
		}
	}
	return o, nil
}

func (o options) run(ctx context.Context, stdout, stderr io.Writer) error {
	if err := o.mayPublish(ctx); err != nil {
		return err
	}
	r, err := o.result(ctx, stderr)
	if err != nil {
		return err
	}
	if err := o.write(r); err != nil {
		return err
	}
	fmt.Fprint(stdout, page(r, filepath.Base(o.prefix)+".svg"))
	if r.Plan.Quick {
		return nil
	}
	return r.met()
}

// met returns an error when a bar is missed, or could not be judged although all servers were to be
// measured.
func (r *result) met() error {
	all := len(r.Servers) == len(allServers)
	for _, v := range judge(r) {
		switch {
		case v.word == fail:
			return errMissed
		case v.word == notMeasured && all:
			return fmt.Errorf("%w: %s: %s", errUnmeasured, v.quantity, v.detail)
		}
	}
	return nil
}

// mayPublish refuses to put in the place of published results what is no whole run of a commit.
func (o options) mayPublish(ctx context.Context) error {
	if o.show != "" || filepath.Dir(filepath.Clean(o.prefix)) != resultsDir {
		return nil
	}
	const elsewhere = ": name another place, such as --out .cache/sqs"
	switch {
	case o.plan.Quick || o.plan.Repetitions < fullPlan().Repetitions || len(o.servers) < len(allServers):
		return errors.New("only a whole run with all servers is published" + elsewhere)
	case isDirty(ctx):
		return errors.New("only a run of a commit is published, and the working tree has changes" + elsewhere)
	}
	return nil
}

func (o options) result(ctx context.Context, stderr io.Writer) (*result, error) {
	if o.show != "" {
		return readResult(o.show)
	}
	b := &bench{plan: o.plan, contenders: o.places.contenders(o.servers), progress: stderr}
	return b.run(ctx)
}

// write replaces the three files of the result.
func (o options) write(r *result) error {
	raw, err := r.encode()
	if err != nil {
		return err
	}
	files := map[string][]byte{
		".json": raw, ".md": []byte(page(r, filepath.Base(o.prefix)+".svg")), ".svg": []byte(picture(r)),
	}
	for ending, content := range files {
		if err := os.WriteFile(o.prefix+ending, content, 0o644); err != nil {
			return fmt.Errorf("write the result: %w", err)
		}
	}
	return nil
}
