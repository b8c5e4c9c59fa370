package time

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

func TestAWriteIsAStepOfTheClock(t *testing.T) {
	if shift() != 0 {
		t.Errorf("wrong by %d s without a file", shift())
	}
	path := filepath.Join(t.TempDir(), "clock")
	set := func(seconds int64) {
		t.Helper()
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(seconds)), 0); err != nil {
			t.Fatal(err)
		}
	}
	set(-3600)
	t.Setenv(variable, path)
	clock := mapped()
	if got := clock.Load(); got != -3600 {
		t.Errorf("wrong by %d s, want an hour behind", got)
	}
	set(15)
	if got := clock.Load(); got != 15 {
		t.Errorf("wrong by %d s after a step, want 15", got)
	}
}
