package chaos

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/chaos/schedule"
)

const (
	// endingLook is how often the end of a step is looked for: it takes tens of milliseconds in all.
	endingLook = 2 * time.Millisecond
	// toldWait is how long the ledger may take to hear of a process that was killed at its end.
	toldWait = 15 * time.Second
)

const (
	// selectEnd looks for an ending event that is younger than the end of the attempt's user code.
	selectEnd = `SELECT count(*) FROM event_logs WHERE run_id = $1 AND step_key = $2 AND timestamp >= $3
		AND dagster_event_type = ANY ($4::text[])`
	// selectTold reads what the ledger heard first of an attempt's end, and the error it was settled with.
	selectTold = `SELECT a.verb, coalesce(o.result #>> '{error,code}', '')
		FROM stepfleet.task t JOIN stepfleet.audit a ON a.run_id = t.run_id AND a.task_id = t.id LEFT JOIN stepfleet.outcome o ON o.task_id = t.id
		WHERE t.run_id = $1 AND t.step_key = $2 AND t.attempt = $3 AND a.refused = ''
		AND a.verb IN ('abandon', 'settle', 'repair') ORDER BY a.id LIMIT 1`
)

// killEnding kills a step's process between the end of its user code and its last word to the worker:
// some time after that end, or as soon as Dagster's log has the attempt's end. It has landed when the
// ledger has heard that the process ended without a word.
func (n *nemesis) killEnding(ctx context.Context, i *Injected) error {
	looking, cancel := context.WithTimeout(ctx, victimWait)
	defer cancel()
	log, err := pgx.Connect(looking, plainURL(n.net.endpoints().Database.DagsterURL)) // before the victim: it takes as long as an end
	if err != nil {
		return fmt.Errorf("%w: %w", errNoVictim, err)
	}
	defer log.Close(context.WithoutCancel(ctx))
	e, err := n.nextEnding(looking)
	if err != nil {
		return err
	}
	defer n.give(pidKey(e.PID))
	i.Target, i.PID, i.Run = fmt.Sprintf("child at the end of %s/%s/%d", e.RunID, e.StepKey, e.Attempt), e.PID, e.RunID
	if i.Kind == schedule.KillEnding {
		hold(looking, i.Delay)
	} else if err := awaitEnd(looking, log, e); err != nil {
		return err
	}
	if err := e.process.Signal(syscall.SIGKILL); err != nil {
		return errNoVictim // it was faster
	}
	at := time.Now()
	if err := n.awaitTold(ctx, i.Kind, e); err != nil {
		return err
	}
	i.Landed = at
	return nil
}

func pidKey(pid int) string { return fmt.Sprint("pid ", pid) }

// nextEnding waits for the next attempt whose user code ends, and takes its process.
func (n *nemesis) nextEnding(ctx context.Context) (effect, error) {
	for since := time.Now(); ctx.Err() == nil; hold(ctx, endingLook) {
		for _, e := range n.load.ending(since) {
			if n.take(pidKey(e.PID)) {
				return e, nil
			}
		}
	}
	return effect{}, errNoVictim
}

// awaitEnd waits until Dagster's log has the attempt's end.
func awaitEnd(ctx context.Context, log *pgx.Conn, e effect) error {
	for ; e.process.Alive(); hold(ctx, endingLook) {
		ended := 0
		if err := log.QueryRow(ctx, selectEnd, e.RunID, e.StepKey, e.time().UTC(), stepfleet.Endings).Scan(&ended); err != nil {
			return fmt.Errorf("%w: %w", errNoVictim, err)
		}
		if ended > 0 {
			return nil
		}
	}
	return errNoVictim
}

// awaitTold waits until the ledger has heard how the attempt ended: that its worker does not know, or,
// of one that was not granted its end, that it was killed.
func (n *nemesis) awaitTold(ctx context.Context, kind schedule.Kind, e effect) error {
	ctx, cancel := context.WithTimeout(ctx, toldWait)
	defer cancel()
	for ; ctx.Err() == nil; hold(ctx, victimInterval) {
		verb, code, err := n.told(ctx, e)
		switch {
		case err != nil: // it is a victim too, or has not heard yet
		case verb != "settle", kind == schedule.KillEnding && code == "process_died":
			return nil
		default:
			return fmt.Errorf("%w: process %d had said how it ended", errNoVictim, e.PID)
		}
	}
	return fmt.Errorf("%w: the ledger has not heard of the end of process %d in %s", errNoVictim, e.PID, toldWait)
}

func (n *nemesis) told(ctx context.Context, e effect) (verb, code string, err error) {
	err = n.inLedger(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, selectTold, e.RunID, e.StepKey, e.Attempt).Scan(&verb, &code)
	})
	return verb, code, err
}
