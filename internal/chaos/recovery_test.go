package chaos

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
)

// at is a time of these histories, in seconds.
func at(seconds float64) time.Time {
	return time.Unix(1e9, 0).Add(time.Duration(seconds * float64(time.Second)))
}

func session(id int64, instance string) stepfleet.Session {
	s := stepfleet.Session{ID: stepfleet.SessionID(id), RenewedAt: at(0)}
	s.Instance = instance
	return s
}

func claimed(task, session int64) stepfleet.AuditRow {
	return stepfleet.AuditRow{TaskID: stepfleet.TaskID(task), Verb: stepfleet.VerbClaim, At: at(0), Actor: fmt.Sprint("session ", session)}
}

func swept(task int64, seconds float64, detail string) stepfleet.AuditRow {
	return stepfleet.AuditRow{TaskID: stepfleet.TaskID(task), Verb: stepfleet.VerbSweep, At: at(seconds), Detail: detail}
}

func injected(kind schedule.Kind, target string, from, until float64) *Injected {
	return &Injected{Fault: schedule.Fault{Kind: kind}, Target: target, Landed: at(from), Healed: at(until)}
}

func recovered(o outcome) *Report {
	r := &Report{Config: ReportedConfig{TTLSeconds: 3, RunLeaseSeconds: 12, StartWithinSeconds: 10}}
	r.judgeRecovery(o)
	return r
}

func expect(t *testing.T, what string, got Lateness, count int, most float64) {
	t.Helper()
	if got.Count != count || got.MostSeconds != most {
		t.Errorf("%s: %+v, want %d, %g s late at most", what, got, count, most)
	}
}

func TestRecoveryIsMeasuredFromTheDeadlineThatApplies(t *testing.T) {
	o := outcome{witnesses: &witnesses{
		sessions: []stepfleet.Session{session(1, "proven"), session(2, "silent"), session(3, "late"), session(4, "slow")},
		audit: []stepfleet.AuditRow{
			claimed(1, 1), claimed(2, 2), claimed(3, 2), claimed(4, 3), claimed(5, 4), claimed(6, 4),
			swept(1, 1.5, "session 1 is dead: killed"),
			swept(2, 5, "session 2 is suspect"),
			swept(3, 13, "session 2 is dead: no renewal for 12s"),
			swept(4, 40, "session 3 is dead: no renewal for 12s"),
			swept(5, 10.5, "session 4 did not start it in time"),
			swept(6, 11, "session 4 is dead: drained"),
		},
	}}
	kill := injected(schedule.KillWorker, "worker-1", 1, 2)
	kill.Instance = "proven"
	o.faults = []*Injected{kill}
	r := recovered(o)
	expect(t, "by proof, after the kill", r.Recovery[byProof].Tasks, 1, 0.5)
	expect(t, "by TTL", r.Recovery[byTTL].Tasks, 1, 2)
	expect(t, "by run lease", r.Recovery[byRunLease].Tasks, 2, 28)
	expect(t, "a lease that was not started", r.Recovery[byStart].Tasks, 1, 0.5)
	if r.Pass() || r.Counts.RecoveryP99Secs != 28 || r.Recovery[byRunLease].Count != 2 {
		t.Errorf("28 s late is no problem: %+v", r.Recovery)
	}
	if r.Unmeasured != 1 {
		t.Errorf("%d tasks of owners that ended by themselves, want 1", r.Unmeasured)
	}
}

