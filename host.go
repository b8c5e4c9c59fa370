package stepfleet

import "context"

// Job is a task on its way to a process.
type Job struct {
	Lease
	Payload []byte
	// Env is set in the process before anything of the user's runs.
	Env map[string]string
}

// Gate answers a step process's questions. Both methods may wait for the ledger to come back;
// any error means that the process must end at once and write nothing more.
type Gate interface {
	// Start asks whether user code may begin. Nil means that the start is recorded.
	Start(ctx context.Context) error
	// Event asks whether an ending or output event may be written to Dagster's log. Name is
	// Dagster's, such as STEP_SUCCESS.
	Event(ctx context.Context, name string) error
}

// Exit is how a step process ended.
type Exit struct {
	// Result is what the process reported; nil when it ended without a word.
	Result *Result
	// Status is the exit status, or minus the signal.
	Status int
	// PID is the number of the process, which led a group of that number.
	PID int
	// HostDied says that the process was taken down by the end of what had started it, and not by
	// anything of its own.
	HostDied bool
}

// Process is one step process. Its methods may be called at any time, also after its end.
type Process interface {
	// Warm says whether the process waited ready when the job came. One that was started for it, or
	// had to be waited for, was not.
	Warm() bool
	// Terminate asks the process to stop, with SIGTERM, as Dagster's own executors do.
	Terminate()
	// Interrupt asks once more, with SIGINT, for which a step that ignores SIGTERM may still have
	// Dagster's handler: the step then ends with an event.
	Interrupt()
	// Kill ends the process and everything in its process group.
	Kill()
	// Ended is closed when the process has told its result because Dagster's log has the step's
	// ending event. It goes on, with hooks and resources: however it ends, that is how the step has
	// ended. Exit holds the result from then on.
	Ended() <-chan struct{}
	// Lingers is closed when nothing is left of the step but threads that outlive it. The process has
	// told its result again. It is not closed where there are none.
	Lingers() <-chan struct{}
	// Reported is closed when the process has told its result, which is its last word: nothing
	// that it does from then on matters, and it may be killed. Exit holds the result from then on.
	Reported() <-chan struct{}
	// Done is closed when the process and its group are gone; Exit is valid from then on.
	Done() <-chan struct{}
	Exit() Exit
}

// Host runs step processes, one task each.
type Host interface {
	// Available returns a channel that is closed when processes can be had, or when it is known
	// that they cannot. Workers claim only then: a task that waits for a template to load could
	// run elsewhere. Ask again before each claim.
	Available() <-chan struct{}
	// Down returns the code locations that do not load here, by Dagster's names for them. Workers
	// leave their tasks to others. Ask again before each claim.
	Down() []string
	// Launch hands the job to an idle process. An error means that no process could be had and
	// that nothing of the job has run. The process asks the gate until it is gone.
	Launch(ctx context.Context, job Job, gate Gate) (Process, error)
}
