package pyhost

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// spool is the directory where step processes note what logs they have begun to capture, so that
// these can be finished by others when the process is killed (python/dagster_stepfleet/spool.py).
// Workers of one user on one machine may share it, and it outlives them: what a killed worker has
// left there is finished by the next one.
type spool string

// spoolVariable tells Python where it is.
const spoolVariable = "STEPFLEET_SPOOL"

// note is one capture. It has a marker or a manager.
type note struct {
	V int `json:"v"`
	// Marker is the file that tells Dagster's local storage that a capture is complete.
	Marker string `json:"marker"`
	// Manager is Dagster's description of a cloud storage; it takes Python to upload to it.
	Manager string `json:"manager"`
}

const noteVersion = 1

// prepare creates the directory. Notes name Python classes to load, so nobody else may write them.
func (s spool) prepare() error {
	if err := os.MkdirAll(string(s), 0o700); err != nil {
		return fmt.Errorf("create the spool: %w", err)
	}
	info, err := os.Lstat(string(s))
	if err != nil {
		return fmt.Errorf("look at the spool: %w", err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 || !ok || int(owner.Uid) != os.Getuid() {
		return fmt.Errorf("the spool %s must be a directory of this user with mode 0700, not %s: remove it, or choose another one with --spool", string(s), info.Mode())
	}
	return nil
}

// tended says what a look at the notes has found for the uploader.
type tended struct {
	dead int // notes that are its to finish, and have just become so
	all  int // and those that were before, or whose step has been running for a while
}

// tend finishes what is left of processes that are gone: a marker is written here, an upload is
// handed on by the note's new name. Only notes whose living step is older than age count.
func (s spool) tend(age time.Duration) (tended, error) {
	var found tended
	entries, err := os.ReadDir(string(s))
	if err != nil {
		return found, fmt.Errorf("read the spool: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		switch path := filepath.Join(string(s), entry.Name()); filepath.Ext(path) {
		case ".dead":
			if olderThan(entry, forgetAfter) {
				errs = append(errs, forget(path))
				continue
			}
			found.all++
		case ".json":
			fate, err := tendNote(path)
			errs = append(errs, err)
			switch {
			case fate == handedOn:
				found.dead++
				found.all++
			case fate == uploadable && olderThan(entry, age):
				found.all++
			}
		}
	}
	return found, errors.Join(errs...)
}

// fate is what has become of a note.
type fate int

const (
	settled    fate = iota // finished, or nothing to do
	uploadable             // its process lives, and may print more than it uploads itself
	handedOn               // the uploader's to finish
)

func tendNote(path string) (fate, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return settled, nil // its process has just ended well
	}
	if err != nil {
		return settled, fmt.Errorf("read a note: %w", err)
	}
	defer file.Close()
	var n note
	if err := json.NewDecoder(file).Decode(&n); err != nil || n.V != noteVersion {
		return settled, nil // another release's
	}
	if alive(file) {
		if n.Manager != "" {
			return uploadable, nil
		}
		return settled, nil
	}
	if n.Manager != "" {
		return handOn(path)
	}
	return settled, errors.Join(writeMarker(n.Marker), remove(path))
}

// handOn makes a note the uploader's to finish, from now on.
func handOn(path string) (fate, error) {
	now, dead := time.Now(), strings.TrimSuffix(path, ".json")+".dead"
	err := errors.Join(os.Chtimes(path, now, now), os.Rename(path, dead))
	if errors.Is(err, fs.ErrNotExist) {
		return settled, nil // another worker was faster
	}
	if err != nil {
		return settled, fmt.Errorf("hand on a note: %w", err)
	}
	return handedOn, nil
}

// forgetAfter bounds how long uploads of one log are tried.
const forgetAfter = 7 * 24 * time.Hour

func forget(path string) error {
	raw, _ := os.ReadFile(path) // for the message alone
	if err := remove(path); err != nil {
		return err
	}
	return fmt.Errorf("gave up on the logs of a step, which could not be uploaded for %s; they stay where the step has written them: %s", forgetAfter, raw)
}

// alive says whether the note's process is there, or what it has forked: they hold its lock.
func alive(file *os.File) bool {
	err := syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	return errors.Is(err, syscall.EWOULDBLOCK)
}

// writeMarker says that a capture is complete. Logs that were deleted meanwhile need no marker.
func writeMarker(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mark the logs of a step that is gone as complete: %w", err)
	}
	return file.Close()
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a note: %w", err)
	}
	return nil
}

func olderThan(entry os.DirEntry, age time.Duration) bool {
	info, err := entry.Info()
	return err == nil && time.Since(info.ModTime()) >= age
}

// lock takes the right to run the spool's uploader; nil while another process has it. The lock is
// the open file's, so it goes on in a process that inherits it.
func (s spool) lock() (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(string(s), "uploader.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the spool: %w", err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return file, nil
	}
	file.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, fmt.Errorf("lock the spool: %w", err)
}
