package pgrelay_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet/internal/pgrelay"
	"github.com/stepfleet/stepfleet/internal/testenv"
)

// shortDir is a directory whose name leaves room for a socket's path.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "relay")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// serve is a relay below the directory, and what ends it.
func serve(t *testing.T, parent string) (r *pgrelay.Relay, end func()) {
	t.Helper()
	r, err := pgrelay.Listen(pgrelay.Config{Parent: parent, MayWrite: always, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return r, func() {
		t.Helper()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the relay does not end")
		}
	}
}

// Workers in containers are often process 1 each, and may share a directory.
func TestRelaysOfOneProcessNumberLeaveEachOtherAlone(t *testing.T) {
	dsn := testenv.Postgres(t)
	parent := shortDir(t)
	first, endFirst := serve(t, parent)
	defer endFirst()
	second, endSecond := serve(t, parent)
	if first.Dir() == second.Dir() {
		t.Fatal("both have the same directory")
	}
	hangUp(t, mustDial(t, first, dsn))
	hangUp(t, mustDial(t, second, dsn))
	endSecond()
	hangUp(t, mustDial(t, first, dsn))
}

func TestWhatAKilledRelayHasLeftIsSweptUp(t *testing.T) {
	parent := shortDir(t)
	left := filepath.Join(parent, "pg-123")
	if err := os.Mkdir(left, 0o700); err != nil {
		t.Fatal(err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(left, ".s.PGSQL.5432")})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	listener.Close()
	_, end := serve(t, parent)
	defer end()
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", left, err)
	}
}

func TestALongPathIsNoHindrance(t *testing.T) {
	dsn := testenv.Postgres(t)
	r, end := serve(t, filepath.Join(shortDir(t), strings.Repeat("long/", 30)))
	hangUp(t, mustDial(t, r, dsn))
	end()
	if _, err := os.Stat(r.Dir()); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", r.Dir(), err)
	}
}

func TestARelayEndsWhileAStatementRuns(t *testing.T) {
	dsn := testenv.Postgres(t)
	r, end := serve(t, shortDir(t))
	conn := mustDial(t, r, dsn)
	backend := pid(t, conn)
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), "SELECT pg_sleep(600)")
		ended <- err
	}()
	await(t, direct(t, dsn), backend, "state = 'active'", 1)
	end()
	if err := <-ended; err == nil {
		t.Error("the statement has ended well")
	}
}

func TestWhatWaitsBesideADeadConnectionIsNotAskedOneByOne(t *testing.T) {
	dsn := testenv.Postgres(t)
	r, end := serve(t, shortDir(t))
	defer end()
	older, newer := mustDial(t, r, dsn), mustDial(t, r, dsn)
	olderPID, newerPID := pid(t, older), pid(t, newer)
	watcher := direct(t, dsn)
	hangUp(t, older)
	await(t, watcher, olderPID, "query = 'DISCARD ALL' AND state = 'idle'", 1)
	hangUp(t, newer)
	await(t, watcher, newerPID, "query = 'DISCARD ALL' AND state = 'idle'", 1)
	if _, err := watcher.Exec(t.Context(), "SELECT pg_terminate_backend($1)", newerPID); err != nil {
		t.Fatal(err)
	}
	await(t, watcher, newerPID, "true", 0)
	hangUp(t, mustDial(t, r, dsn))
	await(t, watcher, olderPID, "true", 0)
}
