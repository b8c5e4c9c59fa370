//go:build mutant

package mutant

import "strings"

// change replaces a part of one statement.
type change struct {
	statement string // how the statement can be told
	old, new  string
}

const (
	settleStatement     = "'settle', 'session '"
	startStatement      = "'start', 'session '"
	sweepStatement      = "THEN 'poison' ELSE 'sweep' END"
	expireStatement     = "renewed_at <= $2::timestamptz - run_lease AS over"
	submitStatement     = "'submit', $18"
	receiptsStatement   = "WITH ORDINALITY g (step_hash, attempt, ord)\nJOIN stepfleet.task t"
	takeoverStatement   = "coalesce((SELECT epoch FROM taken), 0)"
	adjudicateStatement = "INSERT INTO stepfleet.adjudication"
	renewStatement      = "SET renewed_at = clock_timestamp(), state = 'alive'"
	lockSession         = "SELECT state FROM stepfleet.session WHERE id = $1 AND instance = $2 FOR NO KEY UPDATE"
)

// changes are the mutants of the ledger's statements.
var changes = map[string][]change{
	"settle-by-id": {
		{settleStatement, "WHEN t.fence = g.fence AND t.session_id = $1 AND t.state NOT IN ('queued', 'leased') THEN ''", "WHEN t.id IS NOT NULL THEN ''"},
		{settleStatement, "verdict = '' AND state = 'running'", "verdict = ''"},
	},
	"settle-by-state": {
		{settleStatement, "WHEN t.fence = g.fence AND t.session_id = $1 AND t.state NOT IN ('queued', 'leased') THEN ''", "WHEN t.state NOT IN ('queued', 'leased') THEN ''"},
	},
	"start-without-compare": {
		{startStatement, "WHEN t.state = 'leased' AND t.fence = g.fence AND t.session_id = $1", "WHEN t.state = 'leased'"},
	},
	"start-in-a-closed-run": {
		{startStatement, "'leased' AND t.fence = g.fence AND t.session_id = $1\n            THEN CASE WHEN r.state = 'closed' AND (r.closed_by = 0 OR t.kind = 'step') THEN 'run_closed' ELSE '' END", "'leased' AND t.fence = g.fence AND t.session_id = $1 THEN ''"},
	},
	"submit-to-a-closed-run": {
		{submitStatement, "WHEN r.state = 'closed' AND ($17 <> 0 OR r.closed_by = 0) THEN 'run_closed'", ""},
	},
	"submit-acked-before-commit": {
		{receiptsStatement, "FROM unnest($2", "FROM (SELECT set_config('synchronous_commit', 'off', true) AS soon) o JOIN unnest($2"},
		{receiptsStatement, "g (step_hash, attempt, ord)\n", "g (step_hash, attempt, ord) ON o.soon <> ''\n"},
	},
	"takeover-in-any-order": {
		{takeoverStatement, "WHEN resume > $5 THEN 'superseded' ", ""},
	},
	"sweep-from-a-stale-read": {
		{sweepStatement, "LIMIT $2 FOR NO KEY UPDATE OF t SKIP LOCKED", "LIMIT $2"},
	},
	"sweep-in-one-statement": {
		{sweepStatement, "(s.state IN ('suspect', 'dead') OR", "(s.state = 'dead' AND s.end_reason NOT LIKE 'no renewal%' OR"},
		{expireStatement, ")\nUPDATE stepfleet.session s SET", "), marked AS (UPDATE stepfleet.session s SET"},
		{expireStatement, "FROM judged j WHERE s.id = j.id\nRETURNING", sweepOfMarked},
		{expireStatement, "extract(epoch FROM s.run_lease)::float8", "extract(epoch FROM s.run_lease)::float8 FROM marked s"},
	},
	"rerun-of-a-running-task": {
		{sweepStatement, "WHERE t.state = 'leased' AND", "WHERE t.state IN ('leased', 'running') AND"},
	},
	"sweep-keeps-the-fence": {
		{sweepStatement, "fence = t.fence + 1, deaths", "deaths"},
	},
	"poison-counts-drains": {
		{sweepStatement, "(s.state = 'dead' AND NOT s.draining)", "(s.state = 'dead')"},
	},
	"audit-row-dropped": {
		{settleStatement, "'running', outcome, fence, '', '' FROM won", "'running', outcome, fence, '', '' FROM won WHERE outcome <> 'failed'"},
	},
	"adjudicate-without-epoch": {
		{adjudicateStatement, "THEN 'superseded' ELSE", "THEN '' ELSE"},
	},
	"dead-session-revived": {
		{renewStatement, "AND state <> 'dead'", ""},
		{lockSession, "SELECT state FROM", "SELECT 'alive' FROM"},
	},
}

// sweepOfMarked ends the marking of sessions with the sweep of what they hold, in its own snapshot.
const sweepOfMarked = `FROM judged j WHERE s.id = j.id RETURNING s.*
), moved AS (
    UPDATE stepfleet.task t SET state = 'queued', fence = t.fence + 1, session_id = NULL, claimed_at = NULL
    FROM stepfleet.held h, marked s
    WHERE t.state = 'leased' AND h.session_id = s.id AND h.task_id = t.id AND t.session_id = s.id
    RETURNING t.*, s.id AS owner
), rdy AS (
    INSERT INTO stepfleet.ready (lane, priority, turn, task_id, code_location, since)
    SELECT queue, priority, turn, id, code_location, submitted_at FROM moved
), freed AS (
    DELETE FROM stepfleet.held h USING moved m WHERE h.session_id = m.owner AND h.task_id = m.id
), aud AS (
    INSERT INTO stepfleet.audit (task_id, run_id, verb, actor, from_state, to_state, fence, detail)
    SELECT id, run_id, 'sweep', 'server', 'leased', 'queued', fence, '' FROM moved
)
SELECT`

// Misfit is in what a process says whose mutant would be none.
const Misfit = "does not fit the product any more"

// Rewrite returns the statement as the chosen mutant has it. A change that does not fit its statement
// any more stops the process: the mutant would be none.
func Rewrite(sql string) string {
	for _, c := range changes[chosen] {
		if !strings.Contains(sql, c.statement) {
			continue
		}
		if strings.Count(sql, c.old) != 1 {
			panic("mutant " + chosen + " " + Misfit + ": its statement does not have, once: " + c.old)
		}
		sql = strings.Replace(sql, c.old, c.new, 1)
	}
	return sql
}