// The ledger has only the last renewal of a session: what was taken before is measured by what was seen.
func TestASessionThatCameBackIsASampleToo(t *testing.T) {
	back := session(1, "back")
	back.RenewedAt = at(60)
	o := outcome{witnesses: &witnesses{
		sessions: []stepfleet.Session{back},
		audit:    []stepfleet.AuditRow{claimed(1, 1), swept(1, 9, "session 1 is suspect")},
	}}
	if r := recovered(o); r.Recovery[byTTL].Count != 0 || r.Unmeasured != 1 {
		t.Errorf("%+v: nothing is known of its renewals", r.Recovery[byTTL])
	}
	for _, renewed := range []float64{0, 5, 20} {
		o.seen = append(o.seen, sighting{ID: 1, State: stepfleet.SessionAlive, RenewedAt: at(renewed), At: at(renewed)})
	}
	expect(t, "by TTL since the renewal at 5", recovered(o).Recovery[byTTL].Tasks, 1, 1)
}

func TestGivingASessionUpIsASampleToo(t *testing.T) {
	w := &watch{last: map[stepfleet.SessionID]sighting{}}
	look := func(id int64, state stepfleet.SessionState, renewed, seen float64, reason string) {
		w.take(sighting{ID: stepfleet.SessionID(id), Instance: fmt.Sprint("i-", id), State: state, RenewedAt: at(renewed), At: at(seen), EndReason: reason})
	}
	look(1, stepfleet.SessionAlive, 0, 0.1, "")
	look(1, stepfleet.SessionAlive, 0, 0.2, "") // as before
	look(1, stepfleet.SessionSuspect, 0, 3.5, "")
	look(1, stepfleet.SessionSuspect, 0, 3.6, "") // as before
	look(1, stepfleet.SessionAlive, 6, 6.1, "")
	look(1, stepfleet.SessionSuspect, 6, 9.25, "")
	look(1, stepfleet.SessionDead, 6, 19, "no renewal for 12 s")
	look(2, stepfleet.SessionDead, 0, 5.25, "worker-1 exited")
	look(3, stepfleet.SessionDead, 0, 5.25, "drained")
	if len(w.seen) != 7 {
		t.Errorf("%d sightings are kept, want those of a change: %+v", len(w.seen), w.seen)
	}
	kill := injected(schedule.KillWorker, "worker-1", 5, 6)
	kill.Instance = "i-2"
	r := recovered(outcome{witnesses: &witnesses{seen: w.seen}, faults: []*Injected{kill}})
	expect(t, "suspect", r.Recovery[byTTL].Sessions, 2, 0.5)
	expect(t, "dead by run lease", r.Recovery[byRunLease].Sessions, 1, 1)
	expect(t, "dead by proof", r.Recovery[byProof].Sessions, 1, 0.25)
	if r.Counts.RecoveryP99Secs != 1 || !r.Pass() {
		t.Errorf("p99 %g, want the latest kind's", r.Counts.RecoveryP99Secs)
	}
}

// A server may call nobody gone before its own beats have gone on for a TTL; another may.
func TestADeadlineWaitsForAServerThatMayAct(t *testing.T) {
	o := outcome{witnesses: &witnesses{
		sessions: []stepfleet.Session{session(1, "silent")},
		audit:    []stepfleet.AuditRow{claimed(1, 1), swept(1, 40, "session 1 is dead: no renewal for 12 s")},
	}}
	for name, c := range map[string]struct {
		faults []*Injected
		late   float64
	}{
		"no fault":                  {nil, 28},
		"PostgreSQL":                {[]*Injected{injected(schedule.PostgresPause, "postgres", 10, 36)}, 1},
		"one of the servers":        {[]*Injected{injected(schedule.PauseServer, "server", 10, 36)}, 28},
		"both servers":              {[]*Injected{injected(schedule.PauseServer, "server", 10, 36), injected(schedule.LinkStall, "server-PG/server-2", 11, 30)}, 7},
		"one after the other":       {[]*Injected{injected(schedule.KillServer, "server", 10, 20), injected(schedule.PostgresRestart, "postgres", 24, 30)}, 28},
		"just as it could have":     {[]*Injected{injected(schedule.PostgresRestart, "postgres", 13, 30)}, 7},
		"Dagster's log":             {[]*Injected{injected(schedule.LinkHalfOpen, "server-log/server-2", 12, 30)}, 10},
		"a fault that did not land": {[]*Injected{{Fault: schedule.Fault{Kind: schedule.PostgresPause}, Missed: "no victim"}}, 28},
	} {
		o.faults = c.faults
		expect(t, name, recovered(o).Recovery[byRunLease].Tasks, 1, c.late)
	}
}

