package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// startTimeout is how long a server may take until it listens; a JVM on a busy machine is slow.
const startTimeout = 60 * time.Second

// ticksPerSecond is USER_HZ, in which the kernel counts CPU time for programs; it is 100 on every
// architecture that Go has.
const ticksPerSecond = 100

// server is a contender's process. It is the leader of its own process group and dies with us.
type server struct {
	contender
	addr   string
	cmd    *exec.Cmd
	dir    string
	exited chan struct{}
}

// start runs the contender on a free port and returns when it accepts connections.
func start(ctx context.Context, c contender) (_ *server, err error) {
	dir, err := os.MkdirTemp("", "bench-sqs-"+c.name+"-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start %s: %w", c.name, err), os.RemoveAll(dir))
		}
	}()
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	argv, err := c.command(port, dir)
	if err != nil {
		return nil, err
	}
	s := &server{contender: c, addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), dir: dir, exited: make(chan struct{})}
	if err := s.launch(argv, c.env); err != nil {
		return nil, err
	}
	if err := s.await(ctx); err != nil {
		log := s.tail()
		s.kill()
		return nil, fmt.Errorf("%w; its last words: %s", err, log)
	}
	return s, nil
}

func freePort(ctx context.Context) (int, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

func (s *server) launch(argv, env []string) error {
	log, err := os.Create(s.logPath())
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.Command(argv[0], argv[1:]...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.Env = append(os.Environ(), env...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = s.cmd.Wait() // it ends by our kill, or its log says why
		close(s.exited)
	}()
	return nil
}

func (s *server) logPath() string { return filepath.Join(s.dir, "log") }

// await connects until the server listens.
func (s *server) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "tcp", s.addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-again.C:
		case <-s.exited:
			return errors.New("it ended before it listened")
		case <-ctx.Done():
			return fmt.Errorf("it does not listen on %s: %w", s.addr, err)
		}
	}
}

// tail returns the end of the server's log on one line.
func (s *server) tail() string {
	raw, err := os.ReadFile(s.logPath())
	if err != nil {
		return err.Error()
	}
	if len(raw) > 500 {
		raw = raw[len(raw)-500:]
	}
	return strings.Join(strings.Fields(string(raw)), " ")
}

// kill ends the process group and removes the server's files.
func (s *server) kill() {
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	<-s.exited
	_ = os.RemoveAll(s.dir)
}

// usage is what the process group has taken.
type usage struct {
	cpu time.Duration
	rss int64 // bytes
}

// used reads the usage of the server's process group.
func (s *server) used() (usage, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return usage{}, err
	}
	var sum usage
	found := false
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err != nil {
			continue
		}
		raw, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "stat"))
		if err != nil {
			continue // it has ended meanwhile
		}
		group, u, ok := parseStat(string(raw))
		if !ok || group != s.cmd.Process.Pid {
			continue
		}
		found = true
		sum.cpu += u.cpu
		sum.rss += u.rss
	}
	if !found {
		return usage{}, fmt.Errorf("%s has ended: %s", s.name, s.tail())
	}
	return sum, nil
}

// parseStat reads the process group and the usage, that of ended children included, from a line
// of /proc/PID/stat. The command in brackets may hold anything, so fields count from its end.
func parseStat(line string) (group int, u usage, ok bool) {
	const (
		fieldGroup = 2 // after the bracket: state, ppid, pgrp
		fieldUser  = 11
		fieldRSS   = 21 // pages
	)
	fields := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	if len(fields) <= fieldRSS {
		return 0, usage{}, false
	}
	number := func(i int) int64 {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			ok = false
		}
		return n
	}
	ok = true
	var ticks int64
	for i := range 4 { // utime, stime, and both of children that were waited for
		ticks += number(fieldUser + i)
	}
	u = usage{time.Duration(ticks) * time.Second / ticksPerSecond, number(fieldRSS) * int64(os.Getpagesize())}
	return int(number(fieldGroup)), u, ok
}
