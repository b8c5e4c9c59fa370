package supervise

import (
	"os"
	"slices"
	"syscall"
	"time"
)

// MarkVariable marks everything that belongs to one `stepfleet dev`: each process it starts inherits
// the variable, and so does what those start.
const MarkVariable = "STEPFLEET_DEV_ID"

// LifeVariable marks everything that belongs to one life of a child; see Command.Life.
const LifeVariable = "STEPFLEET_DEV_LIFE"

// How long a sweep gives PostgreSQL to end by itself, how often it looks, and how many rounds it
// goes: each round catches what was forked while the one before looked.
const (
	postmasterWait = 5 * time.Second
	sweepInterval  = 20 * time.Millisecond
	maxSweepRounds = 500
)

// process is a row of the process table.
type process struct {
	pid, parent int
	command     string
	marked      bool
}

// Marked returns the processes that carry the mark and all their descendants (some rewrite their
// environment, as PostgreSQL's children do), without this process, the spared ones and the spared ones' descendants.
func Marked(id string, spare ...int) []int {
	var pids []int
	for _, p := range markedProcesses(MarkVariable, id, spare) {
		pids = append(pids, p.pid)
	}
	return pids
}

func markedProcesses(variable, id string, spare []int) []process {
	if id == "" {
		return nil
	}
	table := processes(variable + "=" + id)
	rows := make(map[int]process, len(table))
	for _, p := range table {
		rows[p.pid] = p
	}
	var found []process
	for _, p := range table {
		if p.pid != os.Getpid() && belongs(rows, p, spare) {
			found = append(found, p)
		}
	}
	return found
}

// belongs climbs from the process to its ancestors: a spared one among them says no, and otherwise a
// marked one says yes.
func belongs(rows map[int]process, p process, spare []int) bool {
	marked := false
	for range rows { // a table read in motion could show a circle
		if slices.Contains(spare, p.pid) {
			return false
		}
		marked = marked || p.marked
		parent, ok := rows[p.parent]
		if !ok {
			break
		}
		p = parent
	}
	return marked
}

// Sweep kills everything that carries the mark, except the spared processes and what they started,
// and returns how many processes it killed. PostgreSQL is told to stop at once (SIGQUIT) after the others
// are gone, so that it leaves no shared memory behind.
func Sweep(id string, spare ...int) int { return sweep(MarkVariable, id, spare...) }

func sweep(variable, id string, spare ...int) int {
	killed := map[int]bool{}
	deadline := time.Time{}
	for range maxSweepRounds {
		found := markedProcesses(variable, id, spare)
		if len(found) == 0 {
			break
		}
		others := 0
		for _, p := range found {
			if p.command == "postgres" {
				continue
			}
			others++
			killed[p.pid] = true
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
		if others == 0 {
			if deadline.IsZero() {
				deadline = time.Now().Add(postmasterWait)
				quitPostgres(found, killed)
			} else if time.Now().After(deadline) {
				killAll(found)
			}
		}
		time.Sleep(sweepInterval)
	}
	return len(killed)
}

// quitPostgres sends SIGQUIT to every postmaster: a postgres whose parent is none.
func quitPostgres(found []process, killed map[int]bool) {
	isPostgres := map[int]bool{}
	for _, p := range found {
		isPostgres[p.pid] = true
	}
	for _, p := range found {
		killed[p.pid] = true
		if !isPostgres[p.parent] {
			_ = syscall.Kill(p.pid, syscall.SIGQUIT)
		}
	}
}

func killAll(found []process) {
	for _, p := range found {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
}
