package chaos

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
)

// The deadlines after which a task of an owner that is gone is taken from it.
const (
	byProof    = "proof_of_death"
	byTTL      = "session_ttl"
	byRunLease = "run_lease"
)

// recoverWithin is how long after its deadline a task may be taken.
const recoverWithin = 10 * time.Second

// Recovery is how long after the deadline that applied tasks were taken from owners that were gone.
type Recovery struct {
	Count       int     `json:"count"`
	P50Seconds  float64 `json:"p50_seconds"`
	P99Seconds  float64 `json:"p99_seconds"`
	MostSeconds float64 `json:"most_seconds"`
	MostTask    string  `json:"most_task"`
}

// late is one such task.
type late struct {
	task string
	time.Duration
}

// judgeRecovery measures every sweep of the audit trail by the deadline that applied to it.
func (r *Report) judgeRecovery(o outcome) {
	deadlines := newDeadlines(o, r.Config)
	found := map[string][]late{}
	for _, a := range o.audit {
		if kind, deadline, ok := deadlines.of(a); ok {
			found[kind] = append(found[kind], late{fmt.Sprintf("task %d of run %s", a.TaskID, a.RunID), max(0, a.At.Sub(deadline))})
		}
	}
	r.Recovery = map[string]Recovery{}
	for kind, all := range found {
		slices.SortFunc(all, func(a, b late) int { return int(a.Duration - b.Duration) })
		at := func(share float64) time.Duration { return all[int(share*float64(len(all)-1)+0.5)].Duration }
		most := all[len(all)-1]
		r.Recovery[kind] = Recovery{
			Count: len(all), P50Seconds: at(0.5).Seconds(), P99Seconds: at(0.99).Seconds(),
			MostSeconds: most.Seconds(), MostTask: most.task,
		}
		r.Counts.RecoveryP99Secs = max(r.Counts.RecoveryP99Secs, at(0.99).Seconds())
		if p99 := at(0.99); p99 > recoverWithin {
			r.problem("recovery", "after the deadline by %s, tasks were taken %s late at p99 (%s), want %s", kind, p99.Round(time.Millisecond), most.task, recoverWithin)
		}
	}
}

// deadlines knows when what a session held could be taken.
type deadlines struct {
	ReportedConfig
	sessions map[string]stepfleet.Session // "session 12" -> 12
	owner    map[stepfleet.TaskID]string  // task -> its last claimer, as the audit trail goes on
	killed   map[string]time.Time         // instance -> when
	outages  []*Injected                  // of PostgreSQL, by time
}

func newDeadlines(o outcome, c ReportedConfig) *deadlines {
	d := &deadlines{ReportedConfig: c, sessions: map[string]stepfleet.Session{}, owner: map[stepfleet.TaskID]string{}, killed: map[string]time.Time{}}
	for _, s := range o.sessions {
		d.sessions[fmt.Sprintf("session %d", s.ID)] = s
	}
	for _, f := range o.faults {
		if f.Ok() && f.Instance != "" {
			d.killed[f.Instance] = f.Landed
		}
		if f.Ok() && (f.Kind == schedule.PostgresRestart || f.Kind == schedule.PostgresPause) {
			d.outages = append(d.outages, f)
		}
	}
	slices.SortFunc(d.outages, func(a, b *Injected) int { return a.Landed.Compare(b.Landed) })
	return d
}

// of returns the deadline that a row of the audit trail is about, false when it takes nothing.
func (d *deadlines) of(a stepfleet.AuditRow) (kind string, deadline time.Time, ok bool) {
	if a.Refused == "" && a.Verb == stepfleet.VerbClaim {
		d.owner[a.TaskID] = a.Actor
	}
	if a.Refused != "" || a.Verb != stepfleet.VerbSweep && a.Verb != stepfleet.VerbRepair {
		return "", deadline, false
	}
	s, known := d.sessions[d.owner[a.TaskID]]
	if !known || s.RenewedAt.After(a.At) {
		return "", deadline, false // it came back: when it was last heard of before is not known
	}
	seconds := func(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }
	switch {
	case strings.Contains(a.Detail, "in time"):
		return "", deadline, false // a lease that was not started: nobody was gone
	case strings.Contains(a.Detail, "is suspect"):
		kind, deadline = byTTL, s.RenewedAt.Add(seconds(d.TTLSeconds))
	case strings.Contains(a.Detail, "no renewal for"):
		kind, deadline = byRunLease, s.RenewedAt.Add(seconds(d.RunLeaseSeconds))
	default:
		if deadline, known = d.killed[s.Instance]; !known {
			return "", deadline, false // it ended by itself, in a restart
		}
		kind = byProof
	}
	return kind, d.afterOutages(deadline, a.At), true
}

// afterOutages puts a deadline off while the ledger was away: a server may call nobody gone before it
// has itself written for a whole TTL.
func (d *deadlines) afterOutages(deadline, taken time.Time) time.Time {
	for _, f := range d.outages {
		until := f.Healed.Add(time.Duration(d.TTLSeconds * float64(time.Second)))
		if f.Landed.Before(taken) && until.After(deadline) {
			deadline = until
		}
	}
	return deadline
}
