//go:build linux && failpoint

package failpoints

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

// This file is what a worker starts in place of Dagster's Python host: processes that speak the host
// protocol (docs/protocol.md section 2), ask and write events as the plugin does, and do what their
// payload says. They are the test binary itself.

// What a step's process finds in its environment.
const (
	logVariable     = "FAILPOINTS_EVENT_LOG"  // the database with Dagster's event log
	effectsVariable = "FAILPOINTS_EFFECT_LOG" // the file
)

// plan is a step's payload.
type plan struct {
	// Prepare is how long the first process takes before it asks for its start, and Die says
	// when it kills itself.
	Prepare time.Duration `json:"prepare"`
	Die     string        `json:"die"`
	// Work is how long user code takes, unless the process is asked to stop. That of a later process takes a moment.
	Work time.Duration `json:"work"`
}

const (
	beforeStart = "before its start"
	afterEvent  = "after its event"
)

// frame has the fields of all frames.
type frame struct {
	Op       string            `json:"op"`
	V        int               `json:"v,omitempty"`
	Child    int               `json:"child,omitempty"`
	PID      int               `json:"pid,omitempty"`
	Status   int               `json:"status,omitempty"`
	ForkSafe bool              `json:"fork_safe,omitempty"`
	Event    string            `json:"event,omitempty"`
	Result   *stepfleet.Result `json:"result,omitempty"`
	Task     stepfleet.Task    `json:"task,omitzero"`
	Fence    stepfleet.Fence   `json:"fence,omitempty"`
	Payload  string            `json:"payload,omitempty"`
	Env      map[string]string `json:"env,omitempty"`
}

const hostProtocol = 2

// link is the socket to the worker.
type link struct {
	*net.UnixConn
	mu sync.Mutex
}

func openLink() *link {
	conn, err := net.FileConn(os.NewFile(3, "worker"))
	must(err)
	return &link{UnixConn: conn.(*net.UnixConn)}
}

func (l *link) send(f frame) {
	body, err := json.Marshal(f)
	must(err)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)); err != nil {
		leave()
	}
}

// receive returns the next frame, and the file that came with it. Without a worker the process ends.
func (l *link) receive() (f frame, file *os.File) {
	head, rights := make([]byte, 4), make([]byte, syscall.CmsgSpace(4))
	n, oob, _, _, err := l.ReadMsgUnix(head, rights)
	if err != nil || n == 0 {
		leave()
	}
	if _, err := io.ReadFull(l, head[n:]); err != nil {
		leave()
	}
	if oob > 0 {
		messages, err := syscall.ParseSocketControlMessage(rights[:oob])
		must(err)
		fds, err := syscall.ParseUnixRights(&messages[0])
		must(err)
		file = os.NewFile(uintptr(fds[0]), "child")
	}
	body := make([]byte, binary.BigEndian.Uint32(head))
	if _, err := io.ReadFull(l, body); err != nil {
		leave()
	}
	must(json.Unmarshal(body, &f))
	return f, file
}

// leave ends the process and whatever it has started.
func leave() {
	_ = syscall.Kill(0, syscall.SIGKILL) // its group
	os.Exit(3)
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "step process:", err)
		leave()
	}
}

// host is the main function of a process that a worker has started.
func host(role string) {
	if role == "template" {
		template()
		return
	}
	step()
}

// template starts a process for each child it is asked for. They die with it.
func template() {
	l := openLink()
	l.send(frame{Op: "loaded", V: hostProtocol, PID: os.Getpid(), ForkSafe: true})
	for {
		f, file := l.receive()
		switch {
		case f.Op == "stop": // the end of the socket follows, once the children are gone
		case f.Op == "fork" && file != nil:
			go l.fork(f.Child, file)
		}
	}
}

func (l *link) fork(child int, socket *os.File) {
	runtime.LockOSThread() // and never unlocked: the death signal is the thread's
	self, err := os.Executable()
	must(err)
	cmd := exec.Command(self, "-u", "-m", hostModule, "child")
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	must(cmd.Start())
	socket.Close()
	l.send(frame{Op: "forked", Child: child, PID: cmd.Process.Pid})
	err = cmd.Wait()
	status := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status = exit.ExitCode()
		if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() {
			status = -int(ws.Signal())
		}
	}
	l.send(frame{Op: "exited", Child: child, PID: cmd.Process.Pid, Status: status})
}

// stepProcess is a process with its one task.
type stepProcess struct {
	*link
	answers chan frame
	task    stepfleet.Task
	log     *pgx.Conn
}

