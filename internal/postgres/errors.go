package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/mutant"
)

// maxTries bounds one method's attempts: PostgreSQL's own requests to try again, and lost
// connections where trying again is harmless. Longer outages are the caller's to wait out.
const maxTries = 3

// pauseCeilings bound the pauses before the repeats, which are far shorter than those of
// stepfleet.Backoff: a deadlock is over once it was broken, and a connection that was cut while it was idle
// is replaced by the next one. With full jitter those who failed together do not come back together.
var pauseCeilings = [maxTries - 1]time.Duration{10 * time.Millisecond, 40 * time.Millisecond}

// repeatable says what may be done about a lost connection.
type repeatable bool

const (
	// idempotent methods are issued again: the second finds what the first may have done.
	idempotent repeatable = true
	// onceOnly methods would do more work when issued again, so only the caller may.
	onceOnly repeatable = false
)

// run executes one pipeline of statements in one transaction and reads its results. It tries again
// where that is safe and maps what remains to the port's errors.
func (l *Ledger) run(ctx context.Context, op string, again repeatable, queue func(*pgx.Batch)) error {
	for try := 1; ; try++ {
		var batch pgx.Batch
		queue(&batch)
		if mutant.On {
			for _, q := range batch.QueuedQueries {
				q.SQL = mutant.Rewrite(q.SQL)
			}
		}
		err := l.pool.SendBatch(ctx, &batch).Close()
		if err == nil {
			return nil
		}
		if try == maxTries || ctx.Err() != nil || !mayRepeat(err, again) || !l.opts.MayRepeat() {
			return wrap(op, err)
		}
		l.log.Debug("ledger call repeated", "op", op, "try", try, "error", err)
		if wait(ctx, rand.N(pauseCeilings[try-1])) != nil {
			return wrap(op, err)
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// SQLSTATEs that decide something here.
const (
	codeSerialization = "40001"
	codeDeadlock      = "40P01"
	codeTakenBack     = "SF001" // by the function refuse of our schema
)

func mayRepeat(err error, again repeatable) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && (pgErr.Code == codeSerialization || pgErr.Code == codeDeadlock) {
		return true // rolled back for certain
	}
	return pgconn.SafeToRetry(err) || bool(again) && unavailable(err)
}

// unavailable reports that the database could not be asked or its answer was lost. An error that
// the server sent is that only in the classes below; anything else that is not from the server is
// from the way to it.
func unavailable(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		var scan pgx.ScanArgError
		return !errors.As(err, &scan)
	}
	for _, class := range []string{
		"08",    // connection
		"53",    // out of connections, disk, memory
		"57",    // shutting down, starting up, cancelled
		"58",    // the system under it
		"25006", // read-only: a replica, or a primary that is being demoted
		"40",    // rolled back, tries used up
		"55P03", // lock timeout
		"28",    // not let in: a password being rotated
		"3D000", // the database is not there (yet)
	} {
		if strings.HasPrefix(pgErr.Code, class) {
			return true
		}
	}
	return false
}

// takenBack returns the code of a refusal that has taken its transaction back.
func takenBack(err error) (code string, ok bool) {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != codeTakenBack {
		return "", false
	}
	return pgErr.Message, true
}

// schemaMissing reports that our tables are not there, or not the ones this binary knows.
func schemaMissing(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	switch pgErr.Code {
	case "42P01", "3F000", "42703", "42883": // no such table, schema, column, function
		return true
	}
	return false
}

// denied reports that this user may not do what the statement does.
func denied(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "42501"
}

// wrap names the operation and maps the error to the port's.
func wrap(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case schemaMissing(err):
		return fmt.Errorf("%s: %w: %w: run `stepfleet migrate`", op, stepfleet.ErrSchema, err)
	case denied(err):
		return fmt.Errorf("%s: %w: %w: make this user a member of %s or %s, whichever it works as, and run `stepfleet migrate` as the schema's owner",
			op, stepfleet.ErrSchema, err, WorkerRole, ServerRole)
	case unavailable(err):
		return fmt.Errorf("%s: ledger %w: %w", op, stepfleet.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

// refusals by code, for verdicts that the statements give.
var refusals = func() map[string]*stepfleet.Refusal {
	m := make(map[string]*stepfleet.Refusal, len(stepfleet.Refusals))
	for _, r := range stepfleet.Refusals {
		m[r.Code] = r
	}
	return m
}()

// refusal turns a statement's verdict into an error about subject; "" is none.
func refusal(verdict, format string, args ...any) error {
	if verdict == "" {
		return nil
	}
	r, ok := refusals[verdict]
	if !ok {
		panic("postgres: a statement gave the unknown verdict " + verdict)
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), r)
}

// cleanAll is clean for each, and never nil, which would be NULL.
func cleanAll(list []string) []string {
	out := make([]string, 0, len(list))
	for _, s := range list {
		out = append(out, clean(s))
	}
	return out
}

// clean makes text storable: PostgreSQL has no zero byte and nothing but UTF-8.
func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