// A proof needs no unbroken beats, only a server that can write.
func TestAProofWaitsForTheLedgerOnly(t *testing.T) {
	kill := injected(schedule.KillWorker, "worker-1", 5, 6)
	kill.Instance = "i-1"
	dead := sighting{ID: 1, Instance: "i-1", State: stepfleet.SessionDead, At: at(10), changed: true}
	o := outcome{witnesses: &witnesses{seen: []sighting{dead}}, faults: []*Injected{kill, injected(schedule.PostgresPause, "postgres", 4, 8)}}
	expect(t, "by proof", recovered(o).Recovery[byProof].Sessions, 1, 2)
}

// Kills of workers meet both kinds of death, however often their victims had nothing to lose.
func TestTheNextVictimOfAKillIsAsProvenAsTheOne(t *testing.T) {
	for victim := range workers {
		i := &Injected{Fault: schedule.Fault{Kind: schedule.KillWorker, Victim: victim}}
		first := serviceOf(i)
		i.Victim += stride(i.Kind)
		if next := serviceOf(i); next == first || proven(next) != proven(first) {
			t.Errorf("%s comes after %s", next, first)
		}
	}
}

func TestAKindOfDeadlineWithoutASampleProvesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		config Config
		fault  *Injected
		want   string
	}{
		"a proven death":        {Config{Duration: time.Minute}, injected(schedule.KillWorker, "worker-1", 1, 2), byProof},
		"a death without proof": {Config{Duration: time.Minute}, injected(schedule.KillWorker, "worker-2", 1, 2), byTTL + " " + byRunLease},
		"a long pause":          {Config{Duration: time.Minute}, injected(schedule.PauseHost, "worker-2", 1, 9), byTTL},
		"a short pause":         {Config{Duration: time.Minute}, injected(schedule.PauseHost, "worker-2", 1, 5), ""},
		"a frozen host":         {Config{Duration: time.Minute}, injected(schedule.FreezeHost, "worker-2", 1, 15), byTTL + " " + byRunLease},
		"a zombie with a lease": {Config{Duration: time.Minute}, injected(schedule.ZombieLease, "owner", 1, 9), byTTL},
		"a cancelled zombie":    {Config{Duration: time.Minute}, injected(schedule.ZombieLease, "owner", 1, 2), ""},
		"a zombie that started": {Config{Duration: time.Minute}, injected(schedule.ZombieRun, "owner", 1, 15), byTTL + " " + byRunLease},
		"a whole run":           {Config{Duration: Whole}, injected(schedule.LinkCut, "worker-PG/worker-1", 1, 2), byProof + " " + byTTL + " " + byRunLease},
		"a partition":           {Config{Duration: Whole, Partition: Whole}, injected(schedule.LinkStall, "worker-PG/worker-1", 1, 2), ""},
	} {
		c.config.Lifetimes = Lifetimes
		var said []string
		faults := []*Injected{c.fault}
		r := &Report{}
		r.judgeExercised(c.config, faults)
		for _, what := range problems(r, "vacuous") {
			said = append(said, what[strings.LastIndex(what, " ")+1:])
		}
		if got := strings.Join(said, " "); got != c.want {
			t.Errorf("%s: without a sample %q, want %q", name, got, c.want)
		}
		r = &Report{Recovery: map[string]Recovery{byProof: {Count: 1}, byTTL: {Count: 1}, byRunLease: {Count: 1}}}
		if r.judgeExercised(c.config, faults); !r.Pass() {
			t.Errorf("%s: %v, and there is a sample of each", name, r.Problems)
		}
	}
}
