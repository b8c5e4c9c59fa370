package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open opens the journal and returns what it replayed.
func open(t *testing.T, dir string) (*Log, []string) {
	t.Helper()
	var got []string
	l, err := Open(dir, Options{Sync: SyncNever}, func(r []byte) error { got = append(got, string(r)); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return l, got
}

func write(t *testing.T, l *Log, records ...string) {
	t.Helper()
	var last Ticket
	for _, r := range records {
		last = l.Append([]byte(r))
	}
	if err := l.Wait(last); err != nil {
		t.Fatal(err)
	}
}

func TestReplaysInOrder(t *testing.T) {
	dir := t.TempDir()
	l, got := open(t, dir)
	if len(got) != 0 {
		t.Errorf("a new journal replayed %q", got)
	}
	write(t, l, "a", "b")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, got = open(t, dir)
	write(t, l, "c")
	_ = l.Close()
	l, again := open(t, dir)
	defer l.Close()
	if !slices.Equal(got, []string{"a", "b"}) || !slices.Equal(again, []string{"a", "b", "c"}) {
		t.Errorf("replayed %q, then %q", got, again)
	}
}

// TestATornEndIsCutOff ends the file in the middle of a record, at every byte of it.
func TestATornEndIsCutOff(t *testing.T) {
	source := t.TempDir()
	l, _ := open(t, source)
	write(t, l, "first", "second")
	_ = l.Close()
	whole, err := os.ReadFile(filepath.Join(source, "log-00000001"))
	if err != nil {
		t.Fatal(err)
	}
	one := headerBytes + len("first")
	for n := one; n < len(whole); n++ {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "log-00000001"), whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		l, got := open(t, dir)
		write(t, l, "third")
		_ = l.Close()
		_, again := open(t, dir)
		if !slices.Equal(got, []string{"first"}) || !slices.Equal(again, []string{"first", "third"}) {
			t.Fatalf("cut at %d: replayed %q, then %q", n, got, again)
		}
	}
}

func TestDamageInTheMiddleIsAnError(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	write(t, l, "first")
	if err := l.Rotate(func(emit func([]byte) error) error { return emit([]byte("snapshot")) }); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	path := filepath.Join(dir, "snapshot-00000002")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[headerBytes] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{Sync: SyncNever}, func([]byte) error { return nil }); err == nil || !strings.Contains(err.Error(), "is damaged at byte 0") {
		t.Errorf("a damaged snapshot: %v", err)
	}
}

// TestDamageBeforeAWholeRecordIsAnError flips a bit of every byte but those of the last record: no
// kill leaves that, and what is behind it was acknowledged.
func TestDamageBeforeAWholeRecordIsAnError(t *testing.T) {
	source := t.TempDir()
	l, _ := open(t, source)
	write(t, l, `{"first":1}`, `{"second":2}`, `{"third":3}`)
	_ = l.Close()
	whole, err := os.ReadFile(filepath.Join(source, "log-00000001"))
	if err != nil {
		t.Fatal(err)
	}
	last := headerBytes + len(`{"third":3}`)
	for i := range len(whole) - last {
		data := slices.Clone(whole)
		data[i] ^= 0x10
		dir := t.TempDir()
		path := filepath.Join(dir, "log-00000001")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(dir, Options{Sync: SyncNever}, func([]byte) error { return nil })
		if err == nil || !strings.Contains(err.Error(), "is damaged at byte ") {
			t.Fatalf("byte %d: %v", i, err)
		}
		if after, _ := os.ReadFile(path); !slices.Equal(after, data) {
			t.Fatalf("byte %d: the damaged log was changed", i)
		}
	}
}

// TestCutSaysHowMuch: what was cut off is told, so that somebody may hear of it.
func TestCutSaysHowMuch(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	write(t, l, "first", "second")
	_ = l.Close()
	if err := os.Truncate(filepath.Join(dir, "log-00000001"), int64(2*headerBytes+len("first")+3)); err != nil {
		t.Fatal(err)
	}
	l, _ = open(t, dir)
	defer l.Close()
	if l.Cut() != headerBytes+3 {
		t.Errorf("cut %d bytes", l.Cut())
	}
}

