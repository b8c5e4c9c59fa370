//go:build linux && failpoint

package failpoints

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/failpoint"
	"github.com/stepfleet/stepfleet/internal/proctable"
	"github.com/stepfleet/stepfleet/internal/testenv"
	"github.com/stepfleet/stepfleet/localaws"
)

// Deadlines of the worker. The server's own bound only its heartbeats: a session expires by the worker's.
var lifetimes = stepfleet.Lifetimes{
	Renew: 250 * time.Millisecond, SessionTTL: time.Second, RunLease: 2500 * time.Millisecond, Margin: 200 * time.Millisecond,
	StartWithin: time.Minute,
}

const (
	slots        = 2
	drainTimeout = 400 * time.Millisecond
	caseTimeout  = 60 * time.Second // of one case, with everything that heals in it
	// serverPause is longer than any gap between the heartbeats of a server that may expire sessions.
	serverPause = 2 * time.Second
	// workerPause is how long a worker without a session is paused, and outlastMax one with a session: that
	// is paused until the server has found it dead.
	workerPause = 3 * time.Second
	outlastMax  = 10 * time.Second
	pollEvery   = 20 * time.Millisecond
)

const eventLogs = `
CREATE TABLE event_logs (id serial PRIMARY KEY, run_id text NOT NULL, step_key text,
    dagster_event_type text, event text NOT NULL DEFAULT '',
    timestamp timestamp NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC'));
CREATE INDEX idx_events_by_run_id ON event_logs (run_id, id)`

const insertEvent = `INSERT INTO event_logs (run_id, step_key, dagster_event_type) VALUES ($1, $2, $3)`

// stack is what one case runs on.
type stack struct {
	*testing.T
	ctx     context.Context
	dir     string
	dsn     string
	db      *pgxpool.Pool
	aws     *localaws.AWS
	address string // of the server

	server, worker *role
	spare          *role // a worker that is started when the other one stands still
	failing        *role // the one that has the failpoint
	action         string

	hit    chan struct{} // closed when the process has come to the point
	healed chan struct{} // closed when it has been started or woken again
	whole  time.Time     // when that was
}

func newStack(t *testing.T, process, point, action string) *stack {
	ctx, cancel := context.WithTimeout(t.Context(), caseTimeout)
	t.Cleanup(cancel)
	s := &stack{
		T: t, ctx: ctx, dir: t.TempDir(), dsn: testenv.Migrated(t), aws: localaws.New(localaws.Options{}), address: freeAddress(t),
		action: action, hit: make(chan struct{}), healed: make(chan struct{}),
	}
	pool, err := pgxpool.New(ctx, s.dsn)
	s.must(err)
	t.Cleanup(pool.Close)
	s.db = pool
	_, err = pool.Exec(ctx, eventLogs)
	s.must(err)
	_, err = pool.Exec(ctx, insertEvent, runID, nil, "PIPELINE_START")
	s.must(err)
	s.must(os.WriteFile(s.file("dagster.dsn"), []byte(s.dsn), 0o600))
	sqs := httptest.NewServer(s.aws)
	t.Cleanup(func() { sqs.CloseClientConnections(); sqs.Close() })
	common := []string{
		"STEPFLEET_DATABASE_URL=" + s.dsn, "AWS_ENDPOINT_URL_SQS=" + sqs.URL, "AWS_ACCESS_KEY_ID=local", "AWS_SECRET_ACCESS_KEY=local",
		"AWS_REGION=us-east-1", "STEPFLEET_LOG_LEVEL=debug", failpoint.ArmedVariable + "=" + s.file("armed"),
	}
	s.server = &role{stack: s, name: "server", env: common, args: []string{
		"server", "--listen", s.address, "--create-queues", "--dagster-dsn-file", s.file("dagster.dsn"),
		"--renew", "1s", "--session-ttl", "4s", "--run-lease", "9s", "--margin", "1s",
	}}
	self, err := os.Executable()
	s.must(err)
	workerArgs := []string{
		"worker", "--python", self, "--queue", fmt.Sprintf("%s:%d", stepfleet.DefaultQueue, slots),
		"--renew", lifetimes.Renew.String(), "--session-ttl", lifetimes.SessionTTL.String(), "--run-lease", lifetimes.RunLease.String(),
		"--margin", lifetimes.Margin.String(), "--drain-timeout", drainTimeout.String(), "--kill-grace", "300ms",
	}
	workerEnv := append([]string{logVariable + "=" + s.dsn, effectsVariable + "=" + s.file("effects.jsonl")}, common...)
	s.worker = &role{stack: s, name: "worker", args: workerArgs, env: workerEnv}
	s.spare = &role{stack: s, name: "spare", args: workerArgs, env: workerEnv}
	s.failing = map[string]*role{"server": s.server, "worker": s.worker}[process]
	s.failing.failpoint = point + "=" + action + "@1"
	t.Cleanup(func() { s.worker.kill(); s.spare.kill(); s.server.kill() })
	return s
}

