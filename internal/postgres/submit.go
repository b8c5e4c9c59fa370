package postgres

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
)

// maxRunIDBytes bounds a run id: it is part of index keys. Dagster's have 36.
const maxRunIDBytes = 512

// insertRun makes the run known, open and without an identity.
const insertRun = `
INSERT INTO stepfleet.run (run_id) VALUES ($1) ON CONFLICT DO NOTHING`

// lockRun makes submissions of one run take turns, and a submission and the run's closing too:
// whichever commits second sees the other. So of two submissions of one key exactly one inserts.
const lockRun = `
SELECT 1 FROM stepfleet.run WHERE run_id = $1 FOR NO KEY UPDATE`

// insertPayloads stores arguments once by content. In digest order, or two submissions that
// share some could wait for each other. A payload of a batch that a known run is then refused stays; it is
// content nobody names.
const insertPayloads = `
INSERT INTO stepfleet.payload (digest, data)
SELECT * FROM unnest($1::bytea[], $2::bytea[]) p (digest, data)
WHERE NOT EXISTS (SELECT FROM stepfleet.payload s WHERE s.digest = p.digest)
ORDER BY 1 ON CONFLICT DO NOTHING`

// insertLaneTurns makes sure that a claim finds the row it raises.
const insertLaneTurns = `
INSERT INTO stepfleet.lane_turn (lane, priority)
SELECT DISTINCT lane, priority FROM unnest($1::text[], $2::integer[]) t (lane, priority)
WHERE NOT EXISTS (SELECT FROM stepfleet.lane_turn l WHERE l.lane = t.lane AND l.priority = t.priority)
ORDER BY 1, 2 ON CONFLICT DO NOTHING`

// submit records a batch, all or nothing. The run's row is locked, so what it reads of the run
// and of the run's tasks stands.
//
// Guard: the executor's epoch the run's, the run open, the identity the run's own, every payload there; a batch of tasks that are
// all known and ended is answered whatever the run's state is. The turn of the i-th new task is
// 1 + max(largest turn claimed in its lane, the run's last turn), which unrolled over the batch is
// i + max(last turn, max over j <= i of (claimed turn of j's lane - j + 1)).
//
// A refusal to a run that has neither an executor nor an identity takes the whole transaction back, so that
// it leaves no run behind; refuseUnknown audits it.
const submit = `
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($4::text[], $5::bytea[], $6::integer[], $7::text[], $8::text[], $9::text[], $10::text[],
        $11::integer[], $12::text[], $13::bytea[], $14::integer[], $15::integer[], $16::integer[])
    WITH ORDINALITY g (step_key, step_hash, attempt, kind, op, job, queue, priority, code_location, payload,
        policy_retries, lost_retries, timeout_seconds, ord)
), known AS MATERIALIZED (
    SELECT g.ord, t.id, t.state, t.payload <> g.payload AS differs, t.fence
    FROM given g JOIN stepfleet.task t
        ON t.run_id = $1 AND t.step_hash = g.step_hash AND t.attempt = g.attempt
), verdict AS MATERIALIZED (
    SELECT r.last_turn, r.state = 'open' AND r.epoch = 0 AND r.identity IS NULL AS unknown, CASE
        WHEN $17::bigint > r.epoch THEN 'not_found'
        WHEN $17 NOT IN (0, r.epoch) THEN 'superseded'
        WHEN r.identity <> $2 THEN 'conflict'
        WHEN NOT EXISTS (SELECT FROM given g LEFT JOIN known k USING (ord)
            WHERE k.ord IS NULL OR k.state IN ('queued', 'leased', 'running')) THEN ''
        WHEN r.state = 'closed' AND ($17 <> 0 OR r.closed_by = 0) THEN 'run_closed'
        WHEN EXISTS (SELECT FROM given g WHERE NOT EXISTS
            (SELECT FROM stepfleet.payload p WHERE p.digest = g.payload)) THEN 'task_invalid'
        ELSE '' END AS code
    FROM stepfleet.run r WHERE r.run_id = $1
), fresh AS (
    SELECT g.*, v.last_turn, row_number() OVER (ORDER BY g.ord) AS i
    FROM given g JOIN verdict v ON v.code = ''
    WHERE NOT EXISTS (SELECT FROM known k WHERE k.ord = g.ord)
), turned AS (
    SELECT f.*, f.i + greatest(f.last_turn,
        max(l.turn - f.i + 1) OVER (ORDER BY f.i ROWS UNBOUNDED PRECEDING)) AS turn
    FROM fresh f JOIN stepfleet.lane_turn l ON l.lane = f.queue AND l.priority = f.priority
), ins AS (
    INSERT INTO stepfleet.task (turn, priority, attempt, policy_retries, lost_retries, timeout_seconds, payload, step_hash,
        run_id, step_key, queue, kind, op, job, code_location)
    SELECT turn, priority, attempt, policy_retries, lost_retries, timeout_seconds, payload, step_hash,
        $1, step_key, queue, kind, op, job, code_location
    FROM turned ORDER BY i
    RETURNING id, queue, priority, turn, code_location, submitted_at
), rdy AS (
    INSERT INTO stepfleet.ready (lane, priority, turn, task_id, code_location, since)
    SELECT queue, priority, turn, id, code_location, submitted_at FROM ins ORDER BY id
), adv AS (
    UPDATE stepfleet.run r SET
        identity = coalesce(r.identity, $2),
        notify_url = CASE WHEN r.notify_url = '' THEN $3 ELSE r.notify_url END,
        last_turn = greatest(r.last_turn, (SELECT max(turn) FROM turned))
    FROM verdict v WHERE r.run_id = $1 AND v.code = ''
), aud AS (
    INSERT INTO stepfleet.audit (task_id, run_id, verb, actor, to_state, fence, refused, detail)
    SELECT id, $1, 'submit', $18, 'queued', 0, '', '' FROM ins
    UNION ALL
    SELECT k.id, $1, 'submit', $18, '', k.fence, 'conflict', 'another payload; the stored one stays'
    FROM known k JOIN verdict v ON v.code = '' WHERE k.differs
    UNION ALL
    SELECT 0, $1, 'submit', $18, '', 0, code, '' FROM verdict WHERE code <> ''
)
SELECT CASE WHEN unknown AND code <> '' THEN stepfleet.refuse(code) ELSE code END, ARRAY(SELECT ord FROM known)
FROM verdict`

