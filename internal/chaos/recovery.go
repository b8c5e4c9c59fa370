package chaos

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
)

// The deadlines after which owners that are gone are called so, and their tasks are taken from them.
const (
	byProof    = "proof_of_death"
	byTTL      = "session_ttl"
	byRunLease = "run_lease"
	byStart    = "start_within" // of a lease that its owner, which lives, did not start
)

// recoverWithin is how long after its deadline a task may be taken.
const recoverWithin = 10 * time.Second

// Recovery is how long after one kind of deadline the servers acted. Sessions are called suspect or dead,
// then their tasks are taken; few sessions that go silent hold one that can be.
type Recovery struct {
	Count      int      `json:"count"`
	P99Seconds float64  `json:"p99_seconds"` // the later of the two
	Sessions   Lateness `json:"sessions"`
	Tasks      Lateness `json:"tasks"`
}

// Lateness is how late things were done.
type Lateness struct {
	Count       int     `json:"count"`
	P50Seconds  float64 `json:"p50_seconds"`
	P99Seconds  float64 `json:"p99_seconds"`
	MostSeconds float64 `json:"most_seconds"`
	MostOf      string  `json:"most_of"`
}

// late is one such thing.
type late struct {
	what string
	time.Duration
}

func lateness(all []late) (l Lateness) {
	if len(all) == 0 {
		return l
	}
	slices.SortFunc(all, func(a, b late) int { return cmp.Compare(a.Duration, b.Duration) })
	at := func(share float64) float64 { return all[int(share*float64(len(all)-1)+0.5)].Seconds() }
	most := all[len(all)-1]
	return Lateness{Count: len(all), P50Seconds: at(0.5), P99Seconds: at(0.99), MostSeconds: most.Seconds(), MostOf: most.what}
}

// judgeRecovery measures every session that was given up, and every sweep of the audit trail, by the
// deadline that applied to it.
func (r *Report) judgeRecovery(o outcome) {
	d := newDeadlines(o, r.Config)
	sessions, tasks := map[string][]late{}, map[string][]late{}
	for _, s := range o.seen {
		if kind, deadline, ok := d.ofSession(s); ok {
			sessions[kind] = append(sessions[kind], late{fmt.Sprintf("session %d of %s", s.ID, s.Worker), max(0, s.At.Sub(deadline))})
		}
	}
	for _, a := range o.audit {
		kind, deadline, ok := d.of(a)
		switch {
		case ok:
			tasks[kind] = append(tasks[kind], late{fmt.Sprintf("task %d of run %s", a.TaskID, a.RunID), max(0, a.At.Sub(deadline))})
		case isSweep(a):
			r.Unmeasured++
		}
	}
	r.Recovery = map[string]Recovery{}
	for _, kind := range []string{byProof, byTTL, byRunLease, byStart} {
		one := Recovery{Sessions: lateness(sessions[kind]), Tasks: lateness(tasks[kind])}
		one.Count, one.P99Seconds = one.Sessions.Count+one.Tasks.Count, max(one.Sessions.P99Seconds, one.Tasks.P99Seconds)
		r.Recovery[kind] = one
		r.Counts.RecoveryP99Secs = max(r.Counts.RecoveryP99Secs, one.P99Seconds)
		r.judgeLateness(kind, "sessions were given up", one.Sessions)
		r.judgeLateness(kind, "tasks were taken", one.Tasks)
	}
}

func (r *Report) judgeLateness(kind, what string, l Lateness) {
	if l.P99Seconds > recoverWithin.Seconds() {
		r.problem("recovery", "after the deadline by %s, %s %.3f s late at p99 (%s), want %s", kind, what, l.P99Seconds, l.MostOf, recoverWithin)
	}
}

