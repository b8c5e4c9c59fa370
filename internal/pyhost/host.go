// Package pyhost is the Go side of the warm Python host: it keeps step processes ready and hands
// each one task. It is the only package of the product's path that executes Python.
//
// In mode fork a template process imports the code locations once; its children are forked,
// connected and primed ahead of need, run one task each and exit. In mode cold every task gets a
// fresh interpreter. Auto means fork while the template says that it is safe to fork, and cold
// while it is not or while there is no template.
//
// A process that dies, in whatever way, is reported by its Exit; nothing here retries a task. The
// whole process group of a step is killed when its leader is gone.
package pyhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/failpoint"
)

// Mode says where step processes come from.
type Mode string

// The modes.
const (
	ModeAuto Mode = "auto"
	ModeFork Mode = "fork"
	ModeCold Mode = "cold"
)

// Preload is one code location that the template imports, as `dagster dev` takes it.
type Preload struct {
	// Location is Dagster's name of it, where that is not the one that Dagster gives by itself.
	Location         string `json:"-"`
	Module           string `json:"module,omitempty"`
	File             string `json:"file,omitempty"`
	Attribute        string `json:"attribute,omitempty"`
	WorkingDirectory string `json:"working_directory,omitempty"`
}

// Config is what a Host needs to know.
type Config struct {
	Python  string
	Mode    Mode
	Preload []Preload
	// Idle is how many children wait ready: as many as the worker has slots.
	Idle int
	// Spool is a directory of this user's alone, for notes on logs to finish. Without one, logs that
	// a killed process leaves stay as they are.
	Spool string
	// DatabaseSocket is the directory of a socket that lends database connections, if there is one.
	DatabaseSocket string
	// Env is what the processes find in their environment besides, as NAME=value.
	Env    []string
	Logger *slog.Logger

	children *children // of the host that has this configuration
}

const (
	// loadTimeout bounds the template's imports: large projects take minutes.
	loadTimeout = 10 * time.Minute
	// readyTimeout bounds how long a launch waits for an idle child, and how long a child takes to
	// become ready: a cold one imports, a forked one connects to the database.
	readyTimeout = 2 * time.Minute
	// restartMax bounds the pause before a template that failed is started again.
	restartMax = 16 * time.Second
)

// Host keeps processes ready. Run must be going for Launch to work in mode fork and auto.
type Host struct {
	cfg Config
	log *slog.Logger

	mu       sync.Mutex
	template *template     // the one that forks now; nil while there is none
	settled  chan struct{} // closed while it is known where processes come from
	failed   string        // why there is no template
	down     []string      // the code locations that do not load, as the last template said that did load

	logs  *logKeeper     // nil without a spool
	stops sync.WaitGroup // templates that are gone and whose last children are awaited
}

// New returns a host that has no process yet.
func New(cfg Config) *Host {
	cfg.children = &children{all: map[*child]struct{}{}}
	h := &Host{cfg: cfg, log: cfg.Logger, settled: make(chan struct{})}
	if cfg.Spool != "" {
		h.logs = newLogKeeper(cfg)
	}
	return h
}