// refuseUnknown audits a submission that was taken back.
const refuseUnknown = `
INSERT INTO stepfleet.audit (run_id, verb, actor, refused) VALUES ($1, 'submit', $2, $3)`

// poison makes those tasks of a batch dead whose earlier attempts were lost too often, right after
// the statement that has queued them. The run's row is locked. An attempt that a worker settled as
// lost, since it drained, has a result; one of a session that was draining when it died, for
// instance past its time limit, counts as little. But one that its worker lost with the template that
// had forked it has a reason, too, and counts, whatever became of the worker later. Ready rows are left to a claim that has them locked,
// as in cancel: the task may be one that an earlier submit has queued.
const poison = `
WITH bad AS MATERIALIZED (
    SELECT t.id, t.run_id, t.queue, t.priority, t.turn,
        past.lost || ' attempts of this step were lost, so this one is not run: ' || past.evidence AS reason
    FROM unnest($2::bytea[], $3::integer[]) g (step_hash, attempt)
    JOIN stepfleet.task t ON t.run_id = $1 AND t.step_hash = g.step_hash AND t.attempt = g.attempt
        AND t.state = 'queued' AND t.fence = 0
    CROSS JOIN LATERAL (
        SELECT count(*) AS lost, string_agg('attempt ' || p.attempt || ' on worker ' || s.worker || ', ' || o.reason, '; ' ORDER BY p.attempt) AS evidence
        FROM stepfleet.task p
        JOIN stepfleet.outcome o ON o.task_id = p.id
        JOIN stepfleet.session s ON s.id = p.session_id
            AND (o.result IS NULL AND NOT s.draining OR o.result IS NOT NULL AND o.reason <> '')
        WHERE p.run_id = $1 AND p.step_hash = g.step_hash AND p.attempt < g.attempt AND p.state = 'lost'
    ) past
    WHERE past.lost >= $4
    ORDER BY t.id FOR NO KEY UPDATE OF t
), ended AS (
    UPDATE stepfleet.task t SET state = 'dead', fence = t.fence + 1, ended_at = clock_timestamp()
    FROM bad b WHERE t.id = b.id RETURNING t.id, t.fence
), kept AS (
    INSERT INTO stepfleet.outcome (task_id, reason) SELECT id, reason FROM bad
), unready AS (
    DELETE FROM stepfleet.ready WHERE ctid = ANY (ARRAY(
        SELECT r.ctid FROM bad b JOIN stepfleet.ready r
            ON r.lane = b.queue AND r.priority = b.priority AND r.turn = b.turn AND r.task_id = b.id
        FOR UPDATE OF r SKIP LOCKED))
)
INSERT INTO stepfleet.audit (task_id, run_id, verb, actor, from_state, to_state, fence, detail)
SELECT id, b.run_id, 'poison', 'server', 'queued', 'dead', e.fence, b.reason FROM ended e JOIN bad b USING (id) ORDER BY id`

