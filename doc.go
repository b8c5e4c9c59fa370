// Package stepfleet is the vocabulary of the execution plane for Dagster: the words, the state
// machine of a task, and the ports (small interfaces with their error contracts) that the roles
// are written against. It imports the standard library only. Read it first, in this order:
//
//   - task.go: what a task and its result are, as they travel;
//   - state.go: the states of a task and every legal transition, as data;
//   - session.go: a worker's life in the ledger, its two deadlines;
//   - ledger.go: the ledger, the only authority, as each of its users sees it;
//   - host.go: step processes, and the questions they ask before they act;
//   - queue.go: bells, which say "there is work" and nothing more;
//   - orchestrator.go: what the server asks of Dagster;
//   - errors.go: every refusal, with its code and what it means to a caller.
//
// The path of a step, in one line:
//
//	submit -> bell -> claim -> start -> settle -> notify
//
// Roles (internal/dispatch, internal/worker) import only this package. Adapters
// (internal/postgres, internal/sqs, internal/memory, internal/pyhost) import it and one outside
// thing each. Only cmd/stepfleet wires them together.
//
// The promise: user code of one (run, step, attempt) is started at most once; its outcome is
// recorded exactly once. External effects belong to the user, who gets a stable idempotency key
// and the fence to make them safe.
package stepfleet
