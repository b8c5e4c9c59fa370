// Package journal is an append-only log of records with snapshots, for a service of localaws that
// shall survive its own kill.
//
// A journal is a directory. Records go to the file log-N; a snapshot, snapshot-N, holds records
// that have the effect of everything before log-N. Open replays the newest snapshot and every log
// from there on, so a record must say what is true after it and may be replayed twice. A record is
// its length, a checksum and its bytes; the last log may end in the middle of one, which a kill
// left there and nobody was told of, and is cut off. What is damaged before a whole record is damage,
// and is refused.
//
// What is authoritative: an Append is kept once a Wait for it has returned nil. Whoever waits first
// writes for all who wait with it.
package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Sync is when a record is forced to the disk. Every record is with the operating system before
// Wait returns, so a killed process loses none whatever the policy.
type Sync string

// The policies.
const (
	SyncAlways   Sync = "always"   // before Wait returns: survives a power failure
	SyncInterval Sync = "interval" // at most a second after
	SyncNever    Sync = "never"    // when the operating system likes
)

// ParseSync returns the policy of that name; none is SyncInterval.
func ParseSync(name string) (Sync, error) {
	switch s := Sync(name); s {
	case "":
		return SyncInterval, nil
	case SyncAlways, SyncInterval, SyncNever:
		return s, nil
	}
	return "", fmt.Errorf("fsync policy %q: want %s, %s or %s", name, SyncAlways, SyncInterval, SyncNever)
}

const (
	syncEvery      = time.Second
	maxRecordBytes = 64 << 20
	headerBytes    = 8
	// defaultRotateAt is what Options.RotateAt is unless it is set.
	defaultRotateAt = 64 << 20
)

// Options say how a journal is kept; the zero value is ready for use.
type Options struct {
	// Sync is when records are forced to the disk; empty is SyncInterval.
	Sync Sync
	// RotateAt is the size of a log, in bytes, from which on a snapshot is worth its while, if the
	// log is also larger than what the last snapshot took; 0 is 64 MiB.
	RotateAt int64
}

var checksum = crc32.MakeTable(crc32.Castagnoli)

// Ticket is a place in the journal: Wait for it to know that everything up to it is kept.
type Ticket uint64

// Log is an open journal.
type Log struct {
	dir      string
	sync     Sync
	rotateAt int64
	lock     *os.File
	ticker   *time.Timer // for SyncInterval, set while something is not synced

	mu       sync.Mutex
	flushed  *sync.Cond
	file     *os.File
	number   uint64
	size     int64 // of the current log
	base     int64 // of the snapshot below it
	buffer   []byte
	spare    []byte
	appended Ticket
	kept     Ticket
	cut      int64 // of the last log, when it was opened
	writing  bool
	dirty    bool
	closed   bool
	err      error
}

// Open locks the directory, making it if need be, replays what it holds and opens it for more.
// Its errors say what to do; one from replay is returned as it is.
func Open(dir string, o Options, replay func(record []byte) error) (*Log, error) {
	if o.Sync == "" {
		o.Sync = SyncInterval
	}
	if o.RotateAt == 0 {
		o.RotateAt = defaultRotateAt
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	l := &Log{dir: dir, sync: o.Sync, rotateAt: o.RotateAt, lock: lock}
	l.flushed = sync.NewCond(&l.mu)
	if err := l.restore(replay); err != nil {
		_ = lock.Close()
		return nil, err
	}
	return l, nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open journal: %s is in use by another process: stop it or choose another directory", dir)
	}
	return f, nil
}

// restore replays the files, cuts a torn end off and opens the last log.
func (l *Log) restore(replay func([]byte) error) error {
	snapshot, logs, err := l.scan()
	if err != nil {
		return err
	}
	if snapshot > 0 {
		path := l.path("snapshot", snapshot)
		n, rest, err := readFile(path, replay)
		if err != nil {
			return err
		}
		if len(rest) > 0 {
			return damaged(path, n)
		}
		l.base = n
	}
	for i, number := range logs {
		path := l.path("log", number)
		n, rest, err := readFile(path, replay)
		if err != nil {
			return err
		}
		if len(rest) > 0 && (i < len(logs)-1 || holdsRecord(rest[1:])) {
			return damaged(path, n)
		}
		l.size, l.number, l.cut = n, number, int64(len(rest))
	}
	if len(logs) == 0 {
		l.number = max(snapshot, 1)
	}
	f, err := os.OpenFile(l.path("log", l.number), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open journal: %w", err)
	}
	l.file = f
	if err := errors.Join(f.Truncate(l.size), seekTo(f, l.size), l.sweep(snapshot), syncDir(l.dir)); err != nil {
		_ = f.Close()
		return fmt.Errorf("open journal: %w", err)
	}
	return nil
}