// receipts reads where the batch's tasks stand, new ones among them.
const receipts = `
SELECT g.ord, t.id, t.state
FROM unnest($2::bytea[], $3::integer[]) WITH ORDINALITY g (step_hash, attempt, ord)
JOIN stepfleet.task t ON t.run_id = $1 AND t.step_hash = g.step_hash AND t.attempt = g.attempt
ORDER BY g.ord`

// Submit implements stepfleet.Intake.
func (l *Ledger) Submit(ctx context.Context, b stepfleet.Batch) ([]stepfleet.Receipt, error) {
	op := fmt.Sprintf("submit %d tasks of run %s", len(b.Tasks), b.RunID)
	if err := validateBatch(b); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if len(b.Tasks) == 0 {
		return nil, nil
	}
	cols := columnsOf(b.Tasks)
	digests, payloads := sortedPayloads(b.Payloads)
	var verdict string
	var known []int64
	var rows []stepfleet.Receipt
	err := l.run(ctx, op, idempotent, func(q *pgx.Batch) {
		rows = rows[:0]
		q.Queue(insertRun, b.RunID)
		q.Queue(lockRun, b.RunID)
		q.Queue(insertPayloads, digests, payloads)
		q.Queue(insertLaneTurns, cols.queue, cols.priority)
		q.Queue(submit, b.RunID, clean(b.Identity), clean(b.NotifyURL), cols.stepKey, cols.stepHash, cols.attempt, cols.kind,
			cols.op, cols.job, cols.queue, cols.priority, cols.codeLocation, cols.payload, cols.policyRetries,
			cols.lostRetries, cols.timeoutSeconds, b.Epoch, actor(b.Epoch)).QueryRow(func(row pgx.Row) error { return row.Scan(&verdict, &known) })
		if hashes, attempts := cols.after(stepfleet.PoisonLost); len(hashes) > 0 {
			q.Queue(poison, b.RunID, hashes, attempts, stepfleet.PoisonLost)
		}
		q.Queue(receipts, b.RunID, cols.stepHash, cols.attempt).Query(func(found pgx.Rows) error {
			var r stepfleet.Receipt
			var ord int64
			_, err := pgx.ForEachRow(found, []any{&ord, &r.TaskID, &r.State}, func() error {
				r.Key, r.Known = cols.distinct[ord-1], slices.Contains(known, ord)
				rows = append(rows, r)
				return nil
			})
			return err
		})
	})
	if code, ok := takenBack(err); ok {
		verdict = code
		err = l.run(ctx, op, idempotent, func(q *pgx.Batch) { q.Queue(refuseUnknown, b.RunID, actor(b.Epoch), code) })
	}
	if err != nil {
		return nil, err
	}
	if err := refusal(verdict, "%s", op); err != nil {
		return nil, err
	}
	return inOrder(b.Tasks, rows), nil
}

// inOrder answers each task of the batch. A key that the batch names twice is new the first time.
func inOrder(tasks []stepfleet.Task, rows []stepfleet.Receipt) []stepfleet.Receipt {
	byKey := make(map[stepfleet.Key]stepfleet.Receipt, len(rows))
	for _, r := range rows {
		byKey[r.Key] = r
	}
	out := make([]stepfleet.Receipt, len(tasks))
	for i, t := range tasks {
		r := byKey[t.Key]
		out[i] = r
		r.Known = true
		byKey[t.Key] = r
	}
	return out
}

// columns are a batch's distinct tasks, column by column, for unnest.
type columns struct {
	distinct                                      []stepfleet.Key
	stepKey, kind, op, job, queue, codeLocation   []string
	stepHash, payload                             [][]byte
	attempt, priority, policyRetries, lostRetries []int32
	timeoutSeconds                                []int32
}

