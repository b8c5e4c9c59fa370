// Command withpostgres runs a command with a throwaway PostgreSQL:
//
//	withpostgres VARIABLE COMMAND [ARGUMENT ...]
//
// The command finds the address of an empty database in VARIABLE, as postgresql://... . The exit
// status is the command's. The server and its data are gone when the command has ended, also when
// this process is killed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/stepfleet/stepfleet/internal/pglocal"
)

const stopTimeout = 20 * time.Second

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: withpostgres VARIABLE COMMAND [ARGUMENT ...]")
		os.Exit(80)
	}
	status, err := run(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "withpostgres:", err)
		status = 1
	}
	os.Exit(status)
}

func run(variable string, command []string) (status int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := scratch()
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	server, err := pglocal.Start(ctx, pglocal.Config{Dir: dir, Python: os.Getenv("STEPFLEET_PYTHON")})
	if err != nil {
		return 0, err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		err = errors.Join(err, server.Stop(end))
	}()
	if err := server.CreateDatabase(ctx, "test"); err != nil {
		return 0, err
	}
	dsn := server.DSN("test")
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), variable+"=postgresql://"+dsn[strings.Index(dsn, "://")+3:])
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	runErr := cmd.Run()
	var exit *exec.ExitError
	if errors.As(runErr, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, runErr
}

// scratch makes the server's directory, in memory where possible: a sync is free there.
func scratch() (string, error) {
	dir, err := os.MkdirTemp("/dev/shm", "stepfleet-test-pg-")
	if err != nil {
		dir, err = os.MkdirTemp("", "stepfleet-test-pg-")
	}
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}
