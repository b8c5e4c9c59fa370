// Command stepfleet is the execution plane for Dagster: one binary with every role.
//
// On a laptop:
//
//	stepfleet dev -m my_project.definitions   the whole stack, supervised; Ctrl-C stops it
//	stepfleet demo                            the example jobs, a killed worker, and a verdict
//
// In a deployment, each as its own service:
//
//	stepfleet migrate   brings the ledger's schema up to this binary
//	stepfleet server    intake, bells, streams, sweep
//	stepfleet worker    claims tasks and runs them in warm Python processes
//	stepfleet aws       a local SQS, where there is no AWS
//
// For people, on any ledger:
//
//	stepfleet verify             holds what happened against what stepfleet promises
//	stepfleet task explain KEY   tells one task's life in words
//
// Every setting is a flag and an environment variable; `stepfleet COMMAND --help` names both.
// Secrets are read from the environment or from files only. The exit status is 0 when what was
// asked for was done, 1 when it could not be, 5 when a verdict is FAIL, and 80 for a command line
// that does not parse.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// version is set at build time.
var version = "dev"

type cli struct {
	LogLevel  string `help:"Least level that is logged: debug, info, warn or error." enum:"debug,info,warn,error" default:"info" env:"STEPFLEET_LOG_LEVEL"`
	LogFormat string `help:"Log lines as text or json." enum:"text,json" default:"text" env:"STEPFLEET_LOG_FORMAT"`

	Dev     devCmd           `cmd:"" help:"Start the whole stack on this machine: PostgreSQL, local SQS, server, workers and Dagster."`
	Demo    demoCmd          `cmd:"" help:"Run the example jobs on a stack of their own, kill a worker, and verify."`
	Server  serverCmd        `cmd:"" help:"Run the server: intake, bells, streams, sweep."`
	Worker  workerCmd        `cmd:"" help:"Run a worker: claim tasks and run them in warm Python processes."`
	Migrate migrateCmd       `cmd:"" help:"Bring the ledger's schema up to this binary."`
	Verify  verifyCmd        `cmd:"" help:"Verify a window of history, or runs: from the ledger, its audit and Dagster's log."`
	Task    taskCmd          `cmd:"" help:"Look at one task."`
	AWS     awsCmd           `cmd:"" name:"aws" help:"Run a local SQS."`
	Warden  wardenCmd        `cmd:"" hidden:"" help:"Clean up after a stack whose supervisor was killed."`
	Version kong.VersionFlag `help:"Print the version and exit."`
}

// globals is what every command gets.
type globals struct {
	ctx            context.Context
	log            *slog.Logger
	stdout, stderr io.Writer
}

// exitCode is an error that carries the process's exit status.
type exitCode struct {
	code int
	err  error
}

func (e *exitCode) Error() string { return e.err.Error() }
func (e *exitCode) Unwrap() error { return e.err }

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	var c cli
	parser, err := kong.New(&c,
		kong.Name("stepfleet"),
		kong.Description("The execution plane for Dagster."),
		kong.Vars{"version": version},
		kong.UsageOnError(),
		kong.Writers(stdout, stderr),
	)
	if err != nil {
		panic(err) // the struct above is wrong
	}
	command, err := parser.Parse(args)
	parser.FatalIfErrorf(err)

	ctx, stop := untilSignalled()
	defer stop()
	g := &globals{ctx: ctx, log: logger(c, stderr), stdout: stdout, stderr: stderr}
	err = command.Run(g)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "stepfleet: %v\n", err)
	var exit *exitCode
	if errors.As(err, &exit) {
		return exit.code
	}
	return 1
}

// untilSignalled returns a context that the first SIGTERM or SIGINT ends: it asks for an orderly stop. A
// second one is not caught and ends the process, however soon it comes; only a worker catches it, too.
func untilSignalled() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
		case <-ctx.Done():
		}
		cancel()
		signal.Stop(signals)
		select {
		case again := <-signals: // it came before the first was let go of
			_ = syscall.Kill(os.Getpid(), again.(syscall.Signal))
		default:
		}
	}()
	return ctx, cancel
}

func logger(c cli, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(strings.ToUpper(c.LogLevel))); err != nil {
		panic(err) // kong has checked the enum
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