// TestASnapshotWaitsForWhatItReflects appends, while a snapshot is written, a record that nobody
// waits for: the snapshot may hold what it says, so it must be kept before the snapshot counts.
func TestASnapshotWaitsForWhatItReflects(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	write(t, l, "old")
	if err := l.Rotate(func(emit func([]byte) error) error {
		l.Append([]byte("meanwhile"))
		return emit([]byte("state"))
	}); err != nil {
		t.Fatal(err)
	}
	killed := t.TempDir() // what is on the disk now
	if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	l, got := open(t, killed)
	defer l.Close()
	if !slices.Equal(got, []string{"state", "meanwhile"}) {
		t.Errorf("replayed %q", got)
	}
}

func TestRotateReplacesWhatWasBefore(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	for round := range 3 {
		write(t, l, fmt.Sprintf("old %d", round))
		err := l.Rotate(func(emit func([]byte) error) error {
			write(t, l, fmt.Sprintf("meanwhile %d", round))
			return emit(fmt.Appendf(nil, "state %d", round))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	_ = l.Close()
	l, got := open(t, dir)
	defer l.Close()
	if !slices.Equal(got, []string{"state 2", "meanwhile 2"}) {
		t.Errorf("replayed %q", got)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 3 { // lock, log, snapshot
		t.Errorf("files left: %v", entries)
	}
}

// TestAnUnfinishedSnapshotIsNone leaves the logs of before and of after a snapshot that broke off.
func TestAnUnfinishedSnapshotIsNone(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	write(t, l, "before")
	broken := fmt.Errorf("broken")
	if err := l.Rotate(func(func([]byte) error) error { return broken }); err == nil {
		t.Fatal("a snapshot that failed was taken for one")
	}
	write(t, l, "after")
	_ = l.Close()
	l, got := open(t, dir)
	defer l.Close()
	if !slices.Equal(got, []string{"before", "after"}) {
		t.Errorf("replayed %q", got)
	}
}

func TestTwoProcessesDoNotShareADirectory(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	if _, err := Open(dir, Options{Sync: SyncNever}, nil); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second Open: %v", err)
	}
	_ = l.Close()
	l, _ = open(t, dir)
	_ = l.Close()
}

// TestConcurrentWritersShareAWrite: everything that was waited for is there, in each writer's order.
func TestConcurrentWritersShareAWrite(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	var running sync.WaitGroup
	for w := range 8 {
		running.Go(func() {
			for i := range 200 {
				if err := l.Wait(l.Append(fmt.Appendf(nil, "%d %d", w, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	_ = l.Close()
	l, got := open(t, dir)
	defer l.Close()
	var next [8]int
	for _, r := range got {
		var w, i int
		if _, err := fmt.Sscan(r, &w, &i); err != nil || next[w] != i {
			t.Fatalf("record %q, want %d of writer %d", r, next[w], w)
		}
		next[w]++
	}
	if len(got) != 8*200 {
		t.Errorf("%d records", len(got))
	}
}

func TestAFailedWriteIsToldToAll(t *testing.T) {
	l, _ := open(t, t.TempDir())
	write(t, l, "good")
	_ = l.file.Close()
	if err := l.Wait(l.Append([]byte("bad"))); err == nil {
		t.Error("a record that could not be written is kept")
	}
	if err := l.Wait(l.Append([]byte("worse"))); err == nil {
		t.Error("the journal went on after a failure")
	}
}

func FuzzNext(f *testing.F) {
	f.Add([]byte{})
	f.Add(frame(nil, []byte("x")))
	f.Add(frame(frame(nil, []byte("x")), []byte("yy"))[:13])
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		for {
			record, rest, ok := next(data)
			if !ok {
				return
			}
			if len(rest) >= len(data) || len(record) == 0 {
				t.Fatal("no progress")
			}
			data = rest
		}
	})
}