// fifo has the queues be FIFO queues.
func (s *stack) fifo() {
	for _, r := range []*role{s.server, s.worker, s.spare} {
		r.env = append(slices.Clone(r.env), "STEPFLEET_QUEUE_FIFO=true")
	}
}

func (s *stack) file(name string) string { return filepath.Join(s.dir, name) }

func (s *stack) must(err error) {
	if err != nil {
		s.Helper()
		s.Fatal(err)
	}
}

// freeAddress is where a server can listen, also after its restart: a loopback address of its own, so that
// nobody is given the port meanwhile.
func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// arm lets the failpoint see what comes from now on.
func (s *stack) arm() { s.must(os.WriteFile(s.file("armed"), nil, 0o600)) }

// until waits for what is expected, and fails the case when it does not come.
func (s *stack) until(what string, ok func() bool) {
	s.Helper()
	for !ok() {
		select {
		case <-s.ctx.Done():
			s.Fatalf("waiting in vain until %s: %s", what, s.standing())
		case <-time.After(pollEvery):
		}
	}
}

// count runs a query for one number.
func (s *stack) count(sql string, args ...any) (n int) {
	err := s.db.QueryRow(s.ctx, sql, args...).Scan(&n)
	if err != nil && s.ctx.Err() == nil {
		s.Fatal(err)
	}
	return n
}

