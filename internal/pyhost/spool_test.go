package pyhost

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func testSpool(t *testing.T) spool {
	t.Helper()
	s := spool(filepath.Join(t.TempDir(), "spool"))
	if err := s.prepare(); err != nil {
		t.Fatal(err)
	}
	return s
}

// leave writes a note as a step process does, and returns what ends that process.
func leave(t *testing.T, s spool, name string, n note) (die func()) {
	t.Helper()
	raw, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(string(s), name+".json")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return func() { file.Close() }
}

func (s spool) names(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir(string(s))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return strings.Join(names, " ")
}

func tend(t *testing.T, s spool, age time.Duration) tended {
	t.Helper()
	found, err := s.tend(age)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestTheMarkerIsWrittenForAProcessThatIsGoneAndForNoOther(t *testing.T) {
	s := testSpool(t)
	marker := filepath.Join(t.TempDir(), "key.complete")
	die := leave(t, s, "1-a", note{V: noteVersion, Marker: marker})
	if found := tend(t, s, 0); found != (tended{}) || s.names(t) != "1-a.json" {
		t.Errorf("found %+v, spool has %s: the process lives", found, s.names(t))
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("marked as complete while the process lives")
	}
	die()
	if found := tend(t, s, 0); found != (tended{}) || s.names(t) != "" {
		t.Errorf("found %+v, spool has %s: nothing is left to do", found, s.names(t))
	}
	if _, err := os.Stat(marker); err != nil {
		t.Errorf("no marker: %v", err)
	}
}

func TestLogsThatWereDeletedMeanwhileNeedNoMarker(t *testing.T) {
	s := testSpool(t)
	leave(t, s, "1-a", note{V: noteVersion, Marker: filepath.Join(t.TempDir(), "gone", "key.complete")})()
	if tend(t, s, 0); s.names(t) != "" {
		t.Errorf("spool has %s", s.names(t))
	}
}

func TestAnUploadIsHandedOnOnce(t *testing.T) {
	s := testSpool(t)
	die := leave(t, s, "1-a", note{V: noteVersion, Manager: "described"})
	if found := tend(t, s, time.Hour); found != (tended{}) {
		t.Errorf("found %+v: a young step uploads its logs itself", found)
	}
	if found := tend(t, s, 0); found != (tended{all: 1}) {
		t.Errorf("found %+v, want one to show while it runs", found)
	}
	die()
	if found := tend(t, s, time.Hour); found != (tended{dead: 1, all: 1}) || s.names(t) != "1-a.dead" {
		t.Errorf("found %+v, spool has %s, want one handed on", found, s.names(t))
	}
	if found := tend(t, s, time.Hour); found != (tended{all: 1}) {
		t.Errorf("found %+v: it was told of before", found)
	}
}

func TestAnUploadIsNotTriedForEver(t *testing.T) {
	s := testSpool(t)
	leave(t, s, "1-a", note{V: noteVersion, Manager: "described"})()
	tend(t, s, 0)
	dead, before := filepath.Join(string(s), "1-a.dead"), time.Now().Add(-forgetAfter)
	if err := os.Chtimes(dead, before, before); err != nil {
		t.Fatal(err)
	}
	if _, err := s.tend(0); err == nil || !strings.Contains(err.Error(), "described") || s.names(t) != "" {
		t.Errorf("err %v, spool has %s, want to be told what was given up", err, s.names(t))
	}
}

func TestAnotherReleasesNotesAreLeft(t *testing.T) {
	s := testSpool(t)
	leave(t, s, "1-a", note{V: noteVersion + 1, Marker: "/nonexistent/m"})()
	if tend(t, s, 0); s.names(t) != "1-a.json" {
		t.Errorf("spool has %s", s.names(t))
	}
}

// Notes name classes that are loaded: whoever may write one runs code as this user.
func TestASpoolThatOthersMayWriteIsRefused(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{open, link} {
		if err := spool(path).prepare(); err == nil || !strings.Contains(err.Error(), "--spool") {
			t.Errorf("%s: %v, want a refusal that names --spool", path, err)
		}
	}
}

func TestOneUploaderASpool(t *testing.T) {
	s := testSpool(t)
	first, err := s.lock()
	if err != nil || first == nil {
		t.Fatal(err)
	}
	if second, err := s.lock(); err != nil || second != nil {
		t.Errorf("a second lock: %v, %v", second, err)
	}
	first.Close()
	again, err := s.lock()
	if err != nil || again == nil {
		t.Fatalf("the lock is not given back: %v", err)
	}
	again.Close()
}
