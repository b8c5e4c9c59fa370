package pglocal_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/stepfleet/stepfleet/internal/pglocal"
)

// parentDir in the environment turns the test binary into a parent that starts a server there,
// prints its port and pid, and waits to be killed.
const parentDir = "PGLOCAL_TEST_PARENT_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(parentDir); dir != "" {
		s, err := pglocal.Start(context.Background(), pglocal.Config{Dir: dir})
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println("up", s.Port(), s.PID())
		select {}
	}
	goleak.VerifyTestMain(m)
}

// dir is a directory that the server's user can enter; t.TempDir is closed to others.
func dir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "pglocal-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(d, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

func start(t *testing.T, cfg pglocal.Config) *pglocal.Server {
	t.Helper()
	s, err := pglocal.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(context.Background()) })
	return s
}

func query(t *testing.T, dsn, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var out string
	if err := conn.QueryRow(t.Context(), sql).Scan(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestStartStopStart(t *testing.T) {
	d := dir(t)
	s := start(t, pglocal.Config{Dir: d})
	for range 2 { // making it again is no error
		if err := s.CreateDatabase(t.Context(), "fleet"); err != nil {
			t.Fatal(err)
		}
	}
	if got := query(t, s.DSN("fleet"), "SELECT current_setting('fsync') || current_setting('max_connections')"); got != "on300" {
		t.Errorf("settings: %s", got)
	}
	if info, err := os.Stat(filepath.Join(d, "password")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("password file: %v %v", info, err)
	}
	if _, err := pgx.Connect(t.Context(), strings.Replace(s.DSN("fleet"), "stepfleet:", "stepfleet:x", 1)); err == nil {
		t.Error("a wrong password was let in")
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	again := start(t, pglocal.Config{Dir: d})
	query(t, again.DSN("fleet"), "SELECT 'kept'")
}

func TestSecondServerOnOneDirectory(t *testing.T) {
	d := dir(t)
	start(t, pglocal.Config{Dir: d})
	_, err := pglocal.Start(t.Context(), pglocal.Config{Dir: d})
	if err == nil || !strings.Contains(err.Error(), "another PostgreSQL") {
		t.Errorf("got %v", err)
	}
}

func TestTakenPort(t *testing.T) {
	s := start(t, pglocal.Config{Dir: dir(t)})
	_, err := pglocal.Start(t.Context(), pglocal.Config{Dir: dir(t), Port: s.Port()})
	if err == nil || !strings.Contains(err.Error(), "is taken") {
		t.Errorf("got %v", err)
	}
}

func TestRecoversAfterKill(t *testing.T) {
	d := dir(t)
	s := start(t, pglocal.Config{Dir: d})
	query(t, s.DSN("postgres"), "SELECT 'x'")
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(); err == nil {
		t.Error("Wait says that a killed server ended well")
	}
	again := start(t, pglocal.Config{Dir: d})
	query(t, again.DSN("postgres"), "SELECT 'x'")
}

func TestServerDiesWithItsKilledParent(t *testing.T) {
	d := dir(t)
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentDir+"="+d)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	fields := strings.Fields(line)
	if len(fields) != 3 || fields[0] != "up" {
		t.Fatalf("parent says %q", line)
	}
	pid, _ := strconv.Atoi(fields[2])
	parent.Process.Kill()
	parent.Wait()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the server outlived its parent by 15 s")
		}
	}
	s := start(t, pglocal.Config{Dir: d})
	query(t, s.DSN("postgres"), "SELECT 'x'")
}

func TestDirectoryThatTheServerCannotEnter(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root switches user")
	}
	closed := dir(t)
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := pglocal.Start(t.Context(), pglocal.Config{Dir: filepath.Join(closed, "pg")})
	if err == nil || !strings.Contains(err.Error(), "may not enter "+closed) {
		t.Errorf("got %v", err)
	}
}

func TestWheel(t *testing.T) {
	t.Setenv("STEPFLEET_PG", "wheel")
	inst, err := pglocal.Find(pglocal.FindOptions{})
	if err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("no wheel here: %v", err)
		}
		t.Fatal(err)
	}
	s := start(t, pglocal.Config{Dir: dir(t), BinDir: inst.BinDir})
	if got := query(t, s.DSN("postgres"), "SHOW server_version"); !strings.HasPrefix(got, strconv.Itoa(inst.Major)) {
		t.Errorf("version %s, programs of %d", got, inst.Major)
	}
}

// Each user gets into its own database, with what an earlier owner has left there, and into no other.
func TestUsersAndTheirDatabases(t *testing.T) {
	d := dir(t)
	s := start(t, pglocal.Config{Dir: d})
	for _, name := range []string{"theirs", "ours"} {
		if err := s.CreateDatabase(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := pgx.Connect(t.Context(), s.DSN("theirs"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "CREATE TABLE old (a serial)"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // making it again is no error
		for login, group := range map[string]string{"they": "", "we": "people"} {
			if err := s.CreateLogin(t.Context(), login, group); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(s.Own(t.Context(), "theirs", "they"), s.Restrict(t.Context(), "theirs", "they"), s.Restrict(t.Context(), "ours", "we")); err != nil {
			t.Fatal(err)
		}
	}
	if got := query(t, s.LoginDSN("they", "theirs"), "INSERT INTO old DEFAULT VALUES RETURNING a || current_user"); got != "1they" {
		t.Errorf("the owner gets %q", got)
	}
	if got := query(t, s.LoginDSN("we", "ours"), "SELECT pg_has_role('people', 'member')::text"); got != "true" {
		t.Errorf("a member of the group: %s", got)
	}
	for login, database := range map[string]string{"they": "ours", "we": "theirs"} {
		if _, err := pgx.Connect(t.Context(), s.LoginDSN(login, database)); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("%s gets into %s: %v", login, database, err)
		}
	}
	before := s.LoginDSN("we", "ours")
	if before == s.LoginDSN("they", "ours") || strings.Contains(s.DSN("ours"), strings.Split(before, ":")[2][:48]) {
		t.Error("two users have one password")
	}
}
