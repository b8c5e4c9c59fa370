package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/memory"
	"github.com/stepfleet/stepfleet/internal/pyhost"
	"github.com/stepfleet/stepfleet/internal/worker"
)

// A worker whose template still imports must not take tasks that another one could run.
func TestAWorkerRegistersOnlyWhenItsHostIsSettled(t *testing.T) {
	dir := t.TempDir()
	loading, python := filepath.Join(dir, "loading"), filepath.Join(dir, "python")
	script := "#!/bin/sh\ntouch " + loading + "\nexec sleep 600\n"
	if err := os.WriteFile(python, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	ledger := memory.NewLedger()
	host := pyhost.New(pyhost.Config{Python: python, Mode: pyhost.ModeAuto, Idle: 1, Logger: log})
	w, err := worker.New(worker.Config{
		Spec:      stepfleet.SessionSpec{Worker: "w", Instance: "i", Slots: map[string]int{"default": 1}},
		Lifetimes: stepfleet.DefaultLifetimes(), DrainTimeout: time.Second, KillGrace: time.Second, Logger: log,
	}, worker.Ports{Claims: ledger, Renewals: ledger, Bells: memory.NewBells("default"), Host: host})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- runWorker(ctx, w, host, func(ctx context.Context) error { <-ctx.Done(); return nil })
	}()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(loading); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the template was not started")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if sessions, err := ledger.Sessions(context.Background(), time.Hour); err != nil || len(sessions) > 0 {
		t.Errorf("sessions %+v, %v: want none while the template loads", sessions, err)
	}
}