// judgeExercised requires a sample of each kind of deadline that the faults have made pass; in a run
// that is whole of each there is, whatever has landed.
func (r *Report) judgeExercised(c Config, faults []*Injected) {
	for _, kind := range []string{byProof, byTTL, byRunLease} {
		why := leadsTo(kind, faults, c.Lifetimes.SessionTTL)
		if why == "" && c.whole() {
			why = fmt.Sprintf("chaos of %s", c.Duration)
		}
		if why != "" && r.Recovery[kind].Count == 0 {
			r.problem("vacuous", "after %s nothing was recovered by %s", why, kind)
		}
	}
}

// leadsTo returns a fault that landed and after which something must be recovered by the kind of
// deadline, empty when there is none.
func leadsTo(kind string, faults []*Injected, ttl time.Duration) string {
	for _, f := range faults {
		if f.Ok() && slices.Contains(f.passes(ttl), kind) {
			return fmt.Sprintf("%s of %s", f.Kind, f.Target)
		}
	}
	return ""
}

// passes returns the kinds of deadline that pass for certain by the fault.
func (i *Injected) passes(ttl time.Duration) []string {
	switch i.Kind {
	case schedule.KillWorker:
		if proven(i.Target) {
			return []string{byProof}
		}
		return []string{byTTL, byRunLease}
	case schedule.ZombieLease:
		if i.Healed.Sub(i.Landed) > ttl { // sooner a cancel took the lease
			return []string{byTTL}
		}
	case schedule.ZombieRun, schedule.FreezeHost:
		return []string{byTTL, byRunLease}
	case schedule.PauseWorker, schedule.PauseHost:
		if i.Healed.Sub(i.Landed) > 2*ttl { // a server may be out itself for a while
			return []string{byTTL}
		}
	}
	return nil
}

// deadlines knows when what a session held could be taken.
type deadlines struct {
	ReportedConfig
	sessions map[string]stepfleet.Session            // "session 12" -> 12
	renewals map[stepfleet.SessionID][]time.Time     // as they were seen, in order
	claims   map[stepfleet.TaskID]stepfleet.AuditRow // task -> its last claim, as the audit trail goes on
	killed   map[string]time.Time                    // instance -> when
	unfit    map[string][]span                       // server -> when it could not write, by time
	unread   []span                                  // when a server could not read Dagster's log, by time
}

// turn is the time that a server needs to act on a deadline: it looks once a second.
const turn = 2 * time.Second

// span is a time that something lasts.
type span struct{ from, until time.Time }

func newDeadlines(o outcome, c ReportedConfig) *deadlines {
	d := &deadlines{
		ReportedConfig: c, sessions: map[string]stepfleet.Session{}, renewals: map[stepfleet.SessionID][]time.Time{},
		claims: map[stepfleet.TaskID]stepfleet.AuditRow{}, killed: map[string]time.Time{}, unfit: map[string][]span{},
	}
	for _, s := range o.sessions {
		d.sessions[fmt.Sprintf("session %d", s.ID)] = s
	}
	for _, s := range o.seen {
		if known := d.renewals[s.ID]; len(known) == 0 || s.RenewedAt.After(known[len(known)-1]) {
			d.renewals[s.ID] = append(known, s.RenewedAt)
		}
	}
	for _, f := range o.faults {
		if f.Ok() && f.Instance != "" {
			d.killed[f.Instance] = f.Landed
		}
		for s := range servers {
			name := serverName(s)
			if f.Ok() && f.Kind.Mode() != "" && f.Target == "server-log/"+name {
				d.unread = append(d.unread, span{f.Landed, f.Healed})
			}
			if f.Ok() && f.keepsFrom(name) {
				d.unfit[name] = append(d.unfit[name], span{f.Landed, f.Healed})
			}
		}
	}
	for _, spans := range d.unfit {
		slices.SortFunc(spans, earlier)
	}
	slices.SortFunc(d.unread, earlier)
	return d
}

func earlier(a, b span) int { return a.from.Compare(b.from) }

// after returns when something could be done that none of the spans lets happen, if it was due at a time.
func after(due time.Time, spans []span, more time.Duration) time.Time {
	for _, out := range spans {
		if until := out.until.Add(more); due.Add(turn).After(out.from) && due.Before(until) {
			due = until
		}
	}
	return due
}