func damaged(path string, at int64) error {
	return fmt.Errorf("open journal: %s is damaged at byte %d: restore it from a copy, or remove the directory to begin anew", path, at)
}

// Cut returns how many bytes Open cut off the end: of a record that a kill left unfinished.
func (l *Log) Cut() int64 { return l.cut }

func seekTo(f *os.File, at int64) error {
	_, err := f.Seek(at, io.SeekStart)
	return err
}

func (l *Log) path(kind string, number uint64) string {
	return filepath.Join(l.dir, fmt.Sprintf("%s-%08d", kind, number))
}

// scan returns the newest snapshot, 0 for none, and the logs from it on, in order.
func (l *Log) scan() (snapshot uint64, logs []uint64, err error) {
	entries, err := os.ReadDir(l.dir) // sorted by name
	if err != nil {
		return 0, nil, fmt.Errorf("open journal: %w", err)
	}
	for _, e := range entries {
		var n uint64
		if _, err := fmt.Sscanf(e.Name(), "snapshot-%08d", &n); err == nil && filepath.Ext(e.Name()) == "" {
			snapshot = max(snapshot, n)
		}
	}
	for _, e := range entries {
		var n uint64
		if _, err := fmt.Sscanf(e.Name(), "log-%08d", &n); err == nil && n >= snapshot {
			logs = append(logs, n)
		}
	}
	return snapshot, logs, nil
}

// sweep removes what the snapshot made superfluous, and snapshots that were never finished.
func (l *Log) sweep(snapshot uint64) error {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		var n uint64
		_, isLog := fmt.Sscanf(e.Name(), "log-%08d", &n)
		old := isLog == nil && n < snapshot
		if _, err := fmt.Sscanf(e.Name(), "snapshot-%08d", &n); err == nil && (n < snapshot || filepath.Ext(e.Name()) != "") {
			old = true
		}
		if old {
			if err := os.Remove(filepath.Join(l.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// readFile replays a file's records and returns where the last whole one ends, and what is behind it.
func readFile(path string, replay func([]byte) error) (good int64, rest []byte, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, nil, fmt.Errorf("open journal: %w", err)
	}
	rest = data
	for {
		record, tail, ok := next(rest)
		if !ok {
			return int64(len(data) - len(rest)), rest, nil
		}
		if err := replay(record); err != nil {
			return 0, nil, fmt.Errorf("open journal: %s at byte %d: %w", path, len(data)-len(rest), err)
		}
		rest = tail
	}
}

// holdsRecord reports whether a whole record begins anywhere in the data. The bytes of text are no
// length of a record, so nearly every place is done with at a glance.
func holdsRecord(data []byte) bool {
	for ; len(data) > headerBytes; data = data[1:] {
		if _, _, ok := next(data); ok {
			return true
		}
	}
	return false
}

// next splits the first record off; ok is false if there is no whole one.
func next(data []byte) (record, rest []byte, ok bool) {
	if len(data) < headerBytes {
		return nil, data, false
	}
	n := binary.LittleEndian.Uint32(data)
	if n == 0 || n > maxRecordBytes || uint64(len(data)-headerBytes) < uint64(n) {
		return nil, data, false
	}
	record = data[headerBytes : headerBytes+int(n)]
	if crc32.Checksum(record, checksum) != binary.LittleEndian.Uint32(data[4:]) {
		return nil, data, false
	}
	return record, data[headerBytes+int(n):], true
}

func frame(buffer, record []byte) []byte {
	buffer = binary.LittleEndian.AppendUint32(buffer, uint32(len(record)))
	buffer = binary.LittleEndian.AppendUint32(buffer, crc32.Checksum(record, checksum))
	return append(buffer, record...)
}

// Append adds a record behind those before it. It does not wait for the disk and never blocks on it.
func (l *Log) Append(record []byte) Ticket {
	if len(record) == 0 || len(record) > maxRecordBytes {
		panic(fmt.Sprintf("journal: a record of %d bytes", len(record)))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buffer = frame(l.buffer, record)
	l.appended += Ticket(headerBytes + len(record))
	return l.appended
}

// Wait returns once everything up to the ticket is kept, or with the error by which the journal
// failed: then nothing that is not kept by now ever will be.
func (l *Log) Wait(t Ticket) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.kept < t && l.err == nil {
		if l.writing {
			l.flushed.Wait()
			continue
		}
		l.flush()
	}
	if l.kept >= t {
		return nil
	}
	return l.err
}

// flush writes what was appended. It is called with the mutex held and lets go of it meanwhile.
func (l *Log) flush() {
	data, upTo, file := l.buffer, l.appended, l.file
	l.buffer, l.writing = l.spare[:0], true
	l.mu.Unlock()
	_, err := file.Write(data)
	if err == nil && l.sync == SyncAlways {
		err = file.Sync()
	}
	l.mu.Lock()
	l.spare, l.writing = data, false
	l.size += int64(len(data))
	if err != nil {
		l.err = fmt.Errorf("write journal %s: %w", file.Name(), err)
	} else {
		l.kept = upTo
		l.syncLater()
	}
	l.flushed.Broadcast()
}

// syncLater arms the timer of SyncInterval, if it is not.
func (l *Log) syncLater() {
	if l.sync != SyncInterval || l.dirty || l.closed {
		return
	}
	l.dirty = true
	if l.ticker == nil {
		l.ticker = time.AfterFunc(syncEvery, l.syncNow)
		return
	}
	l.ticker.Reset(syncEvery)
}

func (l *Log) syncNow() {
	l.mu.Lock()
	file, closed := l.file, l.closed
	l.dirty = false
	l.mu.Unlock()
	if closed {
		return
	}
	if err := file.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
		l.fail(fmt.Errorf("sync journal %s: %w", file.Name(), err))
	}
}

func (l *Log) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	l.flushed.Broadcast()
}

// Due reports whether the log has grown so far that Rotate is worth its while.
func (l *Log) Due() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size > max(l.rotateAt, l.base)
}