// Run keeps a template alive until ctx ends, then stops it. Its children are not stopped: they
// end with their tasks, or are killed by those who own them.
func (h *Host) Run(ctx context.Context) error {
	if h.logs != nil {
		if err := h.logs.spool.prepare(); err != nil {
			h.settle(nil, err.Error())
			return err
		}
		defer h.keepLogs()()
	}
	defer h.stops.Wait()
	if h.cfg.Mode == ModeCold {
		h.settle(nil, "")
		<-ctx.Done()
		return nil
	}
	var wait time.Duration
	for ctx.Err() == nil {
		worked, err := h.runTemplate(ctx)
		if ctx.Err() != nil {
			break
		}
		if worked > restartMax {
			wait = 0 // the next one may at once, and who wants a process waits for it
		}
		h.log.Error("template is down; starting it again", "err", err, "after", wait)
		if wait > 0 {
			// It stays known until a template has loaded: each try may take minutes.
			h.settle(nil, fmt.Sprintf("template: %v", err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(max(2*wait, time.Second), restartMax)
	}
	return nil
}

// keepLogs looks after the logs until the returned function is called, which is when every process
// that writes some is gone.
func (h *Host) keepLogs() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var keeping sync.WaitGroup
	keeping.Go(func() { h.logs.run(ctx) })
	return func() {
		cancel()
		keeping.Wait()
	}
}

// runTemplate runs a template, and those that take over from it, to the end, and returns how long the
// last one had worked, 0 when none has loaded.
func (h *Host) runTemplate(ctx context.Context) (worked time.Duration, err error) {
	began := time.Now()
	t, loaded, err := h.load(ctx)
	for took := time.Since(began); err == nil; {
		if !loaded.ForkSafe && h.cfg.Mode == ModeFork {
			h.stops.Go(t.stop)
			return 0, fmt.Errorf("the template is not safe to fork: %s; use --host-mode auto or cold", loaded.Reason)
		}
		since := time.Now()
		h.serve(t, loaded)
		next, nextLoaded := h.awaitBetter(ctx, t, loaded, took)
		h.stops.Go(t.stop)
		if next == nil && ctx.Err() == nil {
			h.unsettle()
			return time.Since(since), t.err()
		}
		if next == nil {
			return 0, nil
		}
		t, loaded = next, nextLoaded
	}
	return 0, err
}

// load starts a template and waits until it has loaded. One that has not is stopped behind the caller's
// back.
func (h *Host) load(ctx context.Context) (*template, frame, error) {
	if err := failpoint.Hit("template.before"); err != nil {
		return nil, frame{}, err
	}
	t, err := startTemplate(h.cfg)
	if err != nil {
		return nil, frame{}, err
	}
	if err := failpoint.Hit("template.after"); err != nil {
		h.stops.Go(t.stop)
		return nil, frame{}, err
	}
	loaded, err := t.waitLoaded(ctx)
	if err != nil {
		h.stops.Go(t.stop)
		return nil, frame{}, err
	}
	return t, loaded, nil
}

// serve makes the template the one that processes come from.
func (h *Host) serve(t *template, loaded frame) {
	h.report(loaded)
	h.setDown(h.downIn(loaded))
	if !loaded.ForkSafe {
		h.log.Warn("the template is not safe to fork: every step gets a cold process", "reason", loaded.Reason)
		h.settle(nil, "")
		return
	}
	go t.keepIdle(max(h.cfg.Idle, 1))
	h.settle(t, "")
}

// awaitBetter returns a template that loads more code locations than t, or nil once t is gone or ctx
// has ended. While some do not load it tries another template now and then, beside t: after 1, 2, 4, 8 and
// then always 16 times what loading takes, and a second at least.
func (h *Host) awaitBetter(ctx context.Context, t *template, loaded frame, took time.Duration) (*template, frame) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if loaded.ForkSafe { // else it is not needed any more
		go func() {
			select {
			case <-t.gone:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	down := h.downIn(loaded)
	for tries := 0; len(down) > 0; tries++ {
		select {
		case <-ctx.Done():
			return nil, frame{}
		case <-time.After(max(took, time.Second) << min(tries, 4)):
		}
		next, nextLoaded, err := h.load(ctx)
		if err != nil {
			h.log.Warn("trying code locations again", "locations", down, "err", err)
			continue
		}
		if len(h.downIn(nextLoaded)) < len(down) && (nextLoaded.ForkSafe || !loaded.ForkSafe) {
			return next, nextLoaded
		}
		h.stops.Go(next.stop)
	}
	<-ctx.Done()
	return nil, frame{}
}

// report says loudly which code locations the template could not load. Workers leave their steps to
// others. One that was claimed before that tries the import itself, and fails with the reason.
func (h *Host) report(loaded frame) {
	for _, l := range loaded.Locations {
		if l.OK {
			h.log.Info("code location loaded", "location", l.Pointer, "seconds", l.Seconds)
		} else {
			h.log.Error("code location does not load", "location", l.Pointer, "err", l.Error)
		}
	}
	h.log.Info("template ready", "pid", loaded.PID, "seconds", loaded.Seconds, "fork_safe", loaded.ForkSafe)
}

// settle publishes the template to launch from, or that there is none.
func (h *Host) settle(t *template, failed string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.template, h.failed = t, failed
	select {
	case <-h.settled:
	default:
		close(h.settled)
	}
}

// unsettle says that a template is on its way: who wants a process waits for it.
func (h *Host) unsettle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.template = nil
	select {
	case <-h.settled:
		h.settled = make(chan struct{})
	default:
	}
}

// Available implements stepfleet.Host.
func (h *Host) Available() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.settled
}

// Ready says why no warm process can be had; nothing when one can, or when none is wanted.
func (h *Host) Ready() []string {
	select {
	case <-h.Available():
	default:
		return []string{"host: the template is loading"}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failed != "" {
		return []string{"host: " + h.failed}
	}
	return nil
}

// source waits until it is known where processes come from, and returns the template or why there
// is none.
func (h *Host) source(ctx context.Context) (t *template, failed string, err error) {
	for {
		h.mu.Lock()
		settled, t, failed := h.settled, h.template, h.failed
		h.mu.Unlock()
		select {
		case <-settled:
			return t, failed, nil
		default:
		}
		select {
		case <-settled: // and read again what it was settled to
		case <-ctx.Done():
			return nil, "", fmt.Errorf("the template is still loading: %w", ctx.Err())
		}
	}
}

// Launch implements stepfleet.Host.
func (h *Host) Launch(ctx context.Context, job stepfleet.Job, gate stepfleet.Gate) (stepfleet.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		c, err := h.idleChild(ctx)
		if errors.Is(err, errTemplateGone) && ctx.Err() == nil {
			continue // the next one is on its way, or it is said why not
		}
		if err != nil {
			return nil, fmt.Errorf("launch task %d: %w", job.TaskID, err)
		}
		if h.logs != nil {
			c.tell(h.logs.ended)
		}
		stop := context.AfterFunc(ctx, c.Kill) // one that is stopped does not read
		err = c.begin(job, gate)
		stop()
		if err != nil {
			// It died while it was idle, and has not seen the task whole.
			h.log.Warn("idle process was gone", "pid", c.pid, "err", err)
			c.Kill()
			if ctx.Err() == nil {
				continue
			}
			return nil, fmt.Errorf("launch task %d: %w", job.TaskID, err)
		}
		return c, nil
	}
}

func (h *Host) idleChild(ctx context.Context) (*child, error) {
	if err := failpoint.Hit("spawn.before"); err != nil {
		return nil, err
	}
	c, err := h.readyChild(ctx)
	if err != nil {
		return nil, err
	}
	if err := failpoint.Hit("spawn.after"); err != nil {
		c.Kill()
		return nil, err
	}
	return c, nil
}

func (h *Host) readyChild(ctx context.Context) (*child, error) {
	t, failed, err := h.source(ctx)
	if err != nil {
		return nil, err
	}
	if t == nil {
		if h.cfg.Mode == ModeFork {
			return nil, errors.New(failed)
		}
		return startCold(ctx, h.cfg)
	}
	return t.take(ctx)
}

// secretEnv are the variables that step processes do not get: with them user code could act as
// the fleet.
var secretEnv = []string{"STEPFLEET_TOKEN", "STEPFLEET_TOKEN_FILE", "STEPFLEET_DATABASE_URL"}

// withheldVariable names more of them, separated by commas: what whoever started the worker has set
// for the worker alone. A step that found a local SQS among its settings would use it as its own.
const withheldVariable = "STEPFLEET_WITHHELD_ENV"

// environment is the worker's own, which users keep their settings in, without the fleet's
// secrets and settings, and with what the process needs to find its socket and code.
func environment(cfg Config) ([]string, error) {
	preload, err := json.Marshal(cfg.Preload)
	if err != nil {
		return nil, fmt.Errorf("preload: %w", err)
	}
	withheld := append(strings.Split(os.Getenv(withheldVariable), ","), withheldVariable)
	env := make([]string, 0, len(os.Environ())+3)
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !slices.Contains(secretEnv, name) && !slices.Contains(withheld, name) {
			env = append(env, kv)
		}
	}
	if cfg.Spool != "" {
		env = append(env, spoolVariable+"="+cfg.Spool)
	}
	if cfg.DatabaseSocket != "" {
		env = append(env, "STEPFLEET_DATABASE_SOCKET="+cfg.DatabaseSocket)
	}
	env = append(env, cfg.Env...)
	return append(env, "STEPFLEET_HOST_FD=3", "STEPFLEET_PRELOAD="+string(preload)), nil
}