func columnsOf(tasks []stepfleet.Task) columns {
	var c columns
	seen := make(map[stepfleet.Key]bool, len(tasks))
	for _, t := range tasks {
		if seen[t.Key] {
			continue
		}
		seen[t.Key] = true
		c.distinct = append(c.distinct, t.Key)
		c.stepKey = append(c.stepKey, t.StepKey)
		c.stepHash = append(c.stepHash, stepHash(t.StepKey))
		c.attempt = append(c.attempt, int32(t.Attempt))
		c.kind = append(c.kind, string(t.Kind))
		c.op = append(c.op, clean(t.Op))
		c.job = append(c.job, clean(t.Job))
		c.queue = append(c.queue, t.Queue)
		c.priority = append(c.priority, int32(t.Priority))
		c.codeLocation = append(c.codeLocation, clean(t.CodeLocation))
		c.payload = append(c.payload, digestBytes(t.Payload))
		c.policyRetries = append(c.policyRetries, int32(t.RetryBudget.PolicyRetries))
		c.lostRetries = append(c.lostRetries, int32(t.RetryBudget.LostStepRetries))
		c.timeoutSeconds = append(c.timeoutSeconds, int32(t.TimeoutSeconds))
	}
	return c
}

// after picks the keys of those attempts that have so many before them.
func (c columns) after(earlier int32) (hashes [][]byte, attempts []int32) {
	for i, attempt := range c.attempt {
		if attempt >= earlier {
			hashes, attempts = append(hashes, c.stepHash[i]), append(attempts, attempt)
		}
	}
	return hashes, attempts
}

// stepHash stands for a step key in the index; 128 bits tell a run's keys apart.
func stepHash(stepKey string) []byte {
	sum := sha256.Sum256([]byte(stepKey))
	return sum[:16]
}

func digestBytes(d stepfleet.Digest) []byte {
	raw, _ := hex.DecodeString(string(d)) // valid: checked at submit
	return raw
}

func sortedPayloads(in map[stepfleet.Digest][]byte) (digests, payloads [][]byte) {
	keys := make([]stepfleet.Digest, 0, len(in))
	for d := range in {
		keys = append(keys, d)
	}
	slices.SortFunc(keys, func(a, b stepfleet.Digest) int { return cmp.Compare(a, b) })
	for _, d := range keys {
		digests = append(digests, digestBytes(d))
		payloads = append(payloads, append([]byte{}, in[d]...)) // an empty one is not NULL
	}
	return digests, payloads
}

func validRunID(id string) error {
	if id == "" || len(id) > maxRunIDBytes || clean(id) != id {
		return fmt.Errorf("%w: run_id must be 1 to %d bytes of UTF-8 without a zero byte", stepfleet.ErrTaskInvalid, maxRunIDBytes)
	}
	return nil
}

// validateBatch refuses what could not be stored. The server has refused single bad tasks before;
// here a bad one is a bug of the caller and refuses the batch, before the database is asked.
func validateBatch(b stepfleet.Batch) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", stepfleet.ErrTaskInvalid, fmt.Sprintf(format, args...))
	}
	if err := validRunID(b.RunID); err != nil {
		return err
	}
	if len(b.Tasks) > stepfleet.MaxBatchTasks {
		return bad("%d tasks in one batch, allowed are %d", len(b.Tasks), stepfleet.MaxBatchTasks)
	}
	for _, t := range b.Tasks {
		if err := t.Validate(); err != nil {
			return err
		}
		switch {
		case t.RunID != b.RunID:
			return bad("task %s is of another run", t.Key)
		case (b.Epoch == stepfleet.NoExecutor) != (t.Kind == stepfleet.KindRun):
			return bad("task %s of kind %s by executor %d: steps need an executor's epoch, run workers none", t.Key, t.Kind, b.Epoch)
		case !utf8.ValidString(t.StepKey):
			return bad("step_key %q is not UTF-8", t.StepKey)
		case t.Attempt != int(int32(t.Attempt)) || t.Priority != int(int32(t.Priority)):
			return bad("attempt or priority of task %s is out of range", t.Key)
		}
		if err := stepfleet.ValidateQueue(t.Queue); err != nil {
			return bad("task %s: %v", t.Key, err)
		}
	}
	for d, data := range b.Payloads {
		if len(data) > stepfleet.MaxPayloadBytes {
			return fmt.Errorf("%w: payload %s has %d bytes", stepfleet.ErrPayloadTooBig, d, len(data))
		}
		if stepfleet.DigestOf(data) != d {
			return bad("payload is not of digest %s", d)
		}
	}
	return nil
}
