//go:build mutant

package main

// seeded is one mutant: what it lacks, and which layer, by which of its tests, is likely to catch it.
type seeded struct {
	name, lacks  string
	layer, tests string
	row8         bool // it is one of the bugs that the tests were built to find
	python       bool // of the plugin: its code is in hooks/
}

var mutants = []seeded{
	{name: "settle-by-id", lacks: "an outcome counts only under the fence and for a running task", layer: "properties", tests: random, row8: true},
	{name: "settle-by-state", lacks: "an outcome counts only under the fence", layer: "properties", tests: random, row8: true},
	{name: "start-without-compare", lacks: "a start is compared with the fence and the owner", layer: "properties", tests: random, row8: true},
	{name: "submit-to-a-closed-run", lacks: "a closed run takes no task", layer: "properties", tests: random, row8: true},
	{name: "poison-counts-drains", lacks: "a worker that drains is no sign of poison", layer: "properties", tests: poison},
	{name: "audit-row-dropped", lacks: "every transition has its audit row", layer: "properties", tests: random, row8: true},
	{name: "adjudicate-without-epoch", lacks: "only the run's current executor says how attempts ended", layer: "properties", tests: random},
	{name: "takeover-in-any-order", lacks: "an executor of an earlier resume does not take the run back", layer: "properties", tests: random},
	{name: "dead-session-revived", lacks: "a dead session stays dead", layer: "properties", tests: random},
	{name: "sweep-from-a-stale-read", lacks: "the sweep reads the task again under its lock", layer: "properties", tests: races, row8: true},
	{name: "sweep-in-one-statement", lacks: "marking a session is committed before what it holds is read", layer: "properties", tests: races, row8: true},
	{name: "close-after-cancel", lacks: "a run is closed before its tasks are cancelled", layer: "properties", tests: races},
	{name: "submit-acked-before-commit", lacks: "an answer means that the commit is on disk", layer: "properties", tests: crashes, row8: true},
	{name: "grant-without-lease", lacks: "an event is granted only while the lease outlasts its write", layer: "sim"},
	{name: "servers-clock", lacks: "sessions expire by the ledger's clock alone", layer: "sim", row8: true},
	{name: "sweep-without-heartbeat", lacks: "only a sweeper whose own beats went through expires sessions", layer: "sim"},
	{name: "start-in-a-closed-run", lacks: "nothing starts once its run is closed", layer: "failpoints", tests: "reconcile.before=error", row8: true},
	{name: "rerun-of-a-running-task", lacks: "user code that has begun is never begun again", layer: "failpoints", tests: "sweep.before=error"},
	{name: "sweep-keeps-the-fence", lacks: "who loses a task is fenced", layer: "failpoints", tests: "sweep.before=error"},
	{name: "bell-before-claim", lacks: "a bell is answered once its claim is committed", layer: "failpoints", tests: "return.before=error", row8: true},
	{name: "dedup-by-place", lacks: "each bell on a FIFO queue has an id of its own", layer: "failpoints", tests: "ring.before=error", row8: true},
	{name: "wall-clock-lease", lacks: "the lease is counted on a clock that goes on in suspend", layer: "failpoints", tests: "gate_event.before=pause", row8: true},
	{name: "no-self-fence", lacks: "a worker kills what runs before its run lease is over", layer: "failpoints", tests: "fence.before=kill"},
	{name: "abandoned-is-failed", lacks: "of an end that may be in Dagster's log the log decides", layer: "failpoints", tests: "decide.before=error"},
	{name: "repair-ignores-log", lacks: "an end that Dagster's log has is the attempt's end", layer: "failpoints", tests: "decide.before=error"},
	{name: "no-death-signal", lacks: "children die with the process that forked them", layer: "chaos", tests: "deaths", row8: true, python: true},
	{name: "child-reused", lacks: "a process runs one task", layer: "chaos", tests: "slow-log", row8: true},
	{name: "no-event-gate", lacks: "each event is granted before it is written", layer: "chaos", tests: "late-worker", python: true},
	{name: "lost-is-retried", lacks: "a lost attempt is retried only where that was asked for", layer: "chaos", tests: "deaths", row8: true, python: true},
	{name: "unread-end-ignored", lacks: "the log is read again before a step is called dead", layer: "chaos", tests: "slow-log", python: true},
}

const (
	// random holds PostgreSQL's ledger against the one in memory, call by call, and its history against the
	// table of transitions.
	random = "TestSameAsInMemory$"
	// races are calls that meet, and what must be true whoever was first.
	races = "TestConformance/(start|claim|submit|settle|takeover)_against"
	// poison needs several deaths of one task, which random calls seldom give it.
	poison  = "TestConformance/a_lease_that_five_sessions"
	crashes = "TestWhatWasAnsweredOutlivesCrashes$"
	ledgers = "TestConformance$|" + random + "|" + crashes
)
