package chaos

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	// clockDrift is how much faster or slower the clock that a worker counts its leases on may run: less
	// than what the margin of the run lease makes up for.
	clockDrift = 0.03
	// clockWrong is by how many minutes a wall clock is wrong at first, at most.
	clockWrong = 60
)

// clocks are those of the servers and workers. Each is wrong by its own from the beginning, by what
// follows from the seed, and is stepped while its process runs: the process has the file mapped (clock/).
type clocks struct {
	dir  string
	seed uint64

	mu    sync.Mutex
	wrong map[string]time.Duration
}

func newClocks(c Config) (*clocks, error) {
	k := &clocks{dir: filepath.Join(c.Dir, "clocks"), seed: c.Seed, wrong: map[string]time.Duration{}}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return nil, err
	}
	for _, name := range clocked() {
		first := time.Duration(k.chance(name).IntN(2*clockWrong+1)-clockWrong) * time.Minute
		if err := k.step(name, first); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// clocked are the processes whose clocks are wrong.
func clocked() []string {
	var names []string
	for i := range servers {
		names = append(names, serverName(i))
	}
	for i := range workers {
		names = append(names, workerName(i))
	}
	return names
}

// chance is a process's own.
func (k *clocks) chance(name string) *rand.Rand {
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(name))
	return rand.New(rand.NewPCG(k.seed, hash.Sum64()))
}

func (k *clocks) path(name string) string { return filepath.Join(k.dir, name) }

// environment has a process use its clock.
func (k *clocks) environment(name string) []string {
	if !slices.Contains(clocked(), name) {
		return nil
	}
	rate := 1 + clockDrift*(2*k.chance(name).Float64()-1)
	return []string{"STEPFLEET_CHAOS_CLOCK=" + k.path(name), fmt.Sprintf("STEPFLEET_CHAOS_CLOCK_RATE=%.4f", rate)}
}

// step moves a wall clock by so much more, at once. What a process reads is never half of it.
func (k *clocks) step(name string, by time.Duration) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	file, err := os.OpenFile(k.path(name), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	seconds := int64((k.wrong[name] + by) / time.Second)
	if _, err := file.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(seconds)), 0); err != nil {
		return err
	}
	k.wrong[name] += by
	return nil
}

// offset is by how much a wall clock is wrong now.
func (k *clocks) offset(name string) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.wrong[name]
}

// stepClock sets the wall clock of a server or worker while it runs, and leaves it so. It has landed
// when the process itself says the new time.
func (n *nemesis) stepClock(ctx context.Context, i *Injected) error {
	names := clocked()
	name := names[i.Victim%len(names)]
	if !n.take("clock of " + name) {
		return errNoVictim
	}
	defer n.give("clock of " + name)
	if _, err := n.shows(ctx, name); err != nil {
		return fmt.Errorf("%w: %w", errNoVictim, err) // it may be killed or paused
	}
	if err := n.clocks.step(name, i.Offset); err != nil {
		return err
	}
	at := time.Now()
	i.Target, i.PID = name, n.pid(name)
	shown, err := n.shows(ctx, name)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoVictim, err)
	}
	if off := shown.Sub(time.Now().Add(n.clocks.offset(name))).Abs(); off > clockSlack {
		return fmt.Errorf("the clock of %s is %s from what it was set to", name, off)
	}
	i.Landed = at
	return nil
}

// clockSlack is what an answer takes, and the part of a second that it leaves out.
const clockSlack = 1500 * time.Millisecond

// shows asks a server or worker for its time, at its own address: every answer has the date.
func (n *nemesis) shows(ctx context.Context, name string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	at := n.net.endpoints()
	address := slices.Concat(at.Servers, at.Workers)[slices.Index(clocked(), name)]
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/livez", nil)
	if err != nil {
		return time.Time{}, err
	}
	response, err := n.http.Do(request)
	if err != nil {
		return time.Time{}, err
	}
	defer response.Body.Close()
	return http.ParseTime(response.Header.Get("Date"))
}
