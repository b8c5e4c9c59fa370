// Package pglocal finds, starts and supervises a PostgreSQL on this machine, for `stepfleet dev`
// and for tests. A server it started listens on loopback only, asks for a password that was made
// for its directory, runs under an unprivileged user where its parent is root, and ends with its
// parent, also when that is killed.
//
// Layout of Config.Dir:
//
//	data/         the cluster
//	password      the superuser's password, readable by its owner only
//	postgres.log  what the server prints
package pglocal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Superuser is the database role that owns a cluster made here.
const Superuser = "stepfleet"

// How long things may take. A start after a crash replays the log first, so it gets longest.
const (
	startTimeout = 60 * time.Second
	stopTimeout  = 20 * time.Second
	pollInterval = 15 * time.Millisecond
)

// Config says where and how a server runs.
type Config struct {
	// Dir holds the cluster, see the package comment. It is made when absent.
	Dir string
	// Port on 127.0.0.1; 0 takes a free one.
	Port int
	// BinDir holds the server's programs; empty means Find.
	BinDir string
	// Python is asked for the PostgreSQL wheel when no system server is there.
	Python string
	// Settings are added to the server's command line (name to value).
	Settings map[string]string
	// Log hears of starts and unexpected ends; nil is quiet.
	Log *slog.Logger
}

// Server is a running PostgreSQL.
type Server struct {
	cfg      Config
	install  Install
	port     int
	password string
	proc     *process
}

// Start makes the cluster if the directory is new and runs the server on it until Stop, or until
// the calling process ends. It returns when the server answers.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	cfg.Dir = dir
	s := &Server{cfg: cfg}
	if err := s.start(ctx); err != nil {
		return nil, fmt.Errorf("start PostgreSQL in %s: %w", dir, err)
	}
	return s, nil
}

func (s *Server) start(ctx context.Context) error {
	owner, err := serverOwner()
	if err != nil {
		return err
	}
	if s.install, err = s.find(); err != nil {
		return err
	}
	if err := os.MkdirAll(s.cfg.Dir, 0o755); err != nil {
		return err
	}
	if err := owner.canReach(s.cfg.Dir); err != nil {
		return fmt.Errorf("%w: choose a directory that user %s can enter", err, owner.name)
	}
	if s.install, err = owner.reachable(s.install); err != nil {
		return err
	}
	if err := s.initdb(ctx, owner); err != nil {
		return err
	}
	if err := refuseLive(s.data()); err != nil {
		return err
	}
	return s.launch(ctx, owner)
}

// find takes the named programs, or looks for ones that fit the cluster that is already there.
func (s *Server) find() (Install, error) {
	major := clusterMajor(s.data())
	if s.cfg.BinDir != "" {
		inst, err := installAt(s.cfg.BinDir)
		if err == nil && major != 0 && inst.Major != major {
			err = fmt.Errorf("the cluster is of PostgreSQL %d, the programs in %s are of %d", major, inst.BinDir, inst.Major)
		}
		return inst, err
	}
	return Find(FindOptions{Python: s.cfg.Python, Major: major})
}

func (s *Server) data() string         { return filepath.Join(s.cfg.Dir, "data") }
func (s *Server) logFile() string      { return filepath.Join(s.cfg.Dir, "postgres.log") }
func (s *Server) passwordFile() string { return filepath.Join(s.cfg.Dir, "password") }

// clusterMajor is the major version of the cluster in dir, 0 when there is none.
func clusterMajor(dir string) int {
	raw, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
	return n
}

// initdb makes the cluster beside its place and moves it there, so that one which was
// interrupted is never mistaken for a whole one.
func (s *Server) initdb(ctx context.Context, owner owner) error {
	if clusterMajor(s.data()) != 0 {
		return s.readPassword()
	}
	secret := make([]byte, 24)
	if _, err := rand.Read(secret); err != nil {
		return err
	}
	s.password = hex.EncodeToString(secret)
	if err := os.WriteFile(s.passwordFile(), []byte(s.password+"\n"), 0o600); err != nil {
		return err
	}
	staging, err := os.MkdirTemp(s.cfg.Dir, "init-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(staging)
	pwfile := filepath.Join(staging, "pw")
	if err := os.WriteFile(pwfile, []byte(s.password+"\n"), 0o600); err != nil {
		return err
	}
	if err := errors.Join(owner.own(staging), owner.own(pwfile)); err != nil {
		return err
	}
	fresh := filepath.Join(staging, "data")
	cmd := exec.CommandContext(ctx, s.install.bin("initdb"), "-D", fresh, "-U", Superuser, "--pwfile", pwfile,
		"-A", "scram-sha-256", "-E", "UTF8", "--locale", "C", "--no-sync", "--no-instructions")
	cmd.Dir = staging
	owner.apply(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, strings.TrimSpace(string(out)))
	}
	// The cluster's own directory is new; a leftover without PG_VERSION is no cluster.
	if err := os.RemoveAll(s.data()); err != nil {
		return err
	}
	return os.Rename(fresh, s.data())
}

func (s *Server) readPassword() error {
	raw, err := os.ReadFile(s.passwordFile())
	if err != nil {
		return fmt.Errorf("the cluster's password is gone (%w): restore it, or delete the directory to begin anew", err)
	}
	s.password = strings.TrimSpace(string(raw))
	return nil
}

