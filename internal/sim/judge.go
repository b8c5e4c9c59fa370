package sim

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/audit"
)

// Verdict is what became of one history.
type Verdict struct {
	Seed   uint64
	Counts audit.Counts
	// Problems is empty when every promise was kept.
	Problems []string
}

// Failed says whether a promise was broken.
func (v Verdict) Failed() bool { return len(v.Problems) > 0 }

// Run makes one history and judges it.
func Run(cfg Config) (Verdict, error) {
	s := newSimulation(cfg)
	defer s.world.end()
	s.play()
	return s.judge()
}

// History makes a history anew and returns its lines.
func History(cfg Config) (string, Verdict, error) {
	var b strings.Builder
	cfg.Tell = func(line string) { b.WriteString(line + "\n") }
	v, err := Run(cfg)
	return b.String(), v, err
}

// judge holds the witnesses against each other and against what is promised.
func (s *simulation) judge() (Verdict, error) {
	ctx, v := context.Background(), Verdict{Seed: s.cfg.Seed}
	sessions, err := s.ledger.Sessions(ctx, forever)
	if err != nil {
		return v, err
	}
	rows, views := s.ledger.WholeAudit(), s.views()
	tasks := make([]audit.Task, len(views))
	for i, view := range views {
		tasks[i] = audit.TaskOf(view)
	}
	report, err := audit.Check(ctx, audit.Witnesses{
		Client: audit.Slice(s.client...), Effects: audit.Slice(s.effects...), Audit: audit.Slice(rows...),
		Tasks: audit.Slice(tasks...), Sessions: audit.Slice(sessions...), Dagster: audit.Slice(s.log.events...),
		Runs: s.dagsterRuns(), Until: s.world.time(), Snapshot: true, Healed: epoch.Add(s.healedAt), Within: endsWithin,
		Lifetimes: lifetimes, Skew: 10 * time.Microsecond,
	})
	if err != nil {
		return v, err
	}
	v.Counts = report.Counts
	for _, one := range report.Violations {
		if one.Invariant == zombie {
			continue
		}
		v.Problems = append(v.Problems, fmt.Sprintf("%s %s: %s (%s)", one.Invariant, one.Key, one.What, one.Sentence))
	}
	v.Problems = append(v.Problems, s.lostForNothing(views)...)
	v.Problems = append(v.Problems, s.wronged...)
	v.Problems = append(v.Problems, s.zombies(rows)...)
	v.Problems = append(v.Problems, s.takenBack(rows)...)
	for _, r := range s.runs {
		if !r.ended {
			v.Problems = append(v.Problems, r.id+" has not ended")
		}
	}
	return v, nil
}

// dagsterRuns says that the log has all runs.
func (s *simulation) dagsterRuns() audit.Source[audit.Run] {
	var runs []audit.Run
	for _, r := range s.runs {
		runs = append(runs, audit.Run{ID: r.id, Job: "job", Cancelled: true}) // however they end
	}
	return audit.Slice(runs...)
}

// unharmed says of a session that nothing has happened to it. One may have ended itself where the ledger was
// away for so long that it had to.
func (s *simulation) unharmed(id stepfleet.SessionID) bool {
	l := s.lives[id]
	long := s.outages > lifetimes.RunLease-3*lifetimes.Margin
	return l != nil && !l.harmed && !(l.ranOut && long)
}

// expired notes sessions that a server takes for suspect or dead for nothing.
func (s *simulation) expired(sessions []stepfleet.Session) {
	for _, one := range sessions {
		if s.unharmed(one.ID) {
			s.wronged = append(s.wronged, fmt.Sprintf("L2 session %d of %s: it was taken for %s, and nothing had happened to it", one.ID, one.Worker, one.State))
		}
	}
}

// lostForNothing finds attempts that were lost although nothing had happened to their session.
func (s *simulation) lostForNothing(views []stepfleet.View) (found []string) {
	for _, v := range views {
		if v.State == stepfleet.StateLost && s.unharmed(v.Session) {
			found = append(found, fmt.Sprintf("L1 %s: it was lost, and nothing had happened to session %d of %s: %s", v.Key, v.Session, v.Worker, v.Reason))
		}
	}
	return found
}

// zombie is the invariant of the checker that user code is not at work long after its fence is gone. It goes by
// what user code writes, and cannot know that a worker was stopped: zombies here goes by the processes.
const zombie = "I6"

// zombies finds processes that had begun user code and were there long after their fence was gone, less the time
// that its worker was stopped.
func (s *simulation) zombies(rows []stepfleet.AuditRow) (found []string) {
	allowed := lifetimes.SessionTTL + lifetimes.Margin
	for _, c := range s.born {
		for _, row := range rows {
			if !c.began || row.TaskID != c.t.job.TaskID || row.Refused != "" || row.Fence <= c.t.job.Fence && !row.To.Terminal() {
				continue
			}
			if c.died.IsZero() {
				found = append(found, fmt.Sprintf("I6 %s: its process never ended", c.t.job.Key))
			} else if over := c.died.Sub(row.At) - c.t.l.p.stopped(row.At, c.died); over > allowed {
				found = append(found, fmt.Sprintf("I6 %s: its process ended %s after its fence was gone", c.t.job.Key, over))
			}
			break
		}
	}
	return found
}

// takenBack finds executors that took their run from one that had followed them.
func (s *simulation) takenBack(rows []stepfleet.AuditRow) (found []string) {
	resumes := map[string]int{}
	for _, r := range s.runs {
		for _, x := range r.executors {
			resumes[x.p.name] = x.resume
		}
	}
	last := map[string]string{} // by run, the executor of the latest resume so far
	for _, row := range rows {
		if row.Verb != stepfleet.VerbTakeover || row.Refused != "" {
			continue
		}
		name, _, _ := strings.Cut(row.Detail, " ")
		if follower, ok := last[row.RunID]; ok && resumes[name] < resumes[follower] {
			found = append(found, fmt.Sprintf("L3 %s: %s took it from %s, which had followed it", row.RunID, name, follower))
			continue
		}
		last[row.RunID] = name
	}
	return found
}

// views are all tasks.
func (s *simulation) views() (all []stepfleet.View) {
	for _, r := range s.runs {
		views, err := s.ledger.RunTasks(context.Background(), r.id)
		if err != nil {
			panic(err) // the ledger is in memory
		}
		all = append(all, views...)
	}
	return all
}

// open are the tasks that have not ended.
func (s *simulation) open() (open []stepfleet.View) {
	for _, v := range s.views() {
		if !v.State.Terminal() {
			open = append(open, v)
		}
	}
	return open
}

// ownerNow is who owns the task at this moment: for the mutant that takes whoever settles for the owner.
func (s *simulation) ownerNow(ref stepfleet.Ref, session stepfleet.SessionID) (stepfleet.SessionID, stepfleet.Ref) {
	views, err := s.ledger.Tasks(context.Background(), []stepfleet.TaskID{ref.TaskID})
	if err != nil || len(views) == 0 || views[0].State != stepfleet.StateRunning {
		return session, ref
	}
	return views[0].Session, stepfleet.Ref{TaskID: ref.TaskID, Fence: views[0].Fence}
}