// Rotate begins a new log and then writes a snapshot below it: write calls emit for records that
// together say what is true. Records that are appended meanwhile are in the new log and are
// replayed after the snapshot, which counts only once they are there: it may hold what they say.
// The old log goes when all that is certain. Only one Rotate may run at a time.
func (l *Log) Rotate(write func(emit func(record []byte) error) error) error {
	number, err := l.begin()
	if err != nil {
		return err
	}
	size, err := l.snapshot(number, write)
	if err != nil {
		return fmt.Errorf("snapshot journal: %w", err)
	}
	if err := syncDir(l.dir); err != nil {
		return fmt.Errorf("snapshot journal: %w", err)
	}
	l.mu.Lock()
	l.base = size
	l.mu.Unlock()
	return l.sweep(number)
}

// settle writes and syncs what was appended.
func (l *Log) settle() error {
	l.mu.Lock()
	last, file := l.appended, l.file
	l.mu.Unlock()
	if err := l.Wait(last); err != nil {
		return err
	}
	return file.Sync()
}

// begin switches to a new, empty log. The old one is whole on the disk before there is a newer.
func (l *Log) begin() (uint64, error) {
	if err := l.settle(); err != nil { // most of it, while others may append
		return 0, fmt.Errorf("rotate journal: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.err == nil && (l.writing || len(l.buffer) > 0) {
		if l.writing {
			l.flushed.Wait()
		} else {
			l.flush()
		}
	}
	if l.err != nil {
		return 0, l.err
	}
	if l.closed {
		return 0, os.ErrClosed
	}
	f, err := l.create(l.number + 1)
	if err != nil {
		return 0, fmt.Errorf("rotate journal: %w", err)
	}
	if err := l.file.Close(); err != nil {
		_ = f.Close()
		return 0, fmt.Errorf("rotate journal: %w", err)
	}
	l.file, l.size = f, 0
	l.number++
	return l.number, nil
}

// create syncs the log and makes the next one, whose name is certain when it returns.
func (l *Log) create(number uint64) (*os.File, error) {
	if err := l.file.Sync(); err != nil {
		return nil, err
	}
	path := l.path("log", number)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syncDir(l.dir); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return f, nil
}

func (l *Log) snapshot(number uint64, write func(func([]byte) error) error) (int64, error) {
	final := l.path("snapshot", number)
	f, err := os.OpenFile(final+".part", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var buffer []byte
	var size int64
	put := func() error {
		_, err := f.Write(buffer)
		size += int64(len(buffer))
		buffer = buffer[:0]
		return err
	}
	err = write(func(record []byte) error {
		if buffer = frame(buffer, record); len(buffer) < 1<<20 {
			return nil
		}
		return put()
	})
	if err := errors.Join(err, put(), f.Sync(), l.settle()); err != nil {
		return 0, err
	}
	return size, os.Rename(final+".part", final)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Close writes and syncs what was appended and unlocks the directory.
func (l *Log) Close() error {
	l.mu.Lock()
	last := l.appended
	l.mu.Unlock()
	err := l.Wait(last)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	if l.ticker != nil {
		l.ticker.Stop()
	}
	return errors.Join(err, l.file.Sync(), l.file.Close(), l.lock.Close())
}
