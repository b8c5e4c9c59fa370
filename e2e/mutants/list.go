//go:build mutant

package main

// seeded is one mutant: what it lacks, and which layer, by which of its tests, is likely to catch it.
type seeded struct {
	name, lacks  string
	layer, tests string
	python       bool // of the plugin: its code is in hooks/
}

var mutants = []seeded{
	{name: "settle-by-id", lacks: "an outcome counts only under the fence and for a running task", layer: "conformance", tests: ledgers},
	{name: "settle-by-state", lacks: "an outcome counts only under the fence", layer: "conformance", tests: ledgers},
	{name: "start-without-compare", lacks: "a start is compared with the fence and the owner", layer: "conformance", tests: ledgers},
	{name: "start-in-a-closed-run", lacks: "nothing starts once its run is closed", layer: "postgres", tests: "TestARunThatIsBeingClosed"},
	{name: "submit-to-a-closed-run", lacks: "a closed run takes no task", layer: "conformance", tests: ledgers},
	{name: "rerun-of-a-running-task", lacks: "user code that has begun is never begun again", layer: "conformance", tests: ledgers},
	{name: "sweep-keeps-the-fence", lacks: "who loses a task is fenced", layer: "conformance", tests: ledgers},
	{name: "poison-counts-drains", lacks: "a worker that drains is no sign of poison", layer: "conformance", tests: ledgers},
	{name: "audit-row-dropped", lacks: "every transition has its audit row", layer: "conformance", tests: ledgers},
	{name: "adjudicate-without-epoch", lacks: "only the run's current executor says how attempts ended", layer: "conformance", tests: ledgers},
	{name: "takeover-in-any-order", lacks: "an executor of an earlier resume does not take the run back", layer: "conformance", tests: ledgers},
	{name: "dead-session-revived", lacks: "a dead session stays dead", layer: "conformance", tests: ledgers},
	{name: "sweep-from-a-stale-read", lacks: "the sweep reads the task again under its lock", layer: "postgres", tests: "TestASweepTakes"},
	{name: "sweep-in-one-statement", lacks: "marking a session is committed before what it holds is read", layer: "postgres", tests: "TestWhatAClaimGets"},
	{name: "close-after-cancel", lacks: "a run is closed before its tasks are cancelled", layer: "postgres", tests: "TestARunThatIsBeingClosed"},
	{name: "submit-acked-before-commit", lacks: "an answer means that the commit is on disk", layer: "postgres", tests: "TestKilledServer"},
	{name: "bell-before-claim", lacks: "a bell is answered once its claim is committed", layer: "worker", tests: "TestABell"},
	{name: "dedup-by-place", lacks: "each bell on a FIFO queue has an id of its own", layer: "sqs"},
	{name: "wall-clock-lease", lacks: "the lease is counted on a clock that goes on in suspend", layer: "worker", tests: "Suspend"},
	{name: "no-self-fence", lacks: "a worker kills what runs before its run lease is over", layer: "worker", tests: "RunLease"},
	{name: "grant-without-lease", lacks: "an event is granted only while the lease outlasts its write", layer: "worker", tests: "Granted"},
	{name: "abandoned-is-failed", lacks: "of an end that may be in Dagster's log the log decides", layer: "worker", tests: "Abandon"},
	{name: "repair-ignores-log", lacks: "an end that Dagster's log has is the attempt's end", layer: "dispatch", tests: "Repair"},
	{name: "servers-clock", lacks: "sessions expire by the ledger's clock alone", layer: "dispatch", tests: "LedgersClock"},
	{name: "sweep-without-heartbeat", lacks: "only a sweeper whose own beats went through expires sessions", layer: "dispatch", tests: "Sweeper"},
	{name: "no-death-signal", lacks: "children die with the process that forked them", layer: "python", tests: "test_host.py::test_children_die_with_the_template", python: true},
	{name: "child-reused", lacks: "a process runs one task", layer: "python", tests: "test_host.py::test_a_process_runs_one_task", python: true},
	{name: "no-event-gate", lacks: "each event is granted before it is written", layer: "python", tests: "test_host.py::test_refused_child_ends_without_writing", python: true},
	{name: "lost-is-retried", lacks: "a lost attempt is retried only where that was asked for", layer: "python", tests: "test_executor.py::test_lost_step_without_budget_fails", python: true},
	{name: "unread-end-ignored", lacks: "the log is read again before a step is called dead", layer: "python", tests: "test_events.py::test_unseen_ending", python: true},
}

// ledgers are the tests that hold PostgreSQL's ledger against the rules and against the one in memory.
const ledgers = "TestConformance$|TestSameAsInMemory$"
