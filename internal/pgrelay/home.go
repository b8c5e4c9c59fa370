package pgrelay

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

const (
	socketName = ".s.PGSQL.5432"
	dirPattern = "pg-*"
	// maxSocketPath is what a path may have in a sockaddr_un, its closing zero aside.
	maxSocketPath = 107
)

// home is the directory of a relay's socket. It is locked while the relay lives: another one may
// remove what nobody holds. (The name alone tells nothing: in containers everybody is process 1.)
type home struct {
	dir  string
	lock *os.File
}

func makeHome(parent string) (*home, error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, err
	}
	if len(filepath.Join(parent, dirPattern+"0123456789", socketName)) > maxSocketPath {
		return makeIn(os.TempDir(), "stepfleet-"+dirPattern)
	}
	return makeIn(parent, dirPattern)
}

// makeIn makes a directory that nobody has had, and removes what killed relays have left beside it.
func makeIn(parent, pattern string) (*home, error) {
	sweep(filepath.Join(parent, pattern))
	for {
		dir, err := os.MkdirTemp(parent, pattern)
		if err != nil {
			return nil, err
		}
		lock, err := lockDir(dir)
		if err == nil {
			return &home{dir: dir, lock: lock}, nil
		}
		// Another one has swept it up in between; then there is nothing to remove.
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
}

// lockDir locks the directory, which must still be there under its name then.
func lockDir(dir string) (*os.File, error) {
	lock, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, err
	}
	if _, err := os.Stat(dir); err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

func sweep(pattern string) {
	dirs, _ := filepath.Glob(pattern)
	for _, dir := range dirs {
		if lock, err := lockDir(dir); err == nil {
			_ = (&home{dir: dir, lock: lock}).remove() // what stays harms nobody
		}
	}
}

func (h *home) socket() string { return filepath.Join(h.dir, socketName) }

func (h *home) remove() error {
	defer h.lock.Close()
	if err := os.Remove(h.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Remove(h.dir)
}