func step() {
	stop := make(chan os.Signal, 2)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	s := &stepProcess{link: openLink(), answers: make(chan frame)}
	s.send(frame{Op: "ready", V: hostProtocol, PID: os.Getpid()})
	run, _ := s.receive()
	s.task = run.Task
	for name, value := range run.Env {
		must(os.Setenv(name, value))
	}
	var p plan
	must(json.Unmarshal([]byte(run.Payload), &p))
	go func() {
		for {
			f, _ := s.receive()
			s.answers <- f
		}
	}()
	if s.first() {
		time.Sleep(p.Prepare)
		if p.Die == beforeStart {
			leave()
		}
	} else {
		p.Work = min(p.Work, short)
	}
	s.ask(frame{Op: "start"})
	s.write("STEP_START")
	s.effect(audit.EffectBegin)
	select {
	case <-stop:
		s.effect(audit.EffectError)
		s.end(stepfleet.EventFailure, p.Die)
	case <-time.After(p.Work):
		s.effect(audit.EffectEnd)
		s.end(stepfleet.EventSuccess, p.Die)
	}
}

// firstMark is the file that the first process of a step's task makes, beside the effect log.
func firstMark(effects string, key stepfleet.Key) string {
	return fmt.Sprintf("%s.%s.%d", effects, key.StepKey, key.Attempt)
}

// first reports whether it is the task's first process. It may have a later fence: a claim whose answer was
// lost had none.
func (s *stepProcess) first() bool {
	file, err := os.OpenFile(firstMark(os.Getenv(effectsVariable), s.task.Key), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return false
	}
	must(err)
	must(file.Close())
	return true
}

// ask asks the gate. A process that is refused ends at once.
func (s *stepProcess) ask(f frame) {
	s.send(f)
	if answer := <-s.answers; answer.Op != "granted" {
		os.Exit(3)
	}
}

// end writes the ending event, and tells of it.
func (s *stepProcess) end(event, die string) {
	s.ask(frame{Op: "gate", Event: event})
	s.write(event)
	if die == afterEvent {
		leave()
	}
	result := &stepfleet.Result{V: stepfleet.TaskVersion, Outcome: stepfleet.StateSucceeded, Success: true, Event: event, Outputs: []string{}}
	if event != stepfleet.EventSuccess {
		result.Outcome, result.Success = stepfleet.StateFailed, false
		result.Error = &stepfleet.Failure{Code: "step_failed", Message: "it was asked to stop"}
	}
	s.send(frame{Op: "ended", Result: result})
	s.send(frame{Op: "result", Result: result})
	os.Exit(0)
}

// write stores an event as Dagster does.
func (s *stepProcess) write(event string) {
	if s.log == nil {
		s.log = lent(os.Getenv(logVariable))
	}
	_, err := s.log.Exec(context.Background(), insertEvent, s.task.RunID, s.task.StepKey, event)
	must(err)
}

// lent is a connection of the worker's relay, which is told the connection string in place of a password
// and passes nothing on once the worker's lease is over.
func lent(dsn string) *pgx.Conn {
	cfg, err := pgx.ParseConfig(dsn)
	must(err)
	cfg.Host, cfg.Port, cfg.Password, cfg.TLSConfig, cfg.Fallbacks = os.Getenv("STEPFLEET_DATABASE_SOCKET"), 5432, dsn, nil, nil
	conn, err := pgx.ConnectConfig(context.Background(), cfg)
	must(err)
	return conn
}

// effect writes a line of the effect log, as user code does.
func (s *stepProcess) effect(event string) {
	self, _ := proctable.Read(os.Getpid())
	born, err := strconv.ParseInt(self.Start, 10, 64)
	must(err)
	line, err := json.Marshal(audit.Effect{
		Event: event, Key: s.task.Key, Fence: audit.Fence(os.Getenv("STEPFLEET_FENCE")), PID: os.Getpid(), Born: born,
		Worker: os.Getenv("STEPFLEET_WORKER"), At: float64(time.Now().UnixMicro()) / 1e6, Op: s.task.Op,
	})
	must(err)
	file, err := os.OpenFile(os.Getenv(effectsVariable), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(err)
	defer file.Close()
	_, err = file.Write(append(line, '\n'))
	must(err)
}

// readEffects reads the effect log; a step that never began wrote none.
func readEffects(path string) audit.Source[audit.Effect] {
	return audit.ReadEffects(func() (io.ReadCloser, error) {
		raw, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		return io.NopCloser(bytes.NewReader(raw)), nil
	})
}

func payload(p plan) []byte {
	raw, err := json.Marshal(p)
	if err != nil {
		panic(err) // the struct above is wrong
	}
	return raw
}

func task(run, key string, p []byte) stepfleet.Task {
	k := stepfleet.Key{RunID: run, StepKey: key}
	return stepfleet.Task{
		V: stepfleet.TaskVersion, Kind: stepfleet.KindStep, Key: k, Op: key, Job: "job", IdempotencyKey: k.IdempotencyKey(),
		Queue: stepfleet.DefaultQueue, CodeLocation: "location " + strconv.Itoa(1), Payload: stepfleet.DigestOf(p),
	}
}
