// Package failpoint names the edges of the protocol, at which a process can be made to fail: before and
// after each act that others rest on, such as a commit, a bell, the start of a process or the answer to
// one. `make failpoints` has a real server and a real worker killed, paused and refused at each of them
// (docs/failpoints.md).
//
// The product has none of them: without the build tag "failpoint" Hit and what stands around the ports
// do nothing, and are not compiled. With the tag, the environment variable STEPFLEET_FAILPOINT says where
// a process fails, as in claim.after=kill@1: of what the point claim.after sees, the first kills it.
package failpoint

const (
	// Variable says where a process that is built with the tag fails: POINT=ACTION@N, several by comma.
	Variable = "STEPFLEET_FAILPOINT"
	// ArmedVariable may name a file: points see nothing as long as it is not there.
	ArmedVariable = "STEPFLEET_FAILPOINT_ARMED"
)

// The actions. What a paused process waits for is SIGCONT. An error is that of something that could not
// be reached: before the act, so that it has not happened; after it, so that its answer is lost.
const (
	Kill  = "kill"
	Pause = "pause"
	Error = "error"
)

// Actions are all of them.
var Actions = []string{Kill, Pause, Error}
