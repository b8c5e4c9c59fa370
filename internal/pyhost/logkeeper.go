package pyhost

import (
	"context"
	"log/slog"
	"net"
	"time"
)

// logKeeper finishes the logs of step processes that are gone, and has those of living ones
// uploaded where they are kept in a cloud storage. For that it starts an uploader, a Python
// process, when there is something to upload; the uploader ends by itself when there is not.
type logKeeper struct {
	cfg   Config
	spool spool
	log   *slog.Logger
	news  chan struct{} // a step process has ended otherwise than well

	// Of run alone.
	conn   *net.UnixConn // to the uploader; nil while this worker has none
	proc   *command
	rest   time.Time // before which no uploader is started
	failed string    // the last failure, told once
}

const (
	// keepEvery is between looks at the spool that nothing has asked for.
	keepEvery = 2500 * time.Millisecond
	// liveAfter is how long a step runs before an uploader is started for it: most end sooner, and
	// upload their logs themselves.
	liveAfter = 5 * time.Second
	// flushTimeout bounds how long a worker that stops waits for the last uploads. What is left is
	// done by the next worker on this machine.
	flushTimeout = 20 * time.Second
)

func newLogKeeper(cfg Config) *logKeeper {
	return &logKeeper{cfg: cfg, spool: spool(cfg.Spool), log: cfg.Logger, news: make(chan struct{}, 1)}
}

// ended says that a step process is gone and may have left a note.
func (k *logKeeper) ended() {
	select {
	case k.news <- struct{}{}:
	default:
	}
}

// run looks after the spool until ctx ends, and has the uploader finish what is left by then.
func (k *logKeeper) run(ctx context.Context) {
	defer k.stop()
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		k.look()
		select {
		case <-ctx.Done():
			return
		case <-k.news:
		case <-tick.C:
		case <-k.gone():
			k.reap()
		}
	}
}

func (k *logKeeper) look() {
	found, err := k.spool.tend(liveAfter)
	if err == nil && found.all > 0 {
		err = k.upload(found.dead > 0)
	}
	switch {
	case err == nil:
		k.failed = ""
	case err.Error() != k.failed:
		k.failed = err.Error()
		k.log.Error("keep the logs of steps", "err", err)
	}
}

// upload sees to it that there is an uploader, and tells it of news.
func (k *logKeeper) upload(news bool) error {
	if k.proc != nil {
		if news {
			_ = send(k.conn, lookFrame{Op: "look"}) // one that has just ended is started again
		}
		return nil
	}
	if time.Now().Before(k.rest) {
		return nil
	}
	lock, err := k.spool.lock()
	if lock == nil {
		return err // nil too: another worker's uploader does it
	}
	defer lock.Close() // the process has its own
	conn, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	proc, err := startPython(k.cfg, "uploader", theirs, lock)
	if err != nil {
		conn.Close()
		return err
	}
	k.conn, k.proc = conn, proc
	k.log.Info("uploader of logs begins", "pid", proc.cmd.Process.Pid)
	return nil
}

// gone is closed when the uploader has ended; it blocks while there is none.
func (k *logKeeper) gone() <-chan struct{} {
	if k.proc == nil {
		return nil
	}
	return k.proc.gone
}

func (k *logKeeper) reap() {
	if k.proc.status != 0 {
		k.log.Error("the uploader of logs has died", "status", k.proc.status, "again_in", restartMax)
		k.rest = time.Now().Add(restartMax)
	}
	k.conn.Close()
	k.conn, k.proc = nil, nil
}

// stop has the uploader finish what dead processes have left, within bounds.
func (k *logKeeper) stop() {
	k.look()
	if k.proc == nil {
		return
	}
	_ = send(k.conn, stopFrame{Op: "stop"}) // gone already: what was wanted
	select {
	case <-k.proc.gone:
	case <-time.After(flushTimeout):
		k.log.Warn("logs are left for the next worker on this machine to upload", "spool", k.cfg.Spool)
		_ = k.proc.cmd.Process.Kill() // gone in between: what was wanted
		<-k.proc.gone
	}
	k.conn.Close()
}
