package pglocal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// owner is the user a server runs as: PostgreSQL refuses to run as root.
type owner struct {
	name     string
	uid, gid uint32
	switched bool // it is not the user of this process
}

// serverOwner is this process's user, or an unprivileged one when that is root.
func serverOwner() (owner, error) {
	if os.Geteuid() != 0 {
		return owner{name: "of this process", uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil && uid != 0 {
			return owner{name: name, uid: uint32(uid), gid: uint32(gid), switched: true}, nil
		}
	}
	return owner{}, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")
}

// own gives a path to the server's user.
func (o owner) own(path string) error {
	if !o.switched {
		return nil
	}
	return os.Chown(path, int(o.uid), int(o.gid))
}

// apply makes cmd run as the server's user, in a process group of its own (a Ctrl-C in the
// terminal is for the parent to pass on) and end with this process.
func (o owner) apply(cmd *exec.Cmd) {
	attr := deathAttr()
	attr.Setpgid = true
	if o.switched {
		attr.Credential = &syscall.Credential{Uid: o.uid, Gid: o.gid}
	}
	cmd.SysProcAttr = attr
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC", "PGDATA=", "HOME=/")
}

// canReach reports the first directory on the way to path that the server's user may not enter.
func (o owner) canReach(path string) error {
	if !o.switched {
		return nil
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	for dir := real; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if !o.mayEnter(info) {
			return fmt.Errorf("user %s, as which PostgreSQL runs, may not enter %s", o.name, dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func (o owner) mayEnter(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case ok && stat.Uid == o.uid:
		return info.Mode()&0o100 != 0
	case ok && stat.Gid == o.gid:
		return info.Mode()&0o010 != 0
	}
	return info.Mode()&0o001 != 0
}

// reachable returns an install that the server's user can execute: the wheel in an environment
// under /root is copied out, once.
func (o owner) reachable(inst Install) (Install, error) {
	err := o.canReach(inst.BinDir)
	if err == nil {
		return inst, nil
	}
	if inst.Root == "" {
		return Install{}, err
	}
	cache := filepath.Join(os.TempDir(), fmt.Sprintf("stepfleet-postgres-%d-uid%d", inst.Major, os.Geteuid()))
	tree, err := filepath.Rel(inst.Root, filepath.Dir(inst.BinDir))
	if err != nil {
		return Install{}, err
	}
	moved := Install{BinDir: filepath.Join(cache, tree, "bin"), Major: inst.Major}
	if err := copyInstall(inst.Root, tree, cache); err != nil {
		return Install{}, fmt.Errorf("copy PostgreSQL to where user %s can run it: %w", o.name, err)
	}
	return moved, o.canReach(moved.BinDir)
}

// copyInstall copies the tree, and the libraries that it finds relative to itself, into cache.
// The last rename makes it whole, so an interrupted copy is made again.
func copyInstall(root, tree, cache string) error {
	if info, err := os.Lstat(cache); err == nil {
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !info.IsDir() || ok && stat.Uid != uint32(os.Geteuid()) {
			return fmt.Errorf("%s belongs to somebody else: remove it", cache)
		}
		return nil
	}
	staging, err := os.MkdirTemp(filepath.Dir(cache), "stepfleet-postgres-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(staging)
	if err := os.Chmod(staging, 0o755); err != nil {
		return err
	}
	for _, part := range []string{tree, wheel + ".libs"} {
		source := filepath.Join(root, part)
		if _, err := os.Stat(source); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		target := filepath.Join(staging, part)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := os.CopyFS(target, os.DirFS(source)); err != nil {
			return err
		}
	}
	err = os.Rename(staging, cache)
	if err != nil && errors.Is(err, fs.ErrExist) {
		return nil // somebody else was faster
	}
	return err
}