// keepsFrom says whether the fault breaks the server's own beats.
func (i *Injected) keepsFrom(server string) bool {
	switch i.Kind {
	case schedule.PostgresRestart, schedule.PostgresPause:
		return true
	case schedule.KillServer, schedule.PauseServer:
		return i.Target == server
	}
	return i.Kind.Mode() != "" && i.Target == "server-PG/"+server
}

// isSweep says whether the row takes a task from its owner.
func isSweep(a stepfleet.AuditRow) bool {
	return a.Refused == "" && (a.Verb == stepfleet.VerbSweep || a.Verb == stepfleet.VerbRepair)
}

// of returns the deadline that a row of the audit trail is about, false when it takes nothing, or from
// an owner that ended by itself.
func (d *deadlines) of(a stepfleet.AuditRow) (kind string, deadline time.Time, ok bool) {
	if a.Refused == "" && a.Verb == stepfleet.VerbClaim {
		d.claims[a.TaskID] = a
	}
	claim := d.claims[a.TaskID]
	s, known := d.sessions[claim.Actor]
	if !isSweep(a) || !known {
		return "", deadline, false
	}
	renewed, known := d.renewedBefore(s, a.At)
	switch {
	case strings.Contains(a.Detail, "in time"):
		kind, deadline, known = byStart, claim.At.Add(seconds(d.StartWithinSeconds)), true
	case strings.Contains(a.Detail, "is suspect"):
		kind, deadline = byTTL, renewed.Add(seconds(d.TTLSeconds))
	case strings.Contains(a.Detail, "no renewal for"):
		kind, deadline = byRunLease, renewed.Add(seconds(d.RunLeaseSeconds))
	default:
		kind = byProof
		deadline, known = d.killed[s.Instance]
	}
	deadline = d.putOff(kind, deadline)
	if kind == byProof || kind == byRunLease {
		deadline = after(deadline, d.unread, 0) // what has begun is taken by Dagster's log
	}
	return kind, deadline, known
}

// ofSession returns the deadline of a session that was seen to be given up.
func (d *deadlines) ofSession(s sighting) (kind string, deadline time.Time, ok bool) {
	killed, known := d.killed[s.Instance]
	switch {
	case !s.changed:
		return "", deadline, false
	case s.State == stepfleet.SessionSuspect:
		kind, deadline = byTTL, s.RenewedAt.Add(seconds(d.TTLSeconds))
	case s.State == stepfleet.SessionDead && strings.HasPrefix(s.EndReason, "no renewal for"):
		kind, deadline = byRunLease, s.RenewedAt.Add(seconds(d.RunLeaseSeconds))
	case s.State == stepfleet.SessionDead && known && !s.At.Before(killed):
		kind, deadline = byProof, killed
	default:
		return "", deadline, false
	}
	return kind, d.putOff(kind, deadline), true
}

// renewedBefore returns the session's last renewal up to a time.
func (d *deadlines) renewedBefore(s stepfleet.Session, at time.Time) (time.Time, bool) {
	if !s.RenewedAt.After(at) {
		return s.RenewedAt, true
	}
	known := d.renewals[s.ID]
	i, _ := slices.BinarySearchFunc(known, at, time.Time.Compare)
	if i == 0 {
		return time.Time{}, false
	}
	return known[i-1], true
}

// putOff returns when a server could act on a deadline first. By silence no server may call anybody
// gone before it has itself written to the ledger for a whole TTL.
func (d *deadlines) putOff(kind string, deadline time.Time) time.Time {
	var unbroken time.Duration
	if kind == byTTL || kind == byRunLease {
		unbroken = seconds(d.TTLSeconds)
	}
	var first time.Time
	for s := range servers {
		fit := after(deadline, d.unfit[serverName(s)], unbroken)
		if first.IsZero() || fit.Before(first) {
			first = fit
		}
	}
	return first
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }
