package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// sessionColumns in the order scanSession reads them.
const sessionColumns = `s.id, s.worker, s.instance, s.host, s.pid, s.version, s.slots, s.state, s.draining,
    s.started_at, s.renewed_at, s.end_reason, extract(epoch FROM s.session_ttl)::float8, extract(epoch FROM s.run_lease)::float8`

const register = `
INSERT INTO stepfleet.session AS s (worker, instance, host, pid, version, slots, session_ttl, run_lease)
VALUES ($1, $2, $3, $4, $5, $6, make_interval(secs => $7), make_interval(secs => $8)) RETURNING ` + sessionColumns

// lockSession serialises a renewal with the marking of the session; it passes the KEY SHARE of
// claims and starts. A session's number is not enough here, nor wherever a worker speaks for its session:
// a ledger that has lost commits gives it to another worker.
const lockSession = `
SELECT state FROM stepfleet.session WHERE id = $1 AND instance = $2 FOR NO KEY UPDATE`

// renew never revives a dead session.
const renew = `
UPDATE stepfleet.session SET renewed_at = clock_timestamp(), state = 'alive'
WHERE id = $1 AND instance = $2 AND state <> 'dead'`

// held reads what a session owns. The task's own row decides; held only leads to it.
const held = `
SELECT t.id, t.fence, t.state, t.cancel_requested
FROM stepfleet.held h JOIN stepfleet.task t ON t.id = h.task_id
WHERE h.session_id = $1 AND t.session_id = $1 AND t.state IN ('leased', 'running')
ORDER BY t.id`

const setDraining = `
UPDATE stepfleet.session SET draining = true WHERE id = $1 AND instance = $2 AND state <> 'dead'`

// barSession waits for the session's claims and starts in flight, which hold KEY SHARE, and bars
// new ones until the marking is committed. So whoever sweeps after that commit sees every task
// the session ever got.
const barSession = `
SELECT 1 FROM stepfleet.session WHERE id = $1 AND instance = $2 FOR UPDATE`

const endSession = `
UPDATE stepfleet.session SET state = 'dead', ended_at = clock_timestamp(), end_reason = $3
WHERE id = $1 AND instance = $2 AND state <> 'dead'`

// Register implements stepfleet.Claims. A worker that does not fit the schema gets no session. It
// is not issued again on a lost answer: the session it may have left expires by itself.
func (l *Ledger) Register(ctx context.Context, spec stepfleet.SessionSpec) (stepfleet.Session, error) {
	if err := l.Check(ctx); err != nil {
		return stepfleet.Session{}, fmt.Errorf("register worker %s: %w", spec.Worker, err)
	}
	var s stepfleet.Session
	spec = spec.WithLifetimes()
	if spec.Slots == nil {
		spec.Slots = map[string]int{} // an object, never null
	}
	slots, err := json.Marshal(spec.Slots)
	if err != nil {
		return s, fmt.Errorf("register session: %w", err)
	}
	err = l.run(ctx, "register session of worker "+spec.Worker, onceOnly, func(q *pgx.Batch) {
		q.Queue(register, clean(spec.Worker), clean(spec.Instance), clean(spec.Host), int32(spec.PID), clean(spec.Version), string(slots),
			spec.SessionTTL.Seconds(), spec.RunLease.Seconds()).
			QueryRow(func(row pgx.Row) (err error) { s, err = scanSession(row); return err })
	})
	return s, err
}

func scanSession(row pgx.Row) (stepfleet.Session, error) {
	var s stepfleet.Session
	var slots []byte
	var ttl, lease float64
	err := row.Scan(&s.ID, &s.Worker, &s.Instance, &s.Host, &s.PID, &s.Version, &slots, &s.State, &s.Draining,
		&s.StartedAt, &s.RenewedAt, &s.EndReason, &ttl, &lease)
	if err != nil {
		return s, err
	}
	s.SessionTTL, s.RunLease = seconds(ttl), seconds(lease)
	return s, json.Unmarshal(slots, &s.Slots)
}

// seconds is an interval as statements return it.
func seconds(s float64) time.Duration { return time.Duration(math.Round(s*1e6)) * time.Microsecond }

// Renew implements stepfleet.Claims.
func (l *Ledger) Renew(ctx context.Context, id stepfleet.SessionID, instance string) (stepfleet.Renewal, error) {
	var r stepfleet.Renewal
	op := fmt.Sprintf("renew session %d of instance %s", id, instance)
	err := l.run(ctx, op, idempotent, func(q *pgx.Batch) {
		r = stepfleet.Renewal{}
		q.Queue(lockSession, id, clean(instance)).Query(scanOptional(&r.Was))
		q.Queue(renew, id, clean(instance))
		q.Queue(held, id).Query(scanHeld(&r.Held))
	})
	if err == nil && (r.Was == "" || r.Was == stepfleet.SessionDead) {
		return stepfleet.Renewal{}, fmt.Errorf("%s: %w", op, stepfleet.ErrSessionDead)
	}
	return r, err
}

// scanOptional reads one value, or leaves it as it is when there is no row.
func scanOptional(to any) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, []any{to}, func() error { return nil })
		return err
	}
}

func scanHeld(to *[]stepfleet.Held) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		var h stepfleet.Held
		_, err := pgx.ForEachRow(rows, []any{&h.TaskID, &h.Fence, &h.State, &h.CancelRequested}, func() error {
			*to = append(*to, h)
			return nil
		})
		return err
	}
}

// Held implements stepfleet.Claims.
func (l *Ledger) Held(ctx context.Context, id stepfleet.SessionID) ([]stepfleet.Held, error) {
	var out []stepfleet.Held
	err := l.run(ctx, fmt.Sprintf("read what session %d holds", id), idempotent, func(q *pgx.Batch) {
		out = nil
		q.Queue(held, id).Query(scanHeld(&out))
	})
	return out, err
}

// SetDraining implements stepfleet.Claims.
func (l *Ledger) SetDraining(ctx context.Context, id stepfleet.SessionID, instance string) error {
	op := fmt.Sprintf("drain session %d of instance %s", id, instance)
	var state stepfleet.SessionState
	err := l.run(ctx, op, idempotent, func(q *pgx.Batch) {
		q.Queue(lockSession, id, clean(instance)).Query(scanOptional(&state))
		q.Queue(setDraining, id, clean(instance))
	})
	if err == nil && (state == "" || state == stepfleet.SessionDead) {
		return fmt.Errorf("%s: %w", op, stepfleet.ErrSessionDead)
	}
	return err
}

// EndSession implements stepfleet.Claims.
func (l *Ledger) EndSession(ctx context.Context, id stepfleet.SessionID, instance, reason string) error {
	return l.run(ctx, fmt.Sprintf("end session %d of instance %s", id, instance), idempotent, func(q *pgx.Batch) {
		q.Queue(barSession, id, clean(instance))
		q.Queue(endSession, id, clean(instance), clean(reason))
	})
}

// expire marks sessions whose renewals had stopped when the sweeper last beat. It does not look at the
// clock: where the statement or its commit hangs, renewals hang with it, and those of the sessions that it
// has locked hang on it alone. Its lock waits for claims and starts in flight
// (see barSession) and reads again what a renewal changed meanwhile. Marking is all it does: a
// statement that also took the tasks would miss those of a claim that committed while it waited.
const expire = `
WITH due AS (
    SELECT id, renewed_at, run_lease FROM stepfleet.session
    WHERE state <> 'dead' AND session_ttl <= make_interval(secs => $1) AND (
        renewed_at <= $2::timestamptz - run_lease
        OR state = 'alive' AND renewed_at <= $2::timestamptz - session_ttl)
    ORDER BY id FOR UPDATE
), judged AS (
    SELECT id, renewed_at <= $2::timestamptz - run_lease AS over,
        $2::timestamptz - renewed_at AS silent FROM due
)
UPDATE stepfleet.session s SET
    state = CASE WHEN j.over THEN 'dead' ELSE 'suspect' END,
    ended_at = CASE WHEN j.over THEN clock_timestamp() END,
    end_reason = CASE WHEN j.over
        THEN 'no renewal for ' || round(extract(epoch FROM j.silent)) || ' s' ELSE '' END
FROM judged j WHERE s.id = j.id
RETURNING ` + sessionColumns

// declareDead marks the sessions of a process that is gone; locks as in expire.
const declareDead = `
WITH gone AS (
    SELECT id FROM stepfleet.session WHERE instance = $1 AND state <> 'dead' ORDER BY id FOR UPDATE
)
UPDATE stepfleet.session s SET state = 'dead', ended_at = clock_timestamp(), end_reason = $2
FROM gone WHERE s.id = gone.id
RETURNING ` + sessionColumns

// ExpireSessions implements stepfleet.Keeper.
func (l *Ledger) ExpireSessions(ctx context.Context, beats stepfleet.Beats) ([]stepfleet.Session, error) {
	return l.markSessions(ctx, "expire sessions", onceOnly, expire, beats.Unbroken.Seconds(), beats.Last)
}

// DeclareDead implements stepfleet.Keeper. An empty instance names nobody.
func (l *Ledger) DeclareDead(ctx context.Context, instance, reason string) ([]stepfleet.Session, error) {
	if instance == "" {
		return nil, nil
	}
	return l.markSessions(ctx, "declare instance "+instance+" dead", onceOnly, declareDead, clean(instance), clean(reason))
}

// markSessions runs a statement that returns sessions. Its methods are harmless to repeat, but a
// repetition would not return those that the first one changed, so the caller decides.
func (l *Ledger) markSessions(ctx context.Context, op string, again repeatable, sql string, args ...any) ([]stepfleet.Session, error) {
	var out []stepfleet.Session
	err := l.run(ctx, op, again, func(q *pgx.Batch) {
		out = nil
		q.Queue(sql, args...).Query(func(rows pgx.Rows) error {
			for rows.Next() {
				s, err := scanSession(rows)
				if err != nil {
					return err
				}
				out = append(out, s)
			}
			return rows.Err()
		})
	})
	sortSessions(out)
	return out, err
}

// Sessions implements stepfleet.Records.
func (l *Ledger) Sessions(ctx context.Context, since time.Duration) ([]stepfleet.Session, error) {
	const sql = `
SELECT ` + sessionColumns + ` FROM stepfleet.session s
WHERE s.state <> 'dead' OR s.ended_at > clock_timestamp() - make_interval(secs => $1)`
	return l.markSessions(ctx, "read sessions", idempotent, sql, since.Seconds())
}