// refuseLive reports a server that already runs on the cluster. A pid file left by a kill is
// PostgreSQL's own business: it removes it.
func refuseLive(data string) error {
	pid, _ := readPidFile(data)
	if pid == 0 {
		return nil
	}
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	real, _ := filepath.EvalSymlinks(data)
	if err == nil && cwd == real {
		return fmt.Errorf("another PostgreSQL (pid %d) runs on this directory: stop it first", pid)
	}
	return nil
}

// readPidFile returns what postmaster.pid says: the server's pid and its status.
func readPidFile(data string) (pid int, status string) {
	raw, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return 0, ""
	}
	lines := strings.Split(string(raw), "\n")
	pid, _ = strconv.Atoi(strings.TrimSpace(lines[0]))
	if len(lines) > 7 {
		status = strings.TrimSpace(lines[7])
	}
	return pid, status
}

// launch runs the server. A free port can be lost between the choice and the bind, and backends
// of a killed server need a moment to notice: both deserve another try.
func (s *Server) launch(ctx context.Context, owner owner) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	const tries = 20
	for try := 1; ; try++ {
		if err := s.choosePort(); err != nil {
			return err
		}
		err := s.run(ctx, owner)
		if err == nil {
			s.cfg.Log.Info("PostgreSQL runs", "port", s.port, "major", s.install.Major, "dir", s.cfg.Dir)
			return nil
		}
		text := err.Error()
		passing := s.cfg.Port == 0 && strings.Contains(text, "ddress already in use") ||
			strings.Contains(text, "shared memory block")
		if !passing || try == tries || ctx.Err() != nil {
			return err
		}
		time.Sleep(pollInterval * time.Duration(try))
	}
}

func (s *Server) args() []string {
	args := []string{"-D", s.data(), "-p", strconv.Itoa(s.port), "-h", "127.0.0.1"}
	settings := map[string]string{
		"unix_socket_directories": "", // a socket's path would have to be short and private
		"max_connections":         "300",
		"shared_buffers":          "128MB",
		"password_encryption":     "scram-sha-256",
		"logging_collector":       "off",
	}
	for k, v := range s.cfg.Settings {
		settings[k] = v
	}
	for k, v := range settings {
		args = append(args, "-c", k+"="+v)
	}
	return args
}

func (s *Server) run(ctx context.Context, owner owner) error {
	logFile, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	before, err := logFile.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := exec.Command(s.install.bin("postgres"), s.args()...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.cfg.Dir, logFile, logFile
	owner.apply(cmd)
	if s.proc, err = startProcess(cmd); err != nil {
		return err
	}
	if err := s.awaitReady(ctx); err != nil {
		_ = s.Stop(context.WithoutCancel(ctx))
		return fmt.Errorf("%w: %s", err, logSince(s.logFile(), before))
	}
	return nil
}

func (s *Server) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if pid, status := readPidFile(s.data()); pid == s.proc.pid && status == "ready" {
			return nil
		}
		select {
		case <-s.proc.done:
			return fmt.Errorf("the server ended: %w", s.exitError())
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// logSince returns the end of what the server printed since offset, for an error message.
func logSince(path string, offset int64) string {
	raw, err := os.ReadFile(path)
	if err != nil || int64(len(raw)) < offset {
		return ""
	}
	raw = raw[offset:]
	const most = 2000
	if len(raw) > most {
		raw = raw[len(raw)-most:]
	}
	return strings.TrimSpace(string(raw))
}

// Port is where the server listens on 127.0.0.1.
func (s *Server) Port() int { return s.port }

// Version is the server's major version.
func (s *Server) Version() int { return s.install.Major }

// PID is the server's process.
func (s *Server) PID() int { return s.proc.pid }

// DSN is the address of a database of this server, with the superuser's password.
func (s *Server) DSN(database string) string { return s.dsn(Superuser, s.password, database) }

// LoginDSN is the address of a database for a user that CreateLogin has made.
func (s *Server) LoginDSN(login, database string) string {
	return s.dsn(login, s.passwordOf(login), database)
}

func (s *Server) dsn(user, password, database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(user, password),
		Host:     "127.0.0.1:" + strconv.Itoa(s.port),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// passwordOf makes a user's password out of the superuser's, so that it is the same at every start and
// only that one is kept.
func (s *Server) passwordOf(login string) string {
	return hex.EncodeToString(keyed([]byte(s.password), login)[:24])
}

// CreateDatabase makes the database unless it is there.
func (s *Server) CreateDatabase(ctx context.Context, name string) error {
	conn, err := pgx.Connect(ctx, s.DSN("postgres"))
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
	var pgErr *pgconn.PgError
	const duplicateDatabase, uniqueViolation = "42P04", "23505" // the second when two create it at once
	if errors.As(err, &pgErr) && (pgErr.Code == duplicateDatabase || pgErr.Code == uniqueViolation) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	return nil
}

// Done is closed when the server has ended, asked or not.
func (s *Server) Done() <-chan struct{} { return s.proc.done }

// Wait waits for the server's end and returns how it ended.
func (s *Server) Wait() error {
	<-s.proc.done
	return s.proc.err
}

func (s *Server) exitError() error {
	if s.proc.err != nil {
		return s.proc.err
	}
	return errors.New("exit status 0")
}

// Stop ends the server: fast (sessions are cut off, the log is flushed), and by force when that
// takes too long or ctx ends. It returns when the process is gone.
func (s *Server) Stop(ctx context.Context) error {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL} {
		s.proc.signal(sig)
		wait := time.NewTimer(stopTimeout)
		select {
		case <-s.proc.done:
			wait.Stop()
			return nil
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			ctx = context.WithoutCancel(ctx)
		}
	}
	<-s.proc.done
	return nil
}