// standing says how the tasks stand.
func (s *stack) standing() string {
	rows, err := s.db.Query(context.Background(), `SELECT format('%s %s', step_key, state) FROM stepfleet.task ORDER BY id`)
	if err != nil {
		return err.Error()
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return fmt.Sprint(all, err)
}

// lockSession keeps everybody from the worker's session until it is released.
func (s *stack) lockSession() (release func()) {
	tx, err := s.db.Begin(s.ctx)
	s.must(err)
	release = func() { _ = tx.Rollback(context.WithoutCancel(s.ctx)) } // once more is no harm
	s.Cleanup(release)
	_, err = tx.Exec(s.ctx, `SELECT 1 FROM stepfleet.session WHERE instance = $1 FOR UPDATE`, s.worker.running().instance)
	s.must(err)
	return release
}

// role is a server or a worker: one process after another.
type role struct {
	*stack
	name      string
	args, env []string
	failpoint string // of the next process

	mu     sync.Mutex
	now    *process
	starts int
}

type process struct {
	cmd      *exec.Cmd
	instance string
	done     chan struct{} // closed when it is gone
	came     chan struct{} // closed when it has come to its failpoint
	fenced   chan struct{} // closed when it has fenced itself
	table    proctable.Process
}

func (r *role) running() *process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

// ensure has a process run: the one that does, or a new one.
func (r *role) ensure() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now != nil && !isClosed(r.now.done) || r.ctx.Err() != nil {
		return
	}
	r.starts++
	p := &process{
		instance: fmt.Sprintf("%s-%d", r.name, r.starts), done: make(chan struct{}), came: make(chan struct{}), fenced: make(chan struct{}),
	}
	p.cmd = exec.Command(product, r.args...)
	p.cmd.Env = append(append(os.Environ(), r.env...), "STEPFLEET_INSTANCE="+p.instance, "STEPFLEET_WORKER_NAME="+r.name,
		"STEPFLEET_SPOOL="+r.file("spool-"+r.name), failpoint.Variable+"="+r.failpoint)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	log, err := os.OpenFile(r.file(r.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.Error(err)
		return
	}
	p.cmd.Stderr = &watch{log: log, p: p}
	if err := p.cmd.Start(); err != nil {
		r.Error(err)
		return
	}
	p.table, _ = proctable.Read(p.cmd.Process.Pid)
	go func() {
		_ = p.cmd.Wait() // how it ended is for the log to say
		log.Close()
		close(p.done)
	}()
	r.now = p
	if r.failpoint != "" && r == r.failing {
		go r.heal(p)
	}
	r.failpoint = ""
}

// heal makes good what the failpoint does to the process.
func (r *role) heal(p *process) {
	select {
	case <-p.came:
	case <-p.done:
		return
	}
	close(r.hit)
	switch r.action {
	case failpoint.Kill:
		<-p.done
		r.ensure()
	case failpoint.Pause:
		r.outlast(p)
		_ = p.table.Signal(syscall.SIGCONT) // gone: the case is over
	}
	r.whole = time.Now()
	close(r.healed)
}

// outlast returns once the process has been stopped for longer than the deadline that applies. What a worker
// leaves meanwhile another one takes, and ends: the first one wakes as the owner of what is another's.
func (r *role) outlast(p *process) {
	for !p.table.Stopped() {
		if !r.rest(pollEvery) {
			return
		}
	}
	if r == r.server {
		r.rest(serverPause)
		return
	}
	r.spare.ensure()
	if r.count(`SELECT count(*) FROM stepfleet.session WHERE instance = $1 AND state <> 'dead'`, p.instance) == 0 {
		r.rest(workerPause)
		return
	}
	const theirs = `SELECT (SELECT count(*) FROM stepfleet.session WHERE instance = $1 AND state <> 'dead') +
		(SELECT count(*) FROM stepfleet.task WHERE ended_at IS NULL)`
	for limit := time.Now().Add(outlastMax); r.count(theirs, p.instance) > 0 && time.Now().Before(limit); {
		if !r.rest(pollEvery) {
			return
		}
	}
}

func (r *role) rest(d time.Duration) bool {
	select {
	case <-r.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// kill kills the process, and does not come back before it is gone.
func (r *role) kill() {
	if p := r.running(); p != nil {
		_ = p.cmd.Process.Kill() // gone already: what was wanted
		<-p.done
	}
}

// stop asks the process to end and waits.
func (r *role) stop() {
	p := r.running()
	if p == nil {
		return
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		r.Error(err)
	}
	select {
	case <-p.done:
	case <-r.ctx.Done():
		r.Fatalf("%s does not end", r.name)
	}
}

// watch looks through what a process says.
type watch struct {
	log  *os.File
	p    *process
	line []byte
}

func (w *watch) Write(text []byte) (int, error) {
	for line := range bytes.Lines(text) {
		if w.line = append(w.line, line...); bytes.HasSuffix(w.line, []byte("\n")) {
			w.look(string(w.line))
			w.line = w.line[:0]
		}
	}
	return w.log.Write(text)
}

func (w *watch) look(line string) {
	switch {
	case strings.HasPrefix(line, "failpoint ") && !isClosed(w.p.came):
		close(w.p.came)
	case strings.Contains(line, "run lease runs out") && !isClosed(w.p.fenced):
		close(w.p.fenced)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
