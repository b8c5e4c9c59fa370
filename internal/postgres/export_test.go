package postgres

// SQL gives tests the hot statements, to look at their plans.
var SQL = struct{ Claim, ClaimMore, LockTasks, Start, Settle, Release, Held, RunTasks, Orphans, Decide, Poison string }{
	claim, claimMore, lockTasks, start, settle, release, held, viewsOfRun, orphans, decide, poison,
}
