//go:build linux

package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/proctable"
)

const (
	// longVariable has tests run that take minutes of waiting: `make full` sets it.
	longVariable = "STEPFLEET_E2E_LONG"
	// promisedOutage is what docs/guarantees.md promises that an outage of PostgreSQL may last.
	promisedOutage = 120 * time.Second
)

// Two minutes without the PostgreSQL of both the ledger and Dagster, under the default deadlines, in real
// time: steps that run go on, those that end meanwhile wait, those that wait start afterwards. Nothing is
// lost, nothing is killed, and no attempt is used up.
func TestTwoMinutesWithoutPostgreSQLKillNobody(t *testing.T) {
	if os.Getenv(longVariable) == "" {
		t.Skipf("it waits for minutes: make full runs it, and so does %s=1", longVariable)
	}
	for name, away := range map[string]func(*testing.T, *dev) (back func()){"killed": killPostgreSQL, "hangs": stopPostgreSQL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // both but wait
			testTwoMinutes(t, away)
		})
	}
}

func testTwoMinutes(t *testing.T, away func(*testing.T, *dev) (back func())) {
	dir, err := stackDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	project := filepath.Join(dir, "project")
	copyFile(t, filepath.Join("testdata", inputDefs), filepath.Join(project, inputDefs))
	d := startDev(t, dir, project, nil, "--python", python, "--port-postgres", "0", "-f", inputDefs)

	during, endDuring := release(t)
	after, endAfter := release(t)
	four := func(file string) string {
		return d.dagster.launch(t, "four", config{ops: numbered("work", 4, behaviour{"release": file}, nil)})
	}
	ends, runs := four(during), four(after)
	d.awaitBegins(t, inputTimeout, 8, ends, runs)
	waits := four(after) // the eight slots are taken
	await(t, inputTimeout, "a third run to wait for slots", func() (bool, string) {
		tasks := d.server.tasks(t, waits)
		return len(tasks.in(stepfleet.StateQueued)) == 4, tasks.String()
	})
	worker := d.pid(t, "worker-1")

	back := away(t, d)
	began := time.Now()
	awaitProbe(t, d.server.url+"/readyz", http.StatusServiceUnavailable, "ledger: ")
	endDuring()
	awaitProbe(t, d.workerURL(t)+"/readyz", http.StatusServiceUnavailable, "session: not renewed for ")
	time.Sleep(time.Until(began.Add(promisedOutage))) // the outage is the thing tested
	back()
	endAfter()
	awaitProbe(t, d.server.url+"/readyz", http.StatusOK, "")
	awaitProbe(t, d.workerURL(t)+"/readyz", http.StatusOK, "")
	t.Logf("PostgreSQL was away for %.1f s", time.Since(began).Seconds())

	for _, run := range []string{ends, runs, waits} {
		d.dagster.awaitEnd(t, inputTimeout, run, dagsterapi.RunSuccess)
		tasks := d.server.tasks(t, run)
		if len(tasks) != 4 || len(tasks.in(stepfleet.StateSucceeded)) != 4 {
			t.Errorf("the ledger has %s", tasks)
		}
		d.server.checkAudit(t, run)
		if effects := d.readEffects(t, run); len(effects) != 8 || len(firstOf("end", effects)) != 4 {
			t.Errorf("the effect log of 4 steps has %+v", effects)
		}
	}
	sessions, err := d.server.sessions()
	if err != nil || len(sessions) != 1 || sessions[0].PID != worker {
		t.Errorf("the sessions are %+v, %v: want the one of process %d alone", sessions, err, worker)
	}
}

// killPostgreSQL kills it, and stops dev, which would start it again after a second.
func killPostgreSQL(t *testing.T, d *dev) (back func()) {
	thaw := stopped(t, []int{d.program.cmd.Process.Pid})
	d.signal(t, "postgres", syscall.SIGKILL)
	return thaw
}

// stopPostgreSQL stops all of its processes: it answers nothing, and closes nothing either.
func stopPostgreSQL(t *testing.T, d *dev) (back func()) {
	return stopped(t, append(withDescendants(d.pid(t, "postgres")), d.program.cmd.Process.Pid))
}

func withDescendants(pid int) []int {
	pids := []int{pid}
	for _, p := range proctable.Descendants(pid) {
		pids = append(pids, p.PID)
	}
	return pids
}

// stopped stops the processes until the returned function is called, or the test ends.
func stopped(t *testing.T, pids []int) (thaw func()) {
	each := func(signal syscall.Signal) {
		for _, pid := range pids {
			_ = syscall.Kill(pid, signal) // a backend may have ended
		}
	}
	thaw = func() { each(syscall.SIGCONT) }
	t.Cleanup(thaw)
	each(syscall.SIGSTOP)
	return thaw
}
