package schedule

// Kind is a kind of fault.
type Kind string

// The kinds. A kill is kill -9 of one process, a pause is SIGSTOP and later SIGCONT.
const (
	KillServer    Kind = "kill-server"
	KillWorker    Kind = "kill-worker"
	KillTemplate  Kind = "kill-template"
	KillChild     Kind = "kill-child"
	KillEnding    Kind = "kill-ending" // a step's process when its user code has just ended
	KillEnded     Kind = "kill-ended"  // the same when Dagster's log has its end, and the worker not yet
	KillRunWorker Kind = "kill-run-worker"
	KillAWS       Kind = "kill-aws"
	KillDaemon    Kind = "kill-daemon"
	KillWebserver Kind = "kill-webserver"
	KillCode      Kind = "kill-code-server"

	PauseServer    Kind = "pause-server"
	PauseWorker    Kind = "pause-worker"
	PauseHost      Kind = "pause-host"  // a worker with its template and children
	FreezeHost     Kind = "freeze-host" // the same for longer than the run lease
	PauseTemplate  Kind = "pause-template"
	PauseChild     Kind = "pause-child"
	PauseRunWorker Kind = "pause-run-worker"
	PauseAWS       Kind = "pause-aws"
	PauseDaemon    Kind = "pause-daemon"
	PauseWebserver Kind = "pause-webserver"
	PauseCode      Kind = "pause-code-server"

	PostgresRestart Kind = "postgres-restart" // immediate: no checkpoint, every connection is lost
	PostgresPause   Kind = "postgres-pause"

	LinkCut      Kind = "link-cut"
	LinkStall    Kind = "link-stall"
	LinkHalfOpen Kind = "link-half-open"
	LinkReset    Kind = "link-reset"
	LinkDelay    Kind = "link-delay"

	SQSError     Kind = "sqs-error"
	SQSThrottle  Kind = "sqs-throttle"
	SQSLoss      Kind = "sqs-loss"
	SQSDuplicate Kind = "sqs-duplicate"
	SQSReorder   Kind = "sqs-reorder"
	SQSOutage    Kind = "sqs-outage"
	SQSPurge     Kind = "sqs-purge"

	ClockOffset    Kind = "clock-offset" // a step of the wall clock of a process that runs
	Cancel         Kind = "cancel"
	RollingRestart Kind = "rolling-restart" // SIGTERM to each worker, one after another

	// A worker stops with a task in its hands until that is another's, and then goes on.
	ZombieLease Kind = "zombie-lease" // before the start, over its session TTL
	ZombieRun   Kind = "zombie-run"   // after it, over its run lease
)

// hold says how long a kind lasts.
type hold int

const (
	holdNone  hold = iota // it heals by itself: somebody starts the process again
	holdPause             // 0.5 to 3 TTL
	holdLease             // a second to half a run lease longer than the run lease
	holdLink              // 0.3 to 2 TTL
	holdShort             // 1 to 4 s
)

// traits of a kind.
type traits struct {
	group  string // kinds of one group take turns at the victims
	hold   hold
	heavy  bool // not drawn, but at its own rate: recovery takes seconds of processor
	weight int  // of the draw of what is more than the least; 0 for a heavy one
}

// about has the traits of every kind. Workers are paused, frozen and restarted in one turn, and
// are killed in another, so that no run loses its run worker again and again, and kills meet workers
// with and without proof of death.
var about = map[Kind]traits{
	KillServer:    {group: "server", weight: 1},
	KillWorker:    {group: "kill-worker", heavy: true},
	KillTemplate:  {group: "template", heavy: true},
	KillChild:     {group: "child", weight: 2},
	KillEnding:    {group: "child", weight: 2},
	KillEnded:     {group: "child", weight: 2},
	KillRunWorker: {group: "run-worker", heavy: true},
	KillAWS:       {group: "aws", weight: 1},
	KillDaemon:    {group: "daemon", heavy: true},
	KillWebserver: {group: "webserver", heavy: true},
	KillCode:      {group: "code", heavy: true},

	PauseServer:    {group: "server", hold: holdPause, weight: 2},
	PauseWorker:    {group: "worker", hold: holdPause, weight: 2},
	PauseHost:      {group: "worker", hold: holdPause, weight: 2},
	FreezeHost:     {group: "worker", hold: holdLease, heavy: true},
	PauseTemplate:  {group: "template", hold: holdPause, weight: 2},
	PauseChild:     {group: "child", hold: holdPause, weight: 3},
	PauseRunWorker: {group: "run-worker", hold: holdPause, weight: 2},
	PauseAWS:       {group: "aws", hold: holdPause, weight: 2},
	PauseDaemon:    {group: "daemon", hold: holdPause, weight: 1},
	PauseWebserver: {group: "webserver", hold: holdPause, weight: 1},
	PauseCode:      {group: "code", hold: holdPause, weight: 1},

	PostgresRestart: {group: "postgres", heavy: true},
	PostgresPause:   {group: "postgres", hold: holdPause, heavy: true},

	LinkCut:      {group: "link", hold: holdLink, weight: 6},
	LinkStall:    {group: "link", hold: holdLink, weight: 5},
	LinkHalfOpen: {group: "link", hold: holdLink, weight: 5},
	LinkReset:    {group: "link", hold: holdLink, weight: 12},
	LinkDelay:    {group: "link", hold: holdLink, weight: 5},

	SQSError:     {group: "sqs", hold: holdShort, weight: 3},
	SQSThrottle:  {group: "sqs", hold: holdShort, weight: 3},
	SQSLoss:      {group: "sqs", hold: holdShort, weight: 4},
	SQSDuplicate: {group: "sqs", hold: holdShort, weight: 4},
	SQSReorder:   {group: "sqs", hold: holdShort, weight: 3},
	SQSOutage:    {group: "sqs", hold: holdShort, weight: 2},
	SQSPurge:     {group: "sqs", weight: 2},

	ClockOffset:    {group: "clock", weight: 4},
	Cancel:         {group: "cancel", weight: 1},
	RollingRestart: {group: "worker", heavy: true},

	ZombieLease: {group: "zombie", weight: 1},
	ZombieRun:   {group: "zombie", weight: 1},
}

// Kinds are all of them, in the order of the list above.
var Kinds = []Kind{
	KillServer, KillWorker, KillTemplate, KillChild, KillEnding, KillEnded, KillRunWorker, KillAWS, KillDaemon, KillWebserver, KillCode,
	PauseServer, PauseWorker, PauseHost, FreezeHost, PauseTemplate, PauseChild, PauseRunWorker, PauseAWS, PauseDaemon, PauseWebserver, PauseCode,
	PostgresRestart, PostgresPause,
	LinkCut, LinkStall, LinkHalfOpen, LinkReset, LinkDelay,
	SQSError, SQSThrottle, SQSLoss, SQSDuplicate, SQSReorder, SQSOutage, SQSPurge,
	ClockOffset, Cancel, RollingRestart,
	ZombieLease, ZombieRun,
}
